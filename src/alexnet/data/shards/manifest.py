"""Packed datasets as folders: open and verify one, and write its pack.json and the tables beside the shards."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles
from alexnet.data.decode import map_in_threads
from alexnet.data.deep import ValueRange
from alexnet.data.recognize import PACK
from alexnet.data.shards.reader import (
    FAILED,
    FORMAT,
    INDEX,
    MEAN_IMAGE,
    SAMPLES,
    Manifest,
    PackedImages,
    PackStatistics,
    ShardFormat,
    Shards,
    damaged,
    read_index,
    read_manifest,
    read_samples,
)
from alexnet.data.shards.writer import ShardResult, ShardTask, read_result
from alexnet.errors import UserError
from alexnet.files import encode_csv, sha256_file, write_bytes, write_json
from alexnet.progress import Progress

MAX_VERIFIED_AT_OPEN = 2 << 30
"""Total bytes of shards up to which all are verified on opening; in larger datasets each is verified on first use."""


# ── opening ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PackedDataset:
    """An opened packed dataset."""

    path: Path
    manifest: Manifest
    splits: dict[str, PackedImages]

    @property
    def unreadable_classes(self) -> list[int]:
        """Indices of the classes without a training image; none if the dataset has no train."""
        if "train" not in self.splits:
            return []
        present = set(self.splits["train"].targets.tolist())
        return [i for i in range(len(self.manifest.classes)) if i not in present]


def open_packed(data: Path, progress: Progress | None = None, verify: bool = True) -> PackedDataset:
    """Open the packed dataset in the folder `data`.

    Verifies all file sizes and, with `verify`, the checksums; shards of more than
    `MAX_VERIFIED_AT_OPEN` bytes in total are verified when each is first read. Raises `UserError`
    if the dataset is unfinished, damaged or of another format.
    """
    if not (data / PACK).is_file():
        raise UserError(f"Packing of {data} is not finished; rerun 'alexnet pack' with the same arguments to resume.")
    manifest = read_manifest(data)
    counts, checksums = manifest.images, manifest.sha256
    if not counts or not set(counts) <= {"train", "val", "test", "all"}:
        raise UserError(
            f"{data / PACK} is damaged (its splits are {', '.join(counts) or 'none'}); pack the dataset again."
        )
    tables = {name: checksum for name, checksum in checksums.items() if not name.endswith(".bin")}
    if bad := find_mismatches(data, tables) if verify else []:
        raise damaged(data / bad[0], "its checksum differs")
    splits = {split: _open_split(data / split, manifest, count) for split, count in counts.items()}
    if verify and sum(size for part in splits.values() for *_, size in part.shards.files) <= MAX_VERIFIED_AT_OPEN:
        if bad := find_mismatches(data, checksums, progress):
            raise damaged(data / bad[0], "its checksum differs")
    elif verify:
        for split, part in splits.items():
            part.shards.verify_when_mapped([checksums.get(f"{split}/{name}", "") for name, *_ in part.shards.files])
    return PackedDataset(data, manifest, splits)


def find_mismatches(data: Path, checksums: Mapping[str, str], progress: Progress | None = None) -> list[str]:
    """Return the files that are missing or have another checksum."""

    def differs(name: str) -> bool:
        try:
            return sha256_file(data / name) != checksums[name]
        except OSError:
            return True

    names = list(checksums)
    results = map_in_threads(differs, names, progress, "verifying shards")
    return [name for name, is_different in zip(names, results, strict=True) if is_different]


def _open_split(folder: Path, manifest: Manifest, count: int) -> PackedImages:
    shards = Shards(folder, manifest.form, read_index(folder / INDEX))
    for name, _, size in shards.files:
        try:
            actual = (folder / name).stat().st_size
        except OSError:
            raise damaged(folder / name, "it is missing") from None
        if actual != size:
            raise damaged(folder / name, f"it has {actual:,} bytes instead of {size:,}")
    table = read_samples(folder / SAMPLES, ["name", "label"])
    names = [name.decode("utf-8", "surrogateescape") for name in table["name"].to_pylist()]
    targets = table["label"].to_numpy().astype(np.int64)
    in_range = ((targets >= 0) & (targets < len(manifest.classes))).all()
    if not len(names) == count == shards.first_items[-1] or not in_range:
        raise damaged(folder / SAMPLES, "it does not match the shards")
    return PackedImages(folder, names, torch.from_numpy(targets), shards, np.arange(count))


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def write_manifest(
    target: Path,
    key: str,
    contents: ImageDataset,
    format: ShardFormat,
    tasks: list[ShardTask],
    value_range: ValueRange | None,
) -> None:
    """Write the tables beside the finished shards, and pack.json last: without it the dataset is unfinished."""
    checksums: dict[str, str] = {}
    images: dict[str, int] = {}
    failed: list[tuple[str, str, str]] = []
    statistics: PackStatistics | None = None

    def write(name: str, data: bytes) -> None:
        write_bytes(target / name, data)
        checksums[name] = sha256_file(target / name)

    for split, part in contents.splits.items():
        split_tasks = [task for task in tasks if task.split == split]
        results, pixel_sum = _read_results(split_tasks)
        starts = np.cumsum([0, *map(len, split_tasks)])
        for start, result in zip(starts, results, strict=False):
            failed += [(part.names[start + i], split, reason) for i, reason in result.record.failed]
            if result.record.name:
                checksums[f"{split}/{result.record.name}"] = result.record.sha256
        kept = np.concatenate([start + result.kept for start, result in zip(starts, results, strict=False)])
        if len(kept) == 0:
            continue
        images[split] = len(kept)
        write(f"{split}/{SAMPLES}", _encode_samples(part, kept, np.concatenate([r.digests for r in results])))
        write(f"{split}/{INDEX}", _encode_index([result for result in results if result.record.name]))
        if split == "train" and format.side is not None:
            products = np.sum([result.channel_products for result in results], axis=0)
            statistics, mean_image = _compute_statistics(pixel_sum, products, len(kept))
            write(MEAN_IMAGE, mean_image)
    if not images:
        shown = ", ".join(f"{name} ({reason})" for name, _, reason in failed[:3])
        raise UserError(f"None of the {len(failed)} images can be read: {shown}; replace them.")
    write(FAILED, encode_csv([("name", "split", "reason"), *failed]))
    versions = {name: metadata.version(name) for name in ("litdata", "pillow", "numpy")}
    manifest = Manifest(
        FORMAT, key, format, list(contents.classes), images, len(failed), statistics, versions, checksums, value_range
    )
    values = asdict(manifest)
    if value_range is None:  # absent, as of images of 8 bits
        del values["value_range"]
    write_json(target / PACK, values)


def _read_results(tasks: list[ShardTask]) -> tuple[list[ShardResult], np.ndarray]:
    """Read the results of all shards, and sum up their pixel sums, which for all of ImageNet would take gigabytes."""
    results, pixel_sum = [], np.zeros((), dtype=np.int64)
    for task in tasks:
        result = read_result(task.result_path)
        if result is None:
            raise UserError(f"{task.result_path} is damaged; rerun the same command to resume.")
        pixel_sum = pixel_sum + result.pixel_sum
        results.append(replace(result, pixel_sum=np.zeros(0)))
    return results, pixel_sum


def _encode_samples(part: ImageArrays | ImageFiles, kept: np.ndarray, digests: np.ndarray) -> bytes:
    """Encode the sample table; names are bytes, since on most systems they need not be valid UTF-8."""
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


def _encode_index(results: list[ShardResult]) -> bytes:
    """Encode litdata's index of the shards of a split."""
    chunks = [
        {"chunk_bytes": r.record.bytes, "chunk_size": len(r.kept), "dim": None, "filename": r.record.name}
        for r in results
    ]
    config = {**results[0].record.config, "chunk_size": max(len(result.kept) for result in results)}
    return json.dumps({"chunks": chunks, "config": config}, sort_keys=True).encode()


def _compute_statistics(pixel_sum: np.ndarray, products: np.ndarray, count: int) -> tuple[PackStatistics, bytes]:
    """Return channel means and covariance in levels of 0…255, and the mean image as a .npy file, of
    `count` images, from their exact sums: of pixels, int64 side×side×C, and of channel products."""
    pixels = count * pixel_sum.shape[0] * pixel_sum.shape[1]
    mean = pixel_sum.sum(axis=(0, 1)) / pixels
    file = io.BytesIO()
    np.save(file, pixel_sum.transpose(2, 0, 1) / count, allow_pickle=False)
    covariance = products / pixels - np.outer(mean, mean)
    return {"images": count, "mean": mean.tolist(), "covariance": covariance.tolist()}, file.getvalue()
