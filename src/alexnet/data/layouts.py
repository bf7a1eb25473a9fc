"""Labels of images that lie in no class folders, as published datasets bring them in files beside the images.

| layout | labels of the images in a folder |
|---|---|
| Hugging Face | `metadata.csv`, `.jsonl` or `.parquet` there or above, with `file_name` and a label |
| Tiny-ImageNet | `val_annotations.txt` there: image, class |
| ImageNet at Kaggle | `LOC_val_solution.csv`, beside `ILSVRC/`: image, class |
| ImageNet for Caffe | `val.txt`: image, position of its class in alphabetical order, from 0 |
| ImageNet for TensorFlow | `imagenet_2012_validation_synset_labels.txt`: the class of the n-th image in line n |
| ImageNet's own | `ILSVRC2012_validation_ground_truth.txt`: the number of a class, which `meta.mat` names |

Each is read to a dict of path below the data folder → class, as rows of a table of labels would be.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from alexnet.data.label_table import COLUMN_NAMES, LABEL_NAMES, read_column_names, read_label_table
from alexnet.device import cache_dir
from alexnet.errors import UserError
from alexnet.text import BY_CONTENT, TextOptions, decode_file

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
"""One number from 1 to 1000 a line, for the validation images by name; from the development kit of ILSVRC 2012."""
CLASS_NUMBERS = "meta.mat"
"""The kit's table of these numbers: ILSVRC2012_ID, WNID, …, num_children in the fifth field."""
SYNSET_LABELS = "imagenet_2012_validation_synset_labels.txt"
PAIR_FILES = ("val_annotations.txt", "LOC_val_solution.csv", "val.txt")
LABEL_FILES = frozenset({*METADATA_FILES, GROUND_TRUTH, CLASS_NUMBERS, SYNSET_LABELS, *PAIR_FILES})
"""File names that are read here; archives.py extracts them."""

_KIT = ("ILSVRC2012_devkit_t12/data", "data")  # folders of the development kit that hold its ground truth
_ABOVE_KAGGLE = 3  # folders from ILSVRC/Data/CLS-LOC to where its tables are


def unpacked_tables() -> Path:
    """Return the folder in the cache that parquet_images.py unpacks to."""
    return cache_dir() / "tables"


class FlatImages(NamedTuple):
    """Images of one split that are in no class folders."""

    root: Path
    """The data folder."""
    folder: Path
    """The folder of the split; `root` itself without splits."""
    names: Sequence[str]
    """Sorted paths below `root`."""

    @property
    def prefix(self) -> str:
        """What the paths of these images begin with."""
        return "" if self.folder == self.root else f"{self.folder.relative_to(self.root).as_posix()}/"


class FoundLabels(NamedTuple):
    file: Path
    labels: dict[str, str]
    """Path below the data folder → class, also of images that are missing."""
    notes: list[str]
    """How the file was read; a sentence each."""


def find_metadata(folder: Path, with_label: bool = False) -> Path | None:
    """Return Hugging Face's table in `folder` if it has one: it names the images in the column `file_name`, and, where
    `with_label`, has one of the usual columns of labels."""
    for path in (folder / name for name in METADATA_FILES):
        columns = {name.strip().lower() for name in read_column_names(path)} if path.is_file() else set()
        if "file_name" in columns and (not with_label or columns & {*COLUMN_NAMES["label"], *LABEL_NAMES}):
            return path
    return None


def read_metadata(images: FlatImages, text: TextOptions, optional: bool) -> FoundLabels | None:
    """Return the labels of `images` from Hugging Face's table in their folder or in the data folder, or None if there
    is none, or if they are `optional` and the table has no label.

    Raises `UserError` as `read_label_table` does, and for rows that cannot be used.
    """
    for home in dict.fromkeys((images.folder, images.root)):
        if (file := find_metadata(home, with_label=optional)) is None:
            continue
        own = home.is_relative_to(unpacked_tables())  # then `text` spoke of the columns of the original
        table = read_label_table(file, home, BY_CONTENT if own else text)
        if table.bad:
            name, reason = table.bad[0]
            raise UserError(f"{len(table.bad)} rows of {file} cannot be used, such as {name} ({reason}); fix them.")
        above = "" if home == images.root else images.prefix
        rows = {above + name: label for name, label in zip(table.names, table.labels, strict=True)}
        if labels := {name: label for name, label in rows.items() if name.startswith(images.prefix)}:
            return FoundLabels(file, labels, table.notes)
    return None


