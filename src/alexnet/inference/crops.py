"""Several views of each picture, their probabilities averaged: the ten crops of 2012, denser grids, several scales.

The paper tests on five 224×224 crops of the 256×256 picture (corners and centre) and their mirror images, and averages
the ten softmax outputs (section 4.1; offsets 0, 16 and 32 in the 2012 code). Views are cut and run one after the other,
so that ten views cost ten forward passes and the memory of one.

At a scale s the picture is resized to s times the square that the network is usually tested on (256 becomes 294 at
1.15), from the file and not from that square, and the same grid of views is cut from it. Pictures that a data set
keeps in memory at their final size, such as CIFAR-10's 32×32, are what there is: at 1.15 they are enlarged to 37×37.

Pictures that have no margin around the network's input, such as CIFAR-10's 32×32 at scale 1, get one: a thirty-second
of their side (1 pixel) is mirrored at each edge. That helps a network whose training moved the pictures about, and can
harm one that never saw them moved: then mirror images alone (two views) are the better choice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch.nn import functional as F

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError

LARGEST_SCALE = 4.0  # 1024 pixels for 256: beyond what any test used, and short of what fills the memory


@dataclass(frozen=True)
class Views:
    """Where views are cut, as shares (top, left) of the margin from 0 to 1, whether each is mirrored too, and from
    the picture at which scales."""

    places: tuple[tuple[float, float], ...]
    flips: bool
    scales: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.places) * (1 + self.flips) * len(self.scales)


CENTER_CROP = Views(((0.5, 0.5),), flips=False)
TEN_CROP = Views(((0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0)), flips=True)


def make_views(count: int = 1, scales: Sequence[float] = (1.0,)) -> Views:
    """`count` views at each of `scales`: 1 is the centre, 10 the paper's ten crops, 2·k² a grid of k×k places with
    mirror images.

    Raises `UserError` for other numbers, naming the nearest that there are, and for scales outside (0, 4].
    """
    if not scales or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        given = " ".join(f"{scale:g}" for scale in scales) or "nothing"
        raise UserError(f"--scales takes numbers above 0 and up to {LARGEST_SCALE:g}, such as 1 1.15, not {given}.")
    return replace(_grid(count), scales=tuple(map(float, scales)))


def _grid(count: int) -> Views:
    if count == 1:
        return CENTER_CROP
    if count == 10:
        return TEN_CROP
    possible = sorted({1, 10} | {2 * k * k for k in range(1, 17)})
    if count not in possible:
        near = sorted(sorted(possible, key=lambda n: abs(n - count))[:2])
        raise UserError(f"{count} views do not make a grid; take {near[0]} or {near[1]}, or --ten-crop.")
    k = round((count / 2) ** 0.5)
    steps = [i / (k - 1) for i in range(k)] if k > 1 else [0.5]
    return Views(tuple((top, left) for top in steps for left in steps), flips=True)


def without_center_crop(preprocess: EvalTransform, scale: float = 1.0) -> EvalTransform:
    """The preprocessing whose `evaluation` gives the square, margin included, that views are cut from at `scale`.

    It is for reading alone: a mean image is not in it. Raises `UserError` where that square is smaller than the
    network's input.
    """
    side = round(preprocess.resize_side * scale)
    if side < preprocess.size:
        least = preprocess.size / preprocess.resize_side
        raise UserError(
            f"At --scales {scale:g} the picture is {side}×{side} and the network reads {preprocess.size}×"
            f"{preprocess.size}; give {least:.4g} or more."
        )
    return replace(preprocess, size=side, resize=side, mean_image=None)


def crop_views(squares: torch.Tensor, views: Views, size: int) -> Iterator[torch.Tensor]:
    """Each view of uint8 N×C×S×S pictures, read at one scale, in turn: uint8 N×C×size×size. Several places in
    pictures without a margin (S equal to size) are given a mirrored one."""
    if squares.shape[-1] == size and len(views.places) > 1:
        margin = max(1, size // 32)
        squares = F.pad(squares.float(), (margin,) * 4, mode="reflect").to(torch.uint8)
    spare = squares.shape[-1] - size
    for top, left in views.places:
        y, x = round(top * spare), round(left * spare)
        view = squares[..., y : y + size, x : x + size]
        yield view
        if views.flips:
            yield view.flip(-1)


def log_mean(logits: Iterable[torch.Tensor]) -> torch.Tensor:
    """Logits (n, classes) whose softmax is the mean of the softmaxes of `logits`, each (n, classes) float32: the
    logarithm of the mean probability. Of one alone, that one as it is."""
    first, *others = logits
    if not others:
        return first
    total = reduce(torch.logaddexp, (x.log_softmax(dim=1) for x in (first, *others)))
    return total - math.log(1 + len(others))
