"""Packing: a data set made into a few large files that training reads fast (`shards.py`).

Pictures are decoded and resized once, by all cores, a shard at a time (`shard_writer.py`). A picture that cannot be
read is listed and left out. A packing that was stopped goes on when the same command is given again, and what was
damaged later is mended by it. Mean image and covariance of the training pictures' colours are summed on the way.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np

from alexnet import runtime
from alexnet.data import folders
from alexnet.data.folders import Progress
from alexnet.data.images import BadImage, image_size
from alexnet.data.samples import Arrays, Files
from alexnet.data.shard_writer import Facts, Task, put, read_about, read_facts, write_shard
from alexnet.data.shards import (
    FAILED,
    FORMAT,
    INDEX,
    MEAN_IMAGE,
    PACK,
    SAMPLES,
    WORK,
    Form,
    is_pack,
    mismatches,
    open_pack,
    sha256_of,
)
from alexnet.data.sources import CIFAR10_ARCHIVE, open_layout
from alexnet.data.split import in_order
from alexnet.errors import UserError

SIDE = 256
"""The short side unless another is asked for, or the pictures are smaller."""
QUALITY = 90
"""Of JPEGs made here unless another is asked for."""

_SHARD_BYTES = 64 << 20  # of packed pixels: litdata's own habit; three times as much is in memory as it is made
_SHARD_JPEGS = 1024  # some 40 MB at 256 pixels
_AT_LEAST = 16  # shards where pictures are few, so that all cores have some
_WORTH_A_PROCESS = 500  # pictures: fewer are packed before new processes have started
_SAMPLED = 200  # pictures whose size is asked for


@dataclass(frozen=True)
class _Contents:
    """What is to be packed."""

    classes: tuple[str, ...]
    splits: dict[str, Arrays | Files]
    channels: int


def pack(
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
    contents = _contents(data, labels, progress)
    form = _form(contents, kind, size, quality)
    tasks = _tasks(contents, form, target)
    key = _key(contents, form)
    todo, finished = _begin(target, key, tasks, progress)
    try:
        _check_space(todo, form, target)
        _run(todo, workers or runtime.cpu_count(), _counter(sum(map(len, tasks)), sum(map(len, todo)), progress))
        if not finished:
            _finish(target, key, contents, form, tasks)
        elif bad := mismatches(target, finished):
            raise UserError(
                f"{target / bad[0]} was made anew and is not as before, so the pictures in {data} have changed since; "
                "pack them into another folder."
            )
        shutil.rmtree(target / WORK, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{target} cannot be written ({error.strerror or error}); mend that, and the same command goes on."
        ) from error
    packed = open_pack(target, verify=False)
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


# ── what is to be done ────────────────────────────────────────────────────────────────────────────────────────


def _contents(data: Path, labels: Path | None, progress: Progress | None) -> _Contents:
    if is_pack(data):
        raise UserError(f"{data} is packed already; give the pictures that it was packed from.")
    root = data if data.name == CIFAR10_ARCHIVE else folders.data_folder(data, labels, progress)
    if labels is None and (layout := open_layout(root, progress)) is not None:
        return _Contents(layout.classes, layout.splits, layout.channels)
    table = folders.labels_file(labels, root) if labels is not None else None

    def read(training: bool) -> folders.Tree:
        return folders.scan(root, training) if table is None else folders.listed(root, table, training)

    tree = read(training=False)
    if {"train", "all"} & set(tree.splits):  # else pictures to measure a network on
        tree = read(training=True)
    return _Contents(tree.classes, in_order({**tree.splits}), channels=3)


def _form(contents: _Contents, kind: str, size: int | str | None, quality: int) -> Form:
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
    return Form(kind, side, contents.channels, quality if kind == "jpeg" else None)


def _own_side(part: Arrays | Files) -> int:
    """SIDE, or where the pictures are smaller the median of their short sides."""
    if isinstance(part, Arrays):
        return min(SIDE, *part.images.shape[2:])
    sides = []
    for i in np.unique(np.linspace(0, len(part) - 1, _SAMPLED).astype(int)).tolist():
        try:
            sides.append(min(image_size(part.stored(i))))
        except BadImage:
            continue
    return min(SIDE, round(statistics.median(sides))) if sides else SIDE


def _tasks(contents: _Contents, form: Form, target: Path) -> list[Task]:
    """The shards, the same whatever machine makes them."""
    total = sum(map(len, contents.splits.values()))
    most = _SHARD_JPEGS if form.kind == "jpeg" else max(1, _SHARD_BYTES // int(np.prod(form.shape)))
    count = max(1, min(most, -(-total // _AT_LEAST)))
    return list(_cut(contents, form, target, count))


def _cut(contents: _Contents, form: Form, target: Path, count: int) -> Iterator[Task]:
    for split, part in contents.splits.items():
        targets = part.targets.tolist()
        for number, start in enumerate(range(0, len(part), count)):
            stop = start + count
            if isinstance(part, Files):
                pictures: list[str] | np.ndarray = part.names[start:stop]
            else:
                pictures = part.images[start:stop].permute(0, 2, 3, 1).numpy()
            root = part.root if isinstance(part, Files) else Path()
            yield Task(target, split, number, root, pictures, targets[start:stop], form)


def _key(contents: _Contents, form: Form) -> str:
    """What makes this packing this one: go on only with the same pictures in the same form."""
    splits = {split: [part.names, part.targets.tolist()] for split, part in contents.splits.items()}
    said = json.dumps([FORMAT, asdict(form), contents.classes, splits])
    return hashlib.blake2b(said.encode(), digest_size=16).hexdigest()


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
        about = _json(target / PACK)
        if about.get("key") not in (None, key):
            raise UserError(f"{target} holds another packed data set, or in another form; choose another folder.")
        sums = about.get("sha256")
        bad = mismatches(target, sums, progress) if isinstance(sums, dict) else [PACK]
        if all(name.endswith(".bin") for name in bad):  # shards can be made one by one, the rest with all of them only
            finished = sums
            (target / WORK).mkdir(exist_ok=True)
            return [task for task in tasks if f"{task.split}/chunk-0-{task.number}.bin" in bad], finished
        (target / PACK).unlink()
    elif not (target / WORK).is_dir() and target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; choose a folder that does not exist yet.")
    try:
        (target / WORK).mkdir(parents=True, exist_ok=True)
        plan = target / WORK / "plan.json"
        if plan.exists() and _json(plan).get("key") != key:
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


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def _check_space(todo: list[Task], form: Form, target: Path) -> None:
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


# ── finishing ─────────────────────────────────────────────────────────────────────────────────────────────────


def _finish(target: Path, key: str, contents: _Contents, form: Form, tasks: list[Task]) -> None:
    """What stands beside the shards, and pack.json last: without it the data set is unfinished."""
    sums: dict[str, str] = {}
    images: dict[str, int] = {}
    failed: list[tuple[str, str, str]] = []
    measured = None

    def keep(name: str, data: bytes) -> None:
        put(target / name, lambda file: file.write(data))
        sums[name] = sha256_of(target / name)

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


def _table(part: Arrays | Files, kept: np.ndarray, digests: np.ndarray) -> bytes:
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
