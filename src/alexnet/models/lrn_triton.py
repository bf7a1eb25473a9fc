"""Local response normalization on CUDA: one Triton kernel for both directions.

A program handles a tile of channels × positions; neighboring channels are reread from the nearest cache, so memory is
read and written about once. The backward pass needs the scale of each neighbor and reads size - 1 channels on either
side of the tile. **Not yet run on a GPU**: tests cover its arithmetic in Triton's interpreter and its compilation for
compute capability 9.0.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _squares(x_ptr, at, c, channels, inner, inside):
    """Return the squares of channels `c` of the positions at offsets `at` as float32; zero beyond the edges."""
    a = tl.load(x_ptr + at + c * inner, mask=inside & (c >= 0) & (c < channels), other=0.0).to(tl.float32)
    return a * a


@triton.jit
def _inverse_power(scale, beta: tl.constexpr):
    if beta == 0.75:
        root = tl.rsqrt(scale)
        return root * tl.sqrt(root)
    return tl.exp2(-beta * tl.log2(scale))


@triton.jit
def _kernel(
    x_ptr,
    dy_ptr,
    out_ptr,
    positions,  # blocks × inner
    channels,
    inner,
    alpha,  # already divided by size
    k,
    beta: tl.constexpr,
    size: tl.constexpr,
    backward: tl.constexpr,
    tile_c: tl.constexpr,
    tile_p: tl.constexpr,
):
    before: tl.constexpr = size // 2
    after: tl.constexpr = (size - 1) // 2
    c = (tl.program_id(1) * tile_c + tl.arange(0, tile_c))[:, None].to(tl.int64)
    p = (tl.program_id(0).to(tl.int64) * tile_p + tl.arange(0, tile_p))[None, :]
    at = (p // inner) * channels * inner + p % inner  # offset of channel 0 of each position
    inside = p < positions
    in_tile = inside & (c < channels)
    if backward:
        x = tl.load(x_ptr + at + c * inner, mask=in_tile, other=0.0).to(tl.float32)
        indirect = tl.zeros((tile_c, tile_p), tl.float32)
        direct = tl.zeros((tile_c, tile_p), tl.float32)
        for j in tl.static_range(-after, before + 1):  # channels whose windows contain ours
            total = tl.zeros((tile_c, tile_p), tl.float32)
            for r in tl.static_range(-before, after + 1):
                total += _squares(x_ptr, at, c + (j + r), channels, inner, inside)
            scale = k + alpha * total
            exists = inside & (c + j >= 0) & (c + j < channels)
            a = tl.load(x_ptr + at + (c + j) * inner, mask=exists, other=0.0).to(tl.float32)
            g = tl.load(dy_ptr + at + (c + j) * inner, mask=exists, other=0.0).to(tl.float32)
            g *= _inverse_power(scale, beta)
            indirect += tl.where(exists, g * a / scale, 0.0)
            if j == 0:
                direct = g
        result = direct - 2 * beta * alpha * x * indirect
    else:
        total = tl.zeros((tile_c, tile_p), tl.float32)
        for r in tl.static_range(-before, after + 1):
            total += _squares(x_ptr, at, c + r, channels, inner, inside)
        x = tl.load(x_ptr + at + c * inner, mask=in_tile, other=0.0).to(tl.float32)
        result = x * _inverse_power(k + alpha * total, beta)
    tl.store(out_ptr + at + c * inner, result.to(out_ptr.dtype.element_ty), mask=in_tile)


def run(x: Tensor, dy: Tensor | None, out: Tensor, size: int, alpha: float, beta: float, k: float) -> None:
    """Fill `out` with y of x, or with dx of x and dy: contiguous, blocks × channels × inner, not float64."""
    blocks, channels, inner = x.shape
    channels_last = inner == 1  # adjacent in memory are channels, else positions
    tile_c = min(triton.next_power_of_2(channels), 128 if channels_last else 32)
    tile_p = 1024 // tile_c if channels_last else 64
    grid = (triton.cdiv(blocks * inner, tile_p), triton.cdiv(channels, tile_c))
    constants = {"beta": beta, "size": size, "backward": dy is not None, "tile_c": tile_c, "tile_p": tile_p}
    with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
        _kernel[grid](x, x if dy is None else dy, out, blocks * inner, channels, inner, alpha / size, k, **constants)
