"""Train, validation and test splits: stratified by class, seeded, and recorded in split.csv.

Samples are held out by the rank of a hash of (seed, index) rather than by a generator, so a split does not depend on a
library's shuffling. It is still recorded by file name, since files may change between a run and its resumption.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alexnet import rng
from alexnet.data.dataset import SPLITS, ImageArrays, ImageDataset, ImageFiles, SplitRows, order_splits
from alexnet.data.in_memory import check_files
from alexnet.data.shards.reader import PackedImages
from alexnet.errors import UserError


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
        with open(path, newline="", encoding="utf-8") as file:
            return [(row["path"], row["reason"]) for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, csv.Error, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); restore it, or start a new run.") from error


# ── splitting a dataset ──────────────────────────────────────────────────────────────────────────────────────


def make_splits(source: ImageDataset, seed: int, hold_out: bool, rows: SplitRows | None) -> ImageDataset:
    """Hold out the missing validation and test splits of `source`, or reproduce the recorded split `rows`.

    Predefined splits stay unchanged; see `load_dataset` for the fractions. Copies of a file within a
    class stay in one split, so that no model is tested on an image it was trained on.
    """
    if "val" in source.splits or not hold_out:
        return source
    if rows:
        return _restore_splits(source, rows)
    if "test" in source.splits:
        fractions = {"val": 0.05}
    elif source.name == "digits":
        fractions = {"test": 0.15, "val": 0.15 / 0.85}
    else:
        fractions = {"val": 0.20}
    train, splits = source.splits["train"], dict(source.splits)
    total = len(train)
    for split, fraction in fractions.items():
        kept, held_out = _hold_out(train, fraction, rng.derive_seed(seed, split))
        if len(held_out) == 0:
            check_files(source)  # none is readable: a better explanation
            raise UserError(
                f"The {total} images of '{source.name}' are one per class, which leaves none to validate on; add more."
            )
        splits[split], train = train.take(held_out), train.take(kept)
    splits["train"] = train
    counts = " and ".join(f"{len(splits[split])} for {split}" for split in fractions)
    note = f"Held out {counts} of {total} images, by class, with seed {seed}."
    return replace(source, splits=order_splits(splits), held_out=tuple(fractions), notes=[*source.notes, note])


def _hold_out(part: ImageArrays | ImageFiles, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Apply `stratified_split` with copies of a file on the same side.

    If that leaves nothing to hold out, since each class consists of copies of one image, copies are split like others.
    """
    first = _first_copy_indices(part)
    unique = np.unique(first)
    if len(unique) < len(part):
        _, chosen = stratified_split(part.targets[torch.from_numpy(unique)], fraction, seed)
        if len(chosen):
            held_out = np.isin(first, unique[chosen])
            return np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return stratified_split(part.targets, fraction, seed)


def _first_copy_indices(part: ImageArrays | ImageFiles) -> np.ndarray:
    """Return, for each sample, the index of the first byte-identical file of its class, int64 (N,): usually its own.

    Files of a unique size are not read; packed images have digests from packing. Arrays are not compared.
    """
    labels = part.targets.tolist()
    if isinstance(part, PackedImages):
        digests = [digest + str(label).encode() for digest, label in zip(part.digests(), labels, strict=True)]
    elif isinstance(part, ImageFiles):
        paths = [os.path.join(part.root, name) for name in part.names]
        keys = list(zip(map(_file_size, paths), labels, strict=True))
        counts = Counter(keys)
        digests = [_file_digest(p, key[1]) if counts[key] > 1 else b"" for p, key in zip(paths, keys, strict=True)]
    else:
        return np.arange(len(part))
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(digest, i) if digest else i for i, digest in enumerate(digests)])


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # reported when the images are read
        return -1


def _file_digest(path: str, label: int) -> bytes:
    """Return a digest of the file's content and `label`, empty if it cannot be opened."""
    try:
        with open(path, "rb", buffering=0) as file:
            return hashlib.blake2b(file.read() + str(label).encode(), digest_size=16).digest()
    except OSError:
        return b""


def _restore_splits(source: ImageDataset, rows: SplitRows) -> ImageDataset:
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
