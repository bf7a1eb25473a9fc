"""Every layout of every data set is read, and everything wrong with one is a sentence."""

import gzip
import hashlib
import os
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from alexnet.data import image_folder
from alexnet.data.augment import Augment
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.datasets import decode_files, load_dataset, resize_for_eval
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError


def paint(path: Path, shade: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade % 256, 80, 120)).save(path)


def class_folders(root: Path, classes: dict[str, int]) -> Path:
    for name, count in classes.items():
        for i in range(count):
            paint(root / name / f"{i:03d}.png", 20 * i)
    return root


def real_data(name: str) -> Path:
    for root in (os.environ.get("ALEXNET_DATA"), "../shared/data"):
        if root and (Path(root) / name).is_dir():
            return Path(root) / name
    pytest.skip(f"needs the real {name}, in $ALEXNET_DATA or ../shared/data")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))


# ── digits ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_digits():
    source = load_dataset("digits")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 1259, "val": 269, "test": 269}
    train = source.splits["train"]
    assert isinstance(train, ImageArrays)
    assert (train.images.dtype, train.images.shape[1:]) == (torch.uint8, (1, 32, 32))
    assert train.images.max() == 255
    assert source.classes == tuple("0123456789")
    for part in source.splits.values():
        assert len(np.bincount(part.targets, minlength=10).nonzero()[0]) == 10
    names = [name for name, _ in source.split_rows]
    assert len(set(names)) == 1797
    with pytest.raises(UserError, match="embedded"):
        load_dataset("digits", Path("pictures"))


def test_digits_divided_by_seed_and_as_before():
    first, other = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    assert first.split_rows == load_dataset("digits", seed=1).split_rows
    assert first.split_rows != other.split_rows
    again = load_dataset("digits", seed=2, split=first.split_rows)
    assert again.split_rows == first.split_rows
    assert torch.equal(again.splits["test"].images, first.splits["test"].images)


def test_unknown_name():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_dataset("cifar-10")


# ── folders ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_folder_without_splits_holds_a_fifth_out(tmp_path):
    root = class_folders(tmp_path / "pets", {"dog": 10, "cat": 20, "ant": 1})
    source = load_dataset("folder", root, seed=5)
    assert source.classes == ("ant", "cat", "dog")
    assert np.bincount(source.splits["val"].targets, minlength=3).tolist() == [0, 4, 2]
    assert source.held_out == ("val",)
    assert len(source.split_rows) == 31
    assert ("ant/000.png", "train") in source.split_rows
    train = source.splits["train"]
    assert isinstance(train, ImageFiles)
    assert all(path.is_file() for path in train.paths)


def test_a_recorded_split_is_used_again_by_name(tmp_path):
    root = class_folders(tmp_path / "pets", {"dog": 10, "cat": 10})
    rows = load_dataset("folder", root).split_rows
    paint(root / "cat" / "aaa-new.png")
    again = load_dataset("folder", root, seed=99, split=rows)
    assert again.split_rows == rows
    assert any("1 images are not in the recorded split" in note for note in again.notes)
    (root / rows[0][0]).unlink()
    with pytest.raises(UserError, match=rows[0][0]):
        load_dataset("folder", root, split=rows)


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("training", "validation", "testing"), ("Train", "VALID", "Test")]
)
def test_split_names(names, tmp_path):
    for name, count in zip(names, (4, 3, 2), strict=True):
        class_folders(tmp_path / "d" / name, {"b": count, "a": count})
    source = load_dataset("folder", tmp_path / "d")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 8, "val": 6, "test": 4}
    assert source.split_rows == []
    assert source.splits["val"].names[0] == f"{names[1]}/a/000.png"


def test_validation_is_carved_from_train_and_test_left_alone(tmp_path):
    class_folders(tmp_path / "d" / "train", {"a": 40, "b": 3})
    class_folders(tmp_path / "d" / "test", {"a": 2, "b": 2})
    source = load_dataset("folder", tmp_path / "d")
    assert np.bincount(source.splits["val"].targets).tolist() == [2, 1]
    assert list(source.splits) == ["train", "val", "test"]
    assert {split for _, split in source.split_rows} == {"train", "val"}
    whole = load_dataset("folder", tmp_path / "d", hold_out=False)
    assert {split: len(part) for split, part in whole.splits.items()} == {"train": 43, "test": 4}


