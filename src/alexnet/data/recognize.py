"""What a dataset is, by the names of its files: packed, or in the files that its authors publish. Needs no torch."""

from __future__ import annotations

from pathlib import Path

from alexnet.data import idx

PACK = "pack.json"
"""The description of a packed dataset."""
WORK = ".packing"
"""The folder in it that holds the results of finished shards until all are finished."""

CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
"""File name of CIFAR-10's archive. Its pickles are read only after its checksum matched."""
CIFAR10_FOLDER = "cifar-10-batches-py"
"""The folder in it."""


def is_packed(data: Path) -> bool:
    """Return whether `data` is a packed dataset, finished or not."""
    return (data / PACK).is_file() or (data / WORK).is_dir()


def is_cifar10(data: Path) -> bool:
    """Return whether `data` is the archive of CIFAR-10, or a folder that holds the archive or its files."""
    if data.name == CIFAR10_ARCHIVE:
        return True
    return (data / CIFAR10_FOLDER).is_dir() or any((data / n).is_file() for n in (CIFAR10_ARCHIVE, "data_batch_1"))


def is_published(data: Path) -> bool:
    """Return whether `data` is CIFAR-10, or a dataset like MNIST, in the files that their authors publish."""
    return is_cifar10(data) or (data.is_dir() and idx.find_folder(data) is not None)
