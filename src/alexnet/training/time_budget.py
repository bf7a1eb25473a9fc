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
from alexnet.progress import Progress
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import parse_duration
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


def fit_time_budget(
    setup: TrainSetup, model: Network, began: float, progress: Progress
) -> tuple[TrainSetup, TimeBudget | None]:
    """With --time-budget: set the number of epochs that fit, by timing a few steps of a copy of `model`.

    Return the budget, which the trainer then keeps, with the time of the test reserved. The run `began` by
    `time.monotonic`.
    """
    recipe = setup.recipe
    if recipe.schedule.time_budget is None:
        return setup, None
    budget = TimeBudget(parse_duration(recipe.schedule.time_budget), began)
    step = TrainStep(setup, copy.deepcopy(model))
    step.train()
    limit = min(TRIAL_S, budget.seconds / 40)
    times: list[float] = []
    trial_began = last = time.monotonic()
    for number, batch in enumerate(islice(setup.train.batches(0), 50)):
        step(batch, 0, number, schedule_at(recipe, number, len(setup.train)))[0].item()
        times.append(time.monotonic() - last)
        last = time.monotonic()
        if number >= WARMUP_STEPS and last - trial_began > limit:
            break
    timed = sorted(times[WARMUP_STEPS:] or times)
    median = timed[len(timed) // 2]
    forward = median / 3 / (recipe.optimization.batch_size or 1)  # of one image; the backward pass costs twice that
    validation = forward * setup.evaluation[recipe.data.validate_on].samples
    has_test = recipe.data.validate_on != "test" and "test" in setup.evaluation
    test = forward * setup.evaluation["test"].samples if has_test else 0.0
    budget = replace(budget, reserve=test + FINAL_S)
    epochs = int(budget.remaining / (median * len(setup.train) + validation))
    if epochs >= 1:
        progress.log(
            f"About {epochs} epochs fit {recipe.schedule.time_budget}; the first epoch will correct this number."
        )
    else:
        progress.log(f"Not even one epoch fits {recipe.schedule.time_budget}; training one anyway.")
    return replace(setup, recipe=recipe.replace(epochs=max(epochs, 1))), budget
