"""How fast a network trains on the CPU of this machine, without data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from alexnet.device import Precision
from alexnet.models.model import Network, Spec, build

PASS_S = 0.25  # seconds that a timed pass takes, by the size of its batch


@contextmanager
def restore_threads() -> Iterator[int]:
    """Yield torch's number of threads, and set it again afterwards."""
    before = torch.get_num_threads()
    try:
        yield before
    finally:
        torch.set_num_threads(before)


def images_per_second(spec: Spec, device: torch.device, precision: Precision, threads: int | None) -> float:
    """Return how many random images per second pass forward and backward through a network of `spec`, on `threads`
    threads of the CPU (None: torch's own number).

    The fastest of three passes, since other programs only prolong them. Takes one to two seconds.
    """
    with restore_threads() as before, torch.random.fork_rng(devices=[]):
        torch.set_num_threads(threads or before)
        network = build(spec).to(device).to(memory_format=torch.channels_last).train()
        shape = (spec.in_channels, spec.image_size, spec.image_size)
        seconds = [time_pass(network, (16, *shape), precision, device) for _ in range(2)]  # the first one allocates
        size = max(2, min(128, int(16 * PASS_S / seconds[1])))  # batch norm needs two
        return size / min(time_pass(network, (size, *shape), precision, device) for _ in range(3))


def time_pass(network: Network, shape: tuple[int, ...], precision: Precision, device: torch.device) -> float:
    """Return the seconds of a forward and a backward pass of random images of `shape` (n, channels, height, width)."""
    began = time.perf_counter()
    x = torch.rand(shape, device=device).contiguous(memory_format=torch.channels_last)
    with precision.autocast(device):
        logits = network(x)
    F.cross_entropy(logits.float(), torch.zeros(shape[0], dtype=torch.long, device=device)).backward()
    return time.perf_counter() - began