def test_validation_is_matched_by_name(tmp_path):
    class_folders(tmp_path / "train", {"a": 2, "b": 2, "c": 2})
    class_folders(tmp_path / "val", {"c": 1})
    source = load_dataset("imagenet", tmp_path)
    assert source.splits["val"].targets.tolist() == [2]


def test_nested_hidden_and_other_files(tmp_path):
    class_folders(tmp_path, {"a": 2, "b": 2})
    paint(tmp_path / "a" / "deep" / "er" / "x.JPEG")
    paint(tmp_path / "a" / ".hidden.png")
    paint(tmp_path / ".cache" / "x.png")
    paint(tmp_path / "b" / ".thumbs" / "x.png")
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    tree = image_folder.scan_class_folders(tmp_path)
    assert tree.classes == ("a", "b")
    assert tree.splits["train"].names == ["a/000.png", "a/001.png", "a/deep/er/x.JPEG", "b/000.png", "b/001.png"]


def test_a_class_may_be_called_train(tmp_path):
    assert image_folder.scan_class_folders(class_folders(tmp_path, {"bus": 1, "car": 1, "train": 1})).classes == (
        "bus",
        "car",
        "train",
    )
    assert image_folder.scan_class_folders(class_folders(tmp_path / "d", {"invalid": 1, "valid": 1})).classes == (
        "invalid",
        "valid",
    )


def empty_class(root: Path) -> None:
    class_folders(root, {"a": 2})
    (root / "hollow").mkdir()


def train_without_classes(root: Path) -> None:
    class_folders(root, {"train": 2, "val": 2})


def only_in_val(root: Path) -> None:
    class_folders(root / "train", {"a": 1, "b": 1})
    class_folders(root / "val", {"a": 1, "c": 1})


def other_case(root: Path) -> None:
    class_folders(root / "train", {"a": 1, "b": 1})
    class_folders(root / "val", {"A": 1})


def no_readable(root: Path) -> None:
    for name in ("a", "b"):
        (root / name).mkdir()
        (root / name / "x.jpg").write_text("<html>")


