"""Dataset types (images on disk, images in memory, a dataset with its splits), and how images are held out.

Splits are stratified by class, seeded, and recorded in split.csv. Samples are held out by the rank of a hash of (seed,
index) rather than by a generator, so a split does not depend on a library's shuffling. It is still recorded by file
name, since files may change between a run and its resumption.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alexnet import rng
from alexnet.data.deep import ValueRange
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
BAD_SHOWN = 3  # unreadable files that a message names for each reason

EMPTY_FOLDER = "the class folder holds no images"
"""The reason for which `BadFiles` lists a class folder, whose name then ends with a slash."""

UNREADABLE_CLASS = "none of the training images of this class can be read"
"""The reason for which a class is left out that has images, named as its folder would be."""
WITHOUT_CLASS = "the training images of its class cannot be read"
"""The reason for which an image of another split is left out with such a class."""

RawImage = Path | bytes | np.ndarray
"""An image file, its bytes, or its pixels, uint8 H×W×C."""

SplitRows = list[tuple[str, str]]
"""Rows (image name, split) of `split.csv`."""


class BadFiles(UserError):
    """Files of a dataset that cannot be read, or class folders without any: `bad` lists each with the reason."""

    def __init__(
        self,
        summary: str,
        bad: list[tuple[str, str]],
        fix: str = "replace or remove them, or skip them with --skip-bad",
    ) -> None:
        super().__init__(summary, bad, fix)  # all in args: it survives pickling, and `calls` names keywords there
        self.summary = summary
        self.bad = bad

    def __str__(self) -> str:
        summary, _, fix = self.args
        return f"{summary}; {fix}."

    def without_skipping(self, fix: str) -> UserError:
        """Return the error for a caller that cannot skip files, who is told to do `fix`."""
        return UserError(f"{self.summary}; {fix}.")


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, decoded when needed."""

    root: Path
    """The folder that `names` are relative to."""
    names: list[str]
    """Paths below `root`, with / as separator on every system."""
    targets: torch.Tensor
    """Class indices, int64 (N,)."""

    verified: ClassVar[bool] = False
    """Whether checksums protect the images, which then need no check before training."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]

    def raw(self, i: int) -> RawImage:
        """Return image `i` as stored, a source for `decode_image`. Raises `UserError`."""
        return self.root / self.names[i]

    def describe(self, i: int) -> str:
        """Return the name of image `i` for messages."""
        return str(self.root / self.names[i])

    def check(self, preprocess: EvalTransform) -> None:
        """Raise `UserError` if these images cannot be read with `preprocess`; files always can."""

    def digests(self) -> list[bytes]:
        """Return digests of the files, equal for copies within a class; empty for files of a unique size, which are not
        read, and for missing ones."""
        paths = [os.path.join(self.root, name) for name in self.names]
        keys = list(zip(map(_file_size, paths), self.targets.tolist(), strict=True))
        counts = Counter(keys)
        return [_file_digest(path) if counts[key] > 1 else b"" for path, key in zip(paths, keys, strict=True)]

    def take(self, indices: np.ndarray) -> ImageFiles:
        """Return the images at `indices`, in that order."""
        import torch

        return ImageFiles(self.root, [self.names[i] for i in indices], self.targets[torch.as_tensor(indices)])


@dataclass(frozen=True)
class ImageArrays:
    """Decoded images in memory."""

    images: torch.Tensor
    """uint8 N×C×H×W."""
    targets: torch.Tensor
    """Class indices, int64 (N,)."""
    names: list[str]
    """Path below the data folder, or split/number for images that have no file."""
    eval_ready: bool = False
    """Whether the images are already resized and cropped for evaluation, and must not be resized again."""

    def __len__(self) -> int:
        return len(self.targets)

    def raw(self, i: int) -> np.ndarray:
        """Return the pixels of one image, uint8 H×W×C."""
        return self.images[i].permute(1, 2, 0).numpy()

    def take(self, indices: np.ndarray) -> ImageArrays:
        """Return the images at `indices`, in that order."""
        import torch

        index, names = torch.as_tensor(indices), [self.names[i] for i in indices]
        return replace(self, images=self.images[index], targets=self.targets[index], names=names)


@dataclass(frozen=True)
class ImageDataset:
    """A dataset with its classes and splits."""

    name: str
    classes: tuple[str, ...]
    """Class names; targets are indices into it."""
    splits: Mapping[str, ImageArrays | ImageFiles]
    """train, val and test, as far as they exist; `all` for evaluation data without splits."""
    channels: int
    """1 for gray datasets, 3 for RGB; files are decoded to it."""
    held_out: tuple[str, ...] = ()
    """The splits that were held out of train rather than predefined."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Unreadable files that were left out: (name, reason)."""
    notes: list[str] = field(default_factory=list)
    """Sentences to show the user."""
    value_range: ValueRange | None = None
    """Of packed images: the values that became 0 and 255 in images of more than 8 bits, if there were any."""

    @property
    def files(self) -> dict[str, ImageFiles]:
        """The splits that are not in memory."""
        return {split: part for split, part in self.splits.items() if isinstance(part, ImageFiles)}

    @property
    def arrays(self) -> dict[str, ImageArrays]:
        """The splits that are in memory."""
        return {split: part for split, part in self.splits.items() if isinstance(part, ImageArrays)}

    @property
    def split_rows(self) -> SplitRows:
        """The rows of split.csv, to pass to `load_dataset` as `split`; empty if the dataset came with its splits."""
        recorded = ("train", *self.held_out) if self.held_out else ()
        return [(name, split) for split in recorded for name in self.splits[split].names]

    @property
    def images_per_class(self) -> float:
        """Training images per class, in the mean."""
        return len(self.splits["train"]) / len(self.classes)

    def with_channels(self, channels: int) -> ImageDataset:
        """Return the dataset with its files decoded to 1 or 3 `channels`. Raises `UserError` for other numbers, and for
        another number than that of images in memory or packed ones."""
        if channels not in (1, 3):
            raise UserError(f"--in-channels is 1 for grayscale or 3 for color, not {channels}.")
        if channels != self.channels and (self.arrays or any(part.verified for part in self.files.values())):
            stored = "grayscale" if self.channels == 1 else "color"
            raise UserError(
                f"The images of '{self.name}' are stored in {stored}, which --in-channels {channels} cannot change; "
                "leave it out, or give image files."
            )
        return replace(self, channels=channels)


