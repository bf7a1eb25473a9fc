"""The loader of uint8 batches, from images in memory or from files.

`batches(epoch, start)` is a pure function of its arguments and the seed: a loader has no position
and workers no state. A run that resumes at batch `start` of an epoch reads what the uninterrupted
run would have read, with any number of workers. Processes that train together each read their
`Shard` of every batch: together, the batches of one process.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from alexnet import rng
from alexnet.data.augment import BOX_DRAWS, Augment, crop_box, crop_corners, crop_group_ids, draw_flips
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.decode import BadImage, decode_crop, decode_image
from alexnet.data.in_memory import resize_for_eval
from alexnet.data.processes import check_main_module
from alexnet.data.shards.reader import PackedImages
from alexnet.data.transforms import EvalTransform
from alexnet.device import cpu_count, local_world_size
from alexnet.errors import UserError, WorkerDied
from alexnet.signals import ignore_signals

EVAL_BATCH_SIZE = 256  # of every evaluation: the last bits of a sum depend on the batches

_PREFETCH = 2  # batches per worker, torch's default
_DEAD_WORKER_ERRORS = (ConnectionError, EOFError, FileNotFoundError)
"""Raised when a worker dies while sending a batch. Missing image files raise `BadImage` before."""
_MAX_WORKERS = 16  # more than decoding for one device can use


class RowRange(NamedTuple):
    """One process's rows of a batch of `total`: `size` rows from `start`."""

    start: int
    size: int
    total: int


class Shard(NamedTuple):
    """One process's part of every batch."""

    rank: int = 0
    world_size: int = 1

    def row_range(self, n: int) -> RowRange:
        """Return its rows of a batch of `n`: consecutive parts that differ by at most one row; some may be empty."""
        each, more = divmod(n, self.world_size)
        start = self.rank * each + min(self.rank, more)
        return RowRange(start, each + (self.rank < more), n)


ALL = Shard()


class Batch(NamedTuple):
    """Samples of one step, or one process's part of them."""

    images: torch.Tensor
    """uint8 N×C×H×W."""
    targets: torch.Tensor
    """int64 (N,), on the device of the images."""
    ids: torch.Tensor
    """int64 (N,), on the CPU: indices into the split, which determine the augmentation."""
    crop_ids: torch.Tensor | None = None
    """int64 (N,), on the CPU: the sample whose crop and flip each image uses; None: its own."""
    rows: RowRange | None = None
    """The rows these are; None: all. N may exceed its size by one: the first image is then extra,
    for mixing with the second or so that an empty part has something to compute, and is not trained
    on."""

    @property
    def row_range(self) -> RowRange:
        return self.rows or RowRange(0, len(self.ids), len(self.ids))


def batch_bounds(samples: int, batch_size: int, drop_last: bool = False) -> list[tuple[int, int]]:
    """Return (start, stop) of each batch of an epoch.

    A smaller last batch is kept, or dropped with `drop_last` unless it is the only one. A last
    batch of one sample is merged into the one before, because batch norm needs a variance. Raises
    `UserError` for a batch size below 1.
    """
    if batch_size < 1:
        raise UserError(f"A batch must hold at least one sample, not {batch_size}; choose a positive batch size.")
    bounds = [(start, min(start + batch_size, samples)) for start in range(0, samples, batch_size)]
    if len(bounds) > 1 and samples % batch_size:
        if drop_last:
            bounds.pop()
        elif samples % batch_size == 1:
            bounds[-2:] = [(bounds[-2][0], samples)]
    return bounds


class BatchRows(NamedTuple):
    """The samples of a `Batch` before they are read."""

    ids: np.ndarray
    crop_ids: np.ndarray
    rows: RowRange


