"""Batches of uint8 pictures, from memory or from files, behind one protocol.

`batches(epoch, start)` is a pure function of its arguments and the seed: loaders hold no position and workers no
state. So a run that resumes at batch `start` of an epoch sees what the unbroken one would have seen, with any
number of workers. Of several processes that train together each gets its `Share` of the same batches: together they
see what one would have seen, in the same order.
"""

from __future__ import annotations

import shutil
import signal
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from alexnet import rng
from alexnet.data.augment import BOX_DRAWS, Augment, crop_box, crop_corners, crop_group_ids
from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles
from alexnet.data.datasets import resize_for_eval
from alexnet.data.decode import BadImage, decode_crop, decode_image
from alexnet.data.shards.reader import PackedImages
from alexnet.data.transforms import EvalTransform
from alexnet.device import cpu_count, free_memory, local_world_size
from alexnet.errors import ReaderDied, UserError

MAX_IN_MEMORY = 2 << 30
"""Bytes of decoded pictures that are kept in memory at most."""

_PREFETCH = 2  # batches that each worker has ready or in hand: torch's default
_DEAD_WORKER_ERRORS = (ConnectionError, EOFError, FileNotFoundError)
"""How a batch ends whose worker dies while handing it over. Files that are not there are `BadImage` by then."""
_MAX_WORKERS = 16  # more than decoding for one device can use


class RowRange(NamedTuple):
    """Which rows of a batch that several processes share one of them has: `size` from `first` on, of `of`."""

    start: int
    size: int
    total: int


class Shard(NamedTuple):
    """The part of every batch that one of several processes learns from: part `number`, from 0, of `of`."""

    rank: int = 0
    world_size: int = 1

    def row_range(self, n: int) -> RowRange:
        """Its rows of a batch of `n`: parts follow each other and differ by one row at most; some may be empty."""
        each, more = divmod(n, self.world_size)
        first = self.rank * each + min(self.rank, more)
        return RowRange(first, each + (self.rank < more), n)


ALL = Shard()


class Batch(NamedTuple):
    """Samples that are learnt from together; of several processes, one's part of them."""

    images: torch.Tensor
    """uint8 N×C×H×W."""
    targets: torch.Tensor
    """int64 (N,), on the same device as the images."""
    ids: torch.Tensor
    """int64 (N,), on the CPU: places in the split, from which `augment` draws."""
    crop_ids: torch.Tensor | None = None
    """int64 (N,), on the CPU: the samples whose crop and flip each takes; None: its own."""
    rows: RowRange | None = None
    """The rows that these are; None: all. N may be one more than its size: the first picture is then there to be
    mixed with the second, or to have something to compute where the part is empty, and is not learnt from."""

    @property
    def row_range(self) -> RowRange:
        return self.rows or RowRange(0, len(self.ids), len(self.ids))


class BatchLoader(Protocol):
    """One split, epoch by epoch."""

    samples: int
    """Samples in the split (with drop_last an epoch may leave some out)."""
    device_augment: Augment | None
    """What is still to be done to the pictures with `augment`; None: nothing, they are size×size."""

    def __len__(self) -> int:
        """Batches in an epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, from batch `start` on."""


def batch_bounds(samples: int, batch_size: int, drop_last: bool = False) -> list[tuple[int, int]]:
    """Where each batch of an epoch starts and stops.

    A smaller last batch is kept, or dropped with `drop_last` unless it is the only one. One of a single sample
    is joined to the batch before, because batch norm has no variance to divide by there. Raises `UserError` for
    a batch size below 1.
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
    """The samples of a batch, or of one's part of it, before they are read: as in `Batch`."""

    ids: np.ndarray
    crop_ids: np.ndarray
    rows: RowRange


