"""Folders as published data sets bring them: images without class folders, and their labels in a file beside them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from alexnet.data import image_folder
from alexnet.data.dataset import ImageDataset
from alexnet.data.datasets import load_dataset
from alexnet.data.layouts import METADATA_FILES
from alexnet.data.quality.check import check_dataset
from alexnet.errors import UserError
from helpers import make_class_folders, make_solid_image

WNIDS = ("n02", "n07", "n11")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))


def labels_of(source: ImageDataset, split: str) -> dict[str, str]:
    """Return name → class of each image in a split."""
    part = source.splits[split]
    return {name: source.classes[i] for name, i in zip(part.names, part.targets.tolist(), strict=True)}


def make_images(folder: Path, names: list[str]) -> list[str]:
    for name in names:
        make_solid_image(folder / name)
    return names


# ── a test set without labels ─────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("inside", ["", "images", "unknown", "test"])
@pytest.mark.parametrize("extra", [None, "sample"])
def test_images_of_a_test_set_without_labels_are_left_out_and_counted(inside, extra, tmp_path):
    make_class_folders(tmp_path / "train", {"cat": 5, "dog": 5})
    make_images(tmp_path / "test" / inside, [f"{i}.png" for i in range(12)])
    if extra:
        make_images(tmp_path / extra, ["x.png"])
    source = load_dataset("folder", tmp_path)
    assert {name: len(part) for name, part in source.splits.items()} == {"train": 8, "val": 2}
    note = f"Left out {tmp_path / 'test'}, since its 12 images have no labels."
    assert note in source.notes
    assert not any("in no class" in n for n in source.notes)
    found = check_dataset(tmp_path)
    assert (found.blocking_error, len(found.names)) == (None, 10)
    assert note in found.notes
    assert list(image_folder.scan_images(tmp_path, None, training=False).splits) == ["train"]


def test_a_test_set_with_some_labels_is_not_left_out(tmp_path):
    make_class_folders(tmp_path / "train", {"cat": 5, "dog": 5})
    make_class_folders(tmp_path / "test", {"cat": 2})
    make_images(tmp_path / "test", ["x.png"])
    source = load_dataset("folder", tmp_path)
    assert len(source.splits["test"]) == 2
    assert any("in no class: test/x.png" in note for note in source.notes)


@pytest.mark.parametrize("name", ["val", "train"])
def test_other_splits_need_labels(name, tmp_path):
    make_class_folders(tmp_path / ("val" if name == "train" else "train"), {"cat": 5, "dog": 5})
    make_images(tmp_path / name, ["1.png", "2.png"])
    with pytest.raises(UserError, match=f"{name} holds images but no class folders"):
        load_dataset("folder", tmp_path)


# ── Tiny-ImageNet and ImageNet ────────────────────────────────────────────────────────────────────


def make_tiny(root: Path) -> Path:
    """Make Tiny-ImageNet's layout with 3 classes."""
    for wnid in WNIDS:
        make_images(root / "train" / wnid / "images", [f"{wnid}_{i}.JPEG" for i in range(3)])
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
    make_images(root / "val" / "images", [f"val_{i}.JPEG" for i in range(4)])
    rows = [f"val_{i}.JPEG\t{WNIDS[(i + 1) % 3]}\t0\t32\t44\t62" for i in range(4)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    make_images(root / "test" / "images", [f"test_{i}.JPEG" for i in range(5)])
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    return root


TINY_VAL = {f"val/images/val_{i}.JPEG": WNIDS[(i + 1) % 3] for i in range(4)}


@pytest.mark.parametrize("name", ["folder", "imagenet"])
@pytest.mark.parametrize("archive", [False, True])
def test_tiny_imagenet(name, archive, tmp_path):
    root = make_tiny(tmp_path / "tiny-imagenet-200")
    if archive:
        root = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path, "tiny-imagenet-200"))
    source = load_dataset(name, root)
    assert source.classes == WNIDS
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 9, "val": 4}
    assert labels_of(source, "val") == TINY_VAL
    assert any("its 5 images have no labels" in note for note in source.notes)
    found = check_dataset(root)
    assert (found.blocking_error, found.bad) == (None, [])
    assert dict(zip(found.names, found.labels, strict=True)).items() >= TINY_VAL.items()


def test_the_validation_images_alone_are_evaluated(tmp_path):
    source = image_folder.scan_images(make_tiny(tmp_path) / "val", None, training=False)
    assert labels_of(source, "all") == {name.removeprefix("val/"): label for name, label in TINY_VAL.items()}


def test_missing_and_unlisted_images_are_counted(tmp_path):
    root = make_tiny(tmp_path)
    (root / "val/images/val_0.JPEG").rename(root / "val/images/other.JPEG")
    source = load_dataset("folder", root)
    assert "val/val_0.JPEG" in source.splits["val"].names  # reported as missing when it is read
    assert any("in no class: val/images/other.JPEG" in note for note in source.notes)
    assert [name for name, _ in check_dataset(root).bad] == ["val/val_0.JPEG"]


