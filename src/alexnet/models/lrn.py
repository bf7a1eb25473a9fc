"""Local response normalization as a custom operator, `alexnet::lrn`, with one pass over memory per direction.

Composed of torch operations, the formula would save six tensors and access memory about thirty times. The operator
saves only its input and recomputes the scale in the backward pass. The backend depends on the tensor:

- CPU: lrn.c, built at first use, for beta 0.75 and float32, bfloat16, or float16 via float32;
- CPU without a compiler, other betas, and float64: torch operations on chunks that fit the processor's cache;
- CUDA with Triton: lrn_triton.py; any other device: torch operations on the full tensor.

All sum in float32 (float64 for float64) and agree to a few units in the last place. A tensor is viewed in memory order
as blocks × channels × inner: NCHW as (N·towers, C/towers, H·W), channels last as (N·H·W·towers, C/towers, 1), so towers
and layouts need no special cases. torch.compile keeps the operator, and autocast leaves it in the dtype of its input;
exporters get `composed_lrn`, operations that every runtime supports.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from alexnet.device import cache_dir, cpu_name
from alexnet.files import atomic_write
from alexnet.text import escape

CHUNK = 1 << 19  # elements: with temporaries about 10 MB of float32, which fits a last-level cache


class Constants(NamedTuple):
    """The settings of `layers.LocalResponseNorm`; `c` in this file, to keep formulas short."""

    size: int
    alpha: float
    beta: float
    k: float
    towers: int


def local_response_norm(x: Tensor, c: Constants) -> Tensor:
    """Return b = a / (k + alpha/size · Σ a²)^beta; shapes, dtypes and layouts as in `layers.LocalResponseNorm`."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return composed_lrn(x, c)
    return torch.ops.alexnet.lrn(x, *c)


