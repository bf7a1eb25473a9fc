"""Tables of labels as people bring them: any encoding, columns of other names, paths that differ from the files."""

import os
import re
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from alexnet.data.datasets import load_dataset
from alexnet.data.label_table import read_label_table
from alexnet.data.quality.check import check_dataset
from alexnet.errors import UserError
from alexnet.text import TextOptions
from helpers import make_class_folders, make_solid_image


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def test_blanks_and_composition_do_not_make_classes(tmp_path):
    root = make_class_folders(tmp_path / "d", {"a": 4, "caf\u00e9": 2})
    text = "path,label\n a/000.png , cat\na/001.png,cat \na/002.png,\u3000cat\xa0\na/003.png,\ufeffcat\n"
    text += "cafe\u0301/000.png,cafe\u0301\ncaf\u00e9/001.png,caf\u00e9\n"
    source = load_dataset("folder", root, labels=write(tmp_path / "labels.csv", text))
    assert source.classes == ("café", "cat")
    names = [name for part in source.splits.values() for name in part.names]
    assert sorted(names) == ["a/000.png", "a/001.png", "a/002.png", "a/003.png", "café/000.png", "café/001.png"]
    assert all((root / name).is_file() for name in names)


@pytest.mark.parametrize("encoding", ["gbk", "big5", "shift_jis", "utf-16", "utf-8-sig", "utf-16-le"])
def test_labels_in_another_encoding(encoding, tmp_path):
    root = make_class_folders(tmp_path / "d", {"a": 2, "b": 2})
    table = write(
        tmp_path / "labels.csv",
        "path,label\r\na/000.png,大\r\na/001.png,大\r\nb/000.png,小\r\nb/001.png,小\r\n",
        encoding,
    )
    if encoding.startswith("utf"):
        options = TextOptions()
    else:
        with pytest.raises(UserError, match="several encodings fit") as error:
            load_dataset("folder", root, labels=table)
        assert "('大')" in str(error.value)
        options = TextOptions(encoding=encoding)
    source = load_dataset("folder", root, labels=table, text=options)
    assert source.classes == ("大", "小")
    assert check_dataset(root, table, text=options).classes == {"大": 2, "小": 2}


def test_paths_in_the_encoding_of_the_table_find_files_of_either(tmp_path):
    root = make_class_folders(tmp_path / "d", {"猫": 1, os.fsdecode("狗".encode("gbk")): 1})
    table = write(tmp_path / "labels.csv", "path,label\n猫/000.png,x\n狗/000.png,y\n", "gbk")
    found = read_label_table(table, root, TextOptions(encoding="gbk"))
    assert (found.bad, len(found.names)) == ([], 2)
    assert all((root / name).is_file() for name in found.names)


@pytest.mark.parametrize(
    ("header", "rows", "columns", "note"),
    [
        ("id,breed", "0,x\n1,y\n", None, "Read paths from the column id .* and labels from breed"),
        ("Image,Id", "0.jpg,x\n1.jpg,y\n", None, "Read paths from the column Image .* and labels from Id"),
        ("image_id,label", "0,x\n1,y\n", None, "Read paths from the column image_id"),
        ("id_code,diagnosis", "0,x\n1,y\n", None, "labels from diagnosis"),
        (",id,breed", "5,0,x\n6,1,y\n", None, "labels from breed"),
        ("File Name,Class Name", "0.jpg,x\n1.jpg,y\n", None, "1.jpg|Took"),
        ("lesion_id,image_id,dx", "l,0,x\nm,1,y\n", "path=image_id,label=DX", "Took 2 paths"),
        ("label,file,breed", "9,0,x\n9,1,y\n", "label=breed", "Took 2 paths"),
    ],
)
def test_columns_of_kaggle(header, rows, columns, note, tmp_path):
    for i in range(2):
        make_solid_image(tmp_path / "train" / f"{i}.jpg", 100 * i)
    table = write(tmp_path / "labels.csv", f"{header}\n{rows}")
    found = read_label_table(table, tmp_path, TextOptions(columns=columns))
    assert (found.names, found.labels, found.bad) == (["train/0.jpg", "train/1.jpg"], ["x", "y"], [])
    assert any(re.search(note, text) for text in found.notes)


