"""Every layout of every dataset is read, and every problem raises a clear error."""

import gzip
import hashlib
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from alexnet.data import idx as idx_files
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.datasets import load_dataset, load_for_evaluation, load_known_layout
from alexnet.errors import UserError
from helpers import data_folder, make_class_folders, make_solid_image


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))


# ── digits ────────────────────────────────────────────────────────────────────────────────────────


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
        load_dataset("digits", Path("images"))


def test_digits_split_depends_on_the_seed_and_can_be_reproduced():
    first, other = load_dataset("digits", seed=1), load_dataset("digits", seed=2)
    assert first.split_rows == load_dataset("digits", seed=1).split_rows
    assert first.split_rows != other.split_rows
    again = load_dataset("digits", seed=2, split=first.split_rows)
    assert again.split_rows == first.split_rows
    assert torch.equal(again.splits["test"].images, first.splits["test"].images)


def test_unknown_name():
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        load_dataset("cifar-10")


# ── folders ───────────────────────────────────────────────────────────────────────────────────────


def test_a_fifth_of_a_folder_without_splits_is_held_out(tmp_path):
    root = make_class_folders(tmp_path / "pets", {"dog": 10, "cat": 20, "ant": 1})
    source = load_dataset("folder", root, seed=5)
    assert source.classes == ("ant", "cat", "dog")
    assert np.bincount(source.splits["val"].targets, minlength=3).tolist() == [0, 4, 2]
    assert source.held_out == ("val",)
    assert len(source.split_rows) == 31
    assert ("ant/000.png", "train") in source.split_rows
    train = source.splits["train"]
    assert isinstance(train, ImageFiles)
    assert all(path.is_file() for path in train.paths)


def test_a_recorded_split_is_reproduced_by_file_name(tmp_path):
    root = make_class_folders(tmp_path / "pets", {"dog": 10, "cat": 10})
    rows = load_dataset("folder", root).split_rows
    make_solid_image(root / "cat" / "aaa-new.png")
    again = load_dataset("folder", root, seed=99, split=rows)
    assert again.split_rows == rows
    assert any("1 images are not in the recorded split" in note for note in again.notes)
    (root / rows[0][0]).unlink()
    with pytest.raises(UserError, match=rows[0][0]):
        load_dataset("folder", root, split=rows)


def test_validation_is_held_out_of_train_and_test_is_unchanged(tmp_path):
    make_class_folders(tmp_path / "d" / "train", {"a": 40, "b": 3})
    make_class_folders(tmp_path / "d" / "test", {"a": 2, "b": 2})
    source = load_dataset("folder", tmp_path / "d")
    assert np.bincount(source.splits["val"].targets).tolist() == [2, 1]
    assert list(source.splits) == ["train", "val", "test"]
    assert {split for _, split in source.split_rows} == {"train", "val"}
    complete = load_dataset("folder", tmp_path / "d", hold_out=False)
    assert {split: len(part) for split, part in complete.splits.items()} == {"train": 43, "test": 4}


def test_imagenet_and_folder_need_data(tmp_path):
    for name in ("imagenet", "folder"):
        with pytest.raises(UserError, match="give --data DIR"):
            load_dataset(name)


def test_imagenet_without_val_holds_images_out_with_a_note(tmp_path):
    source = load_dataset("imagenet", make_class_folders(tmp_path, {"a": 5, "b": 5}))
    assert {name: len(part) for name, part in source.splits.items()} == {"train": 8, "val": 2}
    assert source.notes[0].endswith("has no val/ beside train/, as ImageNet has.")


# ── CIFAR-10 ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Ten images a batch in CIFAR-10's own layout; torchvision's checksums are set to theirs."""
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
        datasets.CIFAR10,
        "train_list",
        [[f"data_batch_{i}", md5[f"data_batch_{i}"]] for i in range(1, 6)],
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", md5["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10,
        "meta",
        {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]},
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
def test_cifar10_archive_copied_into_the_cache(download, cifar, tmp_path, monkeypatch):
    cifar_archive(cifar, tmp_path / "cache" / "cifar10" / "cifar-10-python.tar.gz", monkeypatch)
    assert len(load_dataset("cifar10", download=download).splits["test"]) == 20


def test_damaged_or_missing_cifar10_is_an_error(cifar, tmp_path, monkeypatch):
    archive = cifar_archive(cifar, tmp_path / "cifar-10-python.tar.gz", monkeypatch)
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(UserError, match="md5 differs"):
        load_dataset("cifar10", archive)
    (cifar / "data_batch_2").write_bytes(b"cut")
    with pytest.raises(UserError, match="incomplete or changed"):
        load_dataset("cifar10", cifar)
    with pytest.raises(UserError, match="does not hold CIFAR-10"):
        load_dataset("cifar10", make_class_folders(tmp_path / "other", {"a": 1}))


def test_a_failed_download_explains_the_manual_way(cifar, capsys, monkeypatch):
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
                make_solid_image(tmp_path / split / name / f"{i}.jpg", size=(32, 32))
    source = load_dataset("cifar10", tmp_path)
    assert source.classes == ("cat", "dog")
    assert {split: tuple(part.images.shape) for split, part in source.splits.items()} == {
        "train": (38, 3, 32, 32),
        "val": (2, 3, 32, 32),
        "test": (4, 3, 32, 32),
    }
    assert source.split_rows[0][0].startswith("train/cat/")


