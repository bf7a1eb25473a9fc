"""Packing: a data set made into a few large files that training reads fast (`shards.py`).

Pictures are decoded and resized once, by all cores, a shard at a time (`shard_writer.py`). A picture that cannot be
read is listed and left out. A packing that was stopped goes on when the same command is given again, and what was
damaged later is mended by it. Mean image and covariance of the training pictures' colours are summed on the way.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.data import image_folder
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.datasets import CIFAR10_ARCHIVE, load_known_layout
from alexnet.data.decode import BadImage, image_size
from alexnet.data.image_folder import Progress
from alexnet.data.shards.manifest import FORMAT, Contents, find_mismatches, finish, is_packed, open_packed
from alexnet.data.shards.reader import PACK, WORK, ShardFormat
from alexnet.data.shards.writer import Task, put, read_about, write_shard
from alexnet.data.split import order_splits
from alexnet.device import cpu_count
from alexnet.errors import UserError

SIDE = 256
"""The short side unless another is asked for, or the pictures are smaller."""
QUALITY = 90
"""Of JPEGs made here unless another is asked for."""

_SHARD_BYTES = 64 << 20  # of packed pixels: litdata's own habit; three times as much is in memory as it is made
_SHARD_JPEGS = 1024  # some 40 MB at 256 pixels
_SHARD_FILES = 256 << 20  # bytes of the files that it is made of, where these may be large: litdata counts to 4 GiB
_AT_LEAST = 16  # shards where pictures are few, so that all cores have some
_SAMPLED = 200  # pictures whose size is asked for
_WORTH_A_PROCESS = 500  # pictures: fewer are packed before new processes have started


def pack_dataset(
    data: Path,
    target: Path,
    *,
    labels: Path | None = None,
    kind: str = "jpeg",
    size: int | str | None = None,
    quality: int = QUALITY,
    workers: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Pack `data`, whatever training reads, into the folder `target`, or go on with that.

    `kind` jpeg: short side `size` pixels (smaller pictures stay), or with 'original' as they are; uint8: pixels,
    squares of `size` from the centre. None: 256, or the pictures' own median if that is less. Splits and the order of
    samples are those of training on `data` itself. Returns what pack.json says, with `data`, `bytes`, `shards`,
    `seconds`, `images_per_second` and `resumed`. Raises `UserError`.
    """
    began = time.monotonic()
    if find_spec("litdata") is None:
        raise UserError("Packing needs litdata, which is not installed: pip install -e '.[scale]'.")
    if workers is not None and workers < 1:
        raise UserError(f"Packing cannot be done by {workers} processes; give 1 or more, or leave it out.")
    if not 1 <= quality <= 100:
        raise UserError(f"The quality of JPEGs goes from 1 to 100, not {quality}; 90 is usual.")
    _check_apart(data, target)
    contents = read_contents(data, labels, progress)
    form = choose_form(contents, kind, size, quality)
    tasks = tasks_of(contents, form, target)
    key = key_of(contents, form, tasks)
    todo, finished = _begin(target, key, tasks, progress)
    try:
        _check_space(todo, form, target)
        _run(todo, workers or cpu_count(), _counter(sum(map(len, tasks)), sum(map(len, todo)), progress))
        if not finished:
            finish(target, key, contents, form, tasks)
        elif bad := find_mismatches(target, finished):
            raise UserError(
                f"{target / bad[0]} was made anew and is not as before, so the pictures in {data} have changed since; "
                "pack them into another folder."
            )
        shutil.rmtree(target / WORK, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); mend that, and the same command goes on."
        ) from error
    packed = open_packed(target, verify=False)
    shards = [file for part in packed.splits.values() for file in part.shards.files]
    seconds, done = time.monotonic() - began, sum(map(len, todo))
    return {
        "data": str(target),
        **{key: value for key, value in packed.about.items() if key != "sha256"},
        "bytes": sum(size for *_, size in shards),
        "shards": len(shards),
        "resumed": len(todo) < len(tasks),
        "seconds": round(seconds, 3),
        "images_per_second": round(done / seconds, 2),
    }


# ── beginning and going on ────────────────────────────────────────────────────────────────────────────────────