class _BatchOrder:
    """The order of samples, the batch bounds and the share that both kinds of loader have in common."""

    def __init__(
        self,
        samples: int,
        batch_size: int,
        augment: Augment | None,
        shuffle: bool,
        seed: int,
        drop_last: bool,
        shard: Shard,
    ) -> None:
        self.samples = self.total = samples
        self.shuffle = shuffle
        self.seed = seed
        self.bounds = batch_bounds(samples, batch_size, drop_last)
        self.share = shard
        self.crop_group = augment.crop_group if augment is not None else 1
        self.mixes = augment is not None and max(augment.mixup, augment.cutmix) > 0

    def __len__(self) -> int:
        return len(self.bounds)

    def rows(self, epoch: int, start: int) -> Iterator[BatchRows]:
        """What each batch of `epoch` holds, from batch `start` on."""
        n = self.total
        order = rng.permutation(self.seed, epoch, n) if self.shuffle else np.arange(n)
        for first, last in self.bounds[start:]:
            ids = order[first:last]
            leads = crop_group_ids(ids, self.crop_group)
            place = self.share.row_range(len(ids))
            if self.share == ALL:
                yield BatchRows(ids, leads, place)
                continue
            # MixUp and CutMix combine each picture with the one before it, the first of all with the last
            before = self.mixes or place.size == 0
            chosen = np.arange(place.start - before, place.start + place.size) % len(ids)
            yield BatchRows(ids[chosen], leads[chosen], place)

    def shard_batches(self, shard: Shard) -> None:
        """Keep one batch of every `share.of`: with the others' each sample once, and in the batches of one process, on
        which the last bits of a sum depend."""
        self.bounds = self.bounds[shard.rank :: shard.world_size]
        self.samples = sum(last - first for first, last in self.bounds)


