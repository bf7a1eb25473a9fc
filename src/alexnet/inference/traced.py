"""A network of torch's as one call into C++, for threads that share Python with it.

Between two layers torch comes back to Python and waits for its lock. In a thread beside busy ones each of these waits
is as long as a small layer, so that a batch takes up to three times as long as its arithmetic. TorchScript runs the
same operations, one after the other, without coming back. Nothing is folded: the numbers are the network's own.
"""

from __future__ import annotations

import contextlib
import warnings

import torch
from torch import nn


def traced(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """`network`, an evaluating one on the CPU that reads float32 N×C×H×W of `shape` C×H×W, as TorchScript that shares
    its weights; itself where torch cannot trace it, or what was traced says other than it, to the bit.
    """
    few, many = (_pictures(count, shape) for count in (2, 3))  # of another number than it is traced with, too
    with contextlib.suppress(Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated, and exact; and what it warns of is compared
        found: nn.Module = torch.jit.trace(network, few, check_trace=False)
        if all(torch.equal(found(x), network(x)) for x in (few, many)):
            return found
    return network


def _pictures(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *shape, generator=generator).contiguous(memory_format=torch.channels_last)
