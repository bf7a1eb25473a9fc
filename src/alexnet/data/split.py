"""Splits: which samples are held out, by class, by seed, and on paper.

A sample is held out by rank of a hash of (seed, its index), not by the next number of a generator, so the
split does not move when a library changes its shuffling. It is still written down (`split.csv`, by file name),
because files come and go between a run and its resumption.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from alexnet import rng
from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles, SplitRows
from alexnet.data.quality.duplicates import exact_groups
from alexnet.data.shards.reader import PackedImages
from alexnet.errors import UserError

SPLITS = ("train", "val", "test")


def stratified_split(targets: torch.Tensor | np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (kept, held), int64 and ascending, with about `fraction` of every class among the held.

    Of a class with n samples round(n·fraction) are held, but at least one, and never all: a class with a single
    sample keeps it. `targets` are integers of shape (n,). Raises `UserError` for a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise UserError(f"The share of samples to hold out must lie between 0 and 1, not {fraction}; 0.05 is usual.")
    labels = np.asarray(targets)
    rank = rng.uniform(seed, 0, np.arange(len(labels)), "split", 1)[:, 0]
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held[members[np.argsort(rank[members], kind="stable")[:count]]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def write_split(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Writes rows of (file name, split) as CSV with the header `name,split`."""
    # surrogateescape: a file name need not be valid UTF-8, and must come back as it was
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(("name", "split"))
        writer.writerows(rows)


def read_split(path: Path) -> list[tuple[str, str]]:
    """The rows that `write_split` wrote. Raises `UserError` for a file that is missing or something else."""
    try:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except (OSError, csv.Error) as error:
        raise UserError(f"The split in {path} cannot be read ({error}); delete it to have a new one made.") from error
    if header != ["name", "split"] or any(len(row) != 2 or row[1] not in SPLITS for row in rows):
        raise UserError(
            f"{path} is not a split: it needs the header 'name,split' and rows such as 'cat/1.jpg,train', "
            f"with splits {', '.join(SPLITS)}."
        )
    return [(name, split) for name, split in rows]


# ── dividing a data set ───────────────────────────────────────────────────────────────────────────────────────


def make_splits(source: ImageDataset, seed: int, hold_out: bool, rows: SplitRows | None) -> ImageDataset:
    """`source` with the validation and test parts that it lacks held out of its train part, or as `rows` (of an
    earlier `Source.split_rows`) say. What the data set itself divides stays so; see `sources.load_source`. Copies
    of a file in a class stay together, so that none is learnt and another tested."""
    if "val" in source.splits or not hold_out:
        return source
    if rows:
        return _restore_splits(source, rows)
    if "test" in source.splits:
        shares = {"val": 0.05}
    elif source.name == "digits":
        shares = {"test": 0.15, "val": 0.15 / 0.85}
    else:
        shares = {"val": 0.20}
    train, splits = source.splits["train"], dict(source.splits)
    total = len(train)
    for split, share in shares.items():
        kept, held = _hold_out(train, share, rng.derive_seed(seed, split))
        if len(held) == 0:
            raise UserError(
                f"The {total} images of '{source.name}' are one a class, which leaves none to validate on; add more."
            )
        splits[split], train = train.take(held), train.take(kept)
    splits["train"] = train
    counts = " and ".join(f"{len(splits[split])} for {split}" for split in shares)
    note = f"Held out {counts} of {total} images, by class, with seed {seed}."
    return replace(source, splits=order_splits(splits), held_out=tuple(shares), notes=[*source.notes, note])


def _hold_out(part: ImageArrays | ImageFiles, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`stratified`, with copies of a file on the side of the first of them; where that leaves nothing to hold out,
    because a class is copies of one picture, they are divided like any others."""
    first = _first_copy_indices(part)
    chosen = np.unique(first)
    if len(chosen) < len(part):
        _, held = stratified_split(part.targets[torch.from_numpy(chosen)], share, seed)
        if len(held):
            away = np.isin(first, chosen[held])
            return np.flatnonzero(~away), np.flatnonzero(away)
    return stratified_split(part.targets, share, seed)


def _first_copy_indices(part: ImageArrays | ImageFiles) -> np.ndarray:
    """For each sample the index of the first in its class that is the same to the byte: its own, but for copies. Of
    files only; those of a size of their own are not read, and of packed ones that was told when they were packed."""
    first = np.arange(len(part))
    if isinstance(part, PackedImages):
        labels = part.targets.tolist()
        for group in exact_groups([d + str(label).encode() for d, label in zip(part.digests(), labels, strict=True)]):
            first[group] = group[0]
    elif isinstance(part, ImageFiles):
        of = list(zip([path.stat().st_size for path in part.paths], part.targets.tolist(), strict=True))
        common = Counter(of)
        digests = [
            hashlib.blake2b(path.read_bytes() + str(label).encode(), digest_size=16).digest()
            if common[size, label] > 1
            else b""
            for path, (size, label) in zip(part.paths, of, strict=True)
        ]
        for group in exact_groups(digests):
            first[group] = group[0]
    return first


def _restore_splits(source: ImageDataset, rows: SplitRows) -> ImageDataset:
    pool = source.splits["train"]
    index = {name: i for i, name in enumerate(pool.names)}
    missing = [name for name, _ in rows if name not in index]
    if missing:
        raise UserError(
            f"The recorded split names {len(missing)} images that are not there or cannot be read, such as "
            f"{missing[0]}; put them back, or start a new run."
        )
    indices: dict[str, list[int]] = {}
    for name, split in rows:
        indices.setdefault(split, []).append(index[name])
    if "train" not in indices or "val" not in indices:
        raise UserError("The recorded split has no train or no val part; delete it to have a new one made.")
    splits = {**source.splits, **{split: pool.take(np.array(where)) for split, where in indices.items()}}
    notes = list(source.notes)
    if new := len(pool) - len({name for name, _ in rows}):
        notes.append(f"{new} images are not in the recorded split and were left out.")
    held_out = tuple(split for split in indices if split != "train")
    return replace(source, splits=order_splits(splits), held_out=held_out, notes=notes)


def order_splits(splits: dict[str, ImageArrays | ImageFiles]) -> dict[str, ImageArrays | ImageFiles]:
    """The same, train first and test last."""
    return {split: splits[split] for split in (*SPLITS, "all") if split in splits}
