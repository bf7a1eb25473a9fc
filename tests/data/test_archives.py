"""Archives are extracted completely or not at all, and only into the cache."""

import io
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from alexnet.data import archives
from alexnet.data.archives import unpack_if_archive
from alexnet.device import cache_dir
from alexnet.errors import UserError
from helpers import make_image_folder


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))


def write_zip(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return path


def list_files(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and p.name != ".ignored.txt"}


def test_only_images_and_tables_are_extracted_once(tmp_path):
    entries = {"pets/cat/1.JPG": b"1", "pets/dog/2.png": b"2", "pets/labels.csv": b"3", "pets/run.sh": b"4"}
    entries |= {"__MACOSX/pets/cat/._1.jpg": b"5", "pets/.hidden/3.jpg": b"6", "pets\\dog\\3.png": b"7"}
    archive = write_zip(tmp_path / "pets.zip", entries)
    calls = []
    folder = unpack_if_archive(archive, lambda *call: calls.append(call))
    assert folder.is_relative_to(cache_dir())
    assert list_files(folder) == {"cat/1.JPG", "dog/2.png", "dog/3.png", "labels.csv"}
    assert unpack_if_archive(archive) == folder
    write_zip(archive, {"pets/cat/9.jpg": b"another", "pets/dog/9.jpg": b"archive"})
    assert list_files(unpack_if_archive(archive)) == {"cat/9.jpg", "dog/9.jpg"}


def test_a_folder_is_returned_unchanged(tmp_path):
    assert unpack_if_archive(tmp_path) == tmp_path
    folder = make_image_folder(tmp_path / "folder.zip")
    assert unpack_if_archive(folder) == folder


def test_a_single_train_folder_is_not_skipped(tmp_path):
    folder = unpack_if_archive(write_zip(tmp_path / "a.zip", {"x/train/cat/1.jpg": b"1", "x/train/dog/1.jpg": b"1"}))
    assert list_files(folder) == {"train/cat/1.jpg", "train/dog/1.jpg"}


def path_outside(path: Path) -> Path:
    return write_zip(path, {"cat/1.jpg": b"1", "../../out.jpg": b"evil"})


def absolute_path(path: Path) -> Path:
    return write_zip(path, {"cat/1.jpg": b"1", "/tmp/alexnet-out.jpg": b"evil"})


def zip_bomb(path: Path) -> Path:
    return write_zip(path, {f"cat/{i}.bmp": bytes(1 << 20) for i in range(20)})


def damaged(path: Path) -> Path:
    write_zip(path, {"cat/1.jpg": bytes(range(256)) * 40, "dog/1.jpg": b"1"})
    data = bytearray(path.read_bytes())
    data[60:80] = bytes(20)
    path.write_bytes(data)
    return path


def web_page(path: Path) -> Path:
    path.write_text("<html>")
    return path


def encrypted(path: Path) -> Path:
    write_zip(path, {"cat/1.jpg": b"1"})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # the flag, in the entry and in the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (path_outside, "is unsafe: it would write to ../../out.jpg"),
        (absolute_path, "is unsafe: it would write to /tmp/alexnet-out.jpg"),
        (zip_bomb, "would unpack to more than"),
        (damaged, "is damaged or of an unknown kind"),
        (web_page, "is damaged or of an unknown kind"),
        (encrypted, "is encrypted"),
    ],
)
def test_bad_archives_leave_nothing_behind(make, message, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED", 1 << 20)
    archive = make(tmp_path / "a.zip")
    with pytest.raises(UserError, match="archive") as caught:
        unpack_if_archive(archive)
    assert message in str(caught.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.zip", "archives", "cache"]
    assert not Path("/tmp/alexnet-out.jpg").exists()


def test_an_archive_too_large_for_the_disk_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_RESERVED", 1 << 60)
    with pytest.raises(UserError, match="does not fit on the disk"):
        unpack_if_archive(write_zip(tmp_path / "a.zip", {"cat/1.jpg": b"1"}))


def test_links_and_devices_are_skipped(tmp_path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        for name, data in (("d/cat/1.jpg", b"1"), ("d/dog/1.jpg", b"2")):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            entry = tarfile.TarInfo(f"d/cat/{kind.decode()}.jpg")
            entry.type, entry.linkname = kind, str(secret)
            tar.addfile(entry)
    assert list_files(unpack_if_archive(tmp_path / "a.tar.gz")) == {"cat/1.jpg", "dog/1.jpg"}
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("cat/1.jpg", b"1")
        link = zipfile.ZipInfo("cat/2.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        file.writestr(link, str(secret))
    folder = unpack_if_archive(tmp_path / "a.zip")
    assert list_files(folder) == {"cat/1.jpg"}
    shutil.rmtree(folder)


def write_zip_without_flag(path: Path, names: list[bytes]) -> Path:
    """Write a zip with `names` as bytes that are not marked as UTF-8, as Windows and macOS do."""
    stand_ins = [f"{i:02d}".ljust(len(name), "x") for i, name in enumerate(names)]
    write_zip(path, dict.fromkeys(stand_ins, b"x"))
    data = path.read_bytes()
    for stand_in, name in zip(stand_ins, names, strict=True):
        data = data.replace(stand_in.encode(), name)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "gbk", "big5", "shift_jis", "cp437", "euc_kr"])
def test_names_of_a_zip_are_decoded(encoding, tmp_path):
    names = {"euc_kr": ("고양이/한국.jpg", "a/1.jpg"), "cp437": ("café/Bär.jpg", "a/1.jpg")}.get(
        encoding, ("大/小.jpg", "a/1.jpg")
    )
    archive = write_zip_without_flag(tmp_path / "a.zip", [name.encode(encoding) for name in names])
    given = None
    if encoding != "utf-8":
        with pytest.raises(UserError, match="a.zip is not UTF-8, and several encodings fit") as error:
            unpack_if_archive(archive)
        assert names[0].split("/")[0] in str(error.value)
        assert not list(cache_dir().rglob("*.jpg"))
        given = encoding
    assert list_files(unpack_if_archive(archive, encoding=given)) == set(names)
