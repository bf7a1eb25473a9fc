"""Local response normalisation as one operator, `alexnet::lrn`, with one pass over memory each way.

The formula as autograd would take it apart keeps six tensors and goes to memory some thirty times. The operator keeps
its input alone and computes the scale again in the backward pass. Who computes it is chosen by where the tensor is:

- CPU: lrn.c, built at the first use (`native`), for float32 and bfloat16 (float16 by way of float32) and beta 0.75;
- CPU without a compiler, and float64: tensor operations on pieces that stay in the processor's cache;
- CUDA with Triton: response_triton.py; any other device: tensor operations on the whole.

All sum in float32 (float64 for float64) and agree to a few units in the last place. A tensor is seen as memory holds
it, blocks × channels × inner: NCHW as (N·towers, C/towers, H·W), channels last as (N·H·W·towers, C/towers, 1), so
that towers and layouts are no cases of their own. torch.compile takes the operator as it is, and autocast leaves it in
the type of its input; exporters get `formula`, operations that every runtime knows.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alexnet.models import build_kernel

PIECE = 1 << 19  # numbers: with its temporaries about 10 MB of float32, which a processor's last cache holds


class Constants(NamedTuple):
    """What `LocalResponseNorm` documents."""

    size: int
    alpha: float
    beta: float
    k: float
    towers: int


def local_response_norm(x: Tensor, c: Constants) -> Tensor:
    """b = a / (k + alpha/size · Σ a²)^beta; shapes and types as in `layers.LocalResponseNorm`, same layout out."""
    if torch.jit.is_tracing() or _exporting():
        return formula(x, c)
    return torch.ops.alexnet.lrn(x, *c)


def formula(x: Tensor, c: Constants) -> Tensor:
    """The same in operations that can be exported, and differentiated any number of times."""
    a = at_least_float32(x)
    squares = a.square().flatten(2).unflatten(1, (c.towers, -1))  # (N, towers, C/towers, pixels)
    padded = F.pad(squares, (0, 0, c.size // 2, (c.size - 1) // 2))
    mean = F.avg_pool2d(padded, (c.size, 1), stride=1)  # zeros at the edges count: it is always Σ / size
    return (a / (c.k + c.alpha * mean.reshape(x.shape)).pow(c.beta)).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _exporting() -> bool:
    known = getattr(torch.compiler, "is_exporting", None)  # since torch 2.7
    return known() if known else torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


# ── the operator ──────────────────────────────────────────────────────────────────────────────────────────────

# Not torch.library.custom_op: its first call imports torch._dynamo, seconds for somebody who wants one prediction.
_LIBRARY = torch.library.Library("alexnet", "DEF")


def _lrn(x: Tensor, *constants: Any) -> Tensor:
    return _compute(x, None, Constants(*constants))


def _lrn_backward(x: Tensor, dy: Tensor, *constants: Any) -> Tensor:
    return _compute(x, dy, Constants(*constants))


def _fake(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, ctx.size, ctx.alpha, ctx.beta, ctx.k, ctx.towers = inputs
    ctx.save_for_backward(*tensors)


def _constants(ctx: Any) -> Constants:
    return Constants(ctx.size, ctx.alpha, ctx.beta, ctx.k, ctx.towers)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return torch.ops.alexnet.lrn_backward(x, dy, *_constants(ctx)), None, None, None, None, None


def _double_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    """For penalties on gradients: right, and as slow as the formula."""
    x, dy = (t.detach().requires_grad_() for t in ctx.saved_tensors)
    with torch.enable_grad():
        (dx,) = torch.autograd.grad(formula(x, _constants(ctx)), x, dy, create_graph=True)
        return *torch.autograd.grad(dx, (x, dy), ddx), None, None, None, None, None


def _register(name: str, tensors: str, compute: Callable[..., Tensor], backward: Callable[..., Any]) -> None:
    schema = f"{name}({tensors}, int size, float alpha, float beta, float k, int towers) -> Tensor"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"alexnet::{name}", _fake, lib=_LIBRARY)
    torch.library.register_autograd(f"alexnet::{name}", backward, setup_context=_keep, lib=_LIBRARY)


_register("lrn", "Tensor x", _lrn, _backward)
_register("lrn_backward", "Tensor x, Tensor dy", _lrn_backward, _double_backward)


def _compute(x: Tensor, dy: Tensor | None, c: Constants) -> Tensor:
    """y of x, or dx of x and dy; strides are those of `torch.empty_like(x)`, as the fakes promise."""
    if x.numel() == 0:
        return torch.empty_like(x)
    if x.device.type == "cpu" and x.dtype == torch.float16:
        return _compute(x.float(), None if dy is None else dy.float(), c).to(x.dtype)
    channels = x.shape[1] // c.towers
    last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    dense = last or x.is_contiguous()
    result = torch.empty_like(x, memory_format=torch.preserve_format if dense else torch.contiguous_format)

    def blocks(t: Tensor) -> Tensor:
        if last:
            return t.movedim(1, -1).contiguous().view(-1, channels, 1)
        return t.contiguous().view(t.shape[0] * c.towers, channels, -1)

    a = blocks(x)
    _backend(a, c)(a, None if dy is None else blocks(dy), blocks(result), c)  # of what is dense, blocks are a view
    return result if dense else torch.empty_like(x).copy_(result)


Backend = Callable[[Tensor, "Tensor | None", Tensor, Constants], None]
"""Fills its third argument; the tensors are contiguous blocks × channels × inner, of one type."""


def _backend(x: Tensor, c: Constants) -> Backend:
    if x.is_cpu:
        fits = c.size <= MAX_SIZE and (x.shape[1] <= MAX_CHANNELS or x.shape[2] > 1)
        known = c.beta == 0.75 and x.dtype in (torch.float32, torch.bfloat16)
        return _in_c if fits and known and c_kernel() is not None else _in_pieces
    if x.is_cuda and x.dtype != torch.float64 and torch.cuda.get_device_capability(x.device) >= (7, 0):
        return _triton() or _piece
    return _piece


# ── in tensor operations ──────────────────────────────────────────────────────────────────────────────────────


def _in_pieces(x: Tensor, dy: Tensor | None, out: Tensor, c: Constants) -> None:
    """Piece by piece, so that what each operation leaves is still in cache for the next."""
    n = max(1, PIECE // x[0].numel())
    gradients = [None] * -(-len(x) // n) if dy is None else dy.split(n)
    for part, gradient, target in zip(x.split(n), gradients, out.split(n), strict=True):
        _piece(part, gradient, target, c)


def _piece(x: Tensor, dy: Tensor | None, out: Tensor, c: Constants) -> None:
    x = at_least_float32(x)
    alpha = c.alpha / c.size
    before, after = (min(n, x.shape[1] - 1) for n in (c.size // 2, (c.size - 1) // 2))
    scale = _window(x.square(), before, after).mul_(alpha).add_(c.k)
    if c.beta == 0.75:
        power = scale.rsqrt()
        power *= power.sqrt()  # many times as fast as pow
    else:
        power = scale.pow(-c.beta)
    if dy is None:
        out.copy_(power.mul_(x))
        return
    power *= at_least_float32(dy)  # dy · scale^-beta: the gradient through a itself
    via = _window((x * power).div_(scale), after, before)  # through each Σ that holds a
    out.copy_(power.addcmul_(x, via, value=-2 * c.beta * alpha))


def _window(values: Tensor, before: int, after: int) -> Tensor:
    """Sums over dimension 1, of each number with so many before and after it."""
    channels = values.shape[1]
    padded = F.pad(values, (0, 0, before, after))
    total = padded[:, :channels].clone()
    for r in range(1, before + after + 1):
        total += padded[:, r : r + channels]
    return total


# ── in C ──────────────────────────────────────────────────────────────────────────────────────────────────────

MAX_SIZE, MAX_CHANNELS = 16, 4096  # as in lrn.c


class _Shape(ctypes.Structure):
    """As in lrn.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        *((name, ctypes.c_int32) for name in ("size", "bfloat16", "threads")),
        *((name, ctypes.c_float) for name in ("alpha", "k")),
    )


