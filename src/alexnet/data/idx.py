"""MNIST and its kin: four IDX files of the same names, whose contents say which dataset they are.

Fashion-MNIST and KMNIST were made as replacements of MNIST, with its file names, so that the names tell nothing. MNIST
and Fashion-MNIST are recognized by the sums of their pixels, whatever their order and compression, and KMNIST by the
md5 of its .gz files. Classes of any other are named by their numbers.
"""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.errors import UserError

DATASETS = {"mnist": "MNIST", "fashion-mnist": "Fashion-MNIST"}
"""Name of a dataset of IDX files → its title."""

PIXEL_SUMS = {(1_567_298_545, 264_923_200): "MNIST", (3_431_114_169, 573_469_082): "Fashion-MNIST"}
"""Sums of all pixels of the training and of the test images → title. Divided by their numbers, 47,040,000 and
7,840,000, these are the published means of the training images, 33.3184 (.1307) and 72.9404 (.2860)."""


class IdxFiles(NamedTuple):
    title: str
    """MNIST, Fashion-MNIST, KMNIST; or "" for others."""
    classes: tuple[str, ...]
    splits: dict[str, tuple[np.ndarray, np.ndarray]]
    """Split → pixels uint8 N×28×28 and class indices int64 (N,)."""


def torchvision_class(title: str) -> Any:
    """Return torchvision's dataset: its URLs, md5 sums and class names."""
    from torchvision import datasets

    return getattr(datasets, title.replace("-", ""))


def find_folder(root: Path) -> Path | None:
    """Return the folder of the IDX files: `root`, or below it as in torchvision's layout; None if there is none."""
    below = [f"{title.replace('-', '')}/raw" for title in (*DATASETS.values(), "KMNIST")] + ["raw", ""]
    return next((root / path for path in below if _find(root / path / file_names("train")[0])), None)


def file_names(split: str) -> tuple[str, str]:
    """Return the file names of the images and the labels."""
    stem = {"train": "train", "test": "t10k"}[split]
    return f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"


def read_idx_files(folder: Path) -> IdxFiles:
    """Read the four IDX files in `folder`, and recognize them. Raises `UserError` if one is missing or damaged."""
    splits = {}
    for split in ("train", "test"):
        images, labels = (folder / name for name in file_names(split))
        pixels, targets = _read(images, (28, 28)), _read(labels, ())
        if len(pixels) != len(targets) or not len(targets):
            raise UserError(f"The {split} files in {folder} do not match; download them again.")
        splits[split] = (pixels, targets.astype(np.int64))
    train, test = splits["train"][1], splits["test"][1]
    title = _recognize(folder, *(int(pixels.sum(dtype=np.int64)) for pixels, _ in splits.values()))
    if title and max(train.max(), test.max()) > 9:
        raise UserError(f"The labels in {folder} are not those of {title}; download them again.")
    if title:
        classes = tuple(map(str, range(10))) if title == "MNIST" else tuple(torchvision_class(title).classes)
        return IdxFiles(title, classes, splits)
    numbers = np.unique(train)
    if unknown := sorted(set(test.tolist()) - set(numbers.tolist())):
        raise UserError(f"The test files in {folder} have the class {unknown[0]}, which the training files lack.")
    splits = {split: (pixels, np.searchsorted(numbers, targets)) for split, (pixels, targets) in splits.items()}
    return IdxFiles("", tuple(map(str, numbers.tolist())), splits)


def _recognize(folder: Path, *sums: int) -> str:
    if title := PIXEL_SUMS.get((sums[0], sums[1])):
        return title
    found = [_find(folder / name) for split in ("train", "test") for name in file_names(split)]
    md5 = [hashlib.md5(p.read_bytes(), usedforsecurity=False).hexdigest() for p in found if p and p.suffix == ".gz"]
    return "KMNIST" if md5 == [md5 for _, md5 in torchvision_class("KMNIST").resources] else ""


def _find(path: Path) -> Path | None:
    """Return `path`, or the .gz file next to it, or either with a dot as in `train-images.idx3-ubyte`."""
    dotted = path.name.replace("-idx", ".idx")
    names = (path.name, f"{path.name}.gz", dotted, f"{dotted}.gz")
    return next((p for p in map(path.with_name, names) if p.is_file()), None)


def _read(path: Path, item: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file to uint8 (N, *item).

    The format: two zero bytes, the type (8: uint8), the number of dimensions, each dimension as a big-endian 32-bit
    integer, then the values.
    """
    found = _find(path)
    if found is None:
        raise UserError(f"{path} is missing, so the dataset is incomplete; put it there.")
    try:
        data = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{found} cannot be read ({error}); download it again.") from error
    header = 4 * (2 + len(item))
    shape = np.frombuffer(data[4:header], ">u4") if len(data) >= header else np.zeros(1)
    expected = header + int(np.prod(shape))
    if data[:4] != bytes([0, 0, 8, 1 + len(item)]) or tuple(shape[1:]) != item or len(data) != expected:
        raise UserError(f"{found} is not an IDX file of the expected shape, or is cut short; download it again.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(-1, *item).copy()
