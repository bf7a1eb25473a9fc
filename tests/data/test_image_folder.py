"""Class folders and tables of labels: every layout is found, and every problem raises a clear error."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from alexnet.data import image_folder
from alexnet.data.datasets import load_dataset
from alexnet.data.label_table import class_order, read_label_table
from alexnet.data.quality.check import check_dataset
from alexnet.data.quality.clean import write_cleaned
from alexnet.errors import UserError
from alexnet.text import TextOptions
from helpers import make_class_folders, make_image_folder, make_solid_image

# ── class folders ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "names",
    [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "VALID", "Test")],
)
def test_split_names(names, tmp_path):
    for name, count in zip(names, (4, 3, 2), strict=True):
        make_class_folders(tmp_path / "d" / name, {"b": count, "a": count})
    source = load_dataset("folder", tmp_path / "d")
    assert {split: len(part) for split, part in source.splits.items()} == {
        "train": 8,
        "val": 6,
        "test": 4,
    }
    assert source.split_rows == []
    assert source.splits["val"].names[0] == f"{names[1]}/a/000.png"


def test_validation_is_matched_by_name(tmp_path):
    make_class_folders(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    make_class_folders(tmp_path / "val", {"c": 1})
    source = load_dataset("imagenet", tmp_path)
    assert source.splits["val"].targets.tolist() == [2]


def test_nested_files_are_found_and_hidden_or_other_files_skipped(tmp_path):
    make_class_folders(tmp_path, {"a": 2, "b": 2})
    make_solid_image(tmp_path / "a" / "deep" / "er" / "x.JPEG")
    make_solid_image(tmp_path / "a" / ".hidden.png")
    make_solid_image(tmp_path / ".cache" / "x.png")
    make_solid_image(tmp_path / "b" / ".thumbs" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    tree = image_folder.scan_class_folders(tmp_path)
    assert tree.classes == ("a", "b")
    assert tree.splits["train"].names == [
        "a/000.png",
        "a/001.png",
        "a/deep/er/x.JPEG",
        "b/000.png",
        "b/001.png",
    ]


def test_a_class_may_be_called_train(tmp_path):
    assert image_folder.scan_class_folders(make_class_folders(tmp_path, {"bus": 1, "car": 1, "train": 1})).classes == (
        "bus",
        "car",
        "train",
    )
    assert image_folder.scan_class_folders(make_class_folders(tmp_path / "d", {"invalid": 1, "valid": 1})).classes == (
        "invalid",
        "valid",
    )


def empty_class(root: Path) -> None:
    make_class_folders(root, {"a": 2, "b": 2})
    (root / "empty").mkdir()


def train_without_classes(root: Path) -> None:
    make_class_folders(root, {"train": 2, "val": 2})


def only_in_val(root: Path) -> None:
    make_class_folders(root / "train", {"a": 1, "b": 1})
    make_class_folders(root / "val", {"a": 1, "c": 1})


def other_case(root: Path) -> None:
    make_class_folders(root / "train", {"a": 1, "b": 1})
    make_class_folders(root / "val", {"A": 1})


BAD_FOLDERS = {
    "missing": (lambda root: root.rmdir(), "There is no folder"),
    "a file": (lambda root: (root.rmdir(), root.write_text("x")), "is a file, not a folder"),
    "nothing": (lambda _: None, "holds no images"),
    "no class folders": (
        lambda root: make_solid_image(root / "x.png"),
        "images but no class folders",
    ),
    "folders without images": (
        lambda root: ((root / "a").mkdir(), (root / "b").mkdir()),
        "holds no images",
    ),
    "empty class": (empty_class, r"hold no images \(1\): empty/; .* --skip-bad"),
    "one class": (lambda root: make_class_folders(root, {"cat": 3}), "one class only, 'cat'"),
    "case": (lambda root: make_class_folders(root, {"Cat": 1, "cat": 1}), "'Cat' and 'cat'"),
    "train without classes": (train_without_classes, "train holds images but no class folders"),
    "train is empty": (lambda root: (root / "train").mkdir(), "train holds no class folders"),
    "no train": (lambda root: make_class_folders(root / "val", {"a": 1, "b": 1}), "no train/"),
    "two names for val": (
        lambda root: [make_class_folders(root / name, {"a": 1, "b": 1}) for name in ("train", "val", "valid")],
        "both val/ and valid/",
    ),
    "class only in val": (only_in_val, "c is a class that"),
    "class in another case in val": (other_case, "there it is called 'a'"),
    "one image a class": (lambda root: make_class_folders(root, {"a": 1, "b": 1}), "one per class"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders_raise_a_clear_error(kind, tmp_path):
    if kind == "case" and (tmp_path / "cache").parent.joinpath(tmp_path.name.upper()).exists():
        pytest.skip("this file system does not tell upper from lower case")
    root = tmp_path / "data"
    root.mkdir()
    spoil, message = BAD_FOLDERS[kind]
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("folder", root)
    assert str(caught.value).endswith(".")


def test_a_table_given_as_a_folder_is_told_the_flag(tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text("path,label\n")
    with pytest.raises(UserError, match="give a table of labels as --labels"):
        load_dataset("folder", table)


# ── tables of labels ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "text",
    [
        "path,label,split\na.jpg,1,train\nb.jpg,2,VAL\n",
        "\ufefflabel,image,set\n1,a.jpg,training\n2,b.jpg,validation\n",
        "Filename;Class;Subset;size\r\na.jpg;1;train;9\r\nb.jpg;2;valid;9\r\n\r\n",
        "file\ttarget\tsplit\na.jpg\t1\ttrain\nb.jpg\t2\tval",
    ],
)
def test_csv_with_different_separators_and_column_names(text, tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    found = read_label_table(path)
    assert (found.names, found.labels, found.splits) == (
        ["a.jpg", "b.jpg"],
        ["1", "2"],
        ["train", "val"],
    )
    assert (found.bad, found.repeated) == ([], 0)


def test_parquet_with_numbers_and_missing_values(tmp_path):
    path = tmp_path / "labels.parquet"
    columns = {
        "path": ["a.jpg", "b.jpg", None, "d.jpg"],
        "label": [1.0, 2.0, 3.0, float("nan")],
        "bytes": [b""] * 4,
    }
    pa.parquet.write_table(pa.table(columns), path)
    found = read_label_table(path)
    assert (found.names, found.labels, found.splits) == (
        ["a.jpg", "b.jpg"],
        ["1", "2"],
        ["all", "all"],
    )
    assert found.bad == [
        ("row 3", "labels.parquet gives no path there"),
        ("d.jpg", "labels.parquet gives it no label"),
    ]


def test_other_files_are_rejected(tmp_path):
    (tmp_path / "x.csv").write_text("a/1.jpg,cat\n")
    with pytest.raises(UserError, match="has a/1.jpg, cat; name them so"):
        read_label_table(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes(b"")
    with pytest.raises(UserError, match="has none; name them so"):
        read_label_table(tmp_path / "x.csv")


def test_classes_are_ordered_numerically_if_all_are_numbers():
    assert class_order(["10", "9", "b"]) == ("10", "9", "b")
    assert class_order(["10", "9", "009"]) == ("009", "9", "10")


# ── class names in any encoding ───────────────────────────────────────────────────────────────────


def folder_names(root: Path, names: list[bytes]) -> Path:
    """Write class folders with these `names`, two images each."""
    try:
        return make_image_folder(root, tuple(map(os.fsdecode, names)), 2)
    except OSError:
        pytest.skip("this file system only has names in UTF-8")


@pytest.mark.parametrize(("other", "encoding"), [("鸟", "gbk"), ("ab", "ascii")])
def test_class_folders_in_another_encoding(other, encoding, tmp_path):
    """The bytes of 猫 in GBK are also è in UTF-8."""
    root = folder_names(tmp_path / "d", [*(name.encode("gbk") for name in ("猫", "狗")), other.encode(encoding)])
    with pytest.raises(UserError, match=r"class folders .* several encodings fit: gb18030 \('狗'\)"):
        load_dataset("folder", root)
    found = check_dataset(root)
    assert "several encodings fit" in found.blocking_error
    assert all(label.isprintable() for label in found.labels)
    write_cleaned(found, tmp_path / "fixed")
    source = load_dataset("folder", root, text=TextOptions(encoding="GBK"))
    assert set(source.classes) == {"狗", "猫", other}
    assert all(path.is_file() for part in source.files.values() for path in part.paths)
    assert check_dataset(root, text=TextOptions(encoding="GBK")).classes == {"狗": 2, "猫": 2, other: 2}


def test_class_folders_of_which_one_encoding_fits(tmp_path):
    root = folder_names(tmp_path, [b"caf\xe9", b"tea"])
    source = image_folder.scan_class_folders(root)
    assert source.classes == ("café", "tea")
    assert source.notes == [f"Read the names of class folders in {root} as cp1252: café."]


def test_class_folders_of_two_encodings(tmp_path):
    root = folder_names(tmp_path, ["狗".encode("gbk"), "鸟".encode()])
    source = image_folder.scan_class_folders(root, text=TextOptions(encoding="gbk"))
    assert source.classes == ("狗", "鸟")


def test_folders_whose_names_look_the_same_are_one_class(tmp_path):
    root = make_class_folders(tmp_path / "train", {"caf\u00e9": 2, "tea": 2}).parent
    make_solid_image(root / "train" / "cafe\u0301" / "9.png")
    make_class_folders(root / "val", {"cafe\u0301": 1, "tea": 1})
    source = image_folder.scan_class_folders(root)
    assert source.classes == ("café", "tea")
    assert source.splits["train"].targets.tolist() == [0, 0, 0, 1, 1]
    assert source.splits["val"].targets.tolist() == [0, 1]
    assert any("look" in note for note in source.notes)


def test_class_names_are_printable(tmp_path):
    source = image_folder.scan_class_folders(make_class_folders(tmp_path, {"a\x1b[2J": 1, "b\u202ec": 1}))
    assert source.classes == ("a\\x1b[2J", "b\\u202ec")
