"""How many epochs fit a time: measured by a few steps before training, corrected by each epoch that has ended.

The number is written into the run's recipe, so a resumed run and a repeated one train as many, however fast they are.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from alexnet.models.model import Network
from alexnet.training.optim import schedule_at
from alexnet.training.setup import TrainSetup
from alexnet.training.step import TrainStep

PROBE = 6.0  # seconds that the trial may take, or a fortieth of the budget
WARM = 2  # steps that are not counted: they allocate and compile
AFTER = 3.0  # seconds for the last checkpoint and the report
SLACK = 0.03  # share of the budget that may be exceeded rather than an epoch dropped at the end


@dataclass(frozen=True)
class TimeBudget:
    """The time that a run has: `seconds` in all, since `began` (of `time.monotonic`), and `reserve` at its end for the
    test and the report."""

    seconds: float
    began: float
    reserve: float = 0.0

    @property
    def remaining(self) -> float:
        return self.began + self.seconds - time.monotonic() - self.reserve

    def fit_epochs(self, history: Sequence[dict[str, Any]], planned: int) -> int:
        """How many epochs to train in all after those in `history`: `planned`, fewer where the rest does not fit, or,
        after the first epoch only, more where it does."""
        done = len(history)
        each = sum(row["seconds"] for row in history[-3:]) / len(history[-3:])
        fit = done + int((self.remaining + SLACK * self.seconds) / each)
        if done == 1:
            return max(fit, 1)
        return max(min(planned, fit), done)


def estimate_epochs(prepared: TrainSetup, model: Network, budget: TimeBudget) -> tuple[int, TimeBudget]:
    """The number of epochs that fit, from a few steps of a copy of `model`, 0 where not even one does; and `budget`
    with the time reserved that the test will take."""
    step = TrainStep(prepared, copy.deepcopy(model))
    step.train()
    limit = min(PROBE, budget.seconds / 40)
    times: list[float] = []
    began = last = time.monotonic()
    for number, batch in enumerate(islice(prepared.train.batches(0), 50)):
        step(batch, 0, number, schedule_at(prepared.recipe, number, len(prepared.train)))[0].item()
        times.append(time.monotonic() - last)
        last = time.monotonic()
        if number >= WARM and last - began > limit:
            break
    counted = sorted(times[WARM:] or times)
    train = len(prepared.train) * counted[len(counted) // 2]
    forward = counted[len(counted) // 2] / 3 / (prepared.recipe.batch_size or 1)
    validation = forward * prepared.evaluation[prepared.recipe.validate_on].samples
    tested = prepared.recipe.validate_on != "test" and "test" in prepared.evaluation
    test = forward * prepared.evaluation["test"].samples if tested else 0.0
    budget = replace(budget, reserve=test + AFTER)
    return int(budget.remaining / (train + validation)), budget