def _check_apart(data: Path, target: Path) -> None:
    inner, outer = target.resolve(), data.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise UserError(f"{target} and {data} lie in each other; pack into a folder elsewhere.")
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; choose a folder that does not exist yet.")


def _begin(
    target: Path, key: str, tasks: list[Task], progress: Progress | None
) -> tuple[list[Task], dict[str, str] | None]:
    """The shards that are still to be made; and, where the data set was finished before, the checksums of all files."""
    finished = None
    if (target / PACK).is_file():
        about = read_json(target / PACK)
        if about.get("key") not in (None, key):
            raise UserError(f"{target} holds another packed data set, or in another form; choose another folder.")
        sums = about.get("sha256")
        bad = find_mismatches(target, sums, progress) if isinstance(sums, dict) else [PACK]
        if all(name.endswith(".bin") for name in bad):  # shards can be made one by one, the rest with all of them only
            finished = sums
            (target / WORK).mkdir(exist_ok=True)
            return [task for task in tasks if f"{task.split}/chunk-0-{task.number}.bin" in bad], finished
    elif not (target / WORK).is_dir() and target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; choose a folder that does not exist yet.")
    try:
        (target / WORK).mkdir(parents=True, exist_ok=True)  # first: a full folder with neither would be refused
        (target / PACK).unlink(missing_ok=True)
        plan = target / WORK / "plan.json"
        if plan.exists() and read_json(plan).get("key") != key:
            raise UserError(
                f"The unfinished packing in {target} is of other pictures or in another form; delete it, or choose "
                "another folder."
            )
        put(plan, lambda file: file.write(json.dumps({"key": key}).encode()))
        for left in (target / WORK).glob("shard-*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{target} cannot be written ({error.strerror or error}); choose another folder.") from error
    return [task for task in tasks if not _is_finished(task)], None


def _is_finished(task: Task) -> bool:
    about = read_about(task.facts)
    if about is None or not about.name:
        return about is not None
    path = task.target / task.split / about.name
    return path.is_file() and path.stat().st_size == about.bytes


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def _check_space(todo: list[Task], form: ShardFormat, target: Path) -> None:
    """Refuse to begin what the disk cannot hold; of JPEGs the size is known only when they are made."""
    needed = sum(map(len, todo)) * int(np.prod(form.shape)) if form.kind == "uint8" else 0
    free = shutil.disk_usage(target).free
    if needed > free:
        raise UserError(
            f"The pixels need {needed / 1e9:.1f} GB and the disk of {target} has {free / 1e9:.1f} GB free; pack them "
            "with --format jpeg, smaller, or elsewhere."
        )


# ── doing it ──────────────────────────────────────────────────────────────────────────────────────────────────


