"""One rule decides in folders, archives and every command which files are images; nothing else is dropped silently."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.data.archives import unpack_if_archive
from alexnet.data.image_folder import find_images, scan_images, walk_folder
from alexnet.data.image_names import IMAGE_SUFFIXES, is_hidden, is_image
from alexnet.data.quality.check import check_dataset
from alexnet.errors import UserError


def encoded(format: str, seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


# Names as downloads, editors and MNIST-like sets have them.
ODD_NAMES = ("00", "x.jpg?w=640", "a.jpg_large", "b.JPG~", "c.jfif", "d.jpg.1", "photo no. 5", "e.bin")
OTHERS = {"notes.txt": b"BM is short for bitmap", "data.json": b"{}", "empty": b"", "IMG_1.CR2": b"II*\0raw"}
HIDDEN = ("._1.jpg", ".DS_Store", "Thumbs.db")
HIDDEN_FOLDERS = (".ipynb_checkpoints", "@eaDir", ".Trash-1000", "$RECYCLE.BIN", "__MACOSX", "lost+found")


def contents(seed: int = 0) -> dict[str, bytes]:
    """Eight images, four other files, and hidden ones, by name."""
    image = encoded("JPEG", seed)
    files = {name: encoded("JPEG", seed + i) for i, name in enumerate(ODD_NAMES)} | OTHERS
    return files | dict.fromkeys(HIDDEN, image) | {f"{folder}/1.jpg": image for folder in HIDDEN_FOLDERS}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def classes() -> dict[str, bytes]:
    """Two class folders with `contents`, and hidden folders next to them."""
    files = {f"{label}/{name}": data for i, label in enumerate("ab") for name, data in contents(100 * i).items()}
    return files | {f"{folder}/1.jpg": encoded("JPEG") for folder in HIDDEN_FOLDERS}


@pytest.fixture(params=["folder", "zip", "tar"])
def data(request, tmp_path, monkeypatch) -> Path:
    """`classes()` in each form."""
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    path = tmp_path / f"pets.{request.param}"
    if request.param == "folder":
        return write(path, classes())
    if request.param == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in classes().items():
                archive.writestr(f"pets/{name}", content)
    else:
        with tarfile.open(path, "w") as tar:
            tar.add(write(tmp_path / "source", classes()), "pets")
    return path


def test_training_and_check_find_the_same_images_and_name_the_others(data):
    dataset = scan_images(data, None)
    names = {f"{label}/{name}" for label in "ab" for name in ODD_NAMES}
    assert dataset.classes == ("a", "b")
    assert set(dataset.splits["train"].names) == names
    note = next(note for note in dataset.notes if "8 files" in note)
    assert "a/notes.txt" in note or "a/data.json" in note
    found = check_dataset(data)
    assert set(found.names) == names
    assert not found.bad
    assert note in found.notes


def test_prediction_finds_the_same_images_and_names_the_others(tmp_path):
    folder = write(tmp_path / ".hidden parents do not matter", classes())
    ignored: list[str] = []
    found = find_images([folder], ignored)
    assert {path.relative_to(folder).as_posix() for path in found} == {f"{c}/{n}" for c in "ab" for n in ODD_NAMES}
    assert sorted(ignored) == sorted(str(folder / c / name) for c in "ab" for name in OTHERS)
    assert found == sorted(found)
    assert find_images([folder / "a" / "._1.jpg"]) == [folder / "a" / "._1.jpg"]  # named explicitly
    with pytest.raises(UserError, match=r"holds no images.* 1 file .*notes\.txt"):
        find_images([write(tmp_path / "none", {"notes.txt": b"x"})])


def test_linked_folders_are_named_by_prediction(tmp_path):
    folder = write(tmp_path / "folder", {"1.jpg": encoded("JPEG")})
    (folder / "link").symlink_to(write(tmp_path / "other", {"2.jpg": b"2"}), target_is_directory=True)
    ignored: list[str] = []
    assert find_images([folder], ignored) == [folder / "1.jpg"]
    assert ignored == [f"{folder / 'link'} (a link)"]


def test_links_that_lead_nowhere_and_pipes_are_named(tmp_path):
    files = {"a/1.jpg": encoded("JPEG"), "b/1.jpg": encoded("JPEG")}
    folder = write(tmp_path / "folder", files)
    for name in ("loop", "a/loop", "a/loop.jpg"):
        (folder / name).symlink_to(Path(name).name)
    (folder / "parent").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "b" / "pipe.jpg")
    found = walk_folder(folder)
    assert found.classes == {"all": {"a": ["a/1.jpg", "a/loop.jpg"], "b": ["b/1.jpg"]}}
    assert (found.others, found.links) == (["loop", "a/loop", "b/pipe.jpg"], ["parent"])
    ignored: list[str] = []
    assert find_images([folder], ignored) == [folder / name for name in ("a/1.jpg", "a/loop.jpg", "b/1.jpg")]
    assert ignored == [str(folder / name) for name in found.others] + [f"{folder / 'parent'} (a link)"]
    bad = check_dataset(folder).bad
    assert [name for name, _ in bad] == ["a/loop.jpg"]


def test_links_in_archives_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(write(tmp_path / "source", {"a/1.jpg": encoded("JPEG"), "b/1.jpg": encoded("JPEG")}), ".")
        link = tarfile.TarInfo("b/2.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "1.jpg"
        tar.addfile(link)
    assert walk_folder(unpack_if_archive(tmp_path / "a.tar")).others == ["b/2.jpg (a link or device)"]


def test_images_beside_the_class_folders_are_named_by_training(tmp_path):
    files = {"train/a/1.jpg": b"", "train/b/1.jpg": b"", "train/2.jpg": b"", "3.jpg": b"", "readme": b"text"}
    notes = scan_images(write(tmp_path, files), None).notes
    assert any("in no class: 3.jpg, train/2.jpg" in note for note in notes)
    assert any("readme" in note for note in notes)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_formats_are_recognized_by_their_start(format, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(encoded(format))
    assert is_image(str(path))


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"\0\0\0\x1cftypheic\0\0\0\0", True), (b"\0\0\0\x1cftypavif\0\0\0\0", True), (b"\0\0\0\x1cftypisom", False),
        (b"MM\0*\0\0\0\x08", True), (b"II+\0\x08\0\0\0", True), (b"P1 is a pen", False), (b"P5 of 6", False),
        (b"RIFF\0\0\0\0WAVEfmt ", False), (b"BM\x10\0\0\0text", False), (b"%PDF-1.4", False), (b"PK\x03\x04", False),
        (b"", False), (b"\xff\xd8", False),
    ],
)  # fmt: skip
def test_starts(start, expected, tmp_path):
    (tmp_path / "file").write_bytes(start)
    assert is_image(str(tmp_path / "file")) is expected


def test_names():
    assert {".jpg", ".jpeg", ".png", ".webp", ".heic"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() for suffix in IMAGE_SUFFIXES)
    assert all(map(is_hidden, (*HIDDEN, *HIDDEN_FOLDERS, "$Recycle.Bin")))
    assert not any(map(is_hidden, ("cat", "$5", "1.jpg", "recycle")))
