"""Number of epochs that fit a time budget: estimated from a few steps before training, corrected after each epoch.

The number is written into the run's recipe, so that resuming or repeating the run trains equally long on any machine.
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

TRIAL_S = 6.0  # seconds the trial steps may take, at most 1/40 of the budget
WARMUP_STEPS = 2  # steps that are not timed: they allocate and compile
FINAL_S = 3.0  # seconds reserved for the last checkpoint and the report
SLACK = 0.03  # fraction by which the budget may be exceeded rather than drop the last epoch


@dataclass(frozen=True)
class TimeBudget:
    """The run may take `seconds` since `began` (by `time.monotonic`); `reserve` of them are for test and report."""

    seconds: float
    began: float
    reserve: float = 0.0

    @property
    def remaining(self) -> float:
        return self.began + self.seconds - time.monotonic() - self.reserve

    def fit_epochs(self, history: Sequence[dict[str, Any]], planned: int) -> int:
        """Return the total number of epochs to train, given those in `history`.

        That is `planned`, fewer if the rest does not fit, or more if it does and only one epoch is
        done.
        """
        done = len(history)
        seconds_per_epoch = sum(row["seconds"] for row in history[-3:]) / len(history[-3:])
        fit = done + int((self.remaining + SLACK * self.seconds) / seconds_per_epoch)
        if done == 1:
            return max(fit, 1)
        return max(min(planned, fit), done)


def estimate_epochs(setup: TrainSetup, model: Network, budget: TimeBudget) -> tuple[int, TimeBudget]:
    """Time a few steps of a copy of `model`.

    Return the number of epochs that fit (0 if not even one does), and `budget` with the test's time
    reserved.
    """
    step = TrainStep(setup, copy.deepcopy(model))
    step.train()
    limit = min(TRIAL_S, budget.seconds / 40)
    times: list[float] = []
    began = last = time.monotonic()
    for number, batch in enumerate(islice(setup.train.batches(0), 50)):
        step(batch, 0, number, schedule_at(setup.recipe, number, len(setup.train)))[0].item()
        times.append(time.monotonic() - last)
        last = time.monotonic()
        if number >= WARMUP_STEPS and last - began > limit:
            break
    timed = sorted(times[WARMUP_STEPS:] or times)
    median = timed[len(timed) // 2]
    batch_size = setup.recipe.optimization.batch_size or 1
    forward = median / 3 / batch_size  # of one image; the backward pass costs about twice that
    validation = forward * setup.evaluation[setup.recipe.data.validate_on].samples
    has_test = setup.recipe.data.validate_on != "test" and "test" in setup.evaluation
    test = forward * setup.evaluation["test"].samples if has_test else 0.0
    budget = replace(budget, reserve=test + FINAL_S)
    return int(budget.remaining / (median * len(setup.train) + validation)), budget
