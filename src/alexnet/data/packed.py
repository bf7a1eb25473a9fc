"""The folder of a packed data set: opened, its parts compared with what pack.json says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.data.checksum import sha256_of
from alexnet.data.folders import Progress, in_threads
from alexnet.data.shards import INDEX, PACK, SAMPLES, WORK, Form, Packed, Shards, damaged, read_index, read_samples
from alexnet.errors import UserError

FORMAT = "alexnet-pack-1"  # of pack.json; a reader refuses what it does not know

VERIFIED = 2 << 30
"""Bytes of shards whose checksums are computed at each start; of more, each one's when it is first mapped."""


@dataclass(frozen=True)
class Pack:
    """A packed data set."""

    path: Path
    form: Form
    classes: tuple[str, ...]
    splits: dict[str, Packed]
    failed: int
    """Pictures that could not be read as it was packed."""
    about: Mapping[str, Any]
    """All that pack.json says."""

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each file, by its path below the folder."""
        return dict(self.about["sha256"])


def is_pack(data: Path) -> bool:
    """Whether `data` is a packed data set, or one that is being packed."""
    return (data / PACK).is_file() or (data / WORK).is_dir()


def open_pack(data: Path, progress: Progress | None = None, verify: bool = True) -> Pack:
    """The packed data set in the folder `data`. Raises `UserError` for one that is unfinished, damaged or foreign.

    All sizes are compared; with `verify` also the checksums, those of more than `VERIFIED` bytes of shards as they are
    read.
    """
    if not (data / PACK).is_file():
        raise UserError(f"The packing of {data} is not finished; give 'alexnet pack' again as before, and it goes on.")
    try:
        about = json.loads((data / PACK).read_text(encoding="utf-8"))
        if about["format"] != FORMAT:
            raise UserError(f"{data / PACK} is of the format '{about['format']}', not {FORMAT}; update this program.")
        form = Form(**about["form"])
        classes = tuple(map(str, about["classes"]))
        counts = {str(split): int(count) for split, count in about["images"].items()}
        failed, digests = int(about["failed"]), {str(name): str(digest) for name, digest in about["sha256"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{data / PACK} is damaged ({error!r}); pack the data again.") from error
    if not counts or not set(counts) <= {"train", "val", "test", "all"}:
        raise UserError(
            f"{data / PACK} is damaged (its splits are {', '.join(counts) or 'none'}); pack the data again."
        )
    few = [name for name in digests if not name.endswith(".bin")]
    if bad := mismatches(data, {name: digests[name] for name in few}) if verify else []:
        raise damaged(data / bad[0], "its checksum differs")
    splits = {split: _split(data / split, form, classes, count) for split, count in counts.items()}
    few_bytes = sum(size for part in splits.values() for *_, size in part.shards.files) <= VERIFIED
    if bad := mismatches(data, digests, progress) if verify and few_bytes else []:
        raise damaged(data / bad[0], "its checksum differs")
    if verify and not few_bytes:
        for split, part in splits.items():
            part.shards.verify_as_mapped([digests.get(f"{split}/{name}", "") for name, *_ in part.shards.files])
    return Pack(data, form, classes, splits, failed, about)


def mismatches(data: Path, digests: Mapping[str, str], progress: Progress | None = None) -> list[str]:
    """Those of the files that are missing or have another checksum."""

    def differs(name: str) -> bool:
        try:
            return sha256_of(data / name) != digests[name]
        except OSError:
            return True

    names = list(digests)
    found = in_threads(differs, names, progress, "verifying shards")
    return [name for name, wrong in zip(names, found, strict=True) if wrong]


def _split(folder: Path, form: Form, classes: Sequence[str], count: int) -> Packed:
    shards = Shards(folder, form, read_index(folder / INDEX))
    for name, _, size in shards.files:
        try:
            there = (folder / name).stat().st_size
        except OSError:
            raise damaged(folder / name, "it is not there") from None
        if there != size:
            raise damaged(folder / name, f"it has {there:,} bytes instead of {size:,}")
    table = read_samples(folder / SAMPLES, ["name", "label"])
    names = [name.decode("utf-8", "surrogateescape") for name in table["name"].to_pylist()]
    targets = table["label"].to_numpy().astype(np.int64)
    if not len(names) == count == shards.first[-1] or not ((targets >= 0) & (targets < len(classes))).all():
        raise damaged(folder / SAMPLES, "it does not fit the shards")
    return Packed(folder, names, torch.from_numpy(targets), shards, np.arange(count))
