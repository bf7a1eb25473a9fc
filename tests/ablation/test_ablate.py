"""Paired comparisons: their statistics against scipy, and small real trainings on the embedded digits."""

from __future__ import annotations

import itertools
import json
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.ablation.ablate import (
    Ablation,
    ArmResult,
    ablate,
    base_recipe,
    epochs_to_error,
    paired_interval,
    pairs_needed,
    target_half_width,
)
from alexnet.ablation.claims import CLAIMS
from alexnet.ablation.hog import hog_features
from alexnet.errors import UserError


def quick_recipe(**settings):
    return base_recipe(epochs=1, lr=0.01, **settings)


def test_the_interval_is_students_paired_interval():
    from scipy.stats import ttest_rel

    a, b = np.random.default_rng(0).normal((0.8, 0.78), 0.01, (6, 2)).T
    low, high = paired_interval(list(a - b))
    expected = ttest_rel(a, b).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert paired_interval([0.1]) is None


def test_the_number_of_pairs_depends_on_the_spread():
    from scipy.stats import t

    narrow, wide = [0.010, 0.011, 0.012], [-0.02, 0.0, 0.05]
    assert pairs_needed(narrow, 0.0025) == 5
    assert pairs_needed(wide, 0.0025) == 20
    n = pairs_needed([0.0, 0.01, 0.02], 0.008)
    widths = [float(t.ppf(0.975, k - 1)) * 0.01 / k**0.5 for k in (n - 1, n)]
    assert widths[0] > 0.008 >= widths[1]
    assert target_half_width(narrow, "top1") == pytest.approx(0.0055)
    assert target_half_width([0.0, 0.001, -0.001], "top1") == 0.0025


def rows(*top1):
    return [{"epoch": i, "train_top1": value} for i, value in enumerate(top1, 1)]


def test_epochs_to_error_interpolates_between_epochs():
    assert epochs_to_error(rows(0.5, 0.7, 0.8)) == pytest.approx(2.0)  # .3 at 1.5, .2 at 2.5
    assert epochs_to_error(rows(0.75)) == pytest.approx(0.5)
    assert epochs_to_error(rows(0.5, 0.6)) is None


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.02, 0.021, 0.019], "supports"),
        ([-0.02, -0.021, -0.019], "contradicts"),
        ([-0.02, 0.02, 0.01], "cannot tell"),
        ([0.02], "cannot tell"),
        ([0.0, 0.0], "cannot tell"),
    ],
)
def test_the_verdict_follows_from_the_interval(differences, verdict):
    arms = [ArmResult(name, [0.5] * len(differences), [], {}) for name in ("with", "without")]
    found = Ablation(CLAIMS["lrn"], *arms, list(range(len(differences))), differences, {})
    assert found.verdict == verdict
    assert verdict in str(found)


@pytest.mark.slow
def test_results_are_written_and_runs_reused(tmp_path: Path):
    messages: list[str] = []
    found = ablate("overlapping-pool", base=quick_recipe(width=0.125), seeds=2, out=tmp_path, log=messages.append)
    document = json.loads((tmp_path / "overlapping-pool.json").read_text())
    assert document == found.to_dict()
    assert {"claim", "difference", "interval", "verdict", "arms"} <= set(document)
    with_, without = document["arms"]
    assert document["differences"] == pytest.approx(
        [a - b for a, b in zip(with_["values"], without["values"], strict=True)]
    )
    assert without["settings"] == {"spec_edits": ["plain-pool"]}
    assert Image.open(tmp_path / "overlapping-pool.png").size[0] > 600
    assert "<svg" in (tmp_path / "overlapping-pool.svg").read_text()
    assert len(messages) == 2
    trained = {p: p.stat().st_mtime_ns for p in tmp_path.glob("arms/*/*/summary.json")}
    assert len(trained) == 4
    again = ablate("max-vs-average-pool", base=quick_recipe(width=0.125), seeds=1, out=tmp_path)
    assert ablate("overlapping-pool", base=quick_recipe(width=0.125), seeds=2, out=tmp_path).to_dict() == document
    assert {p: p.stat().st_mtime_ns for p in trained} == trained
    assert again.part.runs[0] == found.part.runs[0]  # claims share runs


def test_an_interrupted_comparison_resumes(tmp_path: Path):
    complete = ablate("ten-crop", base=quick_recipe(width=0.125), seeds=1, out=tmp_path)
    (summary,) = tmp_path.glob("arms/*/*/summary.json")
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "complete": False}))  # a kill before the end
    assert ablate("ten-crop", base=quick_recipe(width=0.125), seeds=1, out=tmp_path).differences == complete.differences
    assert json.loads(summary.read_text())["complete"] is True


@pytest.mark.slow
def test_the_base_against_itself_with_other_seeds_cannot_tell(tmp_path: Path):
    found = ablate("nothing", base=quick_recipe(), seeds=2, out=tmp_path)
    assert not set(found.part.runs) & set(found.without.runs)
    assert found.part.values != found.without.values
    assert found.verdict == "cannot tell"


@pytest.mark.slow
def test_ten_crop_evaluates_the_same_run_twice(tmp_path: Path):
    found = ablate("ten-crop", base=quick_recipe(), seeds=1, out=tmp_path)
    assert found.part.runs == found.without.runs
    assert found.part.values != found.without.values


@pytest.mark.slow
def test_hog_and_a_linear_svm_classify_the_digits(tmp_path: Path):
    found = ablate("learned-features", base=quick_recipe(), seeds=1, out=tmp_path)
    assert found.without.values[0] > 0.95
    assert found.verdict == "cannot tell"  # one pair


def test_hog_features_depend_on_edges_not_brightness():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[:, :, 16:] = 100
    features = hog_features(image)
    assert features.shape == (1, 7 * 7 * 36)
    assert np.abs(features - hog_features(image + 50)).max() < 1e-3
    assert np.abs(features - hog_features(image.transpose(0, 2, 1, 3))).max() > 0.1


@pytest.mark.slow
def test_claims_about_speed_count_epochs(tmp_path: Path):
    found = ablate("relu-vs-sigmoid", base=quick_recipe(), seeds=1, out=tmp_path)
    assert found.part.values == [1]  # the target is not reached within one epoch
    assert not found.without.reached
    assert "at least" in str(found)


def test_a_budget_that_is_too_small_names_the_one_needed(tmp_path: Path):
    with pytest.raises(UserError, match=r"too small: a pair .* give --budget \d+"):
        ablate("overlapping-pool", base=base_recipe(epochs=500), budget=0.05, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_budget_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count(step=100)  # every reading is 100 s later
    monkeypatch.setattr("alexnet.ablation.ablate.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("alexnet.ablation.ablate._estimate_seconds", lambda arm, recipe: 100.0)
    monkeypatch.setattr("alexnet.ablation.ablate._measure_arm", lambda *_: (0.5, "none", True))
    monkeypatch.setattr("alexnet.ablation.ablate._draw_curves", lambda *_: None)  # there are no runs
    messages: list[str] = []
    found = ablate("ten-crop", base=quick_recipe(), seeds=5, budget=10, out=tmp_path, log=messages.append)
    assert len(found.seeds) == 2  # started at 100 and 400 s; 700 + 200 s would be too late
    assert messages[-1] == "The budget of 10 minutes ends after 2 of 5 pairs."


@pytest.mark.parametrize(("settings", "message"), [({"seeds": 0}, "--seeds"), ({"budget": -1}, "--budget")])
def test_invalid_numbers_are_refused(settings, message, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        ablate("lrn", base=quick_recipe(), out=tmp_path, **settings)
