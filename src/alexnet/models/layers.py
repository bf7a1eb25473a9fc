"""Layers beyond torch's: the two response normalizations of 2012, and dropout with a given mask.

Torch's `LocalResponseNorm` lets windows cross the boundary between towers, does not support bfloat16 on a CPU, and
is slower than the convolutions around it; ours is a custom operator, in `lrn.py`. Torch has no spatial response norm,
which the 2012 code applies after conv2's LRN. Torch's dropout draws from a global generator, so its masks change when
a batch is split over steps or processes; ours can be given a mask. `check_images` validates the input of a network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.calls import public
from alexnet.errors import UserError
from alexnet.models.lrn import Constants, at_least_float32, local_response_norm


class LocalResponseNorm(nn.Module):
    """Normalization across neighboring channels: b = a / (k + alpha/size · Σ a²)^beta (paper, section 3.3).

    The sum runs over `size` channels at the same pixel: size // 2 before and (size - 1) // 2 after, fewer at the edges.
    `towers` is the number of equal channel groups that windows do not cross. Alpha is divided by `size` as in
    `torch.nn.LocalResponseNorm` and the 2012 code, but not in the paper's formula, whose 1e-4 is therefore 5e-4 here.
    Defaults are those of the 2012 code.

    Input and output: (N, C, L), (N, C, H, W) or more, floating point, in any memory layout, which the output and the
    gradient keep; float16 and bfloat16 are summed in float32. Only the input is saved for the backward pass. Raises
    `UserError` if C is not divisible by `towers`.

    >>> lrn = alexnet.LocalResponseNorm(size=5, alpha=1e-4, beta=0.75, k=2.0)
    >>> maps = torch.ones(1, 96, 55, 55)
    >>> lrn(maps).shape
    torch.Size([1, 96, 55, 55])
    >>> bool((lrn(maps).mean() - 2**-0.75).abs() < 1e-4)  # small values are multiplied by a constant
    True
    """

    @public("alexnet.LocalResponseNorm")
    def __init__(self, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0, towers: int = 1) -> None:
        super().__init__()
        if size < 1 or towers < 1:
            raise UserError(f"LocalResponseNorm got size {size} and towers {towers}; both must be at least 1.")
        self.size, self.alpha, self.beta, self.k, self.towers = size, alpha, beta, k, towers

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing() and x.shape[1] % self.towers:  # while tracing, shapes are tensors
            raise UserError(
                f"LocalResponseNorm got {x.shape[1]} channels, which are not divisible into {self.towers} towers; "
                f"use a multiple of {self.towers}."
            )
        return local_response_norm(x, Constants(self.size, self.alpha, self.beta, self.k, self.towers))

    def denominators(self, x: Tensor) -> Tensor:
        """Return what each value of `x` (N, C, H, W) is divided by, float32 in its shape: the less this varies, the
        more the layer is multiplication by a constant."""
        groups = at_least_float32(x).square().unflatten(1, (self.towers, -1)).flatten(0, 1).unsqueeze(1)
        padded = F.pad(groups, (0, 0, 0, 0, self.size // 2, (self.size - 1) // 2))
        means = F.avg_pool3d(padded, (self.size, 1, 1), stride=1).reshape(x.shape)
        return (self.k + self.alpha * means).pow(self.beta)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, towers={self.towers}"


class SpatialResponseNorm(nn.Module):
    """Normalization across neighboring pixels of one channel: b = a / (k + alpha/size² · Σ a²)^beta.

    The sum runs over size×size pixels (size // 2 before, (size - 1) // 2 after, zeros beyond the edges). Defaults are
    those of `rnorm2` in the 2012 code's layers-145.cfg.

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


@torch.no_grad()
def lrn_denominators(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return `denominators` of each `LocalResponseNorm` among the layers of an AlexNet, by name.

    `images` are preprocessed, N×C×H×W. Leaves the training mode as it was.
    """
    norms = [name for name, module in model.named_children() if isinstance(module, LocalResponseNorm)]
    found: dict[str, Tensor] = {}
    was_training, x = model.training, images
    model.eval()
    for name, module in model.named_children():
        if len(found) == len(norms):
            break
        if isinstance(module, LocalResponseNorm):
            found[name] = module.denominators(x)
        x = module(x)
    model.train(was_training)
    return found


class Dropout(nn.Dropout):
    """Dropout over (N, features) that multiplies by `mask` if one is set and is torch's dropout otherwise.

    `features` is the number of units of the full layer; a tower's module sees only those in `columns`.
    """

    def __init__(self, p: float, features: int, columns: slice = slice(None)) -> None:
        super().__init__(p)
        self.features, self.columns = features, columns
        self.mask: Tensor | None = None
        """Float32, in the input's shape: 0 for dropped units, 1 / (1 - p) for kept ones."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.mask is None:
            return super().forward(input)
        return input * self.mask.to(input.dtype)


@contextmanager
def counter_based_dropout(model: nn.Module, n: int, rows: slice, seed_of: Callable[[str], int]) -> Iterator[None]:
    """Within this context, each `Dropout` of `model` uses the mask for images `rows` of a batch of `n`.

    The mask of the full batch and layer is always drawn, on the model's device, with the seed `seed_of(layer name)`, so
    every process that computes a part of the batch uses the same numbers.
    """
    dropouts = [(name, module) for name, module in model.named_modules() if isinstance(module, Dropout)]
    for name, module in dropouts:
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(seed_of(name))
        kept = torch.empty(n, module.features, device=device).bernoulli_(1 - module.p, generator=generator)
        module.mask = kept[rows, module.columns] / (1 - module.p)
    try:
        yield
    finally:
        for _, module in dropouts:
            module.mask = None


def check_images(x: Tensor, where: str, channels: int, side: int) -> None:
    """Raise `UserError` unless `x` is floating-point N×channels×side×side; `where` names the layer or network."""
    if x.dim() != 4 or tuple(x.shape[1:]) != (channels, side, side):
        got = "×".join(str(int(n)) for n in x.shape)
        raise UserError(
            f"{where} expects images of shape N×{channels}×{side}×{side} and got {got}; "
            f"resize them, or create the model with other in_channels and image_size."
        )
    if not x.is_floating_point():
        raise UserError(
            f"{where} expects floating-point images and got {x.dtype}; convert them with .float() and normalize them."
        )


def describe_network(model: nn.Module, spec: Any) -> str:
    """Return name, parameters, input and classes of a network, whose `spec` is of either kind, in one line."""
    count = sum(parameter.numel() for parameter in model.parameters())
    size = f"{spec.in_channels}×{spec.image_size}×{spec.image_size}"
    return f"{spec.name}: {count:,} parameters, input {size}, {spec.num_classes:,} classes"