def read_ground_truth(images: FlatImages, classes: Sequence[str]) -> FoundLabels | None:
    """Return the labels of `images` from a file that comes with Tiny-ImageNet or ImageNet, or None if there is none.

    `classes` are those of train/, in alphabetical order. Raises `UserError` for a file that does not fit the images.
    """
    homes = [images.folder, images.root, *(images.root / inside for inside in _KIT)]
    if images.root.name == "CLS-LOC" and len(images.root.parents) >= _ABOVE_KAGGLE:
        homes.append(images.root.parents[_ABOVE_KAGGLE - 1])
    readers: dict[str, Callable[[FlatImages, Path, Sequence[str]], dict[str, str]]]
    readers = {**dict.fromkeys(PAIR_FILES, _read_pairs), SYNSET_LABELS: _read_synsets, GROUND_TRUTH: _read_numbers}
    for home in dict.fromkeys(homes):
        for name, read in readers.items():
            if (home / name).is_file():
                return FoundLabels(home / name, read(images, home / name, classes), [])
    return None


def _read_lines(path: Path) -> list[str]:
    text, _ = decode_file(path.read_bytes(), str(path))
    return [line for line in text.splitlines() if line.strip()]


def _read_pairs(images: FlatImages, path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Read lines of an image, its class, and perhaps more, such as boxes."""
    rows = [re.split(r"[\t ,]+", line.strip()) for line in _read_lines(path)]
    if rows and rows[0][0] == "ImageId":  # the header of Kaggle's table
        rows = rows[1:]
    if any(len(row) < 2 for row in rows):
        raise UserError(f"{path} does not give an image and its class in each line; restore the published file.")
    labels = [row[1] for row in rows]
    if not set(labels) <= set(classes) and all(label.isdecimal() for label in labels):
        if max(map(int, labels), default=0) >= len(classes):
            raise UserError(f"{path} numbers classes up to {max(map(int, labels))}, and train/ has {len(classes)}.")
        labels = [classes[int(label)] for label in labels]
    known = {posixpath.splitext(posixpath.basename(name))[0]: name for name in images.names}
    names = [posixpath.basename(row[0]) for row in rows]
    found = [known.get(posixpath.splitext(name)[0], images.prefix + name) for name in names]
    return dict(zip(found, labels, strict=True))


def _read_synsets(images: FlatImages, path: Path, _: Sequence[str]) -> dict[str, str]:
    """Read the class of each image, in the order of their names."""
    labels = [line.strip() for line in _read_lines(path)]
    if len(labels) != len(images.names):
        raise UserError(
            f"{path} labels {len(labels):,} images, and {images.folder} holds {len(images.names):,}; their order can "
            "be relied on only if all are there."
        )
    return dict(zip(images.names, labels, strict=True))


def _read_numbers(images: FlatImages, path: Path, classes: Sequence[str]) -> dict[str, str]:
    """Read the number of the class of each image, in the order of their names."""
    from scipy.io import loadmat

    table = path.with_name(CLASS_NUMBERS)
    if not table.is_file():
        raise UserError(f"{path} numbers classes by {CLASS_NUMBERS}; put that file of the same kit next to it.")
    try:
        rows = loadmat(table, squeeze_me=True)["synsets"].tolist()
        wnids = {str(row[0]): str(row[1]) for row in rows if row[4] == 0}  # the others are groups of classes
    except (ValueError, KeyError, IndexError, TypeError, NotImplementedError, OSError) as error:
        raise UserError(f"{table} cannot be read ({error}); restore the published file.") from error
    numbers = _read_synsets(images, path, classes)
    if unknown := sorted(set(numbers.values()) - set(wnids)):
        raise UserError(f"{path} has the class number '{unknown[0]}', which {table} lacks; restore the published file.")
    return {name: wnids[number] for name, number in numbers.items()}
