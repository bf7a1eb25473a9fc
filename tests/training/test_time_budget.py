"""Epochs that fit a time budget, computed from given times rather than this machine's speed."""

import time

import pytest

from alexnet.progress import Silent
from alexnet.training.api import resume, train
from alexnet.training.recipe import read_recipe
from alexnet.training.time_budget import TimeBudget


def history(*seconds):
    return [{"seconds": s} for s in seconds]


def test_epochs_may_increase_after_the_first_and_only_decrease_later():
    budget = TimeBudget(100.0, time.monotonic())  # 100 s remain, plus 3 % slack
    assert budget.fit_epochs(history(10.0), planned=3) == 11
    assert budget.fit_epochs(history(10.0, 10.0), planned=3) == 3
    assert budget.fit_epochs(history(10.0, 10.0), planned=30) == 12
    assert budget.fit_epochs(history(10.0, 60.0), planned=30) == 4  # 35 s each
    late = TimeBudget(100.0, time.monotonic() - 200)
    assert late.fit_epochs(history(10.0), planned=9) == 1
    assert late.fit_epochs(history(10.0, 10.0, 10.0), planned=9) == 3


def test_the_reserve_is_not_used_for_training():
    assert TimeBudget(100.0, time.monotonic(), reserve=50.0).fit_epochs(history(10.0), planned=3) == 6


@pytest.mark.slow
def test_a_resumed_run_keeps_its_number_of_epochs(tmp_path):
    shared = {"width": 0.125, "precision": "fp32", "device": "cpu", "progress": Silent()}
    result = train("digits", time_budget="6s", out=tmp_path / "run", **shared)
    recipe = read_recipe(result.run / "recipe.json")
    assert result.summary["epochs"] == recipe.schedule.epochs >= 1
    assert resume(result.run, progress=Silent()).already_finished
