"""Muon: momentum whose matrices are made orthogonal before the step, for the kernels of convolutions.

SGD moves a kernel mostly along the few directions in which its gradient is large. An orthogonal matrix is equally
large in all directions, so the rare ones are learned as well: fewer epochs for the same accuracy. After Keller Jordan
and others, https://kellerjordan.github.io/posts/muon, here with kernels of constant norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x³ and x⁵ in the polynomial that each iteration applies to all singular values: it raises small ones fast,
3.4-fold, at the price of ending between .68 and 1.21 instead of at 1."""
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """SGD with momentum, which for the kernels in `matrices` is made orthogonal and turns them at constant norm:

        B <- momentum·B + gradient,    D <- B, or gradient + momentum·B with Nesterov momentum,
        W <- W - lr·|W|·O/sqrt(r),     W <- W scaled back to its norm |W|,

    where O is the orthogonal matrix nearest to D, r its rank and so sqrt(r) its norm: the rate is the length of a step
    relative to that of the kernel. Weight decay would be undone at once, so kernels have none. `matrices` says how many
    matrices of equal size, side by side along the output channels, a kernel (out×in×k×k) is made of; each is
    (out/matrices)×(in·k·k). All other parameters are updated as by `torch.optim.SGD`, in one fused pass. Parameters
    without a gradient are skipped. B is stored as "momentum_buffer".
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        matrices: Mapping[Tensor, int],
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.matrices = matrices

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all parameters. `closure`, if given, first computes the gradients; its loss is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            trained = [p for p in group["params"] if p.grad is not None]
            others = [p for p in trained if p not in self.matrices]
            if others:
                fused_sgd(others, self.state, group, lr=group["lr"], nesterov=group["nesterov"])
            for kernel in trained:
                if kernel in self.matrices:
                    self._turn(kernel, group)
        return loss

    def _turn(self, kernel: Tensor, group: Mapping[str, Any]) -> None:
        assert kernel.grad is not None
        buffer = _momentum_buffer(kernel, self.state)
        buffer.mul_(group["momentum"]).add_(kernel.grad)
        direction = kernel.grad.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        shape = (self.matrices[kernel], kernel.shape[0] // self.matrices[kernel], -1)
        matrix = kernel.reshape(shape)
        norm = matrix.norm(dim=(1, 2), keepdim=True)
        step = orthogonalize(direction.reshape(shape)).div_(math.sqrt(min(matrix.shape[1:])))
        turned = matrix - group["lr"] * norm * step
        kernel.copy_(turned.mul_(norm / turned.norm(dim=(1, 2), keepdim=True).clamp_(min=1e-30)).view(kernel.shape))


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return, for each of N matrices (N×rows×columns), nearly the orthogonal matrix nearest to it, in its dtype.

    That is U·Vᵀ, where U·S·Vᵀ is the singular value decomposition. It is found by Newton-Schulz iterations, a few
    products of matrices, which leave singular values between .68 and 1.21 in place of 1, and smaller ones where those
    of S are below .002 of its norm. 0 stays 0.
    """
    a, b, c = COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-30)  # singular values from 0 to 1
    # Iterating on the small x·xᵀ alone takes two thirds of the time, but squares the singular values: small ones are
    # lost in the rounding of float32, and a step by several processes is no longer that of one.
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide is matrices else x.mT


def count_matrices(model: nn.Module) -> dict[Tensor, int]:
    """Return how many matrices the kernel of each convolution of `model` is made of, except one that is its last layer.

    One for each group; in a network of two towers, where some convolutions have two groups, all kernels are two, so
    that training the towers in two processes is the same.
    """
    weighted = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    convolutions = [m for m in weighted[:-1] if isinstance(m, nn.Conv2d)]
    towers = 2 if {m.groups for m in convolutions} == {1, 2} else 1
    return {m.weight: max(m.groups, towers) for m in convolutions}


def fused_sgd(
    weights: list[Tensor],
    state: MutableMapping[Tensor, Any],
    group: Mapping[str, Any],
    *,
    lr: float,
    dampening: float = 0.0,
    nesterov: bool = False,
) -> None:
    """Take torch's step of SGD with momentum for `weights` that have gradients, in one pass over memory.

    Momentum and weight decay are those of `group`; the momentum is stored in `state` as "momentum_buffer".
    """
    sgd(
        weights,
        [p.grad for p in weights if p.grad is not None],
        [_momentum_buffer(p, state) for p in weights],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=lr,
        dampening=dampening,
        nesterov=nesterov,
        maximize=False,
        fused=True,
    )


def _momentum_buffer(p: Tensor, state: MutableMapping[Tensor, Any]) -> Tensor:
    if "momentum_buffer" not in state[p]:
        state[p]["momentum_buffer"] = torch.zeros_like(p)
    return state[p]["momentum_buffer"]
