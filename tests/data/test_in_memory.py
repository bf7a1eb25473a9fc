"""Files are decoded into memory once, and the pass that decodes them finds the unreadable ones."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data import image_folder, in_memory
from alexnet.data.augment import Augment
from alexnet.data.dataset import ImageArrays, ImageDataset
from alexnet.data.datasets import load_dataset
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.in_memory import (
    BadFiles,
    check_files,
    decode_files,
    decode_splits,
    leave_out,
    resize_for_eval,
    without_bad_files,
)
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from helpers import make_class_folders, make_solid_image

# ── into memory ───────────────────────────────────────────────────────────────────────────────────


def test_decode_files_for_evaluation_and_training(tmp_path):
    root = make_class_folders(tmp_path, {"a": 2, "b": 2})  # images of 12×10
    files = image_folder.scan_class_folders(root).splits["train"]
    preprocess = EvalTransform(6, 8)
    evaluation = decode_files(files, preprocess)
    assert evaluation.images.shape == (4, 3, 6, 6)
    assert evaluation.names == files.names
    assert evaluation.images[1, :, 0, 0].tolist() == [20, 80, 120]
    assert decode_files(files, preprocess, Augment(crop="random")).images.shape == (4, 3, 8, 8)
    assert decode_files(files, preprocess, Augment(crop="resized")).images.shape == (4, 3, 8, 8)


def test_equal_squares_keep_their_size_for_resized_crops(tmp_path):
    for name in ("a", "b"):
        make_solid_image(tmp_path / name / "x.png", size=(11, 11))
    files = image_folder.scan_class_folders(tmp_path).splits["train"]
    preprocess = EvalTransform(8)
    assert decode_files(files, preprocess, Augment(crop="resized")).images.shape[-1] == 11
    assert decode_files(files, preprocess, Augment(crop="pad")).images.shape[-1] == 8
    assert decode_files(files, EvalTransform(4), Augment(crop="resized")).images.shape[-1] == 4  # 11 would be 7 times


def test_decode_files_names_an_unreadable_file(tmp_path):
    root = make_class_folders(tmp_path, {"a": 2, "b": 2})
    (root / "b" / "001.png").write_bytes(b"junk")
    with pytest.raises(BadImage, match=r"001\.png"):
        decode_files(image_folder.scan_class_folders(root).splits["train"], EvalTransform(8))


def test_squares_of_other_sizes_are_resized_as_if_none_were_kept(tmp_path):
    """Whichever is read first."""
    sizes = {"a": (11, 11), "b": (30, 20), "c": (11, 11), "d": (9, 14)}
    for name, size in sizes.items():
        pixels = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "x.png")
    files = image_folder.scan_class_folders(tmp_path).splits["train"]
    found = decode_files(files, EvalTransform(8), Augment(crop="resized"))
    assert torch.equal(found.images, decode_files(files, EvalTransform(8), Augment(crop="random")).images)


def test_each_file_is_opened_and_decoded_once(tmp_path, monkeypatch):
    make_class_folders(tmp_path / "d", {"a": 6, "b": 6})
    opened: Counter[str] = Counter()
    original = in_memory.decode_image.__globals__["open_image"]

    def counted(source, *arguments):
        opened[str(source)] += 1
        return original(source, *arguments)

    monkeypatch.setattr("alexnet.data.decode.open_image", counted)
    source = load_dataset("folder", tmp_path / "d")
    assert not opened
    decode_splits(source, EvalTransform(8), Augment(crop="random"))
    assert set(opened.values()) == {1}
    assert len(opened) == 12


def test_resize_for_eval_equals_decoding_the_same_image_file(tmp_path):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8))
    preprocess = EvalTransform(size=32, channels=1, mean=(0.5,), std=(0.5,))
    found = resize_for_eval(ImageArrays(images, torch.arange(3), ["a", "b", "c"]), preprocess)
    assert found.eval_ready
    for i in range(3):
        Image.fromarray(images[i, 0].numpy()).save(tmp_path / "x.png")
        assert torch.equal(found.images[i], preprocess.eval_tensor(decode_image(tmp_path / "x.png", 1)))
    assert resize_for_eval(found, preprocess) is found


# ── unreadable files ──────────────────────────────────────────────────────────────────────────────


def make_folder_with_bad_files(root: Path, bad: int = 2) -> Path:
    make_class_folders(root, {"a": 8, "b": 8})
    for i in range(bad):
        (root / "a" / f"bad{i:02d}.jpg").write_bytes(b"" if i % 2 else b"<html></html>")
    return root


def decode(source: ImageDataset) -> None:
    decode_splits(source, EvalTransform(8))


@pytest.mark.parametrize("limit", [in_memory.FULL_CHECK, 3])
@pytest.mark.parametrize("find", [decode, check_files])
def test_unreadable_files_are_listed_or_skipped(find, limit, tmp_path, monkeypatch):
    monkeypatch.setattr(in_memory, "FULL_CHECK", limit)
    root = make_folder_with_bad_files(tmp_path / "d")

    def load(bad: list[tuple[str, str]]) -> ImageDataset:
        source = load_dataset("folder", root, bad=bad)
        find(source)
        return source

    with pytest.raises(BadFiles, match=r"2 of 18 images") as caught:
        without_bad_files(load, skip_bad=False)
    assert "a/bad00.jpg (it is not an image but a web page or other markup)" in str(caught.value)
    assert "a/bad01.jpg (the file is empty)" in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    source = without_bad_files(load, skip_bad=True)
    assert sorted(name for name, _ in source.bad) == ["a/bad00.jpg", "a/bad01.jpg"]
    assert sum(map(len, source.splits.values())) == 16
    for part in source.splits.values():
        assert not any("bad" in name for name in part.names)
    for path in root.rglob("bad*"):
        path.unlink()
    assert load_dataset("folder", root).split_rows == source.split_rows  # the bad ones do not change the split


@pytest.mark.parametrize("find", [decode, check_files])
def test_only_the_first_unreadable_files_of_each_reason_are_listed(find, tmp_path):
    with pytest.raises(UserError, match="11 of 27") as caught:
        find(load_dataset("folder", make_folder_with_bad_files(tmp_path / "d", bad=11)))
    assert (
        "a/bad00.jpg, a/bad02.jpg, a/bad04.jpg and 3 more (it is not an image but a web page or other markup); "
        "a/bad01.jpg, a/bad03.jpg, a/bad05.jpg and 2 more (the file is empty)" in str(caught.value)
    )


@pytest.mark.parametrize("find", [decode, check_files])
def test_no_readable_image_is_an_error(find, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.jpg").write_text("<html>")
    with pytest.raises(UserError, match="None of the 4 images") as caught:
        find(load_dataset("folder", tmp_path))
    assert not isinstance(caught.value, BadFiles)  # nothing would be left


def test_a_class_without_readable_training_images_is_left_out(tmp_path):
    make_class_folders(tmp_path / "train", {"a": 5, "b": 1, "c": 5})
    make_class_folders(tmp_path / "val", {"a": 2, "b": 2, "c": 3})
    unreadable = ("train/b/000.png", "the file is empty")
    found = load_dataset("folder", tmp_path, bad=[unreadable])
    assert found.classes == ("a", "c")
    assert {split: part.targets.tolist() for split, part in found.splits.items()} == {
        "train": [0] * 5 + [1] * 5,
        "val": [0] * 2 + [1] * 3,
    }
    assert found.bad == [
        ("b/", "none of the training images of this class can be read"),
        ("val/b/000.png", "the training images of its class cannot be read"),
        ("val/b/001.png", "the training images of its class cannot be read"),
        unreadable,
    ]
    again = load_dataset("folder", tmp_path, bad=found.bad)  # as a resumed run does
    assert (again.classes, again.bad) == (found.classes, found.bad)
    with pytest.raises(UserError, match="Only images of class 'a'.* two or more classes"):
        load_dataset("folder", tmp_path, bad=[unreadable, *((f"train/c/{i:03d}.png", "gone") for i in range(5))])


def test_a_split_without_readable_images_is_an_error(tmp_path):
    root = make_class_folders(tmp_path / "val", {"a": 1})
    with pytest.raises(UserError, match="No image of all/"):
        leave_out(image_folder.scan_class_folders(root, training=False), [("a/000.png", "gone")])


def test_progress_reaches_the_total(tmp_path):
    calls: list[tuple[int, int, str]] = []
    make_class_folders(tmp_path / "d", {"a": 70, "b": 5})
    source = image_folder.scan_class_folders(tmp_path / "d")
    check_files(source, progress=lambda *call: calls.append(call))
    decode_splits(source, EvalTransform(8), progress=lambda *call: calls.append(call))
    done = (16, 32, 48, 64, 75)
    assert calls == [(n, 75, what) for what in ("checking images", "reading images") for n in done]