class InMemory(_BatchOrder):
    """Batches of `arrays`, which may live on any device; the batches come from there.

    Without `augment` they are what `preprocess` makes of them for evaluation. With it they are what is left to
    crop: for crop resized the pictures as they are, else resized to `preprocess.square`. Resizing a batch at a
    time keeps Fashion-MNIST at 224 pixels (3 GB) out of memory.
    """

    def __init__(
        self,
        arrays: ImageArrays,
        preprocess: EvalTransform,
        augment: Augment | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        shard: Shard = ALL,
    ) -> None:
        super().__init__(len(arrays), batch_size, augment, shuffle, seed, drop_last, shard)
        if arrays.images.shape[1] != preprocess.channels:
            raise UserError(
                f"The pictures have {arrays.images.shape[1]} channels and the preprocessing {preprocess.channels}; "
                "make them the same."
            )
        if arrays.eval_ready and (augment is not None or arrays.images.shape[-1] != preprocess.size):
            raise UserError(
                f"These pictures were cut to {arrays.images.shape[-1]} pixels for evaluation; read them again to train "
                "on them or to use another size."
            )
        self.arrays = arrays
        self.preprocess = preprocess
        self.device_augment = augment

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, from batch `start` on."""
        for rows in self.rows(epoch, start):
            ids = torch.from_numpy(rows.ids)
            index = ids.to(self.arrays.images.device)
            images = self.arrays.images.index_select(0, index)
            if self.device_augment is None and not self.arrays.eval_ready:
                images = self.preprocess.resize_batch(images)
            elif self.device_augment is not None and self.device_augment.crop != "resized":
                images = self.preprocess.resize_batch(images, self.preprocess.resize_side)
            targets = self.arrays.targets.index_select(0, index)
            yield Batch(images, targets, ids, torch.from_numpy(rows.crop_ids), rows.rows)


class FromFiles(_BatchOrder):
    """Batches decoded as they are needed, by `workers` processes (0: in this one).

    Without `augment` they are what `preprocess` makes for evaluation. With it, crop resized is taken here from the
    full picture before it is resized, and any other crop is left to the device, as `device_augment` then says. Packed
    pixels are cropped and mirrored here too, so that no more than the crop is ever copied.
    """

    def __init__(
        self,
        files: ImageFiles,
        preprocess: EvalTransform,
        augment: Augment | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        workers: int = 0,
        pin_memory: bool = False,
        shard: Shard = ALL,
    ) -> None:
        super().__init__(len(files), batch_size, augment, shuffle, seed, drop_last, shard)
        files.check(preprocess)
        self.dataset = _BatchDataset(files, preprocess, augment, seed)
        self.workers = workers
        self.pin_memory = pin_memory
        self.device_augment = augment
        if augment is not None and augment.crop == "resized":
            self.device_augment = replace(augment, crop="none")
        elif augment is not None and self.dataset.copies_crops:
            self.device_augment = replace(augment, crop="none", flip=False)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of `epoch`, from batch `start` on. Raises `BadImage` naming a file that cannot be read, and
        `ReaderDied`."""
        requests: Any = [(epoch, rows) for rows in self.rows(epoch, start)]  # what DataLoader passes on as it is
        loader: Iterable[Batch | UserError] = DataLoader(
            self.dataset,
            batch_sampler=requests,
            num_workers=self.workers,
            collate_fn=identity,
            worker_init_fn=_ignore_signals,
            pin_memory=self.pin_memory,
            prefetch_factor=_PREFETCH if self.workers else None,
            generator=torch.Generator(),  # else it would draw a number from the global one, which dropout uses
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
        if died:  # raised here, where torch's error no longer holds on to the other workers
            raise ReaderDied(
                "A process that reads pictures has died: killed from outside, or by the system where memory or "
                f"/dev/shm is short; fewer than --workers {self.workers} need less."
            )


class _BatchDataset(Dataset):
    """What a worker does: (epoch, rows) → a batch. Holds nothing that changes, and can be pickled for spawn."""

    def __init__(self, files: ImageFiles, preprocess: EvalTransform, augment: Augment | None, seed: int) -> None:
        self.files = files
        self.preprocess = preprocess
        self.augment = augment
        self.seed = seed
        crop = augment.crop if augment else "none"
        self.copies_crops = isinstance(files, PackedImages) and crop in ("none", "random") and files.matches(preprocess)
        """Whether crops are copied straight from packed pixels, mirrored where that is their turn."""

    def __getitems__(self, request: tuple[int, BatchRows]) -> Batch | UserError:
        epoch, (ids, leads, part) = request
        try:
            images = self._copy_crops(epoch, ids, leads) if self.copies_crops else self._decode_batch(epoch, ids, leads)
        except UserError as error:
            return error  # raised in a worker it would arrive wrapped in that worker's traceback
        return Batch(images, self.files.targets[ids], torch.from_numpy(ids), torch.from_numpy(leads), part)

    def _copy_crops(self, epoch: int, ids: np.ndarray, leads: np.ndarray) -> torch.Tensor:
        """The same crops and mirror images, from the same draws, as `augment` makes of pictures in memory."""
        assert isinstance(self.files, PackedImages)
        cfg, size = self.augment or Augment(), self.preprocess.size
        spare = self.preprocess.resize_side - size
        corners, mirrored = np.full((len(ids), 2), round(spare / 2)), np.zeros(len(ids), dtype=bool)
        if cfg.crop == "random":
            corners = crop_corners(rng.uniform(self.seed, epoch, leads, "crop", 2), spare)
        if cfg.flip:
            mirrored = rng.uniform(self.seed, epoch, leads, "flip", 1)[:, 0] < 0.5
        return self.files.crops(ids, corners, mirrored, size)

    def _decode_batch(self, epoch: int, ids: np.ndarray, leads: np.ndarray) -> torch.Tensor:
        numbers: Any = [None] * len(ids)
        if self.augment is not None and self.augment.crop == "resized":
            numbers = rng.uniform(self.seed, epoch, leads, "crop", BOX_DRAWS)
        pictures = [self._load_image(i, row).movedim(0, -1) for i, row in zip(ids, numbers, strict=True)]
        return torch.stack(pictures).movedim(-1, 1)  # channels_last: as pixels are decoded, and as they are computed

    def _load_image(self, i: int, uniform: np.ndarray | None) -> torch.Tensor:
        stored, preprocess, cfg = self.files.raw(i), self.preprocess, self.augment
        try:
            if cfg is None:
                return preprocess.eval_tensor(decode_image(stored, preprocess.channels))
            if uniform is None:
                return preprocess.training_square(decode_crop(stored, preprocess.resize_side, preprocess.channels))
            box = partial(crop_box, uniform=uniform, scale=cfg.scale, ratio=cfg.ratio)
            return preprocess.resize_crop(decode_crop(stored, preprocess.size, preprocess.channels, box=box))
        except BadImage as error:
            raise BadImage(error.reason, self.files.describe(i)) from error


def _defer_worker_errors(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's iterator, which tells of a dead worker when asked for a batch (within 5 s) and not before.

    torch would have SIGCHLD raise wherever this process is just then, such as in the middle of a training step.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _ignore_signals(_: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach workers too; the main process alone decides what then happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def identity(batch: Any) -> Any:
    return batch


# ── what this machine can do ──────────────────────────────────────────────────────────────────────────────────


def choose_workers(requested: int | None, batch_bytes: int, shm: Path = Path("/dev/shm")) -> tuple[int, str | None]:
    """How many processes should decode, and a sentence for the user where it is not what one would expect.

    `requested`, or without one as many as there are cores, up to 16 (none on a single core, where they would
    only take turns); of several processes that train on this machine each has its part of cores and memory. Workers
    hand batches of `batch_bytes` over in shared memory, and die of a bus error where that is too small, as in a
    container with Docker's 64 MB; there it is fewer, or 0. Raises `UserError` for a negative number.
    """
    if requested is not None and requested < 0:
        raise UserError(f"The number of workers cannot be {requested}; give 0 or more, or leave it out.")
    cores = cpu_count() // local_world_size()
    wanted = requested if requested is not None else (min(cores, _MAX_WORKERS) if cores > 1 else 0)
    if wanted == 0 or not shm.is_dir():  # only Linux keeps shared memory there; elsewhere it has no small limit
        return wanted, None
    free = shutil.disk_usage(shm).free // local_world_size()
    each = 2 * _PREFETCH * batch_bytes  # as much again for batches that are still being used
    fit = min(wanted, free // max(each, 1))
    if fit == wanted:
        return wanted, None
    return fit, (
        f"Loading with {fit} worker processes instead of {wanted}, because {shm} has only {free >> 20} MiB free for "
        "the batches that they hand over (with Docker, start the container with --shm-size=2g)."
    )


def fits_in_memory(dataset: ImageDataset, size: int, requested: bool | None = None) -> bool:
    """Whether to keep the pictures of `source` decoded in memory, as squares of `size` pixels.

    True if they are already there, or need at most `MAX_IN_MEMORY` and a quarter of the free memory; where they are
    `wanted` there, as by the earlier part of a run, if they fit at all. Of several processes on this machine each has
    its part of the memory.
    """
    if requested is False:
        return False
    to_read = sum(len(part) for part in dataset.splits.values() if isinstance(part, ImageFiles))
    needed = to_read * dataset.channels * size * size
    free = free_memory() // local_world_size()
    return needed <= (free if requested else min(MAX_IN_MEMORY, free // 4))


EVAL_BATCH_SIZE = 256  # of every evaluation: the last bits of a sum depend on how it is batched


def evaluation_batches(
    part: ImageArrays | ImageFiles, preprocess: EvalTransform, workers: int = 0, shard: Shard = ALL
) -> BatchLoader:
    """The images of a split in order, as the network reads them; of several processes, each one's batches of them."""
    batches: FromFiles | InMemory
    if isinstance(part, ImageFiles):
        batches = FromFiles(part, preprocess, batch_size=EVAL_BATCH_SIZE, workers=workers)
    else:
        if len(part) * preprocess.channels * preprocess.size**2 <= MAX_IN_MEMORY:
            part = resize_for_eval(part, preprocess)
        batches = InMemory(part, preprocess, batch_size=EVAL_BATCH_SIZE)
    batches.shard_batches(shard)
    return batches
