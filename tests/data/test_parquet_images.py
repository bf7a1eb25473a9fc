"""Images inside Parquet and Arrow files, as Hugging Face distributes datasets."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import ipc, parquet

from alexnet.data import image_folder
from alexnet.data.datasets import load_dataset
from alexnet.data.decode import decode_image
from alexnet.data.parquet_images import unpack_if_tables
from alexnet.data.quality.check import check_dataset
from alexnet.errors import UserError
from alexnet.text import TextOptions
from helpers import make_class_folders

NAMES = ["zebra", "ant/bee", "猫"]  # not in alphabetical order, and one that cannot be a folder's name


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def table(
    labels: Sequence[Any],
    image: str = "image",
    label: str | None = "label",
    names: list[str] | None = NAMES,
    plain: bool = False,
) -> pyarrow.Table:
    """Return rows whose images have the value of their number times 10, without path for every other one."""
    images: list[Any] = [{"bytes": png(10 * i), "path": f"{i}.png" if i % 2 else None} for i in range(len(labels))]
    columns: dict[str, Any] = {image: [i["bytes"] for i in images] if plain else images}
    features: dict[str, Any] = {image: {"_type": "Image"}}
    if label:
        columns[label] = labels
        features[label] = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    return pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write(path: Path, rows: pyarrow.Table) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".arrow":
        with ipc.new_stream(path, rows.schema) as file:
            file.write_table(rows, max_chunksize=4)
    else:
        parquet.write_table(rows, path)
    return path


def contents(data: Path, split: str, **options: str) -> list[tuple[str, int]]:
    """Return (class, first pixel) of each image of a split."""
    source = load_dataset("folder", data, hold_out=False, text=TextOptions(**options))
    part = source.splits[split]
    pixels = [int(np.asarray(decode_image(part.raw(i), 3))[0, 0, 0]) for i in range(len(part))]
    return sorted(zip([source.classes[i] for i in part.targets.tolist()], pixels, strict=True))


def expected(labels: Sequence[int], names: Sequence[str] = NAMES) -> list[tuple[str, int]]:
    return sorted((names[label], 10 * i) for i, label in enumerate(labels))


TRAIN, TEST = [0, 1, 2, 2, 1, 0], [2, 0, 1]


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("mnist-train.parquet", "mnist-test.parquet"),
        ("images.pq", "testing.pq"),
        ("train/data-00000-of-00001.arrow", "test/data-00000-of-00001.arrow"),
    ],
)
def test_splits_and_class_names(train, test, tmp_path):
    root = tmp_path / "repository"
    write(root / train, table(TRAIN))
    write(root / test, table(TEST))
    (root / "README.md").write_text("---\n")
    assert contents(root, "train") == expected(TRAIN)
    assert contents(root, "test") == expected(TEST)
    found = check_dataset(root)
    assert (found.blocking_error, found.bad, sorted(found.classes)) == (None, [], sorted(NAMES))
    assert found.command == f"alexnet train folder --data {root}"


def test_shards_of_a_split_are_joined(tmp_path):
    for i in range(2):
        write(tmp_path / "d" / f"train-0000{i}-of-00002.parquet", table(TRAIN))
    assert contents(tmp_path / "d", "train") == sorted(2 * expected(TRAIN))


@pytest.mark.parametrize(
    ("options", "names", "columns"),
    [
        ({"image": "img"}, NAMES, {}),
        ({"label": "fine_label"}, NAMES, {}),
        ({"label": "kind", "names": None}, ["0", "1", "2"], {"columns": "path=image,label=kind"}),
        ({"names": None}, ["0", "1", "2"], {}),
        ({"plain": True}, NAMES, {}),
    ],
)
def test_one_file_with_other_columns(options, names, columns, tmp_path):
    path = write(tmp_path / "pets.parquet", table(TRAIN, **options))
    assert contents(path, "train", **columns) == expected(TRAIN, names)
    source = image_folder.scan_images(path, None, training=False, text=TextOptions(**columns))
    assert len(source.splits["all"]) == len(TRAIN)


def test_labels_as_text(tmp_path):
    labels = [NAMES[i] for i in TRAIN]
    assert contents(write(tmp_path / "x.parquet", table(labels, names=None)), "train") == expected(TRAIN)


@pytest.mark.parametrize("label", ["label", None])
def test_a_test_set_without_labels_is_left_out(label, tmp_path):
    write(tmp_path / "d" / "train.parquet", table(TRAIN))
    write(tmp_path / "d" / "test.parquet", table([-1, -1, -1], label=label))
    source = load_dataset("folder", tmp_path / "d", hold_out=False)
    assert list(source.splits) == ["train"]
    assert any("its 3 images have no labels" in note for note in source.notes)


def test_rows_without_label_or_image_are_counted(tmp_path):
    rows = table([*TRAIN, -1, None, 1])
    images = rows.column("image").to_pylist()
    images[-1] = {"bytes": None, "path": "lost.png"}
    rows = rows.set_column(0, "image", pyarrow.array(images))
    source = load_dataset("folder", write(tmp_path / "x.parquet", rows), hold_out=False)
    assert len(source.splits["train"]) == 7
    assert any("in no class: 0000006, 0000007.png" in note for note in source.notes)
    assert [name for name, _ in check_dataset(tmp_path / "x.parquet").bad] == ["0000008.png"]


def test_unpacked_once_and_again_after_a_change(tmp_path):
    path = write(tmp_path / "x.parquet", table(TRAIN))
    calls: list[Any] = []
    folder = unpack_if_tables(path, lambda *call: calls.append(call))
    assert len(calls) == 1
    assert unpack_if_tables(path, lambda *call: calls.append(call)) == folder
    assert len(calls) == 1
    assert unpack_if_tables(write(path, table(TEST))) != folder


def test_other_tables_and_folders_are_left_alone(tmp_path):
    root = make_class_folders(tmp_path / "pets", {"cat": 5, "dog": 5})
    write(root / "labels.parquet", pyarrow.table({"path": ["cat/000.png"], "label": ["cat"]}))
    write(root / "zoo.parquet", pyarrow.table({"path": ["a"], "size": [[1]]}))
    assert unpack_if_tables(root, text=TextOptions(columns="path=name")) == root
    assert load_dataset("folder", root).classes == ("cat", "dog")
    (root / "broken.parquet").write_bytes(b"PAR1")
    assert unpack_if_tables(root) == root


def both(path: Path, first: str, second: str) -> None:
    rows = table(TRAIN)
    write(path, rows.rename_columns(["image", first]).append_column(second, rows.column("label")))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: write(p / "x.parquet", table(TRAIN, label=None)), "no evident label among no other columns"),
        (
            lambda p: both(p / "x.parquet", "fine", "coarse"),
            "no evident label among fine, coarse; choose with --columns",
        ),
        (
            lambda p: write(p / "x.parquet", table(TRAIN).append_column("mask", table(TRAIN).column("image"))),
            "has images in image, mask; choose with --columns",
        ),
        (
            lambda p: [write(p / c / "train.parquet", table(TRAIN)) for c in ("large", "small")],
            "several configurations of its images",
        ),
        (lambda p: write(p / "x.parquet", table([0, 1, 7])), "label 7, and its schema names 3 classes"),
    ],
)
def test_what_cannot_be_decided_is_an_error(make, message, tmp_path):
    make(tmp_path / "d")
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("folder", tmp_path / "d")
    assert str(caught.value).endswith(".")
    assert not list((tmp_path / "cache").rglob("*.png"))


def test_a_wrong_column_is_an_error(tmp_path):
    path = write(tmp_path / "x.parquet", table(TRAIN))
    with pytest.raises(UserError, match=r"--columns names kind.* it has image, label"):
        load_dataset("folder", path, text=TextOptions(columns="label=kind"))


@pytest.mark.parametrize("keep", [4, 300])
@pytest.mark.parametrize("name", ["train-00001.parquet", "train-00001.arrow"])
@pytest.mark.parametrize("alone", [True, False])
def test_a_damaged_file_is_an_error(keep, name, alone, tmp_path):
    path = write(tmp_path / "d" / name, table(TRAIN))
    write(tmp_path / "d" / name.replace("1", "0"), table(TRAIN))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{name} is no readable table; download or save it again"):
        load_dataset("folder", path if alone else path.parent)


def test_an_arrow_file_that_is_cut_short_is_an_error(tmp_path):
    path = write(tmp_path / "train.arrow", table(TRAIN))
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(UserError, match="cannot be read .*; download it again"):
        load_dataset("folder", path)
    assert not list((tmp_path / "cache").rglob("0*"))