@pytest.mark.parametrize("header", ["lesion_id,image_id,dx", "id,image_id", "breed,kind", "image,kind", "path", "id"])
def test_columns_that_are_not_evident_are_asked_for(header, tmp_path):
    table = write(tmp_path / "labels.csv", f"{header}\n{','.join('abc'[: header.count(',') + 1])}\n")
    with pytest.raises(UserError, match=r"needs the columns path and label .* --columns path=NAME,label=NAME\.$"):
        read_label_table(table)
    with pytest.raises(UserError, match="--columns names nothing, which .* does not have"):
        read_label_table(table, text=TextOptions(columns="label=nothing"))


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("cat\\1.jpg", "cat/1.jpg"),
        (".\\cat\\1.jpg", "cat/1.jpg"),
        ("cat/1", "cat/1.jpg"),
        ("cat/1.JPG", "cat/1.jpg"),
        ("Cat/1.Jpg", "cat/1.jpg"),
        ("./cat/1.jpg", "./cat/1.jpg"),
        ("1.jpg", "cat/1.jpg"),
        ("1", "cat/1.jpg"),
        ("2", "2"),  # cat/2.jpg or dog/2.jpg
        ("3", "dog/3.png"),  # not 3.txt
        ("nothing.jpg", "nothing.jpg"),  # found missing when it is read
        ("dog/1.jpg", "dog/1.jpg"),
    ],
)
def test_paths_stand_for_the_only_file_that_fits(given, file, tmp_path):
    for name in ("cat/1.jpg", "cat/2.jpg", "dog/2.jpg", "dog/3.png"):
        make_solid_image(tmp_path / name)
    (tmp_path / "dog" / "3.txt").write_text("no image")
    found = read_label_table(write(tmp_path / "labels.csv", f"path,label\n{given},x\n"), tmp_path)
    if given == "2":
        assert found.bad == [("2", "it may be cat/2.jpg or dog/2.jpg")]
    else:
        assert found.names == [file]
        exact = given == file or (tmp_path / given).is_file()
        assert [("only file that fits" in note) for note in found.notes] == [True] * (not exact)


def test_two_spellings_of_a_file_are_one_row_or_a_contradiction(tmp_path):
    make_solid_image(tmp_path / "a.jpg")
    found = read_label_table(write(tmp_path / "l.csv", "path,label\na.jpg,x\nA.JPG,x\na,x\n.\\a.jpg,y\n"), tmp_path)
    assert (found.names, found.repeated) == (["a.jpg"], 2)
    assert found.bad == [("a.jpg", "l.csv lists it twice, as 'x' and 'y'")]


def test_decomposed_files_are_found(tmp_path):
    name = unicodedata.normalize("NFD", "Ägypten/é.png")
    make_solid_image(tmp_path / name)
    found = read_label_table(write(tmp_path / "l.csv", "path,label\nÄgypten/é.png,x\n"), tmp_path)
    assert found.names == [name] or (tmp_path / found.names[0]).is_file()


@pytest.mark.parametrize("name", ["photo.csv", "photo.parquet"])
def test_an_image_given_as_a_table_is_refused_without_its_bytes(name, tmp_path):
    make_solid_image(tmp_path / "x.png", size=(200, 200))
    (tmp_path / name).write_bytes((tmp_path / "x.png").read_bytes())
    with pytest.raises(UserError) as error:
        read_label_table(tmp_path / name)
    assert str(error.value).isprintable()
    assert "PNG" not in str(error.value)


def test_parquet_columns_of_bytes_are_no_paths(tmp_path):
    columns = {"image": [b"\xff\xd8\xff"] * 2, "label": ["x", "y"], "file": ["a.jpg", "b.jpg"], "more": [[1], [2]]}
    pa.parquet.write_table(pa.table(columns), tmp_path / "l.parquet")
    assert read_label_table(tmp_path / "l.parquet").names == ["a.jpg", "b.jpg"]
    del columns["file"]
    pa.parquet.write_table(pa.table(columns), tmp_path / "l.parquet")
    with pytest.raises(UserError, match="but has label; name them so"):
        read_label_table(tmp_path / "l.parquet")