def _run(todo: list[Task], workers: int, advance: Callable[[int], None]) -> None:
    workers = min(workers, len(todo))
    if workers <= 1 or sum(map(len, todo)) < _WORTH_A_PROCESS:
        for task in todo:
            advance(write_shard(task))
        return
    # New processes, not copies of this one, which may hold torch's threads.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_in_worker)
    try:
        for future in as_completed([pool.submit(write_shard, task) for task in todo]):
            advance(future.result())
    except BrokenProcessPool as error:
        raise UserError(
            "A process that packed pictures was killed, as the system does when memory is short; the same command goes "
            "on, with fewer processes by --workers."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_worker() -> None:
    """Ctrl-C is the parent's to answer; but a parent that was killed leaves nobody to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


def _counter(total: int, left: int, progress: Progress | None) -> Callable[[int], None]:
    done = total - left

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total, "packing")

    return advance


def read_contents(data: Path, labels: Path | None, progress: Progress | None) -> Contents:
    """The pictures of `data`, as training finds them, unopened and undivided. Raises `UserError` as `folders.scan`."""
    if is_packed(data):
        raise UserError(f"{data} is packed already; give the pictures that it was packed from.")
    root = data if data.name == CIFAR10_ARCHIVE else image_folder.resolve_data_folder(data, labels, progress)
    if labels is None and (layout := load_known_layout(root, progress)) is not None:
        return Contents(layout.classes, layout.splits, layout.channels)
    table = image_folder.resolve_labels_path(labels, root) if labels is not None else None

    def read(training: bool) -> image_folder.ImageTree:
        return (
            image_folder.scan_class_folders(root, training)
            if table is None
            else image_folder.scan_label_table(root, table, training)
        )

    tree = read(training=False)
    if {"train", "all"} & set(tree.splits):  # else pictures to measure a network on
        tree = read(training=True)
    return Contents(tree.classes, order_splits({**tree.splits}), channels=3)


def choose_form(contents: Contents, kind: str, size: int | str | None, quality: int) -> ShardFormat:
    """The form that is asked for; `size` is a number, 'original', or None for the pictures' own up to `SIDE`. Raises
    `UserError`."""
    side: int | None
    if size == "original":
        if kind == "uint8":
            raise UserError("Pixels are packed as squares of one size; give --size N, or --format jpeg.")
        side = None
    elif size is None:
        side = _own_side(next(iter(contents.splits.values())))
    else:
        side = int(size) if str(size).isdecimal() else 0
        if side < 1:
            raise UserError(f"--size {size} is neither a number of pixels nor 'original'; 256 is usual.")
    return ShardFormat(kind, side, contents.channels, quality if kind == "jpeg" else None)


def _own_side(part: ImageArrays | ImageFiles) -> int:
    """SIDE, or where the pictures are smaller the median of their short sides."""
    if isinstance(part, ImageArrays):
        return min(SIDE, *part.images.shape[2:])
    sides = []
    for i in np.unique(np.linspace(0, len(part) - 1, _SAMPLED).astype(int)).tolist():
        try:
            sides.append(min(image_size(part.raw(i))))
        except BadImage:
            continue
    return min(SIDE, round(statistics.median(sides))) if sides else SIDE


def tasks_of(contents: Contents, form: ShardFormat, target: Path) -> list[Task]:
    """The shards, the same whatever machine makes them."""
    return list(_cut(contents, form, target))


def _most(contents: Contents, form: ShardFormat) -> int:
    """Pictures in a shard."""
    total = sum(map(len, contents.splits.values()))
    most = _SHARD_JPEGS if form.kind == "jpeg" else max(1, _SHARD_BYTES // int(np.prod(form.shape)))
    return max(1, min(most, -(-total // _AT_LEAST)))


def _cut(contents: Contents, form: ShardFormat, target: Path) -> Iterator[Task]:
    most = _most(contents, form)
    for split, part in contents.splits.items():
        targets = part.targets.tolist()
        for number, (start, stop) in enumerate(_bounds(part, form, most)):
            if isinstance(part, ImageFiles):
                pictures: list[str] | np.ndarray = part.names[start:stop]
            else:
                pictures = part.images[start:stop].permute(0, 2, 3, 1).numpy()
            root = part.root if isinstance(part, ImageFiles) else Path()
            yield Task(target, split, number, root, pictures, targets[start:stop], form)


def _bounds(part: ImageArrays | ImageFiles, form: ShardFormat, most: int) -> Iterator[tuple[int, int]]:
    """Where each shard starts and stops: by number, and by bytes of JPEGs that may be larger than usual ones."""
    large = isinstance(part, ImageFiles) and form.kind == "jpeg" and (form.side is None or form.side > SIDE)
    start = total = 0
    for i in range(len(part)):
        size = _size(part.root / part.names[i]) if large and isinstance(part, ImageFiles) else 0
        if i > start and (i - start == most or total + size > _SHARD_FILES):
            yield start, i
            start, total = i, 0
        total += size
    if len(part):
        yield start, len(part)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it will be listed among those that cannot be read
        return 0


def key_of(contents: Contents, form: ShardFormat, tasks: list[Task]) -> str:
    """What makes this packing this one: go on only with the same pictures in the same form, cut into the same shards
    (which are named only where bytes decided: the others follow from the rest)."""
    splits = {split: [part.names, part.targets.tolist()] for split, part in contents.splits.items()}
    said: list[object] = [FORMAT, asdict(form), contents.classes, splits]
    most = _most(contents, form)
    if any(one.split == after.split and len(one) < most for one, after in itertools.pairwise(tasks)):
        said.append([len(task) for task in tasks])
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()