class BatchLoader:
    """The batches of one split, by epoch: of arrays, on their device, or of files, decoded when
    needed by `workers` processes (0: in this process).

    Without `augment` the images are ready for evaluation, size×size. With it they are squares to
    crop from: arrays unchanged for crop resized, else resized to `resize_side` (per batch, since
    Fashion-MNIST at 224 pixels would take 3 GB). Of files, a resized crop is taken here, from the
    full image before it is resized; packed pixels are cropped and flipped here, so that only the
    crop is copied.
    """

    def __init__(
        self,
        part: ImageArrays | ImageFiles,
        preprocess: EvalTransform,
        augment: Augment | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        fixed_order: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
        shard: Shard = ALL,
    ) -> None:
        self.part, self.preprocess = part, preprocess
        self.samples = len(part)
        """Samples in the split (an epoch skips some with `drop_last`)."""
        self.device_augment = augment
        """The part of the augmentation left to `augment`; None: nothing."""
        self.shuffle, self.fixed_order, self.seed, self.shard = shuffle, fixed_order, seed, shard
        self.workers, self.pin_memory = workers, pin_memory
        self.bounds = batch_bounds(len(part), batch_size, drop_last)
        self.crop_group = augment.crop_group if augment is not None else 1
        self.mixes = augment is not None and max(augment.mixup, augment.cutmix) > 0
        if isinstance(part, ImageArrays):
            _check_arrays(part, preprocess, augment)
            return
        part.check(preprocess)
        self.reader = _FileReader(part, preprocess, augment, seed)
        if augment is not None and augment.crop == "resized":
            self.device_augment = replace(augment, crop="none")
        elif augment is not None and self.reader.copies_crops:
            self.device_augment = replace(augment, crop="none", flip=False)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.bounds)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, from batch `start` on. Raises `BadImage` for an unreadable file, and `WorkerDied`."""
        if isinstance(self.part, ImageArrays):
            return (self._gather(self.part, rows) for rows in self._rows(epoch, start))
        return self._read(epoch, start)

    def shard_batches(self, shard: Shard) -> None:
        """Keep every `world_size`-th complete batch: all processes together read each sample once,
        in the batches of a single process, which the last bits of a sum depend on."""
        self.bounds = self.bounds[shard.rank :: shard.world_size]
        self.samples = sum(last - first for first, last in self.bounds)

    def _rows(self, epoch: int, start: int) -> Iterator[BatchRows]:
        """Yield the samples of each batch of `epoch`, from batch `start`."""
        n = len(self.part)
        order = rng.permutation(self.seed, 0 if self.fixed_order else epoch, n) if self.shuffle else np.arange(n)
        for first, last in self.bounds[start:]:
            ids = order[first:last]
            crop_ids = crop_group_ids(ids, self.crop_group)
            rows = self.shard.row_range(len(ids))
            if self.shard == ALL:
                yield BatchRows(ids, crop_ids, rows)
                continue
            # MixUp and CutMix combine each image with the one before it, the first with the last
            extra = self.mixes or rows.size == 0
            chosen = np.arange(rows.start - extra, rows.start + rows.size) % len(ids)
            yield BatchRows(ids[chosen], crop_ids[chosen], rows)

    def _gather(self, arrays: ImageArrays, rows: BatchRows) -> Batch:
        """Return a batch of images in memory."""
        ids = torch.from_numpy(rows.ids)
        index = ids.to(arrays.images.device)
        images = arrays.images.index_select(0, index)
        if self.device_augment is None and not arrays.eval_ready:
            images = self.preprocess.resize_batch(images)
        elif self.device_augment is not None and self.device_augment.crop != "resized":
            images = self.preprocess.resize_batch(images, self.preprocess.resize_side)
        targets = arrays.targets.index_select(0, index)
        return Batch(images, targets, ids, torch.from_numpy(rows.crop_ids), rows.rows)

    def _read(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield batches of files, read by the worker processes."""
        if self.workers:
            check_main_module("the work")
        requests: Any = [(epoch, rows) for rows in self._rows(epoch, start)]  # DataLoader passes these on unchanged
        loader: Iterable[Batch | UserError] = DataLoader(
            self.reader,
            batch_sampler=requests,
            num_workers=self.workers,
            collate_fn=identity,
            worker_init_fn=ignore_signals,
            pin_memory=self.pin_memory,
            prefetch_factor=_PREFETCH if self.workers else None,
            generator=torch.Generator(),  # otherwise it advances the global one, which dropout uses
        )
        died = False
        try:
            for batch in _defer_worker_errors(loader):
                if isinstance(batch, UserError):
                    raise batch
                yield batch
        except (RuntimeError, *_DEAD_WORKER_ERRORS) as error:
            if not self.workers or (isinstance(error, RuntimeError) and "DataLoader worker" not in str(error)):
                raise
            died = True
        if died:  # raised here, where torch's error no longer keeps the other workers alive
            raise WorkerDied(
                "A worker process that reads images died: it was killed, by a user or by the system for lack of "
                f"memory or /dev/shm; use fewer than --workers {self.workers}, which need less.{_spawn_advice()}"
            )


def _spawn_advice() -> str:
    """Return what a script has to do where worker processes run it again; "" where they are forks."""
    if multiprocessing.get_start_method() == "fork":
        return ""
    return ' In a script, call it only below if __name__ == "__main__": since each worker process runs the script too.'


def _check_arrays(arrays: ImageArrays, preprocess: EvalTransform, augment: Augment | None) -> None:
    """Raise `UserError` if `arrays` have other channels, or were cropped for another use."""
    if arrays.images.shape[1] != preprocess.channels:
        raise UserError(
            f"The images have {arrays.images.shape[1]} channels and the preprocessing {preprocess.channels}; "
            "make them equal."
        )
    if arrays.eval_ready and (augment is not None or arrays.images.shape[-1] != preprocess.size):
        raise UserError(
            f"These images were cropped to {arrays.images.shape[-1]} pixels for evaluation; read them again to "
            "train on them or to use another size."
        )