BAD_FOLDERS = {
    "missing": (lambda root: root.rmdir(), "There is no folder"),
    "a file": (lambda root: (root.rmdir(), root.write_text("x")), "is a file, not a folder"),
    "nothing": (lambda _: None, "holds no images"),
    "no class folders": (lambda root: paint(root / "x.png"), "images but no class folders"),
    "folders without pictures": (lambda root: ((root / "a").mkdir(), (root / "b").mkdir()), "holds no images"),
    "empty class": (empty_class, "hollow holds no images"),
    "one class": (lambda root: class_folders(root, {"cat": 3}), "one class only, 'cat'"),
    "case": (lambda root: class_folders(root, {"Cat": 1, "cat": 1}), "'Cat' and 'cat'"),
    "train without classes": (train_without_classes, "train holds images but no class folders"),
    "train is empty": (lambda root: (root / "train").mkdir(), "train holds no class folders"),
    "no train": (lambda root: class_folders(root / "val", {"a": 1, "b": 1}), "no train/"),
    "two names for val": (
        lambda root: [class_folders(root / name, {"a": 1, "b": 1}) for name in ("train", "val", "valid")],
        "both val/ and valid/",
    ),
    "class only in val": (only_in_val, "c is a class that"),
    "class in another case in val": (other_case, "there it is called 'a'"),
    "no readable image": (no_readable, "None of the 2 images"),
    "one image a class": (lambda root: class_folders(root, {"a": 1, "b": 1}), "one per class"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_bad_folders_are_a_sentence(kind, tmp_path):
    if kind == "case" and (tmp_path / "cache").parent.joinpath(tmp_path.name.upper()).exists():
        pytest.skip("this file system does not tell upper from lower case")
    root = tmp_path / "data"
    root.mkdir()
    spoil, message = BAD_FOLDERS[kind]
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        load_dataset("folder", root, skip_bad=kind == "no readable image")
    assert str(caught.value).endswith(".")


def test_imagenet_and_folder_need_data(tmp_path):
    for name in ("imagenet", "folder"):
        with pytest.raises(UserError, match="give --data DIR"):
            load_dataset(name)


def test_imagenet_without_val_holds_some_out_and_says_so(tmp_path):
    source = load_dataset("imagenet", class_folders(tmp_path, {"a": 5, "b": 5}))
    assert {name: len(part) for name, part in source.splits.items()} == {"train": 8, "val": 2}
    assert source.notes[0].endswith("has no val/ beside train/, as ImageNet has.")


# ── bad files ─────────────────────────────────────────────────────────────────────────────────────────────────


def with_bad_files(root: Path, bad: int = 2) -> Path:
    class_folders(root, {"a": 8, "b": 8})
    for i in range(bad):
        (root / "a" / f"bad{i:02d}.jpg").write_bytes(b"" if i % 2 else b"<html></html>")
    return root


@pytest.mark.parametrize("limit", [image_folder.FULL_CHECK, 3])
def test_bad_files_are_listed_or_skipped(limit, tmp_path, monkeypatch):
    monkeypatch.setattr(image_folder, "FULL_CHECK", limit)
    root = with_bad_files(tmp_path / "d")
    with pytest.raises(UserError, match=r"2 of 18 images") as caught:
        load_dataset("folder", root)
    assert "a/bad00.jpg (it is not an image but a web page or other markup)" in str(caught.value)
    assert "a/bad01.jpg (the file is empty)" in str(caught.value)
    assert "--skip-bad" in str(caught.value)
    source = load_dataset("folder", root, skip_bad=True)
    assert [name for name, _ in source.bad] == ["a/bad00.jpg", "a/bad01.jpg"]
    assert sum(map(len, source.splits.values())) == 16
    for part in source.splits.values():
        assert not any("bad" in name for name in part.names)


def test_only_the_first_ten_are_listed(tmp_path):
    with pytest.raises(UserError, match="12 of 28") as caught:
        load_dataset("folder", with_bad_files(tmp_path / "d", bad=12))
    assert "bad09" in str(caught.value)
    assert "bad10" not in str(caught.value)


def test_a_class_with_no_readable_image_cannot_be_skipped(tmp_path):
    root = class_folders(tmp_path / "d", {"a": 5, "b": 5})
    (root / "c").mkdir()
    (root / "c" / "x.png").write_bytes(b"")
    with pytest.raises(UserError, match="class 'c'"):
        load_dataset("folder", root, skip_bad=True)


def test_progress_reaches_the_total(tmp_path):
    calls: list[tuple[int, int, str]] = []
    class_folders(tmp_path / "d", {"a": 70, "b": 5})
    load_dataset("folder", tmp_path / "d", progress=lambda *call: calls.append(call))
    assert calls == [(64, 75, "checking images"), (75, 75, "checking images")]


# ── into memory ───────────────────────────────────────────────────────────────────────────────────────────────


def test_read_files_for_evaluation_and_training(tmp_path):
    root = class_folders(tmp_path, {"a": 2, "b": 2})  # pictures of 12×10
    files = image_folder.scan_class_folders(root).splits["train"]
    preprocess = EvalTransform(6, 8)
    evaluation = decode_files(files, preprocess)
    assert evaluation.images.shape == (4, 3, 6, 6)
    assert evaluation.names == files.names
    assert evaluation.images[1, :, 0, 0].tolist() == [20, 80, 120]
    assert decode_files(files, preprocess, Augment(crop="random")).images.shape == (4, 3, 8, 8)
    assert decode_files(files, preprocess, Augment(crop="resized")).images.shape == (4, 3, 8, 8)


def test_squares_of_one_size_stay_as_they_are_for_resized_crops(tmp_path):
    for name in ("a", "b"):
        paint(tmp_path / name / "x.png", size=(11, 11))
    files = image_folder.scan_class_folders(tmp_path).splits["train"]
    preprocess = EvalTransform(8)
    assert decode_files(files, preprocess, Augment(crop="resized")).images.shape[-1] == 11
    assert decode_files(files, preprocess, Augment(crop="pad")).images.shape[-1] == 8
    assert decode_files(files, EvalTransform(4), Augment(crop="resized")).images.shape[-1] == 4  # 11 would be 7 times


def test_read_files_names_the_file_it_cannot_read(tmp_path):
    root = class_folders(tmp_path, {"a": 2, "b": 2})
    (root / "b" / "001.png").write_bytes(b"junk")
    with pytest.raises(BadImage, match=r"001\.png"):
        decode_files(image_folder.scan_class_folders(root).splits["train"], EvalTransform(8))


# ── CIFAR-10 ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Ten pictures a batch in CIFAR-10's own layout; torchvision's checksums are set to theirs."""
    folder = tmp_path / "made" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    md5 = {}
    for part in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        data = np.random.default_rng(len(md5)).integers(0, 256, (20, 3072), dtype=np.uint8)
        content: dict[str, object] = {"data": data, "labels": [i % 10 for i in range(20)]}
        if part == "batches.meta":
            content = {"label_names": list("abcdefghij")}
        (folder / part).write_bytes(pickle.dumps(content))
        md5[part] = hashlib.md5((folder / part).read_bytes()).hexdigest()
    monkeypatch.setattr(
        datasets.CIFAR10, "train_list", [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)]
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]}
    )
    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "no-network.tar.gz").as_uri())
    return folder