# ── Fashion-MNIST ─────────────────────────────────────────────────────────────────────────────────


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def fashion(folder: Path, compress: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", 40), ("t10k", 20)):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        for kind, values in (
            ("images-idx3", pixels),
            ("labels-idx1", np.arange(n, dtype=np.uint8) % 10),
        ):
            path = folder / f"{stem}-{kind}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(idx(values)) if compress else idx(values))
    return folder


@pytest.mark.parametrize("inside", ["FashionMNIST/raw", "raw", "."])
@pytest.mark.parametrize("compress", [False, True])
def test_fashion_mnist_layouts(inside, compress, tmp_path):
    fashion(tmp_path / "f" / inside, compress)
    source = load_dataset("fashion-mnist", tmp_path / "f")
    assert {split: len(part) for split, part in source.splits.items()} == {"train": 30, "val": 10, "test": 20}
    assert source.classes == tuple("0123456789")
    assert any("of no known dataset, so that their classes are named by their numbers" in note for note in source.notes)
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
        (
            "train-images-idx3-ubyte",
            lambda path: path.write_bytes(path.read_bytes()[:-1]),
            "cut short",
        ),
        ("train-images-idx3-ubyte", lambda path: path.write_bytes(b"\0\0"), "cut short"),
        (
            "train-labels-idx1-ubyte",
            lambda path: path.write_bytes(idx(np.zeros(3, np.uint8))),
            "do not match",
        ),
        ("train-images-idx3-ubyte", lambda path: path.unlink(), "does not hold Fashion-MNIST"),
    ],
)
def test_damaged_fashion_mnist_is_an_error(name, spoil, message, tmp_path):
    spoil(fashion(tmp_path / "f") / name)
    with pytest.raises(UserError, match=message):
        load_dataset("fashion-mnist", tmp_path / "f")


def test_a_failed_fashion_mnist_download_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [f"{tmp_path.as_uri()}/nowhere/"])
    with pytest.raises(UserError, match="Fashion-MNIST could not be downloaded"):
        load_dataset("fashion-mnist")


# ── which dataset IDX files are ───────────────────────────────────────────────────────────────────


def pixel_sums(folder: Path) -> tuple[int, ...]:
    found = idx_files.read_idx_files(folder)
    return tuple(int(pixels.sum(dtype=np.int64)) for pixels, _ in found.splits.values())


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("title", "name", "other", "last"),
    [("MNIST", "mnist", "fashion-mnist", "9"), ("Fashion-MNIST", "fashion-mnist", "mnist", "Ankle boot")],
)
def test_idx_files_are_recognized_by_their_contents(title, name, other, last, compress, tmp_path, monkeypatch):
    folder = fashion(tmp_path / "FashionMNIST" / "raw", compress)
    monkeypatch.setattr(idx_files, "PIXEL_SUMS", {pixel_sums(folder): title})
    source = load_dataset(name, tmp_path)
    assert (source.name, source.classes[9]) == (name, last)
    with pytest.raises(UserError, match=f"holds {title}, not .*'alexnet train {name} --data DIR'"):
        load_dataset(other, tmp_path)
    for found in (load_known_layout(tmp_path), load_for_evaluation(other, tmp_path)):
        assert (found.name, found.classes[9]) == (name, last)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_kmnist_is_recognized_by_its_checksums(name, tmp_path, monkeypatch):
    folder = fashion(tmp_path, compress=True)
    names = [file for split in ("train", "test") for file in idx_files.file_names(split)]
    sums = [(f"{n}.gz", hashlib.md5((folder / f"{n}.gz").read_bytes()).hexdigest()) for n in names]
    monkeypatch.setattr(datasets.KMNIST, "resources", sums)
    if name == "mnist":
        source = load_dataset(name, folder)
        assert source.classes == ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
        assert any("are KMNIST" in note for note in source.notes)
    else:
        with pytest.raises(UserError, match="holds KMNIST, not Fashion-MNIST; train on it with 'alexnet train mnist"):
            load_dataset(name, folder)


def test_other_idx_files_may_have_other_classes_and_names(tmp_path):
    fashion(tmp_path)
    for stem, n in (("train", 40), ("t10k", 20)):
        (tmp_path / f"{stem}-labels-idx1-ubyte").unlink()
        (tmp_path / f"{stem}-labels.idx1-ubyte").write_bytes(idx(1 + np.arange(n, dtype=np.uint8) % 20))
    source = load_dataset("mnist", tmp_path, hold_out=False)
    assert source.classes == tuple(map(str, range(1, 21)))
    assert source.splits["test"].targets.tolist() == list(range(20))


@pytest.mark.slow
def test_real_fashion_mnist():
    source = load_dataset("fashion-mnist", data_folder("fashion-mnist"), hold_out=False)
    train = source.splits["train"]
    assert np.bincount(train.targets).tolist() == [6000] * 10
    assert train.images.double().mean().item() / 255 == pytest.approx(0.2860, abs=5e-5)
