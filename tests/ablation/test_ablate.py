"""Comparisons as small real trainings on the embedded digits: runs, measures, resuming and budgets."""

from __future__ import annotations

import itertools
import json
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.ablation import ablate as ablation
from alexnet.ablation import stats
from alexnet.ablation.ablate import ablate, ablate_all, base_recipe
from alexnet.ablation.claims import CLAIMS, Arm
from alexnet.ablation.hog import hog_features
from alexnet.ablation.results import Outcome
from alexnet.errors import TrainingFailed, UserError


def quick_recipe(**settings):
    return base_recipe(epochs=1, lr=0.01, width=0.125, **settings)


@pytest.mark.slow
def test_results_are_written_and_runs_reused(tmp_path: Path):
    messages: list[str] = []
    found = ablate("overlapping-pool", base=quick_recipe(), seeds=2, out=tmp_path, log=messages.append)
    document = json.loads((tmp_path / "overlapping-pool.json").read_text())
    assert document == found.to_dict()
    assert {"claim", "difference", "interval", "verdict", "arms"} <= set(document)
    with_, without = document["arms"]
    assert document["differences"] == pytest.approx(
        [a - b for a, b in zip(with_["values"], without["values"], strict=True)]
    )
    assert without["settings"] == {"spec_edits": ["cifar-lrn", "half-hidden", "plain-pool"]}
    assert [o["images"] for o in with_["outcomes"]] == [269, 269]
    assert document["reason"].endswith("single epoch") or document["reason"].endswith("near chance")
    assert Image.open(tmp_path / "overlapping-pool.png").size[0] > 600
    assert "<svg" in (tmp_path / "overlapping-pool.svg").read_text()
    assert messages[0].startswith("overlapping-pool, 3×3, stride 2, seed 0: ")
    assert sum("(" in message and message.startswith("overlapping-pool, seed") for message in messages) == 2
    trained = {p: p.stat().st_mtime_ns for p in tmp_path.glob("arms/*/*/summary.json")}
    assert len(trained) == 4
    again = ablate("max-vs-average-pool", base=quick_recipe(), seeds=1, out=tmp_path)
    assert ablate("overlapping-pool", base=quick_recipe(), seeds=2, out=tmp_path).to_dict() == document
    assert {p: p.stat().st_mtime_ns for p in trained} == trained
    assert again.part.runs[0] == found.part.runs[0]  # claims share runs


@pytest.mark.slow
def test_an_interrupted_comparison_resumes(tmp_path: Path):
    complete = ablate("ten-crop", base=quick_recipe(), seeds=1, out=tmp_path)
    (summary,) = tmp_path.glob("arms/*/*/summary.json")
    summary.write_text(json.dumps({**json.loads(summary.read_text()), "complete": False}))  # a kill before the end
    assert ablate("ten-crop", base=quick_recipe(), seeds=1, out=tmp_path).differences == complete.differences
    assert json.loads(summary.read_text())["complete"] is True


@pytest.mark.slow
def test_the_base_against_itself_with_other_seeds_cannot_tell(tmp_path: Path):
    found = ablate("nothing", base=quick_recipe(), seeds=2, out=tmp_path)
    assert not set(found.part.runs) & set(found.without.runs)
    assert found.part.values != found.without.values
    assert found.verdict == "cannot tell"


@pytest.mark.slow
def test_ten_crop_evaluates_the_same_run_twice(tmp_path: Path):
    base = quick_recipe(norm="batch")  # after one epoch, LRN's network may give one class for every view
    found = ablate("ten-crop", base=base, seeds=1, out=tmp_path)
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
def test_a_race_counts_epochs_at_the_best_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ablation, "RATE_EPOCHS", 1)
    claim = CLAIMS["relu-vs-sigmoid"]
    arms = [replace(arm, rates=rates) for arm, rates in ((claim.part, (0.016, 0.064)), (claim.without, (0.064,)))]
    monkeypatch.setattr(ablation, "find_claim", lambda _: replace(claim, part=arms[0], without=arms[1]))
    found = ablate("relu-vs-sigmoid", base=quick_recipe(), seeds=1, out=tmp_path)
    relu, sigmoid = found.part, found.without
    assert relu.reached
    assert relu.values[0] < relu.outcomes[0].epochs <= 3  # it ended when it was won
    assert (sigmoid.values, sigmoid.reached) == ([3], False)
    assert "at least" in str(found)
    for arm, result in zip(arms, (relu, sigmoid), strict=True):
        best = min(result.rates, key=result.rates.__getitem__)
        assert set(result.rates) == {f"{rate:g}" for rate in arm.rates}
        assert result.settings["lr"] == float(best)
    assert len(list(tmp_path.glob("arms/*/seed-2000"))) == 3


