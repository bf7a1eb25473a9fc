"""How many threads a training on the CPU computes with.

Threads wait for each other at the end of every operation. Where another program takes one of the
cores they wait for a thread that does not run: a small network on two cores trained 64 images/s
with two threads and 527 with one. So the numbers are compared at the start and, after an epoch
whose speed has fallen, before the next.

Other numbers add sums in another order, which changes last digits. The number is therefore part of
a checkpoint: a run is reproduced to the last bit by the same numbers in the same epochs, which
`metrics.jsonl` records.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from alexnet.device import cpu_count, local_world_size
from alexnet.models.model import Network
from alexnet.progress import Progress
from alexnet.training.setup import TrainSetup
from alexnet.training.speed import restore_threads, time_pass

MARGIN = 1.2  # as many threads as possible are kept unless fewer are faster by this factor: timings vary
FALLEN = 0.7  # the speed of an epoch, relative to the fastest before it, below which threads are measured again
RETRY_S = 60.0  # seconds of an epoch from which on it is checked whether more threads have become faster
ROUNDS = 2  # measurements of each number
SLICE_S = 0.05  # seconds of each, many times the few milliseconds after which the system switches programs
PASS_S = 0.15  # seconds that one forward and backward pass may take; the batch is made smaller for that


@dataclass(frozen=True)
class ThreadChoice:
    """The choice between up to `most` threads, torch's own number."""

    setup: TrainSetup
    most: int
    progress: Progress

    @property
    def given(self) -> int | None:
        """The number that was requested, which is kept."""
        if threads := self.setup.recipe.run.threads:
            return threads
        several = local_world_size() > 1  # they share the cores evenly
        if several or self.setup.device.type != "cpu" or os.environ.get("OMP_NUM_THREADS") or self.most == 1:
            return torch.get_num_threads()
        return None

    def start(self, model: Network) -> None:
        """Set the number for a new run of `model`."""
        torch.set_num_threads(self.given or self.most)
        if self.given is None:
            self._set_fastest(model)

    def resume(self, model: Network, before: int) -> None:
        """Set the number `before` of the checkpoint (0: unknown), unless another is given or there are fewer cores."""
        if self.given is None and before > cpu_count():
            self.start(model)
        else:
            torch.set_num_threads(self.given or before or self.most)
        if self.setup.device.type == "cpu" and before not in (0, now := torch.get_num_threads()):
            self.progress.log(
                f"Resuming with {now} threads instead of {before}; results may differ in the last digits."
            )

    def after_epoch(self, model: Network, history: Sequence[dict[str, Any]]) -> None:
        """Set the number for the next epoch: measured again if the speed of the last one calls for it."""
        if self.given is None and should_measure(history, self.most):
            self._set_fastest(model)

    def _set_fastest(self, model: Network) -> None:
        before = torch.get_num_threads()
        self.progress(0, 1, "measuring the number of threads")
        speeds = measure(model, self.setup, sorted({1, max(1, self.most - 1), self.most, before}))
        threads = choose(speeds)
        torch.set_num_threads(threads)
        if threads != before:
            gain = speeds[threads] / speeds[before]
            self.progress.log(
                f"Computing with {threads} instead of {before} threads, measured {gain:.1f} times as fast, as other "
                "programs may use the cores; --threads N sets a number."
            )


def choose(speeds: dict[int, float]) -> int:
    """Return the largest number of threads whose speed is close to the best; `speeds` are images per second."""
    best = max(speeds.values())
    return max(threads for threads, speed in speeds.items() if speed * MARGIN >= best)


def should_measure(history: Sequence[dict[str, Any]], most: int) -> bool:
    """Return whether, by the rows of metrics.jsonl, the numbers of threads should be measured before the next epoch."""
    last = history[-1]
    earlier = [row["images_per_second"] for row in history[:-1] if row["threads"] == last["threads"]]
    fallen = last["images_per_second"] < FALLEN * max(earlier, default=0.0)
    return fallen or (last["threads"] < most and last["seconds"] >= RETRY_S)


def measure(model: Network, setup: TrainSetup, numbers: Sequence[int]) -> dict[int, float]:
    """Return how many images per second each number of threads passes forward and backward through a copy of `model`.

    Takes about a second: 12 passes and more. The numbers take turns, so that a short disturbance affects all of them.
    """
    network = copy.deepcopy(model).train()
    network.to(memory_format=torch.channels_last if setup.recipe.run.channels_last else torch.contiguous_format)
    batch = setup.recipe.optimization.batch_size or 1
    channels, side = setup.preprocess.channels, setup.spec.image_size
    count, seconds = dict.fromkeys(numbers, 0), dict.fromkeys(numbers, 0.0)

    def pass_once(n: int) -> float:
        return time_pass(network, (n, channels, side, side), setup.precision, setup.device)

    with restore_threads(), torch.random.fork_rng(devices=[]):
        n = max(2, min(batch, 16))  # batch norm needs two
        n = max(2, min(batch, int(n * PASS_S / pass_once(n))))
        for _ in range(ROUNDS):
            for threads in numbers:
                torch.set_num_threads(threads)
                pass_once(n)  # the first one with other threads is slower
                began = time.perf_counter()
                while (elapsed := time.perf_counter() - began) < SLICE_S:
                    pass_once(n)
                    count[threads] += n
                seconds[threads] += elapsed
    return {threads: count[threads] / seconds[threads] for threads in numbers}
