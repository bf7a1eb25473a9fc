"""Datasets decoded into memory, each file once, and their unreadable files, found by the same pass.

Files that do not fit in memory are checked once before training instead (`check_files`). Both raise `BadFiles`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from PIL import Image

from alexnet.data.augment import Augment
from alexnet.data.dataset import (
    UNREADABLE_CLASS,
    WITHOUT_CLASS,
    BadFiles,
    ImageArrays,
    ImageDataset,
    ImageFiles,
    list_bad,
)
from alexnet.data.decode import BadImage, check_image, decode_crop, decode_image, image_size, map_in_threads
from alexnet.data.deep import ValueRange
from alexnet.data.transforms import EvalTransform
from alexnet.device import free_memory, local_world_size
from alexnet.errors import UserError
from alexnet.files import printable
from alexnet.progress import Progress

Result = TypeVar("Result")

MAX_IN_MEMORY = 2 << 30
"""Maximum bytes of decoded images kept in memory."""
FULL_CHECK = 50_000
"""Up to this many files are decoded to find unreadable ones; of more, only headers and end markers are read."""


def fits_in_memory(dataset: ImageDataset, size: int, requested: bool | None = None) -> bool:
    """Whether to keep `dataset` decoded in memory, as squares of `size` pixels.

    True if nothing has to be read, or if it needs at most `MAX_IN_MEMORY` and a quarter of the free
    memory; with `requested` (an earlier part of the run had it in memory), if it fits at all.
    Processes on this machine share its memory.
    """
    if requested is False:
        return False
    needed = sum(map(len, dataset.files.values())) * dataset.channels * size * size
    free = free_memory() // local_world_size()
    return needed <= (free if requested else min(MAX_IN_MEMORY, free // 4))


def decode_splits(
    dataset: ImageDataset, preprocess: EvalTransform, augment: Augment | None = None, progress: Progress | None = None
) -> ImageDataset:
    """Decode all files of `dataset` into memory: train for the crops of `augment`, the others for
    evaluation (see `decode_files`). Raises `BadFiles`, and `RangeUnknown` as `load_upright`
    does."""
    splits, reasons = dict(dataset.splits), []
    for split, part in dataset.files.items():
        bad: dict[int, str] = {}
        split_augment = augment if split == "train" else None
        splits[split] = decode_files(part, preprocess, split_augment, bad=bad, progress=progress)
        reasons += [(part, i, bad[i]) for i in sorted(bad)]
    _raise_bad(dataset, reasons)
    return replace(dataset, splits=splits)


def check_files(
    dataset: ImageDataset, full: bool = False, value_range: ValueRange | None = None, progress: Progress | None = None
) -> None:
    """Check all files of `dataset`, by decoding them if there are at most `FULL_CHECK` or `full`.
    Raises `BadFiles`, and `RangeUnknown` as `load_upright` does."""
    files = [(part, i) for part in dataset.files.values() if not part.verified for i in range(len(part))]
    full = full or len(files) <= FULL_CHECK
    found = map_in_threads(
        lambda file: check_image(file[0].raw(file[1]), full, value_range), files, progress, "checking images"
    )
    _raise_bad(dataset, [(*file, reason) for file, reason in zip(files, found, strict=True) if reason is not None])


def _raise_bad(dataset: ImageDataset, reasons: list[tuple[ImageFiles, int, str]]) -> None:
    """Raise `BadFiles` if there are any `reasons`, or `UserError` if no file is left."""
    if not reasons:
        return
    root, total = reasons[0][0].root, sum(map(len, dataset.files.values()))
    bad = [(part.names[i], reason) for part, i, reason in reasons]
    listed = list_bad(bad)
    if len(bad) == total:
        raise UserError(f"None of the {total} images in {root} can be read: {listed}; replace them.")
    raise BadFiles(f"{len(bad)} of {total} images in {root} cannot be read: {listed}", bad)


def without_bad_files(
    work: Callable[[list[tuple[str, str]]], Result], skip_bad: bool, known: Sequence[tuple[str, str]] = ()
) -> Result:
    """Return work(known), or, while that raises `BadFiles` and they are to be skipped, work(known and these).

    It does so up to twice: for class folders without images, then for unreadable files.
    """
    bad = list(known)
    while True:
        try:
            return work(bad)
        except BadFiles as error:
            if not skip_bad:
                raise
            bad = [*bad, *error.bad]


def leave_out(dataset: ImageDataset, bad: Sequence[tuple[str, str]]) -> ImageDataset:
    """Return `dataset` without the files `bad`, (name, reason), where a name may be as `printable` returns it.

    A class that has no training image left is left out too, in all splits, and becomes part of the result's `bad`.
    Raises `UserError` if a split has no image left, or train fewer than two classes.
    """
    if not bad:
        return dataset
    names, listed = {printable(name) for name, _ in bad}, list_bad(bad)
    splits = {}
    for split, part in dataset.files.items():
        good = [i for i, name in enumerate(part.names) if printable(name) not in names]
        if not good:
            raise UserError(f"No image of {split}/ in {part.root} can be read ({listed}); replace them.")
        splits[split] = part.take(np.array(good))
    return _leave_out_empty_classes(replace(dataset, splits=splits, bad=list(bad)), listed)


def _leave_out_empty_classes(dataset: ImageDataset, listed: str) -> ImageDataset:
    """Return `dataset` without the classes that have no image in train, if there is one. Raises `UserError`."""
    if "train" not in dataset.files:
        return dataset
    counts = torch.bincount(dataset.files["train"].targets, minlength=len(dataset.classes)).numpy()
    kept = np.flatnonzero(counts)
    if len(kept) == len(counts):
        return dataset
    if len(kept) < 2:
        raise UserError(
            f"Only images of class '{dataset.classes[kept[0]]}' in {dataset.files['train'].root} can be read "
            f"({listed}); a classifier needs two or more classes, so replace the others."
        )
    new_index = torch.full((len(counts),), -1).index_put((torch.as_tensor(kept),), torch.arange(len(kept)))
    bad = [(f"{name}/", UNREADABLE_CLASS) for name, count in zip(dataset.classes, counts, strict=True) if not count]
    splits = {}
    for split, part in dataset.files.items():
        known = (new_index[part.targets] >= 0).numpy()
        if not known.any():
            raise UserError(f"No image of {split}/ in {part.root} is of a class that train/ has; replace those there.")
        bad += [(part.names[i], WITHOUT_CLASS) for i in np.flatnonzero(~known)]
        chosen = part.take(np.flatnonzero(known))
        splits[split] = replace(chosen, targets=new_index[chosen.targets])
    known_bad = {name for name, _ in dataset.bad}
    return replace(
        dataset,
        classes=tuple(dataset.classes[i] for i in kept),
        splits=splits,
        bad=[*(row for row in bad if printable(row[0]) not in known_bad), *dataset.bad],
    )


def decode_files(
    files: ImageFiles,
    preprocess: EvalTransform,
    augment: Augment | None = None,
    *,
    bad: dict[int, str] | None = None,
    progress: Progress | None = None,
) -> ImageArrays:
    """Decode all images into memory, on all cores.

    Without `augment` they are ready for evaluation, uint8 N×C×size×size. With it, they are squares
    to crop from, N×C×resize_side×resize_side; for crop resized, images that are all squares of one
    size keep it, up to 1.5 times `resize_side`. The reason why a file cannot be read is put into
    `bad`, by its index; without `bad`, `BadImage` is raised. Raises `RangeUnknown` as
    `load_upright` does.
    """
    files.check(preprocess)
    side, channels, value_range = preprocess.size, preprocess.channels, preprocess.value_range
    if augment is not None:
        side = _square_side(files, preprocess) if augment.crop == "resized" else preprocess.resize_side
    images = np.empty((len(files), channels, side, side), dtype=np.uint8)
    others: dict[int, np.ndarray] = {}  # of another size, resized to `resize_side`

    def read(i: int) -> None:
        try:
            if augment is None:
                images[i] = preprocess.eval_array(decode_image(files.raw(i), channels, value_range=value_range))
                return
            pixels = decode_crop(files.raw(i), preprocess.resize_side, channels, value_range=value_range)
            if pixels.shape[:2] == (side, side):
                images[i] = pixels.transpose(2, 0, 1)
            elif side == preprocess.resize_side:
                images[i] = preprocess.training_square(pixels).numpy()
            else:
                others[i] = preprocess.training_square(pixels).numpy()
        except BadImage as error:
            if bad is None:
                raise BadImage(error.reason, files.describe(i)) from error
            bad[i] = error.reason

    for _ in map_in_threads(read, range(len(files)), progress, "reading images"):
        pass
    if others:
        kept = (np.ascontiguousarray(image.transpose(1, 2, 0)) for image in images)
        resized = (others[i] if i in others else preprocess.training_square(image) for i, image in enumerate(kept))
        images = np.stack([np.asarray(image) for image in resized])
    return ImageArrays(torch.from_numpy(images), files.targets, files.names, eval_ready=augment is None)


def _square_side(files: ImageFiles, preprocess: EvalTransform) -> int:
    """Return the side in pixels that all images keep if they are squares like the first, else `resize_side`."""
    try:
        width, height = image_size(files.raw(0))
    except BadImage:
        return preprocess.resize_side
    keep = width == height and preprocess.size <= width <= 1.5 * preprocess.resize_side
    return width if keep else preprocess.resize_side


def resize_for_eval(arrays: ImageArrays, preprocess: EvalTransform) -> ImageArrays:
    """Apply `preprocess.eval_tensor` to each image, N×C×size×size: with Pillow, so that they equal,
    bit for bit, what prediction reads from image files. Images that would take more than
    `MAX_IN_MEMORY` are returned unchanged."""
    if arrays.eval_ready or (*arrays.images.shape[-2:], preprocess.resize_side) == (preprocess.size,) * 3:
        return arrays
    if len(arrays) * preprocess.channels * preprocess.size**2 > MAX_IN_MEMORY:
        return arrays
    images = np.empty((len(arrays), preprocess.channels, preprocess.size, preprocess.size), dtype=np.uint8)

    def resize(i: int) -> None:
        pixels = arrays.images[i].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels if preprocess.channels == 3 else pixels[..., 0])
        images[i] = preprocess.eval_array(image)

    for _ in map_in_threads(resize, range(len(arrays))):
        pass
    return ImageArrays(torch.from_numpy(images), arrays.targets, arrays.names, eval_ready=True)