@pytest.mark.slow
def test_overfitting_is_the_gap_between_training_and_test(tmp_path: Path):
    found = ablate("dropout", base=quick_recipe(), seeds=1, out=tmp_path)
    for arm in (found.part, found.without):
        (outcome,) = arm.outcomes
        assert outcome.train_top1 is not None
        assert outcome.value == pytest.approx(outcome.train_top1 - outcome.top1)
    error = ablate("weight-decay", base=quick_recipe(), seeds=1, out=tmp_path)
    assert error.part.runs == found.part.runs  # the base
    assert error.part.values == pytest.approx([1 - found.part.outcomes[0].train_top1])


def test_a_rate_whose_loss_becomes_nan_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def train(recipe, folder, label, log):
        if recipe.optimization.lr > 0.1:
            raise TrainingFailed("NaN")
        return types.SimpleNamespace(metrics=lambda: [{"train_top1": recipe.optimization.lr}])

    monkeypatch.setattr(ablation, "_train", train)
    arm = Arm("ReLU", rates=(0.01, 0.1, 1.0))
    chosen, errors = ablation.choose_rate(CLAIMS["relu-vs-tanh"], arm, quick_recipe(), tmp_path, print)
    assert chosen.optimization.lr == 0.1
    assert errors == {"0.01": 0.99, "0.1": 0.9, "1": 1.0}


@pytest.mark.slow
def test_a_budget_that_is_too_small_names_the_one_needed(tmp_path: Path):
    with pytest.raises(UserError, match=r"too small: a pair .* give --budget \d+"):
        ablate("overlapping-pool", base=base_recipe(epochs=500), budget=0.05, out=tmp_path)
    assert not list(tmp_path.iterdir())


def stub(monkeypatch: pytest.MonkeyPatch, values) -> None:
    """Replace trainings by `values(arm, seed)`."""

    def measure(claim, arm, recipe, seed, out, log):
        value = values(arm, seed)
        return Outcome(seed, "none", value, 0.5, 10, 1000, 10, reached=not (claim.measure == "epochs" and value >= 30))

    monkeypatch.setattr(ablation, "measure_arm", measure)
    monkeypatch.setattr("alexnet.ablation.figure._draw_curves", lambda *_: None)  # there are no runs


@pytest.mark.parametrize(("claim", "spread", "pairs"), [
    ("lrn", 0.001, 5), ("lrn", 0.05, 12), ("relu-vs-tanh", 0.0, 10),  # of a race that is stopped: a sign test
])  # fmt: skip
def test_the_number_of_pairs_is_fixed_after_three(claim, spread, pairs, tmp_path: Path, monkeypatch):
    rng = np.random.default_rng(0)
    first = CLAIMS[claim].part
    if claim == "lrn":
        stub(monkeypatch, lambda arm, seed: 0.5 + spread * rng.normal())
    else:
        stub(monkeypatch, lambda arm, seed: 5.0 if arm is first else 30.0)
        monkeypatch.setattr(ablation, "choose_rate", lambda claim, arm, recipe, out, log: (recipe, {}))
    found = ablate(claim, base=quick_recipe(), out=tmp_path)
    assert len(found.seeds) == found.planned == pairs
    if claim != "lrn":
        assert (found.verdict, found.interval) == ("supports", None)


def test_a_budget_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count(step=100)  # every reading is 100 s later
    monkeypatch.setattr("alexnet.ablation.ablate.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("alexnet.ablation.ablate._estimate_seconds", lambda arm, recipe: 100.0)
    stub(monkeypatch, lambda arm, seed: 0.5)
    messages: list[str] = []
    found = ablate("ten-crop", base=quick_recipe(), seeds=5, budget=11, out=tmp_path, log=messages.append)
    assert len(found.seeds) == 2  # started at 100 and 400 s, each estimated at 200 s; 700 + 200 s would be too late
    assert found.planned == 5
    assert messages[-1] == "The budget of 11 minutes ends after 2 of 5 pairs."


@pytest.mark.slow
def test_all_claims_are_tested_in_order_and_failures_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def values(arm, seed):
        if arm.name == "no momentum":
            raise TrainingFailed("the loss is NaN")
        return 0.5 + 0.001 * seed

    stub(monkeypatch, values)
    monkeypatch.setattr(ablation, "choose_rate", lambda claim, arm, recipe, out, log: (recipe, {}))
    messages: list[str] = []
    results = ablate_all(base=quick_recipe(), seeds=2, out=tmp_path, log=messages.append)
    left_out = {"momentum", "pca-noise"}  # the digits have no colors
    assert [result.claim.name for result in results] == [name for name in CLAIMS if name not in left_out]
    assert "momentum is not tested: the loss is NaN" in messages
    assert any("'pca-noise' is about color" in message for message in messages)
    assert stats.MIN_PAIRS == 5


@pytest.mark.parametrize(("settings", "message"), [({"seeds": 0}, "--seeds"), ({"budget": -1}, "--budget")])
def test_invalid_numbers_are_refused(settings, message, tmp_path: Path):
    with pytest.raises(UserError, match=message):
        ablate("lrn", base=quick_recipe(), out=tmp_path, **settings)