def cifar_archive(folder: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder, folder.name)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(path.read_bytes()).hexdigest())
    return path


def test_cifar10_in_torchvisions_layout(cifar):
    source = load_dataset("cifar10", cifar.parent)
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 90, "val": 10, "test": 20}
    assert source.classes == tuple("abcdefghij")
    first = pickle.loads((cifar / "test_batch").read_bytes())["data"][3].reshape(3, 32, 32)
    assert np.array_equal(source.splits["test"].images[3], first)
    shutil.move(cifar, cifar.parent / "renamed")
    assert len(load_dataset("cifar10", cifar.parent / "renamed", hold_out=False).splits["train"]) == 100


@pytest.mark.parametrize("given", ["file", "folder"])
def test_cifar10_archive_is_unpacked_into_the_cache(given, cifar, tmp_path, monkeypatch):
    archive = cifar_archive(cifar, tmp_path / "downloads" / "cifar-10-python.tar.gz", monkeypatch)
    source = load_dataset("cifar10", archive if given == "file" else archive.parent)
    assert len(source.splits["test"]) == 20
    assert [path.name for path in archive.parent.iterdir()] == [archive.name]
    assert len(load_dataset("cifar10", download=False).splits["test"]) == 20  # from the cache now


@pytest.mark.parametrize("download", [True, False])
def test_cifar10_archive_put_into_the_cache_by_hand(download, cifar, tmp_path, monkeypatch):
    cifar_archive(cifar, tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz", monkeypatch)
    assert len(load_dataset("cifar10", download=download).splits["test"]) == 20


def test_cifar10_that_is_damaged_or_absent(cifar, tmp_path, monkeypatch):
    archive = cifar_archive(cifar, tmp_path / "cifar-10-python.tar.gz", monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(UserError, match="md5 differs"):
        load_dataset("cifar10", archive)
    (cifar / "data_batch_2").write_bytes(b"cut")
    with pytest.raises(UserError, match="incomplete or changed"):
        load_dataset("cifar10", cifar)
    with pytest.raises(UserError, match="does not hold CIFAR-10"):
        load_dataset("cifar10", class_folders(tmp_path / "other", {"a": 1}))


def test_a_download_that_fails_says_what_to_do_by_hand(cifar, capsys, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:1/closed.tar.gz")
    with pytest.raises(UserError, match=r"could not be downloaded .*; put cifar-10-python.tar.gz \(md5 .*--data"):
        load_dataset("cifar10")
    with pytest.raises(UserError, match="turned off; put"):
        load_dataset("cifar10", download=False)
    assert capsys.readouterr().out == ""  # stdout is for results


def test_cifar10_as_class_folders(tmp_path):
    for split, count in (("train", 20), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                paint(tmp_path / split / name / f"{i}.jpg", size=(32, 32))
    source = load_dataset("cifar10", tmp_path)
    assert source.classes == ("cat", "dog")
    assert {split: tuple(part.images.shape) for split, part in source.splits.items()} == {
        "train": (38, 3, 32, 32),
        "val": (2, 3, 32, 32),
        "test": (4, 3, 32, 32),
    }
    assert source.split_rows[0][0].startswith("train/cat/")


# ── Fashion-MNIST ─────────────────────────────────────────────────────────────────────────────────────────────


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def fashion(folder: Path, compress: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", 40), ("t10k", 20)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for kind, values in (("images-idx3", pixels), ("labels-idx1", np.arange(n, dtype=np.uint8) % 10)):
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(idx(values)) if compress else idx(values))
    return folder


@pytest.mark.parametrize("inside", ["FashionMNIST/raw", "raw", "."])
@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_layouts(inside, compress, tmp_path):
    fashion(tmp_path / "f" / inside, compress)
    source = load_dataset("fashion-mnist", tmp_path / "f")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 30, "val": 10, "test": 20}
    assert source.classes[9] == "Ankle boot"
    assert source.channels == 1
    expected = np.random.default_rng(20).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    assert np.array_equal(source.splits["test"].images[:, 0], expected)
    assert source.splits["test"].targets.tolist() == [i % 10 for i in range(20)]


def test_fashion_mnist_equals_torchvisions_reader(tmp_path):
    fashion(tmp_path / "FashionMNIST" / "raw")
    theirs = datasets.FashionMNIST(tmp_path, train=True)
    ours = load_dataset("fashion-mnist", tmp_path, hold_out=False).splits["train"]
    assert torch.equal(ours.images[:, 0], theirs.data)
    assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("t10k-labels-idx1-ubyte", lambda path: path.unlink(), "is missing"),
        ("train-images-idx3-ubyte", lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut short"),
        ("train-images-idx3-ubyte", lambda path: path.write_bytes(b"\0\0"), "cut short"),
        ("train-labels-idx1-ubyte", lambda path: path.write_bytes(idx(np.zeros(3, np.uint8))), "do not match"),
        ("train-images-idx3-ubyte", lambda path: path.unlink(), "does not hold Fashion-MNIST"),
    ],
)
def test_fashion_mnist_that_is_damaged(name, spoil, message, tmp_path):
    spoil(fashion(tmp_path / "f") / name)
    with pytest.raises(UserError, match=message):
        load_dataset("fashion-mnist", tmp_path / "f")


def test_fashion_mnist_download_that_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{tmp_path.as_uri()}/nowhere/"])
    with pytest.raises(UserError, match="Fashion-MNIST could not be downloaded"):
        load_dataset("fashion-mnist")


@pytest.mark.slow
def test_the_real_fashion_mnist():
    source = load_dataset("fashion-mnist", real_data("fashion-mnist"), hold_out=False)
    train = source.splits["train"]
    assert np.bincount(train.targets).tolist() == [6000] * 10
    assert train.images.double().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)


def test_arrays_are_evaluated_as_their_picture_files_are(tmp_path):
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8))
    preprocess = EvalTransform(size=32, channels=1, mean=(0.5,), std=(0.5,))
    found = resize_for_eval(ImageArrays(images, torch.arange(3), ["a", "b", "c"]), preprocess)
    assert found.eval_ready
    for i in range(3):
        Image.fromarray(images[i, 0].numpy()).save(tmp_path / "x.png")
        assert torch.equal(found.images[i], preprocess.eval_tensor(decode_image(tmp_path / "x.png", 1)))
    assert resize_for_eval(found, preprocess) is found
