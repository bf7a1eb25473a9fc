"""Timings on a busy machine: several tries of each candidate, interleaved, and their median.

Disturbances last seconds. Interleaving (a b c, a b c, …) spreads them evenly, so that the ratio of two medians is far
more stable than either; so always time the things you compare in one call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the median, the lowest and the highest of the tries."""

    median: float
    low: float
    high: float
    tries: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def time_interleaved(
    work: Mapping[str, Callable[[], object]],
    tries: int = 7,
    warmup: int = 1,
    seconds: float | None = None,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time each callable of `work` in `tries` interleaved rounds, after `warmup` uncounted ones.

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
    return {name: Timing(statistics.median(t), min(t), max(t), len(t)) for name, t in taken.items()}
