"""Packing: converts a dataset to a few large files that training reads quickly (format: `reader.py`).

Images are decoded and resized once, on all cores, one shard per task (`writer.py`). Unreadable images are listed and
skipped. The same command resumes an interrupted packing and repairs damaged files. The mean image and color covariance
of the training images are computed along the way.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data import image_folder
from alexnet.data.dataset import BadFiles, ImageArrays, ImageDataset, ImageFiles
from alexnet.data.datasets import load_known_layout
from alexnet.data.deep import ValueRange
from alexnet.data.image_folder import scan_images
from alexnet.data.processes import check_main_module, process_pool
from alexnet.data.recognize import CIFAR10_ARCHIVE, PACK, WORK, is_packed
from alexnet.data.shards.manifest import find_mismatches, open_packed, write_manifest
from alexnet.data.shards.reader import FORMAT, ShardFormat
from alexnet.data.shards.writer import ShardTask, read_result, write_shard
from alexnet.data.statistics import median_short_side
from alexnet.data.value_range import find_value_range
from alexnet.device import cpu_count
from alexnet.errors import UserError, missing_package
from alexnet.files import read_json, write_json
from alexnet.progress import Progress
from alexnet.text import BY_CONTENT, TextOptions

SIDE = 256
"""Default short side in pixels, unless the images are smaller."""
QUALITY = 90
"""Default quality of JPEGs encoded here."""

_SHARD_BYTES = 64 << 20  # of packed pixels, litdata's default; writing takes three times as much memory
_JPEGS_PER_SHARD = 1024  # some 40 MB at 256 pixels
_MAX_SOURCE_BYTES = 256 << 20  # source files per shard if these may be large: litdata's limit is 4 GiB
_MIN_SHARDS = 16  # for small datasets, so that all cores have work
_SAMPLED = 200  # images measured to choose a size
_MIN_FOR_PROCESSES = 500  # images; fewer are packed before new processes have started


def pack_dataset(
    data: Path,
    target: Path,
    *,
    labels: Path | None = None,
    text: TextOptions = BY_CONTENT,
    kind: str = "jpeg",
    size: int | str | None = None,
    quality: int = QUALITY,
    channels: int | None = None,
    value_range: ValueRange | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pack `data`, in any layout that training reads, into the folder `target`, or resume doing so.

    `kind` "jpeg" stores images with a short side of at most `size` pixels, or unchanged for "original"; "uint8" stores
    the pixels of square center crops of side `size`, each with `channels`, 1 or 3. None is 256, or the images' median
    if smaller. Of images with more than 8 bits, `value_range` becomes 0…255; None measures it on the training images
    (see `value_range.py`). Splits and sample order are the same as when training on `data`. Returns pack.json with
    `data`, `bytes`, `shards`, `seconds`, `images_per_second`, `resumed`, and `unreadable_classes`, those without a
    training image. Raises `UserError`.
    """
    start = time.monotonic()
    check_main_module("the packing")
    if find_spec("litdata") is None:
        raise missing_package("Packing", "litdata", "scale")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}, but packing needs at least 1 process; give 1 or more, or omit it.")
    if not 1 <= quality <= 100:
        raise UserError(f"--quality is {quality}, but JPEG quality is between 1 and 100; 90 is usual.")
    _check_target(data, target)
    contents = list_contents(data, labels, progress, text)
    if channels is not None:
        contents = contents.with_channels(channels)
    if progress is not None:
        for note in contents.notes:
            progress.log(note)
    format = choose_format(contents, kind, size, quality)
    if (deep := find_value_range(contents, value_range, progress)) is not None and progress is not None:
        progress.log(deep.sentence)
    value_range = deep.value_range if deep else None
    tasks = list(plan_shards(contents, format, target, value_range))
    key = pack_key(contents, format, tasks)
    pending, checksums = _prepare_target(target, key, tasks, progress)
    try:
        _check_disk_space(pending, format, target)
        total, remaining = sum(map(len, tasks)), sum(map(len, pending))
        _write_shards(pending, workers or cpu_count(), _track_progress(total, remaining, progress))
        if not checksums:
            write_manifest(target, key, contents, format, tasks, value_range)
        elif bad := find_mismatches(target, checksums):
            raise UserError(
                f"{target / bad[0]} was rebuilt and differs from before, so the images in {data} have changed since; "
                "pack them into another folder."
            )
        shutil.rmtree(target / WORK, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); fix that and rerun the same command to resume."
        ) from error
    packed = open_packed(target, verify=False)
    shards = [file for part in packed.splits.values() for file in part.shards.files]
    seconds = time.monotonic() - start
    return {
        "data": str(target),
        **{key: value for key, value in asdict(packed.manifest).items() if key != "sha256"},
        "bytes": sum(size for *_, size in shards),
        "shards": len(shards),
        "resumed": len(pending) < len(tasks),
        "unreadable_classes": [packed.manifest.classes[i] for i in packed.unreadable_classes],
        "seconds": round(seconds, 3),
        "images_per_second": round(remaining / seconds, 2),
    }


