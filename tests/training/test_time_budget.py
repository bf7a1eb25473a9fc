"""Steps that fit a time budget, by a clock of the test rather than this machine's speed."""

import math
from collections.abc import Callable

import pytest

from alexnet.errors import UserError
from alexnet.progress import Silent
from alexnet.training import time_budget
from alexnet.training.api import resume, train
from alexnet.training.optim import learning_rate
from alexnet.training.recipe import Recipe, read_recipe, with_settings
from alexnet.training.time_budget import FINAL_S, TOLERANCE, TimeBudget, with_plan


class Clock:
    """Stands for `time`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time_budget, "time", found)
    return found


def run_with_budget(
    clock: Clock, seconds: float, *, size: int, step_s: Callable[[float], float], epoch_s: float, estimate: float
) -> tuple[float, int]:
    """Take steps as the trainer does; return the time that the command took, and its steps.

    An epoch has `size` steps, each of `step_s`, which is given the time since the start. The first plan takes a step to
    last `estimate`. The test takes as long as the validation, `epoch_s`.
    """
    began = clock.now
    clock.now += 3  # imports, images
    budget = TimeBudget(seconds, began, size, estimate, epoch_s / 2, epoch_s / 2, test_ratio=1.0)
    total = budget.plan(0)
    step = 0

    def plan() -> None:
        nonlocal total
        if abs((new := budget.plan(step)) - total) > TOLERANCE * total:
            total = new

    while step < total:
        epoch_began, first = clock.now, step
        while True:
            clock.now += step_s(clock.now - began)
            step += 1
            if budget.due():
                budget.measure_steps(first // size, step - first, clock.now - epoch_began)
                plan()
            if step % size == 0 or step >= total:
                break
        trained = clock.now - epoch_began
        clock.now += epoch_s
        if step < total:
            budget.measure_steps(first // size, step - first, trained)
            budget.measure_epoch(trained, epoch_s)
            plan()
    return clock.now + epoch_s + FINAL_S - began, step


@pytest.mark.parametrize("estimate", [0.5, 1.0, 2.0], ids=lambda v: f"estimated {v:g}")
@pytest.mark.parametrize(
    ("seconds", "size", "step_s", "epoch_s"),
    [
        (20.0, 20, 0.03, 0.1),  # epochs of .7 s
        (60.0, 400, 0.05, 0.5),  # of 20 s
        (180.0, 400, 0.1, 4.0),  # four of 44 s
        (900.0, 400, 0.15, 5.0),  # of a minute
        (60.0, 10_000, 0.02, 1.0),  # less than one
    ],
)
def test_the_budget_is_used(clock, seconds, size, step_s, epoch_s, estimate):
    took, _ = run_with_budget(
        clock, seconds, size=size, step_s=lambda _: step_s, epoch_s=epoch_s, estimate=estimate * step_s
    )
    assert 0.95 * seconds <= took <= 1.02 * seconds


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_budget_is_kept_when_the_speed_changes(clock, factor):
    took, _ = run_with_budget(
        clock, 120, size=100, step_s=lambda t: 0.1 * (factor if t > 70 else 1), epoch_s=1.0, estimate=0.1
    )
    assert 114 <= took <= 123


def test_at_least_one_step_is_planned(clock):
    late = TimeBudget(100.0, clock.now - 200, 10, 1.0, 1.0, 1.0, 0.0)
    assert late.plan(0) == 1
    assert late.plan(20) == 20  # at the end of an epoch
    assert late.plan(23) == 23


def test_the_schedule_ends_at_the_last_planned_step():
    recipe = with_settings(Recipe(), {"schedule": "cosine", "time_budget": "1m", "lr": 0.1})
    planned = with_plan(recipe, 130, 50)
    assert (planned.schedule.epochs, planned.schedule.limit_steps) == (3, 130)
    assert learning_rate(planned, 65, 50) == pytest.approx(0.05)
    assert learning_rate(planned, 129, 50) < 1e-4
    assert math.isclose(learning_rate(with_settings(recipe, {"limit_steps": 65}), 65, 50), 0.0, abs_tol=1e-9)


def test_a_number_of_epochs_replaces_the_plan_of_an_earlier_run():
    planned = with_plan(with_settings(Recipe(), {"time_budget": "1m"}), 130, 50)
    again = with_settings(planned, {"epochs": 40}).schedule
    assert (again.epochs, again.limit_steps, again.time_budget) == (40, None, None)
    other = with_settings(planned, {"time_budget": "2m"}).schedule
    assert (other.limit_steps, other.time_budget) == (None, "2m")
    with pytest.raises(UserError, match="leave out one of them"):
        with_settings(Recipe(), {"time_budget": "1m", "limit_steps": 5})


@pytest.mark.slow
def test_a_resumed_or_repeated_run_keeps_its_number_of_steps(tmp_path):
    shared = {"width": 0.125, "precision": "fp32", "device": "cpu", "progress": Silent()}
    result = train("digits", time_budget="12s", out=tmp_path / "run", **shared)
    recipe = read_recipe(result.run / "recipe.json")
    assert result.summary["epochs"] == recipe.schedule.epochs >= 1
    assert result.summary["steps"] == recipe.schedule.limit_steps
    assert resume(result.run, progress=Silent()).already_finished
    again = train(result.run / "recipe.json", out=tmp_path / "again", progress=Silent())
    assert again.summary["steps"] == result.summary["steps"]


def test_less_than_an_epoch_is_described_in_steps():
    assert time_budget.describe_part(22, 41) == "22 of 41 steps (less than one pass over the images)"
    assert time_budget.describe_part(41, 41) is None
    assert time_budget.describe_part(5, 0) is None  # of an earlier version's run: unknown
