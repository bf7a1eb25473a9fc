"""Several views of each picture, their probabilities averaged: the ten crops of 2012, and denser grids.

The paper tests on five 224×224 crops of the 256×256 picture (corners and centre) and their mirror images, and averages
the ten softmax outputs (section 4.1; offsets 0, 16 and 32 in the 2012 code). Views are cut and run one after the other,
so that ten views cost ten forward passes and the memory of one.

Pictures that have no margin around the network's input, such as CIFAR-10's 32×32, get one: a thirty-second of their
side (1 pixel) is mirrored at each edge. That helps a network whose training moved the pictures about, and can harm
one that never saw them moved: then mirror images alone (two views) are the better choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from alexnet.data.preprocess import Preprocess
from alexnet.errors import UserError


@dataclass(frozen=True)
class Views:
    """Where views are cut, as shares (top, left) of the margin from 0 to 1, and whether each is mirrored too."""

    places: tuple[tuple[float, float], ...]
    flips: bool

    def __len__(self) -> int:
        return len(self.places) * (1 + self.flips)


CENTRE = Views(((0.5, 0.5),), flips=False)
TEN_CROP = Views(((0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0)), flips=True)


def views_of(count: int) -> Views:
    """`count` views: 1 is the centre, 10 the paper's ten crops, 2·k² a grid of k×k places with mirror images.

    Raises `UserError` for other numbers, naming the nearest that there are.
    """
    if count == 1:
        return CENTRE
    if count == 10:
        return TEN_CROP
    possible = sorted({1, 10} | {2 * k * k for k in range(1, 17)})
    if count not in possible:
        near = sorted(sorted(possible, key=lambda n: abs(n - count))[:2])
        raise UserError(f"{count} views do not make a grid; take {near[0]} or {near[1]}, or --ten-crop.")
    k = round((count / 2) ** 0.5)
    steps = [i / (k - 1) for i in range(k)] if k > 1 else [0.5]
    return Views(tuple((top, left) for top in steps for left in steps), flips=True)


def uncropped(preprocess: Preprocess) -> Preprocess:
    """The preprocessing whose `evaluation` gives the square, margin included, that views are cut from."""
    return replace(preprocess, size=preprocess.square)


def cut(squares: torch.Tensor, views: Views, size: int) -> Iterator[torch.Tensor]:
    """Each view of uint8 N×C×S×S pictures in turn, as uint8 N×C×size×size; `views` other than the centre alone
    give pictures without a margin (S equal to size) a mirrored one."""
    if squares.shape[-1] == size and views != CENTRE:
        margin = max(1, size // 32)
        squares = F.pad(squares.float(), (margin,) * 4, mode="reflect").to(torch.uint8)
    spare = squares.shape[-1] - size
    for top, left in views.places:
        y, x = round(top * spare), round(left * spare)
        view = squares[..., y : y + size, x : x + size]
        yield view
        if views.flips:
            yield view.flip(-1)