# ── planning ──────────────────────────────────────────────────────────────────────────────────────


def list_contents(
    data: Path, labels: Path | None, progress: Progress | None, text: TextOptions = BY_CONTENT
) -> ImageDataset:
    """List the images of `data` as training finds them, not opened or split. Raises the errors of `image_folder`."""
    if is_packed(data):
        raise UserError(f"{data} is already packed; give the images it was packed from.")
    root = data if data.name == CIFAR10_ARCHIVE else image_folder.resolve_data_folder(data, labels, progress, text)
    if labels is None and (layout := load_known_layout(root, progress)) is not None:
        return layout
    found = scan_images(data, labels, training=False, text=text)
    if {"train", "all"} & set(found.splits):  # otherwise the images are for evaluation only
        try:
            found = scan_images(data, labels, text=text)
        except BadFiles as error:
            raise error.without_skipping("add some, or remove the folders") from None
    return found


def choose_format(contents: ImageDataset, kind: str, size: int | str | None, quality: int) -> ShardFormat:
    """Return the requested format; `size` is a number, 'original', or None for the images' own size up to `SIDE`.
    Raises `UserError`."""
    side: int | None
    if size == "original":
        if kind == "uint8":
            raise UserError("Pixels are packed as squares of one size; give --size N, or --format jpeg.")
        side = None
    elif size is None:
        side = min(SIDE, round(median_short_side(next(iter(contents.splits.values())), _SAMPLED) or SIDE))
    else:
        side = int(size) if str(size).isdecimal() else 0
        if side < 1:
            raise UserError(f"--size {size} is neither a number of pixels nor 'original'; 256 is usual.")
    return ShardFormat(kind, side, contents.channels, quality if kind == "jpeg" else None)


def plan_shards(
    contents: ImageDataset, format: ShardFormat, target: Path, value_range: ValueRange | None = None
) -> Iterator[ShardTask]:
    """Yield the shards, which are the same on every machine."""
    limit = _images_per_shard(contents, format)
    for split, part in contents.splits.items():
        targets = part.targets.tolist()
        for number, (start, stop) in enumerate(_shard_ranges(part, format, limit)):
            if isinstance(part, ImageFiles):
                images: list[str] | np.ndarray = part.names[start:stop]
            else:
                images = part.images[start:stop].permute(0, 2, 3, 1).numpy()
            root = part.root if isinstance(part, ImageFiles) else Path()
            yield ShardTask(target, split, number, root, images, targets[start:stop], format, value_range)


