"""How long things take on a machine that others use too: several tries of each, taken in turn, and their median.

What disturbs a machine comes and goes over seconds. Tries in turn (a b c, a b c, …) share it out evenly, so that the
ratio of two medians is far steadier than either of them; a comparison is therefore always made in one call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Seconds that one thing took: the middle of its tries, the fastest and the slowest."""

    median: float
    low: float
    high: float
    tries: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def interleaved(
    work: Mapping[str, Callable[[], object]],
    tries: int = 7,
    warmup: int = 1,
    seconds: float | None = None,
    wait: Callable[[], object] = lambda: None,
) -> dict[str, Timing]:
    """Time each callable of `work` `tries` times, in turn, after `warmup` rounds that do not count.

    With `seconds`, no round begins later than so long after the first counted one, but three are always made. `wait`
    is called before each clock is read: `torch.cuda.synchronize` where a device works on its own.
    """
    taken: dict[str, list[float]] = {name: [] for name in work}
    began = time.perf_counter()
    for round_ in range(warmup + tries):
        if round_ == warmup:
            began = time.perf_counter()
        if seconds is not None and round_ >= warmup + 3 and time.perf_counter() - began > seconds:
            break
        for name, call in work.items():
            wait()
            start = time.perf_counter()
            call()
            wait()
            if round_ >= warmup:
                taken[name].append(time.perf_counter() - start)
    return {name: Timing(statistics.median(t), min(t), max(t), len(t)) for name, t in taken.items()}