def composed_lrn(x: Tensor, c: Constants) -> Tensor:
    """Compute the same function with torch operations, which can be exported and differentiated any number of times."""
    a = at_least_float32(x)
    squares = a.square().flatten(2).unflatten(1, (c.towers, -1))  # (N, towers, C/towers, pixels)
    padded = F.pad(squares, (0, 0, c.size // 2, (c.size - 1) // 2))
    mean = F.avg_pool2d(padded, (c.size, 1), stride=1)  # counts the zeros at the edges, so always Σ / size
    return (a / (c.k + c.alpha * mean.reshape(x.shape)).pow(c.beta)).to(x.dtype)


def at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# ── operator ──────────────────────────────────────────────────────────────────────────────────────

# Not torch.library.custom_op: its first call imports torch._dynamo, which takes seconds.
_LIBRARY = torch.library.Library("alexnet", "DEF")


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    *tensors, size, alpha, beta, k, towers = inputs
    ctx.constants = Constants(size, alpha, beta, k, towers)
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    (x,) = ctx.saved_tensors
    return torch.ops.alexnet.lrn_backward(x, dy, *ctx.constants), None, None, None, None, None


def _double_backward(ctx: Any, ddx: Tensor) -> tuple[Tensor | None, ...]:
    """Differentiate the backward pass, for gradient penalties; as slow as `composed_lrn`."""
    x, dy = (t.detach().requires_grad_() for t in ctx.saved_tensors)
    with torch.enable_grad():
        (dx,) = torch.autograd.grad(composed_lrn(x, ctx.constants), x, dy, create_graph=True)
        return *torch.autograd.grad(dx, (x, dy), ddx), None, None, None, None, None


def _register(name: str, tensors: str, compute: Callable[..., Tensor], backward: Callable[..., Any]) -> None:
    schema = f"{name}({tensors}, int size, float alpha, float beta, float k, int towers) -> Tensor"
    _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"alexnet::{name}", lambda x, *_: torch.empty_like(x), lib=_LIBRARY)
    torch.library.register_autograd(f"alexnet::{name}", backward, setup_context=_save_inputs, lib=_LIBRARY)


_register("lrn", "Tensor x", lambda x, *c: _compute(x, None, Constants(*c)), _backward)
_register("lrn_backward", "Tensor x, Tensor dy", lambda x, dy, *c: _compute(x, dy, Constants(*c)), _double_backward)


def _compute(x: Tensor, dy: Tensor | None, c: Constants) -> Tensor:
    """Return the output for `x`, or its gradient if `dy` is given; strides as in `torch.empty_like(x)`, the fake."""
    if x.numel() == 0:
        return torch.empty_like(x)
    if x.device.type == "cpu" and x.dtype == torch.float16:
        return _compute(x.float(), None if dy is None else dy.float(), c).to(x.dtype)
    channels = x.shape[1] // c.towers
    channels_last = not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    dense = channels_last or x.is_contiguous()
    result = torch.empty_like(x, memory_format=torch.preserve_format if dense else torch.contiguous_format)

    def blocks(t: Tensor) -> Tensor:
        if channels_last:
            return t.movedim(1, -1).contiguous().view(-1, channels, 1)
        return t.contiguous().view(t.shape[0] * c.towers, channels, -1)

    a = blocks(x)
    _choose_backend(a, c)(a, None if dy is None else blocks(dy), blocks(result), c)  # blocks of dense tensors are views
    return result if dense else torch.empty_like(x).copy_(result)


Backend = Callable[[Tensor, "Tensor | None", Tensor, Constants], None]
"""Fills its third argument; the tensors are contiguous, blocks × channels × inner, of one dtype."""


def _choose_backend(x: Tensor, c: Constants) -> Backend:
    if x.is_cpu:
        fits = c.size <= MAX_SIZE and (x.shape[1] <= MAX_CHANNELS or x.shape[2] > 1)
        supported = c.beta == 0.75 and x.dtype in (torch.float32, torch.bfloat16)
        return _compute_in_c if fits and supported and c_kernel() is not None else _compute_in_chunks
    if x.is_cuda and x.dtype != torch.float64 and torch.cuda.get_device_capability(x.device) >= (7, 0):
        return _triton_backend() or _compute_in_torch
    return _compute_in_torch


# ── torch operations ──────────────────────────────────────────────────────────────────────────────


def _compute_in_chunks(x: Tensor, dy: Tensor | None, out: Tensor, c: Constants) -> None:
    """Compute in chunks, so that intermediate results stay in cache."""
    n = max(1, CHUNK // x[0].numel())
    gradients = [None] * -(-len(x) // n) if dy is None else dy.split(n)
    for part, gradient, target in zip(x.split(n), gradients, out.split(n), strict=True):
        _compute_in_torch(part, gradient, target, c)


def _compute_in_torch(x: Tensor, dy: Tensor | None, out: Tensor, c: Constants) -> None:
    x = at_least_float32(x)
    alpha = c.alpha / c.size
    before, after = (min(n, x.shape[1] - 1) for n in (c.size // 2, (c.size - 1) // 2))
    scale = _window_sums(x.square(), before, after).mul_(alpha).add_(c.k)
    if c.beta == 0.75:
        power = scale.rsqrt()
        power *= power.sqrt()  # many times faster than pow
    else:
        power = scale.pow(-c.beta)
    if dy is None:
        out.copy_(power.mul_(x))
        return
    power *= at_least_float32(dy)  # dy · scale^-beta: the gradient through the numerator
    indirect = _window_sums((x * power).div_(scale), after, before)  # through each Σ that contains a
    out.copy_(power.addcmul_(x, indirect, value=-2 * c.beta * alpha))


def _window_sums(values: Tensor, before: int, after: int) -> Tensor:
    """Sum over dimension 1: each element with `before` elements before it and `after` after it."""
    channels = values.shape[1]
    padded = F.pad(values, (0, 0, before, after))
    total = padded[:, :channels].clone()
    for r in range(1, before + after + 1):
        total += padded[:, r : r + channels]
    return total


# ── C ─────────────────────────────────────────────────────────────────────────────────────────────

MAX_SIZE, MAX_CHANNELS = 16, 4096  # as in lrn.c


class _Shape(ctypes.Structure):
    """`Shape` of lrn.c."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("outer", "channels", "inner")),
        *((name, ctypes.c_int32) for name in ("size", "bfloat16", "threads")),
        *((name, ctypes.c_float) for name in ("alpha", "k")),
    )


def load_c_kernel() -> Any:
    """Return the function of lrn.c. Raises `KernelUnavailable`."""
    function = load_library(Path(__file__).with_name("lrn.c")).lrn
    function.argtypes, function.restype = [*[ctypes.c_void_p] * 3, _Shape], None
    return function


@functools.cache
def c_kernel() -> Any:
    """Return the function of lrn.c or None, with one warning if that is unexpected."""
    try:
        return load_c_kernel()
    except KernelUnavailable as error:
        if not error.expected:
            warnings.warn(
                f"LocalResponseNorm runs without its C kernel, several times slower: {escape(str(error))}.",
                stacklevel=2,
            )
        return None


def _compute_in_c(x: Tensor, dy: Tensor | None, out: Tensor, c: Constants) -> None:
    threads = torch.get_num_threads() if x.numel() > 1 << 15 else 1
    shape = _Shape(*x.shape, c.size, x.dtype == torch.bfloat16, threads, c.alpha / c.size, c.k)
    c_kernel()(x.data_ptr(), None if dy is None else dy.data_ptr(), out.data_ptr(), shape)


# ── building C ────────────────────────────────────────────────────────────────────────────────────

# A plain C file needs no torch headers: `ctypes` passes it the addresses of tensors.

FLAGS = ("-O2", "-ftree-vectorize", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")


class KernelUnavailable(Exception):
    """No kernel can be built; the message is the reason. `expected`: whether this needs no warning."""

    def __init__(self, reason: str, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


def load_library(source: Path) -> ctypes.CDLL:
    """Return the library of the C file `source`, building it, in under a second, if needed.

    It is cached in `device.cache_dir()` under a hash of source, compiler and processor, and written atomically, so
    several processes may build it at the same time. Linux only. `$ALEXNET_COMPILER` names the compiler; `none` disables
    building. Raises `KernelUnavailable`.
    """
    path = _library_path(source)
    try:
        if path.stat().st_uid in (0, os.getuid()):  # never run code that another user put there
            return _open(path)
    except OSError:
        pass  # missing or damaged
    return _build(_find_compiler(), source, path)


def _library_path(source: Path) -> Path:
    """Return the cached library's path, which depends on source, compiler, flags and processor."""
    parts = [source.read_text(), _find_compiler(), *FLAGS, _describe_processor()]
    key = hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()
    return cache_dir() / "native" / f"{source.stem}-{key}.so"


def _build(compiler: str, source: Path, path: Path) -> ctypes.CDLL:
    """Build `source` in a temporary folder, load it, and copy it to `path` if that is writable."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            compiled, linked = Path(folder) / "a.o", Path(folder) / path.name
            # Linked without OpenMP, so it uses the OpenMP runtime, and the threads, that torch has loaded.
            commands = [*FLAGS, "-c", str(source), "-o", str(compiled)], ["-shared", str(compiled), "-o", str(linked)]
            for command in commands:
                subprocess.run([compiler, *command], check=True, capture_output=True, timeout=60)
            opened = _open(linked)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as partial:
                    shutil.copyfile(linked, partial)
            except OSError:
                pass  # read-only cache folder: each process builds its own
            return opened
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines()
        raise KernelUnavailable(
            f"{compiler} failed: {lines[0] if lines else f'exit code {error.returncode}'}"
        ) from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelUnavailable(f"the library built by {compiler} cannot be used: {error}") from error


def _open(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path), mode=os.RTLD_NOW)  # now: missing symbols must fail here, not at the first call


def _find_compiler() -> str:
    if sys.platform != "linux":
        raise KernelUnavailable("C kernels are built on Linux only", expected=True)
    chosen = os.environ.get("ALEXNET_COMPILER")
    if chosen == "none":
        raise KernelUnavailable("ALEXNET_COMPILER is none", expected=True)
    for name in [chosen] if chosen else ["gcc", "cc"]:
        if path := shutil.which(name):
            return os.path.realpath(path)
    raise KernelUnavailable(f"there is no {chosen}" if chosen else "there is no C compiler; install gcc")


def _describe_processor() -> str:
    """Return what `-march=native` depends on; the name alone does not show instructions masked by a virtual machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return cpu_name()
    return cpu_name() + next((line for line in lines if line.startswith(("flags", "Features"))), "")


# ── CUDA ──────────────────────────────────────────────────────────────────────────────────────────


@functools.cache
def _triton_backend() -> Backend | None:
    try:
        from alexnet.models.lrn_triton import run
    except ImportError:
        return None  # Windows, or a torch without Triton
    return lambda x, dy, out, c: run(x, dy, out, c.size, c.alpha, c.beta, c.k)
