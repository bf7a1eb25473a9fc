"""The runs of 2012: complete, in order, and with the spread that claims are read against."""

from __future__ import annotations

import pytest

from alexnet.ablation.history import RUNS_2012, _File, runs_2012, sister_spread
from alexnet.files import read_json
from alexnet.training.optim import schedule_at
from alexnet.training.recipes import named_recipe


def test_the_results_of_42_parameter_files() -> None:
    kept = read_json(RUNS_2012, _File)
    files = {run.file for run in kept.runs}
    assert len(files | set(kept.copies)) == 42
    assert not files & set(kept.copies)
    assert len({run.run for run in kept.runs}) == len(kept.runs) == 45
    for run in kept.runs:
        assert all(0 < r.top5_error < r.top1_error < 1 for r in run.results), run.run
        assert [c.epoch for c in run.changes] == sorted(c.epoch for c in run.changes), run.run
        assert bool(run.schedule) != (run.start is not None), run.run


def test_published_figures() -> None:
    """Table 2 of the paper, sections 3.3 and 3.4, and the run that its author continued."""
    errors = {run.run: (r.top1_error, r.top5_error) for run in runs_2012() if (r := run.published)}
    assert errors["145"] == (0.40664, 0.1821)
    assert errors["146-2012-2011"] == (0.3899, 0.16622)
    assert errors["145 continued"] == (0.4025, 0.17994)
    assert errors["147"][0] - errors["145"][0] == pytest.approx(0.0039, abs=1e-4)
    assert errors["148"][0] - errors["145"][0] == pytest.approx(0.0137, abs=1e-4)


def test_the_spread_of_the_sisters() -> None:
    spread = sister_spread()
    assert len(spread.runs) == 20
    assert (spread.lowest, spread.highest) == (0.4025, 0.41374)
    assert spread.deviation == pytest.approx(0.0029, abs=1e-4)
    same = sister_spread(kinds=("same network",))
    assert (len(same.runs), same.deviation) == (10, pytest.approx(0.0031, abs=1e-4))
    assert not {"147", "148", "150", "145 continued"} & set(spread.runs)
    assert sister_spread("top5_error").deviation == pytest.approx(0.0027, abs=1e-4)


@pytest.mark.parametrize(("run", "recipe"), [("145", "imagenet-2012"), ("145 continued", "imagenet-2012-continued")])
def test_recipes_have_the_schedules_of_their_runs(run: str, recipe: str) -> None:
    (found,) = (r for r in runs_2012() if r.run == run)
    rate = {"conv1": found.start, "conv2": found.start}
    noise: float | None = 0.1
    frozen = False  # conv1 remains so, whatever is set for all layers
    for epoch in range(1, (found.stopped or 0)):
        for change in found.changes:
            if change.epoch == epoch:
                noise = noise if change.noise is None else change.noise
                for layer in change.layers or rate:
                    rate[layer] = rate[layer] if change.lr is None else change.lr
                frozen = frozen or (change.layers == ("conv1",) and change.lr == 0)
        now = schedule_at(named_recipe(recipe), epoch - 1, 1)
        assert now.rate("conv2", "weights") == rate["conv2"]
        assert now.rate("conv1", "weights") == (0 if frozen else rate["conv1"])
        assert now.pca_noise == noise
