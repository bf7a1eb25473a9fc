"""The ImageNet runs of 2012 and 2013 whose results are noted in the released parameter files, and the spread of those
that should have given the same result.

`runs_2012.json` holds figures read from those files: results, schedules, and in a few words what a run changed. A run
is of one `kind`: the same network (that of run 145), a forerunner of it, a variation (a detail changed), an ablation
(a part of the network removed, published or not), pretrained on other images, trained on other classes, or continued.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from alexnet.files import read_json

RUNS_2012 = Path(__file__).with_name("runs_2012.json")
SISTERS = ("same network", "forerunner", "variation")

Kind = Literal[
    "same network", "forerunner", "variation", "ablation", "pretrained", "other data", "continued"
]  # fmt: skip


@dataclass(frozen=True)
class Change:
    """What was changed by hand at the start of an epoch; None: not changed."""

    epoch: int
    lr: float | None = None
    """Learning rate of the weights."""
    layers: tuple[str, ...] = ()
    """The layers it applies to; empty: all others too."""
    noise: float | None = None
    """Strength of the PCA noise, .1 before."""


@dataclass(frozen=True)
class Result:
    """Errors from 0 to 1. None: the file does not say."""

    trained_on: str
    """Year of the classes: "2010" and "2012" are ILSVRC's, "2009" ten thousand classes. In files before run 120-2012,
    which name no data, 2010 is inferred: that run says it differs from 120 by being trained on 2012."""
    split: str | None
    views: int | None
    top1_error: float
    top5_error: float
    nats: float | None


@dataclass(frozen=True)
class Run2012:
    """A run of the 2012 program."""

    run: str
    file: str
    kind: Kind
    note: str
    """What it changed; `note_zh` says the same in Chinese, `schedule_zh` that of `schedule`."""
    note_zh: str
    results: tuple[Result, ...]
    schedule: str = ""
    """The automatic schedule of the learning rate, for runs without `changes`."""
    schedule_zh: str = ""
    start: float | None = None
    """First learning rate, for runs with `changes`."""
    changes: tuple[Change, ...] = ()
    stopped: int | None = None
    """The epoch in which it was stopped."""

    @property
    def published(self) -> Result | None:
        """The error of ten views on the validation images of ILSVRC-2012, by which runs are compared."""
        found = (r for r in self.results if (r.trained_on, r.split, r.views) == ("2012", "validation", 10))
        return next(found, None)


@dataclass(frozen=True)
class _File:
    source: str
    copies: dict[str, str]
    runs: tuple[Run2012, ...]


@dataclass(frozen=True)
class Spread:
    """Of an error, from 0 to 1."""

    runs: tuple[str, ...]
    lowest: float
    highest: float
    mean: float
    deviation: float
    """Standard deviation of single runs (n - 1). A difference of two runs deviates by √2 times as much."""


def runs_2012() -> tuple[Run2012, ...]:
    """Return all runs, in the order of their numbers."""
    return read_json(RUNS_2012, _File).runs


def sister_spread(
    metric: Literal["top1_error", "top5_error"] = "top1_error", kinds: tuple[str, ...] = SISTERS
) -> Spread:
    """Return the spread of the runs of these kinds, by ten views on the validation images of ILSVRC-2012.

    The runs differ in their schedules and in details of the network, so the spread is more than that of seeds alone;
    two of them, 170 and 174, share their first epochs with 169.
    """
    found = {run.run: result for run in runs_2012() if run.kind in kinds and (result := run.published)}
    errors = [getattr(result, metric) for result in found.values()]
    return Spread(tuple(found), min(errors), max(errors), statistics.mean(errors), statistics.stdev(errors))
