"""Steps that fit a time budget: estimated by a few steps before training, and corrected while it runs.

The budget is the time from the start of the command to its end, with test and report. What a step and the end of an
epoch take is measured as training goes, and the number of steps is planned again at the end of each epoch and, within
epochs, after each twentieth of the budget. The schedule ends at the last planned step, which may be within an epoch.
The plan is written into the run's recipe after the checkpoint that it starts from, so that resuming or repeating the
run takes the same steps on any machine.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from itertools import islice

from alexnet.models.model import Network
from alexnet.progress import Progress
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import Recipe, parse_duration
from alexnet.training.setup import TrainSetup
from alexnet.training.step import TrainStep

TRIAL_S = 6.0  # seconds the trial steps may take, at most 1/40 of the budget
WARMUP_STEPS = 2  # steps that are not timed: they allocate and compile
FINAL_S = 4.0  # seconds reserved for the last checkpoint and the report, where the time to load is unknown
FINAL_RATIO = 0.9  # the same as a multiple of the time that Python took to load (on two shared cores: 22 s after 25)
PLANS = 20  # how often, at most, a plan is made within epochs
TOLERANCE = 0.005  # share of the steps by which a new plan must differ


@dataclass
class TimeBudget:
    """The time that a run may take, and what its parts take as measured so far, in seconds."""

    seconds: float
    began: float
    """When the command began, by `time.monotonic`."""
    steps_per_epoch: int
    step_s: float
    """A step."""
    epoch_s: float
    """What an epoch takes besides its steps: validation, checkpoint."""
    validation_s: float
    test_ratio: float
    """Number of test images, as a multiple of the validation images."""
    final_s: float = FINAL_S
    """What follows the test."""
    planned_at: float = 0.0
    """When the last plan was made, and when the last epoch ended: both by `time.monotonic`."""
    epoch_ended_at: float = 0.0

    @property
    def remaining(self) -> float:
        """What is left for training once test and report are set aside."""
        reserve = self.test_ratio * self.validation_s + self.final_s
        return self.began + self.seconds - time.monotonic() - reserve

    def due(self) -> bool:
        """Whether to plan again within an epoch."""
        return time.monotonic() - self.planned_at > self.seconds / PLANS

    def measure_steps(self, epoch: int, batches: int, seconds: float) -> None:
        """Learn what a step takes from the `batches` done in an epoch: after the first one, from a quarter on."""
        if batches and (epoch == 0 or 4 * batches >= self.steps_per_epoch):
            self.step_s = seconds / batches

    def measure_epoch(self, training_s: float, validation_s: float) -> None:
        """Learn from a finished epoch what its end takes."""
        now = time.monotonic()
        whole = now - self.epoch_ended_at - training_s if self.epoch_ended_at else validation_s
        self.epoch_s, self.validation_s, self.epoch_ended_at = max(whole, validation_s), validation_s, now

    def plan(self, step: int) -> int:
        """Return the number of steps to train in total, of which `step` are done: at least one.

        A last epoch that is not complete is worth its validation only if its steps take longer.
        """
        self.planned_at = time.monotonic()
        left, size = self.remaining, self.steps_per_epoch
        rest = -step % size  # of the current epoch
        if rest:
            if left < rest * self.step_s + self.epoch_s:
                return step + max(int((left - self.epoch_s) / self.step_s), 0)
            left -= rest * self.step_s + self.epoch_s
        whole, left = divmod(max(left, 0.0), size * self.step_s + self.epoch_s)
        steps = step + rest + int(whole) * size
        if left > 2 * self.epoch_s or steps == 0:
            steps += int(max(left - self.epoch_s, 0.0) / self.step_s)
        return max(steps, 1)


def describe_part(steps: int, steps_per_epoch: int) -> str | None:
    """Return how much of the first epoch so many steps are; None if they are at least all of it."""
    if steps >= steps_per_epoch:
        return None
    return f"{steps:,} of {steps_per_epoch:,} steps (less than one pass over the images)"


def with_plan(recipe: Recipe, steps: int, steps_per_epoch: int) -> Recipe:
    """Return `recipe` with the planned number of steps and of epochs, of which the last may be incomplete."""
    return recipe.replace(limit_steps=steps, epochs=-(-steps // steps_per_epoch))


def fit_time_budget(
    setup: TrainSetup, model: Network, began: float, loading_s: float, progress: Progress
) -> tuple[TrainSetup, TimeBudget | None]:
    """With --time-budget: plan the number of steps that fit, by timing a few steps of a copy of `model`.

    Return the budget, which the trainer then keeps. The command `began` by `time.monotonic`, and Python was loading for
    `loading_s` (0: unknown): the report takes about as long on any machine. A recipe whose steps were
    planned by an earlier run keeps them.
    """
    recipe = setup.recipe
    if recipe.schedule.time_budget is None or recipe.schedule.limit_steps is not None:
        return setup, None
    seconds = parse_duration(recipe.schedule.time_budget)
    progress(0, 1, "timing a few steps")
    step = TrainStep(setup, copy.deepcopy(model))
    step.train()
    limit = min(TRIAL_S, seconds / 40)
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
    validation = setup.evaluation[recipe.data.validate_on].samples
    has_test = recipe.data.validate_on != "test" and "test" in setup.evaluation
    tested = setup.evaluation["test"].samples if has_test else 0
    budget = TimeBudget(
        seconds,
        began,
        len(setup.train),
        median,
        forward * validation,
        forward * validation,
        tested / validation,
        FINAL_RATIO * loading_s or FINAL_S,
    )
    steps = budget.plan(0)
    amount = f"{steps / len(setup.train):.1f} epochs"
    if (part := describe_part(steps, len(setup.train))) is not None:
        amount = part
    progress.log(f"About {amount} fit {recipe.schedule.time_budget}; their number follows the speed of training.")
    return replace(setup, recipe=with_plan(recipe, steps, len(setup.train))), budget
