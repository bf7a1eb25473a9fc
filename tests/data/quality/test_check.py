"""Every kind of damage is found in every kind of source, and nothing is reported for good data."""

import csv
import os
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from alexnet.data import decode
from alexnet.data.datasets import load_dataset
from alexnet.data.quality import check as check_module
from alexnet.data.quality.check import check_dataset
from alexnet.data.quality.clean import check_target, write_cleaned
from alexnet.data.quality.findings import PRETRAINED, Findings
from alexnet.errors import UserError
from alexnet.messages.translator import Translator
from damaged_images import CLASSES, damage_dataset, make_photos, split_photos
from helpers import data_folder, make_image, make_image_folder

REASONS = {  # for unreadable files
    "empty": "the file is empty",
    "cut short": "it is cut short",
    "web page": "web page",
    "bomb": "pixels",
    "no reader": "pillow-heif",
}
ANOMALIES = {  # of readable files
    "animated GIF": "animated",
    "animated WebP": "animated",
    "one pixel": "1×1",
    "16 bits": "more than 8 bits",
    "CMYK": "CMYK",
    "wrong extension": "it is PNG",
}


@pytest.fixture(autouse=True)
def no_heif(monkeypatch, tmp_path_factory):
    """Act as if pillow-heif were not installed, in this process and in those that it starts."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "pillow_heif.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    decode._readable_formats.cache_clear()
    yield
    decode._readable_formats.cache_clear()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_photos(tmp_path_factory.mktemp("photos"), 60)


@pytest.fixture(scope="module")
def damaged(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = split_photos(photos, tmp_path_factory.mktemp("damaged") / "data")
    return root, damage_dataset(root)


def assert_all_found(found: Findings, done: dict[str, str], stripped: bool = False) -> None:
    """Assert that all fifteen defects are found, and nothing else; `stripped` labels cannot differ in blanks."""
    document = found.to_dict()
    bad = {row["path"]: row["reason"] for row in document["bad"]}
    unusual = {row["path"]: row["reason"] for row in document["suspicious"]}
    for damage, reason in REASONS.items():
        assert reason in bad.pop(done[damage]), damage
    for damage, reason in ANOMALIES.items():
        assert reason in unusual.pop(done[damage]), damage
    assert bad == unusual == {}
    assert [found.names[i] for i, info in enumerate(found.infos) if info.turned] == [done["rotated"]]
    exact = sorted([done["exact copy"], done["the original of the exact copy"]])
    near = sorted([done["near copy"], done["the original of the near copy"]])
    assert sorted(map(sorted, document["duplicates"])) == sorted([exact, near])
    assert [sorted(pair) for pair in document["near_duplicates"]] == [near]
    assert sorted(map(sorted, document["across_splits"])) == sorted([exact, near])
    assert [sorted(pair) for pair in document["across_classes"]] == [exact]
    assert stripped != any("'cat' and 'cat '" in w or "'cat ' and 'cat'" in w for w in document["warnings"])
    assert len(REASONS) + len(ANOMALIES) + len(("rotated", "exact copy", "near copy", "label with a space")) == 15


def test_all_fifteen_damages_are_found(damaged):
    root, done = damaged
    found = check_dataset(root)
    assert_all_found(found, done)
    assert len(found.names) == sum(found.classes.values()) == 60 + 14
    assert found.blocking_error is None
    assert found.command == f"alexnet train folder --data {root} --skip-bad"


def test_heic_comes_first_and_reasons_are_counted(damaged, tmp_path):
    root = shutil.copytree(damaged[0], tmp_path / "data")
    for name in ("a.jpg", "b.jpg"):
        (root / "train" / CLASSES[0] / name).write_bytes(b"")
    (root / "train" / "nothing").mkdir()
    found = check_dataset(root)
    counts = [(reason, len(names)) for reason, names in found.by_reason.items()]
    assert counts[:2] == [(decode.NEEDS_HEIF, 1), ("the file is empty", 3)]
    assert found.warnings[0].startswith("HEIC: 1 image; after 'pip install pillow-heif' ")
    assert sum(n for _, n in counts) == len(found.bad) - 1  # without the empty folder
    assert "nothing" not in found.present
    assert "nothing" in found.classes
    shown = found._repr_html_()  # in a notebook
    assert "skip_bad=True trains without them" in shown
    assert "--" not in shown


@pytest.mark.parametrize("between", [(), ("train/dog/a.jpg",)])
def test_a_copy_with_another_label_in_another_split_is_named(photos, tmp_path, between):
    """Also where no copy differs in both from the next one."""
    image = next(photos.rglob("*.jpg")).read_bytes()
    for split in ("train", "val"):
        for i, name in enumerate(("cat", "dog")):
            for n in range(3):
                make_image(tmp_path / "data" / split / name / f"{n}.jpg", i, 100 * i + 10 * n + len(split))
    for name in ("train/cat/a.jpg", *between, "val/dog/b.jpg"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    found = check_dataset(tmp_path / "data")
    both = next(w for w in found.warnings if w.startswith("Duplicates across splits with two labels: 1 image,"))
    assert "train/cat/a.jpg and val/dog/b.jpg" in both
    if not between:
        assert not any(
            w.startswith(("Duplicates across splits: ", "Duplicates with two labels")) for w in found.warnings
        )


def test_few_images_are_proposed_pretrained_weights_first(photos, tmp_path):
    root = split_photos(photos, tmp_path / "data")
    few, scratch = check_dataset(root).proposals()
    assert few.introduction.startswith("About 16 training images per class are few")
    assert few.commands == [f"alexnet train folder --data {root} {' '.join(PRETRAINED)}"]
    assert scratch.commands == [f"alexnet train folder --data {root}"]
    many = check_dataset(root)
    many.infos, many.labels, many.splits = many.infos * 10, many.labels * 10, many.splits * 10
    many.names = many.names * 10
    assert [proposal.introduction for proposal in many.proposals()] == [""]


def test_good_images_give_no_warning(photos, tmp_path):
    found = check_dataset(split_photos(photos, tmp_path / "data"))
    document = found.to_dict()
    assert document["bad"] == document["suspicious"] == document["duplicates"] == []
    assert [w for w in document["warnings"] if "fewer than" not in w] == []  # sixteen per class are few
    assert document["splits"] == {
        "train": dict.fromkeys(CLASSES, 16),
        "val": dict.fromkeys(CLASSES, 4),
    }
    assert (document["width"], document["height"]) == ([200, 200, 200], [150, 150, 150])
    assert document["formats"] == {"JPEG": 60}


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_processes_find_the_same(damaged, monkeypatch, processes):
    alone = check_dataset(damaged[0]).to_dict()
    monkeypatch.setattr(check_module, "cpu_count", lambda: processes)
    monkeypatch.setattr(check_module, "_MIN_FOR_PROCESSES", 1)
    monkeypatch.setattr(check_module, "_CHUNK", 16)
    calls = []
    assert check_dataset(damaged[0], progress=lambda *call: calls.append(call)).to_dict() == alone
    assert calls[-1] == (74, 74, "inspecting images")


@pytest.mark.slow
def test_real_photographs(tmp_path):
    with zipfile.ZipFile(data_folder("imagenet-photos-200.zip")) as archive:
        archive.extractall(tmp_path / "photos")
    inside = next(p.parent for p in sorted((tmp_path / "photos").rglob("*.JPEG")))
    root = split_photos(inside, tmp_path / "data")
    done = damage_dataset(root)
    found = check_dataset(root)
    document = found.to_dict()
    assert {done[damage] for damage in REASONS} == {row["path"] for row in document["bad"]}
    assert {done[damage] for damage in ANOMALIES} <= {row["path"] for row in document["suspicious"]}
    assert {frozenset(pair) for pair in document["duplicates"]} == {
        frozenset([done["exact copy"], done["the original of the exact copy"]]),
        frozenset([done["near copy"], done["the original of the near copy"]]),
    }
    from alexnet.progress import Silent
    from alexnet.training.api import train

    result = train(
        "folder", data=root, skip_bad=True, out=tmp_path / "run", image_size=32, width=0.125, epochs=1,
        limit_steps=3, progress=Silent(),
    )  # fmt: skip
    assert result.summary["epochs"] == 1


# ── sources ───────────────────────────────────────────────────────────────────────────────────────


def zipped(root: Path, target: Path) -> Path:
    """Archive a folder, including the folder itself."""
    return Path(shutil.make_archive(str(target), "zip", root.parent, root.name))


@pytest.mark.parametrize("kind", ["zip", "gztar", "xztar"])
def test_an_archive_is_checked_like_its_folder(kind, damaged, tmp_path):
    root, done = damaged
    archive = Path(shutil.make_archive(str(tmp_path / "data"), kind, root.parent, root.name))
    found = check_dataset(archive)
    assert_all_found(found, done)
    assert str(archive) in found.command
    assert list(tmp_path.iterdir()) == [archive]
    source = load_dataset("folder", archive)
    plain = load_dataset("folder", root)
    assert {s: p.names for s, p in source.splits.items()} == {s: p.names for s, p in plain.splits.items()}


def table(root: Path, path: Path) -> Path:
    """Write the contents of class folders as a label table."""
    names = sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file())
    rows = [(n.as_posix(), n.parts[1], n.parts[0]) for n in names]
    if path.suffix == ".parquet":
        columns = zip(*rows, strict=True)
        pa.parquet.write_table(pa.table(dict(zip(("file_name", "label", "split"), columns, strict=True))), path)
    else:
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label", "split"), *rows])
    return path


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_label_table_is_checked_like_class_folders(ending, damaged, tmp_path):
    root, done = damaged
    labels = table(root, tmp_path / f"labels.{ending}")
    assert_all_found(check_dataset(root, labels), done, stripped=True)
    source = load_dataset("folder", root, labels=labels)
    plain = load_dataset("folder", root)
    assert plain.classes == tuple(sorted((*source.classes, "cat ")))
    for split, part in plain.splits.items():
        assert sorted(source.splits[split].names) == sorted(part.names)


def test_bad_rows_are_listed(tmp_path):
    root = make_image_folder(tmp_path / "data")
    rows = [
        ("image", "class"), ("apple/0.jpg", "apple"), ("leaf/0.jpg", "leaf"), ("leaf/1.jpg", "leaf"),
        ("apple/0.jpg", "apple"), ("leaf/0.jpg", "apple"), ("gone.jpg", "leaf"), ("sky/0.jpg", ""),
    ]  # fmt: skip
    with open(tmp_path / "labels.csv", "w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    found = check_dataset(root, tmp_path / "labels.csv")
    assert dict(found.bad) == {
        "leaf/0.jpg": "labels.csv lists it twice, as 'leaf' and 'apple'",
        "gone.jpg": "there is no such file",
        "sky/0.jpg": "labels.csv gives it no label",
    }
    assert "Ignored (repeated in labels.csv): 1 row." in found.warnings
    assert found.blocking_error.startswith("2 of 7 rows of ")
    with pytest.raises(UserError, match="2 of 7 rows of .* cannot be used: "):
        load_dataset("folder", root, labels=tmp_path / "labels.csv")


def test_numeric_labels_in_a_table_are_sorted_as_numbers(tmp_path):
    root = make_image_folder(tmp_path, ("a", "b", "c"), 4)
    labels = root / "labels.csv"
    rows = [f"{name}/{i}.jpg,{number}" for name, number in (("a", 10), ("b", 9), ("c", 0)) for i in range(4)]
    labels.write_text("filename,label\n" + "\n".join(rows) + "\n")
    assert list(check_dataset(None, labels).classes) == ["0", "9", "10"]
    source = load_dataset("folder", labels=labels)
    assert source.classes == ("0", "9", "10")
    assert check_dataset(None, labels).command == f"alexnet train folder --labels {labels}"
    folders = make_image_folder(tmp_path / "folders", ("0", "9", "10"), 4)
    assert list(check_dataset(folders).classes) == list(load_dataset("folder", folders).classes) == ["0", "10", "9"]
    assert "The class names are numbers and are sorted as text: 0, 10, 9." in check_dataset(folders).notes


def test_the_layout_of_mnist(tmp_path):
    random = np.random.default_rng(0)
    for stem, count in (("train", 40), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28), np.uint8)
        images[0] = 255 * np.eye(28)  # the same image in both
        header = np.array([count, 28, 28], ">u4").tobytes()
        (tmp_path / f"{stem}-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + header + images.tobytes())
        header, labels = (
            np.array([count], ">u4").tobytes(),
            (np.arange(count) % 10).astype(np.uint8),
        )
        (tmp_path / f"{stem}-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + header + labels.tobytes())
    found = check_dataset(tmp_path)
    assert found.to_dict()["duplicates"] == [["train/00000", "test/00000"]]
    assert found.classes["1"] == 5
    assert any("of no known dataset" in note for note in found.notes)
    assert found.command == f"alexnet train mnist --data {tmp_path}"


# ── unusual folders ───────────────────────────────────────────────────────────────────────────────


def test_unusual_names(tmp_path):
    root = make_image_folder(tmp_path / "my pets", ("a b", "猫", "c\nd"), 4)
    for i, name in enumerate(("with space.jpg", "ü猫.jpg", "new\nline.jpg", 'quote".jpg', os.fsdecode(b"b\xff.jpg"))):
        (root / "a b" / f"{i}.jpg").write_bytes(b"x") if i > 3 else shutil.copy(
            root / "a b" / "0.jpg", root / "猫" / name
        )
        if i > 3:
            (root / "猫" / name).write_bytes(b"no image")
    found = check_dataset(root)
    assert found.classes == {"a b": 5, "c\\nd": 4, "猫": 9}
    assert (
        os.fsdecode("猫/".encode() + b"b\xff.jpg"),
        "it is not an image of a known format",
    ) in found.bad
    assert found.command == f"alexnet train folder --data '{root}' --skip-bad"
    write_cleaned(found, tmp_path / "fixed")
    assert set(check_dataset(tmp_path / "fixed").classes) == {"a b", "c%5Cnd", "猫"}


def test_cyclic_links_and_images_outside_classes(tmp_path):
    root = make_image_folder(tmp_path / "data", count=3)
    (root / "loop").symlink_to(root)
    (root / "apple" / "up").symlink_to(root / "apple")
    (root / "itself").symlink_to(root / "itself")
    shutil.copy(root / "sky" / "0.jpg", root / "stray.jpg")
    found = check_dataset(root)
    assert len(found.names) == 9
    assert {w.split()[2] for w in found.warnings if "cycle" in w} == {"loop", "apple/up"}
    assert any("Ignored (outside the class folders): 1 image" in w and "stray.jpg" in w for w in found.warnings)
    assert load_dataset("folder", root).classes == ("apple", "leaf", "sky")


def test_a_folder_without_permissions(tmp_path):
    root = make_image_folder(tmp_path / "data", count=3)
    closed = [p for p in (tmp_path, *tmp_path.parents) if p.stat().st_mode & 0o077 == 0]
    modes = {p: p.stat().st_mode for p in closed}
    user = os.geteuid()
    try:
        for p in closed:
            p.chmod(0o755)
        (root / "leaf").chmod(0)
        if user == 0:
            os.seteuid(65534)  # root can open everything
        bad = check_dataset(root).bad
        with pytest.raises(UserError, match=r"leaf cannot be opened \(Permission denied\)") as error:
            load_dataset("folder", root)
    finally:
        os.seteuid(user)
        (root / "leaf").chmod(0o755)
        for p, mode in modes.items():
            p.chmod(mode)
    assert bad == [("leaf", "the folder cannot be opened (Permission denied)")]
    assert str(error.value).startswith(f"The folder {root}/leaf cannot be opened (Permission denied); change its perm")


def test_small_and_imbalanced_classes(tmp_path):
    make_image_folder(tmp_path / "data", ("giant",), 60)
    make_image_folder(tmp_path / "data", ("pair", "other"), 2)
    found = check_dataset(tmp_path / "data")
    assert any("fewer than 20 training images: 2 of 3" in w for w in found.warnings)
    assert any("'giant' has 60 images" in w and "correct in 94%" in w for w in found.warnings)


@pytest.mark.parametrize("classes", [900, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_classes(tmp_path, classes):
    image = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), np.uint8)).save(image)
    for i in range(classes):
        (tmp_path / "data" / f"c{i:05d}").mkdir(parents=True)
        os.link(image, tmp_path / "data" / f"c{i:05d}" / "x.png")
    found = check_dataset(tmp_path / "data")
    assert len(found.classes) == classes
    assert len(found.exact) == 1
    assert len(found.duplicates) == classes - 1
    assert found.blocking_error == "it has one image per class, which leaves none for validation; add more."


def test_untrainable_folders_are_still_checked(tmp_path):
    flat = make_image_folder(tmp_path / "flat", ("x",), 3) / "x"
    found = check_dataset(flat)
    assert (len(found.names), found.classes) == (3, {})
    assert "holds images but no class folders" in found.verdict
    one = check_dataset(tmp_path / "flat")
    assert "one class only" in one.verdict
    assert one.to_dict()["trainable"] is False


# ── cleaned copy ──────────────────────────────────────────────────────────────────────────────────


def snapshot(root: Path) -> dict[str, tuple[bytes, float]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime) for p in sorted(root.rglob("*")) if p.is_file()}


def test_the_cleaned_copy(damaged, tmp_path):
    root, _ = damaged
    before = snapshot(root)
    actions = write_cleaned(check_dataset(root), tmp_path / "fixed")
    assert snapshot(root) == before
    found = check_dataset(tmp_path / "fixed")
    document = found.to_dict()
    assert document["bad"] == []
    assert set(found.classes) == set(CLASSES)
    assert document["duplicates"] == []
    assert len(found.names) == 60 + 14 - 5 - 1 - 2
    assert "Skipped (exact duplicates with two labels): 2 images." in actions
    assert "Skipped (unreadable): 5 images." in actions
    assert "Skipped (near duplicate in another split): 1 image." in actions
    assert any(s.startswith("Merged the labels 'cat', 'cat ' into") for s in actions)
    assert [p.name for p in tmp_path.iterdir()] == ["fixed"]
    first = next(p for p in (tmp_path / "fixed").rglob("*.jpg"))
    assert first.stat().st_nlink == 2
    with pytest.raises(UserError, match="is not empty"):
        write_cleaned(check_dataset(root), tmp_path / "fixed")


def test_nested_folders_and_hard_links_of_the_copy_are_explained(tmp_path):
    make_image_folder(tmp_path / "data")
    nested = next((tmp_path / "data").rglob("*.jpg"))
    (nested.parent / "phone" / "2024").mkdir(parents=True)
    name = f"{nested.parent.name}/phone/2024/{nested.name}"
    nested.rename(tmp_path / "data" / name)
    notes = write_cleaned(check_dataset(tmp_path / "data"), tmp_path / "clean")
    assert notes[0].endswith(f": 1 image, such as {name} as {nested.parent.name}/{nested.name}.")
    assert "24 as hard links" in notes[1]
    assert "editing one in place changes both" in notes[2]
    assert all(Translator("zh").sentence(note) != note for note in notes)


def test_the_test_copy_of_duplicates_is_kept(photos, tmp_path):
    root = split_photos(photos, tmp_path / "data")
    shutil.copy(root / "val" / "ant" / "009.jpg", root / "train" / "ant" / "again.jpg")
    shutil.copy(root / "train" / "bee" / "001.jpg", root / "train" / "bee" / "again.jpg")
    write_cleaned(check_dataset(root), tmp_path / "fixed")
    names = {p.relative_to(tmp_path / "fixed").as_posix() for p in (tmp_path / "fixed").rglob("*.jpg")}
    assert "val/ant/009.jpg" in names
    assert "train/ant/again.jpg" not in names
    assert {"train/bee/001.jpg", "train/bee/again.jpg"} & names == {"train/bee/001.jpg"}


def test_a_cleaned_copy_inside_the_dataset_is_refused(tmp_path):
    root = make_image_folder(tmp_path / "data")
    with pytest.raises(UserError, match="is inside the dataset"):
        check_target(root / "fixed", root)
    with pytest.raises(UserError, match="is not empty"):
        check_target(root / "sky", None)


def test_untrusted_labels_cannot_escape_the_copy(tmp_path):
    root = make_image_folder(tmp_path / "data", ("a", "b", "c"), 2)
    labels = root / "labels.csv"
    rows = [f'{n}/{i}.jpg,"{label}"' for n, label in (("a", "../../out"), ("b", "/etc"), ("c", "..")) for i in range(2)]
    labels.write_text("path,label\n" + "\n".join(rows) + "\n")
    before = sorted(tmp_path.rglob("*"))
    write_cleaned(check_dataset(None, labels), tmp_path / "deep" / "fixed")
    new = [p for p in sorted(tmp_path.rglob("*")) if p not in before]
    assert all(p.is_relative_to(tmp_path / "deep") for p in new)
    assert {p.name for p in (tmp_path / "deep" / "fixed").iterdir()} == {"%2E.%2F..%2Fout", "%2Fetc", "%2E."}
    assert len(check_dataset(tmp_path / "deep" / "fixed").names) == 6


def test_pixels_are_written_as_png(tmp_path):
    images = torch.randint(0, 256, (6, 1, 20, 20), dtype=torch.uint8)
    data, names = tmp_path / "data", [f"train/{i}" for i in range(6)]
    found = Findings(data, data, None, "cifar10", names, ["a", "b"] * 3, ["train"] * 6, ("a", "b"), pixels=images)
    found.seen = list(check_module._inspect_all(check_module.inspect_arrays, images.permute(0, 2, 3, 1).numpy(), None))
    write_cleaned(found, tmp_path / "fixed")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "fixed/train/b/3.png")), images[3, 0].numpy())
