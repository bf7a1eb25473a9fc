"""Timings on a busy machine: several tries of each candidate, interleaved, and their median.

Disturbances last seconds. Interleaving (a b c, a b c, …) spreads them evenly, so that the ratio of two medians is far
more stable than either; so always time the things you compare in one call.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

MIN_TRY_SECONDS = 0.01  # shorter work is repeated within a try, so that call overhead does not count


@dataclass(frozen=True)
class Spread:
    """The median, the lowest and the highest of several tries: seconds per call, or an amount per second."""

    median: float
    low: float
    high: float
    tries: int

    def __mul__(self, factor: float) -> Spread:
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.tries)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_interleaved(
    work: Mapping[str, Callable[[], object]],
    tries: int = 7,
    warmup: int = 1,
    seconds: float | None = None,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Spread]:
    """Return the seconds per call of each callable in `work`, of `tries` interleaved rounds after `warmup` others.

    With `seconds`, no round after the third starts later than that. `wait` is called before each clock reading, e.g.
    `torch.cuda.synchronize` for an asynchronous device.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    started = time.perf_counter()
    for round_ in range(warmup + tries):
        if round_ == warmup:
            started = time.perf_counter()
        if seconds is not None and round_ >= warmup + 3 and time.perf_counter() - started > seconds:
            break
        for name, call in work.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if round_ >= warmup:
                taken[name].append(time.perf_counter() - start)
    return {name: Spread(statistics.median(t), min(t), max(t), len(t)) for name, t in taken.items()}


@dataclass(frozen=True)
class Work:
    """A call and its amount: bytes, floating-point operations or images."""

    call: Callable[[], object]
    amount: float


def measure_rates(work: Mapping[str, Work], seconds: float, device: torch.device) -> dict[str, Spread]:
    """Return the amount per second of each `work`, in turn: of three rounds, and more until `seconds` have passed.

    A share of a limit is the quotient of two rates from one call.
    """
    wait = synchronizer(device)
    repeats = {name: _count_repeats(w.call, wait) for name, w in work.items()}

    def repeat(name: str) -> None:
        for _ in range(repeats[name]):
            work[name].call()

    calls = {name: functools.partial(repeat, name) for name in work}
    # No warm-up: `_count_repeats` has made the first calls.
    timings = time_interleaved(calls, tries=1000, warmup=0, seconds=seconds, wait=wait)
    rates = {}
    for name, t in timings.items():
        amount = work[name].amount * repeats[name]
        rates[name] = Spread(amount / t.median, amount / t.high, amount / t.low, t.tries)
    return rates


def _count_repeats(call: Callable[[], object], wait: Callable[[], object]) -> int:
    """Return how often to repeat `call` within a try, after a warm-up call."""
    call()
    seconds = time_interleaved({"call": call}, tries=1, warmup=0, wait=wait)["call"].median
    return max(1, round(MIN_TRY_SECONDS / max(seconds, 1e-7)))


def synchronizer(device: torch.device) -> Callable[[], object]:
    """Return the function that waits for the asynchronous work of `device`."""
    if device.type == "cuda":
        return torch.cuda.synchronize
    return torch.mps.synchronize if device.type == "mps" else lambda: None