def load_c_kernel() -> Any:
    """The function of lrn.c. Raises `native.Unavailable`."""
    function = build_kernel.library(Path(__file__).with_name("lrn.c")).lrn
    function.argtypes, function.restype = [*[ctypes.c_void_p] * 3, _Shape], None
    return function


@functools.cache
def c_kernel() -> Any:
    """The same; None, with one warning unless it was asked for, where there is none."""
    try:
        return load_c_kernel()
    except build_kernel.Unavailable as why:
        if not why.wanted:
            warnings.warn(
                f"LocalResponseNorm does without its C kernel and is several times slower: {why}.", stacklevel=2
            )
        return None


def _in_c(x: Tensor, dy: Tensor | None, out: Tensor, c: Constants) -> None:
    threads = torch.get_num_threads() if x.numel() > 1 << 15 else 1
    shape = _Shape(*x.shape, c.size, x.dtype == torch.bfloat16, threads, c.alpha / c.size, c.k)
    c_kernel()(x.data_ptr(), None if dy is None else dy.data_ptr(), out.data_ptr(), shape)


# ── on CUDA ───────────────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _triton() -> Backend | None:
    try:
        from alexnet.models.lrn_triton import run
    except ImportError:
        return None  # Windows, or a torch that came without
    return lambda x, dy, out, c: run(x, dy, out, c.size, c.alpha, c.beta, c.k)
