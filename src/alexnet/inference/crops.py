"""Test-time augmentation: the ten crops of 2012, denser grids, several scales; their probabilities are averaged.

The paper tests on five 224×224 crops of the 256×256 image (corners and center) and their mirror images, and averages
the ten softmax outputs (section 4.1; offsets 0, 16 and 32 in the 2012 code). Views are cut and run one after the other,
so ten views take ten forward passes and the memory of one view.

At a scale s the image is resized from the file to s times the usual square (256 becomes 294 at 1.15), and the same grid
of views is cut from it. Images that a dataset keeps in memory
at their final size, such as CIFAR-10's 32×32, are enlarged: to 37×37 at 1.15.

Images without a margin around the network's input, such as CIFAR-10's 32×32 at scale 1, are padded by reflection: by a
thirty-second of their side (1 pixel) at each edge. This helps a network that was trained on shifted images, and can
harm others, for which two views (the image and its mirror image) are better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError

if TYPE_CHECKING:
    import torch

MAX_SCALE = 4.0  # 1024 pixels for 256: more than any published test used, and still fits in memory


@dataclass(frozen=True)
class Views:
    """The views of an image: crop positions (top, left) as fractions of the margin, whether to add mirror images, and
    the scales."""

    positions: tuple[tuple[float, float], ...]
    flips: bool
    scales: tuple[float, ...] = (1.0,)

    def __len__(self) -> int:
        return len(self.positions) * (1 + self.flips) * len(self.scales)


CENTER_CROP = Views(((0.5, 0.5),), flips=False)
TEN_CROP = Views(((0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0)), flips=True)


def make_views(count: int = 1, scales: Sequence[float] = (1.0,)) -> Views:
    """Return `count` views at each of `scales`: 1 is the center, 10 the paper's ten crops, 2·k² a grid of k×k positions
    with mirror images.

    Raises `UserError` for other counts, naming the nearest possible ones, and for scales outside (0, 4].
    """
    if not scales or not all(0 < scale <= MAX_SCALE for scale in scales):
        given = " ".join(f"{scale:g}" for scale in scales) or "nothing"
        raise UserError(f"--scales takes numbers above 0 and up to {MAX_SCALE:g}, such as 1 1.15, not {given}.")
    scales = tuple(map(float, scales))
    if count in (1, 10):
        return replace(CENTER_CROP if count == 1 else TEN_CROP, scales=scales)
    possible = sorted({1, 10} | {2 * k * k for k in range(1, 17)})
    if count not in possible:
        near = sorted(sorted(possible, key=lambda n: abs(n - count))[:2])
        raise UserError(f"{count} views do not form a grid; use {near[0]} or {near[1]}, or --ten-crop.")
    k = round((count / 2) ** 0.5)
    steps = [i / (k - 1) for i in range(k)] if k > 1 else [0.5]
    return Views(tuple((top, left) for top in steps for left in steps), flips=True, scales=scales)


def without_center_crop(preprocess: EvalTransform, scale: float = 1.0) -> EvalTransform:
    """Return the transform whose `eval_tensor` returns the square, with margin, that views at `scale` are cut from.

    The mean image, which has another size, is dropped. Raises `UserError` if the square is smaller than the network's
    input.
    """
    side = round(preprocess.resize_side * scale)
    if side < preprocess.size:
        least = preprocess.size / preprocess.resize_side
        raise UserError(
            f"At --scales {scale:g} the image is {side}×{side} and the network reads {preprocess.size}×"
            f"{preprocess.size}; use {least:.4g} or more."
        )
    return replace(preprocess, size=side, resize=side, mean_image=None)


def crop_views(squares: torch.Tensor, views: Views, size: int) -> Iterator[torch.Tensor]:
    """Yield each view of uint8 N×C×S×S images at one scale: uint8 N×C×size×size. For several positions, images without
    a margin (S equal to size) are padded by reflection."""
    import torch
    from torch.nn import functional as F

    if squares.shape[-1] == size and len(views.positions) > 1:
        pad = max(1, size // 32)
        squares = F.pad(squares.float(), (pad,) * 4, mode="reflect").to(torch.uint8)
    margin = squares.shape[-1] - size
    for top, left in views.positions:
        y, x = round(top * margin), round(left * margin)
        view = squares[..., y : y + size, x : x + size]
        yield view
        if views.flips:
            yield view.flip(-1)


def log_mean(logits: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the logarithm of the mean probability: logits (n, classes) whose softmax is the mean of the softmaxes of
    `logits`, each (n, classes) float32. A single tensor is returned unchanged."""
    first, *others = logits
    if not others:
        return first
    import torch

    total = reduce(torch.logaddexp, (x.log_softmax(dim=1) for x in (first, *others)))
    return total - math.log(1 + len(others))