def make_imagenet(root: Path) -> list[str]:
    make_class_folders(root / "train", dict.fromkeys(WNIDS, 3))
    make_images(root / "val", [f"ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3, 4)])
    return [f"val/ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3, 4)]


def write_kit(folder: Path, numbers: list[int]) -> None:
    """Write the files of ILSVRC's development kit: number 1 is n11, 2 is n02, 3 is n07, 4 a group of classes."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    rows = [(1, "n11", "a", "b", 0), (2, "n02", "a", "b", 0), (3, "n07", "a", "b", 0), (4, "n00", "a", "b", 3)]
    savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=[(name, object) for name in fields])})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, numbers)) + "\n")


EXPECTED = ["n07", "n02", "n11", "n02"]


@pytest.mark.parametrize(
    "kind", ["kit", "kit beside val", "caffe", "caffe with folder", "tensorflow", "kaggle", "own metadata"]
)
def test_imagenet_with_its_ground_truth(kind, tmp_path):
    root = tmp_path / "ILSVRC/Data/CLS-LOC" if kind == "kaggle" else tmp_path / "imagenet"
    names = make_imagenet(root)
    short = [Path(name).name for name in names]
    if kind == "kit":
        write_kit(root / "ILSVRC2012_devkit_t12" / "data", [3, 2, 1, 2])
    elif kind == "kit beside val":
        write_kit(root, [3, 2, 1, 2])
    elif kind.startswith("caffe"):
        shown = names if kind == "caffe with folder" else short
        (root / "val.txt").write_text("".join(f"{n} {i}\n" for n, i in zip(shown, (1, 0, 2, 0), strict=True)))
    elif kind == "tensorflow":
        (root / "imagenet_2012_validation_synset_labels.txt").write_text("\n".join(EXPECTED))
    elif kind == "kaggle":
        rows = [f"{Path(n).stem},{c} 1 2 3 4 {c} 5 6 7 8 \n" for n, c in zip(short, EXPECTED, strict=True)]
        (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows[::-1]))
        make_images(root / "test", ["ILSVRC2012_test_00000001.JPEG"])
    else:
        rows = [f"{n},{c}\n" for n, c in zip(short, EXPECTED, strict=True)]
        (root / "val" / "metadata.csv").write_text("file_name,label\n" + "".join(rows))
    source = load_dataset("imagenet", root)
    assert labels_of(source, "val") == dict(zip(names, EXPECTED, strict=True))
    assert list(source.splits) == ["train", "val"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: write_kit(root, [1, 2, 3]), r"labels 3 images, and .*val holds 4"),
        (lambda root: write_kit(root, [1, 2, 3, 4]), "class number '4'"),
        (lambda root: (write_kit(root, [1] * 4), (root / "meta.mat").unlink()), "put that file of the same kit next"),
        (lambda root: (write_kit(root, [1] * 4), (root / "meta.mat").write_bytes(b"x" * 999)), "cannot be read"),
        (lambda root: (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 3\n"), "numbers classes up to 3"),
        (lambda root: (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG\n"), "an image and its class"),
        (lambda root: (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG n99\n"), "n99 is a class that"),
    ],
)
def test_ground_truth_that_does_not_fit_is_an_error(spoil, message, tmp_path):
    make_imagenet(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("imagenet", tmp_path)
    assert str(caught.value).endswith(".")


# ── Hugging Face ──────────────────────────────────────────────────────────────────────────────────


def write_metadata(folder: Path, kind: str, rows: dict[str, object]) -> None:
    if kind.endswith(".csv"):
        text = "".join(f"{name},{label}\n" for name, label in rows.items())
        (folder / kind).write_text("file_name,label\n" + text)
    elif kind.endswith(".jsonl"):
        lines = [json.dumps({"file_name": n, "objects": {"bbox": []}, "label": c}) for n, c in rows.items()]
        (folder / kind).write_text("\n".join(lines))
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"file_name": list(rows), "label": list(rows.values())}), folder / kind)


@pytest.mark.parametrize("kind", METADATA_FILES)
@pytest.mark.parametrize("layout", ["flat", "images", "splits", "above"])
def test_hugging_face_metadata(kind, layout, tmp_path):
    inside = "images/" if layout == "images" else ""
    homes = ["train", "test"] if layout in ("splits", "above") else ["."]
    above = {}
    for home in homes:
        names = make_images(tmp_path / home, [f"{inside}{i}.png" for i in range(10)])
        rows: dict[str, object] = {name: i % 3 for i, name in enumerate(names)}
        above |= {f"{home}/{name}": label for name, label in rows.items()}
        if layout != "above":
            write_metadata(tmp_path / home, kind, rows)
    if layout == "above":
        write_metadata(tmp_path, kind, above)
    source = load_dataset("folder", tmp_path, hold_out=layout not in ("splits", "above"))
    assert source.classes == ("0", "1", "2")
    labels = {name: label for split in source.splits for name, label in labels_of(source, split).items()}
    assert labels == {name.removeprefix("./"): str(label) for name, label in above.items()}
    assert "test" not in source.splits or set(source.splits["test"].names) == {f"test/{i}.png" for i in range(10)}
    found = check_dataset(tmp_path)
    assert (found.blocking_error, Counter(found.labels)["0"]) == (None, 4 * len(homes))


def test_metadata_without_labels_beside_class_folders_is_no_table(tmp_path):
    make_class_folders(tmp_path, {"cat": 5, "dog": 5})
    (tmp_path / "metadata.csv").write_text("file_name,text\ncat/000.png,A cat.\n")
    assert load_dataset("folder", tmp_path).classes == ("cat", "dog")


def test_metadata_without_labels_is_an_error_that_names_its_columns(tmp_path):
    make_images(tmp_path, ["1.png", "2.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "1.png", "text": "A cat."}\n')
    with pytest.raises(UserError, match="file_name, text"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "write a JSON object per line"), ("[1]\n", "a JSON object per line")]
)
def test_json_lines_that_are_none(text, message, tmp_path):
    (tmp_path / "labels.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        load_dataset("folder", tmp_path, labels=tmp_path / "labels.jsonl")