class _FileReader(Dataset):
    """The work of a worker process: (epoch, rows) → batch. Stateless, and picklable for spawn."""

    def __init__(self, files: ImageFiles, preprocess: EvalTransform, augment: Augment | None, seed: int) -> None:
        self.files = files
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        crop = augment.crop if augment else "none"
        self.copies_crops = isinstance(files, PackedImages) and crop in ("none", "random") and files.matches(preprocess)
        """Whether crops are copied directly from packed pixels."""

    def __getitems__(self, request: tuple[int, BatchRows]) -> Batch | UserError:
        epoch, (ids, crop_ids, rows) = request
        read = self._copy_crops if self.copies_crops else self._decode_batch
        try:
            images = read(epoch, ids, crop_ids)
        except UserError as error:
            return error  # raised in a worker it would arrive wrapped in a traceback
        return Batch(images, self.files.targets[ids], torch.from_numpy(ids), torch.from_numpy(crop_ids), rows)

    def _copy_crops(self, epoch: int, ids: np.ndarray, crop_ids: np.ndarray) -> torch.Tensor:
        """Return the crops and flips that `augment` yields for images in memory, from the same random numbers."""
        assert isinstance(self.files, PackedImages)
        cfg, size = self.augment or Augment(), self.preprocess.size
        margin = self.preprocess.resize_side - size
        corners = np.full((len(ids), 2), round(margin / 2))
        if cfg.crop == "random":
            corners = crop_corners(rng.uniform(self.seed, epoch, crop_ids, "crop", 2), margin)
        return self.files.crops(ids, corners, draw_flips(self.seed, epoch, crop_ids, cfg), size)

    def _decode_batch(self, epoch: int, ids: np.ndarray, crop_ids: np.ndarray) -> torch.Tensor:
        draws: Any = [None] * len(ids)
        if self.augment is not None and self.augment.crop == "resized":
            draws = rng.uniform(self.seed, epoch, crop_ids, "crop", BOX_DRAWS)
        images = [self._load_image(i, row).movedim(0, -1) for i, row in zip(ids, draws, strict=True)]
        return torch.stack(images).movedim(-1, 1)  # channels_last, as images are decoded and convolved

    def _load_image(self, i: int, uniform: np.ndarray | None) -> torch.Tensor:
        raw, preprocess, cfg = self.files.raw(i), self.preprocess, self.augment
        channels, value_range = preprocess.channels, preprocess.value_range
        try:
            if cfg is None:
                return preprocess.eval_tensor(decode_image(raw, channels, value_range=value_range))
            if uniform is None:
                return preprocess.training_square(
                    decode_crop(raw, preprocess.resize_side, channels, value_range=value_range)
                )
            box = partial(crop_box, uniform=uniform, scale=cfg.scale, ratio=cfg.ratio)
            return preprocess.resize_crop(decode_crop(raw, preprocess.size, channels, box=box, value_range=value_range))
        except BadImage as error:
            raise BadImage(error.reason, self.files.describe(i)) from error


def _defer_worker_errors(loader: Iterable[Any]) -> Iterator[Any]:
    """Return the loader's iterator, which raises for a dead worker only when the next batch is requested (within 5 s).

    torch's SIGCHLD handler would raise anywhere in this process, such as in the middle of a training step.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, handler if handler is not None else signal.SIG_DFL)


def identity(batch: Any) -> Any:
    """Return `batch`: a collate function for complete batches, picklable for spawn."""
    return batch


def evaluation_batches(
    part: ImageArrays | ImageFiles, preprocess: EvalTransform, workers: int = 0, shard: Shard = ALL
) -> BatchLoader:
    """Return a loader of a split in order, ready for evaluation; with a `shard`, of that process's complete batches."""
    if isinstance(part, ImageArrays):
        part = resize_for_eval(part, preprocess)
    batches = BatchLoader(part, preprocess, batch_size=EVAL_BATCH_SIZE, workers=workers)
    batches.shard_batches(shard)
    return batches


# ── resources of this machine ─────────────────────────────────────────────────────────────────────


def choose_workers(requested: int | None, batch_bytes: int, shm: Path = Path("/dev/shm")) -> tuple[int, str | None]:
    """Return the number of decoding processes, and a sentence for the user if that is fewer than expected.

    The default is one per core, up to 16, and none on a single core. Processes that train on this
    machine share its cores and memory. Workers pass batches of `batch_bytes` in shared memory and
    die of a bus error if it is too small (Docker's default is 64 MB), so there are fewer then, or
    0. Raises `UserError` for a negative number.
    """
    if requested is not None and requested < 0:
        raise UserError(f"The number of workers cannot be {requested}; give 0 or more, or omit it.")
    cores = cpu_count() // local_world_size()
    count = requested if requested is not None else (min(cores, _MAX_WORKERS) if cores > 1 else 0)
    if count == 0 or not shm.is_dir():  # only Linux has shared memory there; elsewhere it has no small limit
        return count, None
    if not os.access(shm, os.W_OK):  # or mounted read-only
        return 0, f"Loading in the main process instead of {count} worker processes, because {shm} is not writable."
    free = shutil.disk_usage(shm).free // local_world_size()
    each = 2 * _PREFETCH * batch_bytes  # twice, for batches still in use
    fit = min(count, free // max(each, 1))
    if fit == count:
        return count, None
    return fit, (
        f"Loading with {fit} worker processes instead of {count}, because {shm} has only {free >> 20} MiB free for "
        "their batches (with Docker, start the container with --shm-size=2g)."
    )
