"""The folder of a packed data set: opened, its parts compared with what pack.json says of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.image_folder import Progress, map_in_threads
from alexnet.data.shards.reader import (
    FAILED,
    INDEX,
    MEAN_IMAGE,
    PACK,
    SAMPLES,
    WORK,
    PackedImages,
    ShardFormat,
    Shards,
    damaged,
    read_index,
    read_samples,
)
from alexnet.data.shards.writer import Facts, Task, put, read_facts
from alexnet.errors import UserError
from alexnet.files import sha256_file

FORMAT = "alexnet-pack-1"  # of pack.json; a reader refuses what it does not know

VERIFIED = 2 << 30
"""Bytes of shards whose checksums are computed at each start; of more, each one's when it is first mapped."""


@dataclass(frozen=True)
class PackedDataset:
    """A packed data set."""

    path: Path
    form: ShardFormat
    classes: tuple[str, ...]
    splits: dict[str, PackedImages]
    failed: int
    """Pictures that could not be read as it was packed."""
    about: Mapping[str, Any]
    """All that pack.json says."""

    @property
    def checksums(self) -> dict[str, str]:
        """SHA-256 of each file, by its path below the folder."""
        return dict(self.about["sha256"])


def is_packed(data: Path) -> bool:
    """Whether `data` is a packed data set, or one that is being packed."""
    return (data / PACK).is_file() or (data / WORK).is_dir()


def open_packed(data: Path, progress: Progress | None = None, verify: bool = True) -> PackedDataset:
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
        form = ShardFormat(**about["form"])
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
    if bad := find_mismatches(data, {name: digests[name] for name in few}) if verify else []:
        raise damaged(data / bad[0], "its checksum differs")
    splits = {split: _split(data / split, form, classes, count) for split, count in counts.items()}
    few_bytes = sum(size for part in splits.values() for *_, size in part.shards.files) <= VERIFIED
    if bad := find_mismatches(data, digests, progress) if verify and few_bytes else []:
        raise damaged(data / bad[0], "its checksum differs")
    if verify and not few_bytes:
        for split, part in splits.items():
            part.shards.verify_as_mapped([digests.get(f"{split}/{name}", "") for name, *_ in part.shards.files])
    return PackedDataset(data, form, classes, splits, failed, about)


def find_mismatches(data: Path, digests: Mapping[str, str], progress: Progress | None = None) -> list[str]:
    """Those of the files that are missing or have another checksum."""

    def differs(name: str) -> bool:
        try:
            return sha256_file(data / name) != digests[name]
        except OSError:
            return True

    names = list(digests)
    found = map_in_threads(differs, names, progress, "verifying shards")
    return [name for name, wrong in zip(names, found, strict=True) if wrong]


def _split(folder: Path, form: ShardFormat, classes: Sequence[str], count: int) -> PackedImages:
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
    return PackedImages(folder, names, torch.from_numpy(targets), shards, np.arange(count))


@dataclass(frozen=True)
class Contents:
    """What is to be packed."""

    classes: tuple[str, ...]
    splits: dict[str, ImageArrays | ImageFiles]
    channels: int


# ─── What stands beside the shards of a packed data set, made of their facts when all are finished.


def finish(target: Path, key: str, contents: Contents, form: ShardFormat, tasks: list[Task]) -> None:
    """What stands beside the shards, and pack.json last: without it the data set is unfinished."""
    sums: dict[str, str] = {}
    images: dict[str, int] = {}
    failed: list[tuple[str, str, str]] = []
    measured = None

    def keep(name: str, data: bytes) -> None:
        put(target / name, lambda file: file.write(data))
        sums[name] = sha256_file(target / name)

    for split, part in contents.splits.items():
        facts, total = _facts([task for task in tasks if task.split == split])
        starts = np.cumsum([0, *(len(task) for task in tasks if task.split == split)])
        for start, one in zip(starts, facts, strict=False):
            failed += [(part.names[start + i], split, reason) for i, reason in one.about.failed]
            if one.about.name:
                sums[f"{split}/{one.about.name}"] = one.about.sha256
        kept = np.concatenate([start + one.kept for start, one in zip(starts, facts, strict=False)])
        if len(kept) == 0:
            continue
        images[split] = len(kept)
        keep(f"{split}/{SAMPLES}", _table(part, kept, np.concatenate([one.digests for one in facts])))
        keep(f"{split}/{INDEX}", _index([one for one in facts if one.about.name]))
        if split == "train" and form.side is not None:
            measured = _measured(total, np.sum([one.products for one in facts], axis=0), len(kept))
            keep(MEAN_IMAGE, measured.pop("mean_image"))
    if not images:
        shown = ", ".join(f"{name} ({reason})" for name, _, reason in failed[:3])
        raise UserError(f"None of the {len(failed)} pictures can be read: {shown}; replace them.")
    keep(FAILED, _rows([("name", "split", "reason"), *failed]))
    about = {
        "format": FORMAT,
        "key": key,
        "form": asdict(form),
        "classes": list(contents.classes),
        "images": images,
        "failed": len(failed),
        "statistics": measured,
        "made_with": {name: metadata.version(name) for name in ("litdata", "pillow", "numpy")},
        "sha256": sums,
    }
    put(target / PACK, lambda file: file.write(json.dumps(about, indent=1).encode()))


def _facts(tasks: list[Task]) -> tuple[list[Facts], np.ndarray]:
    """Those of each shard; and the sum of their pictures, which for all of ImageNet's one by one would be gigabytes."""
    found, total = [], np.zeros((), dtype=np.int64)
    for task in tasks:
        one = read_facts(task.facts)
        if one is None:
            raise UserError(f"{task.facts} is damaged; give the same command again, and it goes on.")
        total = total + one.total
        found.append(replace(one, total=np.zeros(0)))
    return found, total


def _table(part: ImageArrays | ImageFiles, kept: np.ndarray, digests: np.ndarray) -> bytes:
    """Names as bytes: on most systems they need not be valid UTF-8."""
    import pyarrow as pa
    from pyarrow import parquet

    names = [part.names[i].encode("utf-8", "surrogateescape") for i in kept]
    columns = {
        "name": pa.array(names, pa.binary()),
        "label": pa.array(part.targets.numpy()[kept].astype(np.int32)),
        "digest": pa.array([row.tobytes() for row in digests], pa.binary(digests.shape[1])),
    }
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def _index(facts: list[Facts]) -> bytes:
    """litdata's list of the shards of a split."""
    chunks = [
        {"chunk_bytes": one.about.bytes, "chunk_size": len(one.kept), "dim": None, "filename": one.about.name}
        for one in facts
    ]
    config = {**facts[0].about.config, "chunk_size": max(len(one.kept) for one in facts)}
    return json.dumps({"chunks": chunks, "config": config}, sort_keys=True).encode()


def _measured(total: np.ndarray, products: np.ndarray, count: int) -> dict[str, Any]:
    """The mean image, and the covariance of the pixels' channels in levels of 0…255, of `count` pictures: from their
    sum, int64 side×side×C, and that of the channels' products, both exact."""
    pixels = count * total.shape[0] * total.shape[1]
    mean = total.sum(axis=(0, 1)) / pixels
    file = io.BytesIO()
    np.save(file, total.transpose(2, 0, 1) / count, allow_pickle=False)
    return {
        "images": count,
        "mean": mean.tolist(),
        "covariance": (products / pixels - np.outer(mean, mean)).tolist(),
        "mean_image": file.getvalue(),
    }


def _rows(rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")