def _images_per_shard(contents: ImageDataset, format: ShardFormat) -> int:
    total = sum(map(len, contents.splits.values()))
    limit = _JPEGS_PER_SHARD if format.kind == "jpeg" else max(1, _SHARD_BYTES // int(np.prod(format.shape)))
    return max(1, min(limit, -(-total // _MIN_SHARDS)))


def _shard_ranges(part: ImageArrays | ImageFiles, format: ShardFormat, limit: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of each shard: at most `limit` images, and a limit on bytes for unusually large JPEGs."""
    large = isinstance(part, ImageFiles) and format.kind == "jpeg" and (format.side is None or format.side > SIDE)
    start = total = 0
    for i in range(len(part)):
        size = _file_size(part.root / part.names[i]) if large and isinstance(part, ImageFiles) else 0
        if i > start and (i - start == limit or total + size > _MAX_SOURCE_BYTES):
            yield start, i
            start, total = i, 0
        total += size
    if len(part):
        yield start, len(part)


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # will be listed as unreadable
        return 0


def pack_key(contents: ImageDataset, format: ShardFormat, tasks: list[ShardTask]) -> str:
    """Return a hash of images, format and shards; packing resumes only if it is unchanged. Shard sizes are included
    only if limits on bytes decided them, since otherwise they follow from the rest."""
    splits = {split: [part.names, part.targets.tolist()] for split, part in contents.splits.items()}
    parts: list[object] = [FORMAT, asdict(format), contents.classes, splits]
    limit = _images_per_shard(contents, format)
    if any(task.split == after.split and len(task) < limit for task, after in itertools.pairwise(tasks)):
        parts.append([len(task) for task in tasks])
    if tasks and tasks[0].value_range is not None:
        parts.append(tasks[0].value_range)
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


# ── starting and resuming ─────────────────────────────────────────────────────────────────────────


def _check_target(data: Path, target: Path) -> None:
    inner, outer = target.resolve(), data.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UserError(f"One of {target} and {data} contains the other; pack into a separate folder.")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose a new folder.")


def _prepare_target(
    target: Path, key: str, tasks: list[ShardTask], progress: Progress | None
) -> tuple[list[ShardTask], dict[str, str] | None]:
    """Return the shards still to be written and, if the dataset was finished before, the checksums of all files."""
    if (target / PACK).is_file():
        manifest = _read_json(target / PACK)
        if manifest.get("key") not in (None, key):
            raise UserError(f"{target} contains another packed dataset, or another format; choose another folder.")
        checksums = manifest.get("sha256")
        bad = find_mismatches(target, checksums, progress) if isinstance(checksums, dict) else [PACK]
        if all(name.endswith(".bin") for name in bad):  # single shards can be rebuilt, other files only with all shards
            (target / WORK).mkdir(exist_ok=True)
            return [task for task in tasks if f"{task.split}/chunk-0-{task.number}.bin" in bad], checksums
    elif not (target / WORK).is_dir() and target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; choose a new folder.")
    try:
        (target / WORK).mkdir(parents=True, exist_ok=True)  # first: a non-empty folder without it would be refused
        (target / PACK).unlink(missing_ok=True)
        plan = target / WORK / "plan.json"
        if plan.exists() and _read_json(plan).get("key") != key:
            raise UserError(
                f"The unfinished packing in {target} has other images or another format; delete it or choose another "
                "folder."
            )
        write_json(plan, {"key": key})
        for leftover in (target / WORK).glob("shard-*"):  # of a killed process
            shutil.rmtree(leftover, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}); choose another folder.") from error
    return [task for task in tasks if not _is_finished(task)], None


def _is_finished(task: ShardTask) -> bool:
    result = read_result(task.result_path)
    if result is None or not result.record.name:
        return result is not None
    path = task.target / task.split / result.record.name
    return path.is_file() and path.stat().st_size == result.record.bytes


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if it is missing or damaged."""
    try:
        return read_json(path, dict[str, Any])
    except (OSError, UserError):
        return {}


def _check_disk_space(pending: list[ShardTask], format: ShardFormat, target: Path) -> None:
    """Refuse to start if the disk is too small for the pixels; the size of JPEGs is not known in advance."""
    needed = sum(map(len, pending)) * int(np.prod(format.shape)) if format.kind == "uint8" else 0
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"The pixels need {needed / 1e9:.1f} GB and the disk of {target} has {free / 1e9:.1f} GB free; pack them "
            "with --format jpeg, at a smaller --size, or elsewhere."
        )


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def _write_shards(pending: list[ShardTask], workers: int, advance: Callable[[int], None]) -> None:
    workers = min(workers, len(pending))
    if workers <= 1 or sum(map(len, pending)) < _MIN_FOR_PROCESSES:
        for task in pending:
            advance(write_shard(task))
        return
    try:
        with process_pool(workers) as pool:
            for future in as_completed([pool.submit(write_shard, task) for task in pending]):
                advance(future.result())
    except BrokenProcessPool as error:
        raise UserError(
            "A packing process could not start or was killed, probably for lack of memory; rerun the same command to "
            "resume, with fewer --workers."
        ) from error


def _track_progress(total: int, remaining: int, progress: Progress | None) -> Callable[[int], None]:
    """Return a function that counts finished images and reports them to `progress`."""
    done = total - remaining

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total, "packing")

    return advance