def list_first(names: Sequence[str]) -> str:
    """Join the first ten of `names`, with "..." if there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def list_bad(bad: Iterable[tuple[str, str]]) -> str:
    """Join the first names of each reason, the most frequent reason first: "a.jpg, b.jpg and 5 more (it is empty)"."""
    names: dict[str, list[str]] = {}
    for name, reason in bad:
        names.setdefault(reason, []).append(name)
    groups = []
    for reason, found in sorted(names.items(), key=lambda group: -len(group[1])):
        more = f" and {len(found) - BAD_SHOWN:,} more" if len(found) > BAD_SHOWN else ""
        groups.append(f"{', '.join(found[:BAD_SHOWN])}{more} ({reason})")
    return "; ".join(groups)


def order_splits(splits: Mapping[str, ImageArrays | ImageFiles]) -> dict[str, ImageArrays | ImageFiles]:
    """Return the splits in the order train, val, test, all."""
    return {split: splits[split] for split in (*SPLITS, "all") if split in splits}


# ── splits ────────────────────────────────────────────────────────────────────────────────────────


def stratified_split(targets: torch.Tensor | np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices (kept, held out), int64 ascending, with about `fraction` of each class held out.

    Of the n samples of a class, round(n·fraction) are held out, at least one but never all, so a class with a single
    sample keeps it. `targets` are integers (n,). Raises `UserError` for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise UserError(f"The fraction to hold out must be between 0 and 1, not {fraction}; 0.05 is usual.")
    labels = np.asarray(targets)
    rank = rng.uniform(seed, 0, np.arange(len(labels)), "split", 1)[:, 0]
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def write_split(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write rows of (file name, split) as CSV with the header `name,split`."""
    # surrogateescape: a file name need not be valid UTF-8, and must survive the round trip
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "split"))
        writer.writerows(rows)


def read_split(path: Path) -> list[tuple[str, str]]:
    """Return the rows that `write_split` wrote. Raises `UserError` if the file is missing or invalid."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, csv.Error) as error:
        raise UserError(f"The split in {path} cannot be read ({error}); delete it to create a new one.") from error
    if header != ["name", "split"] or any(len(row) != 2 or row[1] not in SPLITS for row in rows):
        raise UserError(
            f"{path} is not a split: it needs the header 'name,split' and rows such as 'cat/1.jpg,train', "
            f"with splits {', '.join(SPLITS)}."
        )
    return [(name, split) for name, split in rows]


def read_bad_files(path: Path) -> list[tuple[str, str]]:
    """Return the (printable name, reason) rows of a run's bad_files.csv; none if there is no such file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            return [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); restore it, or start a new run.") from error


def hold_out_samples(part: ImageArrays | ImageFiles, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply `stratified_split` with copies of a file on the same side.

    If that leaves nothing to hold out, since each class consists of copies of one image, copies are split like others.
    """
    first = _first_copy_indices(part)
    unique = np.unique(first)
    if len(unique) < len(part):
        _, chosen = stratified_split(np.asarray(part.targets)[unique], fraction, seed)
        if len(chosen):
            held_out = np.isin(first, unique[chosen])
            return np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return stratified_split(part.targets, fraction, seed)


def _first_copy_indices(part: ImageArrays | ImageFiles) -> np.ndarray:
    """Return, for each sample, the index of the first byte-identical file of its class, int64 (N,): usually its own.

    Arrays are not compared.
    """
    if isinstance(part, ImageArrays):
        return np.arange(len(part))
    seen: dict[tuple[bytes, int], int] = {}
    keys = zip(part.digests(), part.targets.tolist(), strict=True)
    return np.array([seen.setdefault(key, i) if key[0] else i for i, key in enumerate(keys)])


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # reported when the images are read
        return -1


def _file_digest(path: str) -> bytes:
    """Return a digest of the file's content, empty if it cannot be opened."""
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.blake2b(file.read(), digest_size=16).digest()
    except OSError:
        return b""


def restore_splits(source: ImageDataset, rows: SplitRows) -> ImageDataset:
    """Split `source` as recorded in `rows`. Raises `UserError` if images are missing or the record is incomplete."""
    pool = source.splits["train"]
    index = {name: i for i, name in enumerate(pool.names)}
    missing = [name for name, _ in rows if name not in index]
    if missing:
        raise UserError(
            f"The recorded split names {len(missing)} images that are missing or cannot be read, such as "
            f"{missing[0]}; restore them, or start a new run."
        )
    indices: dict[str, list[int]] = {}
    for name, split in rows:
        indices.setdefault(split, []).append(index[name])
    if "train" not in indices or "val" not in indices:
        raise UserError("The recorded split has no train or no val images; delete it to create a new one.")
    splits = {**source.splits, **{split: pool.take(np.array(chosen)) for split, chosen in indices.items()}}
    notes = list(source.notes)
    if new := len(pool) - len({name for name, _ in rows}):
        notes.append(f"{new} images are not in the recorded split and were skipped.")
    held_out = tuple(split for split in indices if split != "train")
    return replace(source, splits=order_splits(splits), held_out=held_out, notes=notes)
