"""The layers that torch has only in part: the two response normalisations of 2012, and dropout with a mask of its own.

Torch's own `LocalResponseNorm` lets its window run across the border between two towers, has no bfloat16 on a CPU and
takes longer than the convolutions around it: ours is an operator of its own, in `response`. The norm over space, which
the 2012 code applies after conv2's LRN, torch does not have; it is written plainly here, as its formula reads. Torch's
dropout takes the next numbers of a global generator, which are others when a batch is computed in parts or by several
processes; ours can be given its mask. `check_images` guards what goes into a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.errors import UserError
from alexnet.models.lrn import Constants, at_least_float32, local_response_norm


class LocalResponseNorm(nn.Module):
    """Competition between neighbouring channels: b = a / (k + alpha/size · Σ a²)^beta (paper, section 3.3).

    The sum runs over `size` neighbouring channels at the same pixel: size // 2 before and (size - 1) // 2 after, fewer
    at the edges. `towers` splits the channels into so many equal groups that a window does not cross. Alpha is divided
    by `size` as in `torch.nn.LocalResponseNorm` and the 2012 code; the paper's formula prints it without, so its 1e-4
    is 5e-4 here. Defaults are those of the 2012 code.

    Input and output: (N, C, L), (N, C, H, W) or more, floating point, in any layout, which the output and the gradient
    keep; float16 and bfloat16 are summed in float32. Of the forward pass only the input is kept for the backward pass.
    Raises `UserError` if C is not divisible by `towers`.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, towers: int = 1) -> None:
        super().__init__()
        if size < 1 or towers < 1:
            raise UserError(f"LocalResponseNorm got size {size} and towers {towers}; both must be at least 1.")
        self.size, self.alpha, self.beta, self.k, self.towers = size, alpha, beta, k, towers

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing() and x.shape[1] % self.towers:  # while tracing, shapes are tensors
            raise UserError(
                f"LocalResponseNorm got {x.shape[1]} channels, which do not divide into {self.towers} towers; "
                f"use a multiple of {self.towers}."
            )
        return local_response_norm(x, Constants(self.size, self.alpha, self.beta, self.k, self.towers))

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, towers={self.towers}"


class SpatialResponseNorm(nn.Module):
    """Competition between neighbouring pixels of one channel: b = a / (k + alpha/size² · Σ a²)^beta.

    The sum runs over the size×size pixels around each (size // 2 before, (size - 1) // 2 after, zeros beyond the
    edge). Defaults are those of `rnorm2` in the 2012 code's layers-145.cfg.

    Input and output: (N, C, H, W), floating point; float16 and bfloat16 are summed in float32.
    """

    def __init__(self, size: int = 5, alpha: float = 1e-3, beta: float = 0.75, k: float = 1.0) -> None:
        super().__init__()
        if size < 1:
            raise UserError(f"SpatialResponseNorm got size {size}; it must be at least 1.")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        a = at_least_float32(x)
        before, after = self.size // 2, (self.size - 1) // 2
        padded = F.pad(a.square(), (before, after, before, after))
        mean = F.avg_pool2d(padded, self.size, stride=1)
        return (a / (self.k + self.alpha * mean).pow(self.beta)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}"


class Dropout(nn.Dropout):
    """Dropout over (N, features) that multiplies by `mask` while it has one, and is torch's own otherwise.

    `features` counts the units of the whole layer, of which this module may see only those in `columns`: one tower's.
    """

    def __init__(self, p: float, features: int, columns: slice = slice(None)) -> None:
        super().__init__(p)
        self.features, self.columns = features, columns
        self.mask: Tensor | None = None
        """Float32, shaped like the input: 0 where a unit is dropped, 1 / (1 - p) where it is kept."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.mask is None:
            return super().forward(input)
        return input * self.mask.to(input.dtype)


@contextmanager
def counter_based_dropout(model: nn.Module, n: int, rows: slice, seed_of: Callable[[str], int]) -> Iterator[None]:
    """While this lasts, each `Dropout` of `model` has the mask for images `rows` of a batch of `n`.

    Always the mask of the whole batch and the whole layer is drawn, on the model's device, from the seed that
    `seed_of` gives for the layer's name: whoever computes a part of it sees the same numbers.
    """
    drawn = [(name, module) for name, module in model.named_modules() if isinstance(module, Dropout)]
    for name, module in drawn:
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed_of(name))
        kept = torch.empty(n, module.features, device=device).bernoulli_(1 - module.p, generator=generator)
        module.mask = kept[rows, module.columns] / (1 - module.p)
    try:
        yield
    finally:
        for _, module in drawn:
            module.mask = None


def check_images(x: Tensor, where: str, channels: int, side: int) -> None:
    """Raise `UserError` unless `x` is floating-point N×channels×side×side; `where` names what reads it."""
    if x.dim() != 4 or tuple(x.shape[1:]) != (channels, side, side):
        got = "×".join(str(int(n)) for n in x.shape)
        raise UserError(
            f"{where} expects images of shape N×{channels}×{side}×{side} and got {got}; "
            f"resize them, or create the model with other in_channels and image_size."
        )
    if not x.is_floating_point():
        raise UserError(
            f"{where} expects floating-point images and got {x.dtype}; convert them with .float() and normalise them."
        )
