"""Temperature and threshold on logits whose truth is known, and on uninformative ones; then in a real run."""

import json
import shutil

import numpy as np
import pytest

from alexnet.checkpoint import MODEL, WEIGHTS
from alexnet.errors import UserError
from alexnet.files import convert
from alexnet.inference.ensemble import load_ensemble
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import (
    KEY,
    Calibration,
    average_calibrations,
    confidence_metrics,
    coverage,
    describe_calibration,
    ece,
    find_calibration,
    fit_calibration,
    reliability,
)
from alexnet.runtimes.engines import softmax


def make_calibrated_logits(n, classes=5, spread=3.0, seed=0):
    """Return logits (n, classes) whose softmax is the true probability of each target, and the targets."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)) * spread
    targets = (softmax(logits).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, classes - 1)
    return logits.astype(np.float32), targets


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_temperature_undoes_a_factor(factor):
    logits, targets = make_calibrated_logits(8000)
    found = fit_calibration(logits * factor, targets)
    assert found.temperature == pytest.approx(factor, rel=0.05)
    assert found.ece_after < 0.015
    if factor != 1:
        assert found.ece_before > 4 * found.ece_after


def test_threshold_holds_on_new_images():
    """Chance breaks the promise of 95 % in at most one of twenty fits; without a margin it would in half of them."""
    found = []
    for seed in range(40):
        fitted = fit_calibration(*make_calibrated_logits(2000, seed=seed))
        found.append(confidence_metrics(*make_calibrated_logits(8000, seed=1000 + seed), fitted))
    assert sum(metrics["answered_top1"] < 0.95 for metrics in found) <= 2
    assert 0.95 < np.mean([metrics["answered_top1"] for metrics in found]) < 0.975
    assert 0.2 < np.mean([metrics["coverage"] for metrics in found]) < 0.99


def test_accurate_network_is_unsure_of_the_least_confident_hundredth_at_most():
    logits, targets = make_calibrated_logits(4000, spread=40)
    found = fit_calibration(logits, targets)
    assert found.answered_top1 > found.top1 > 0.97
    assert found.coverage == pytest.approx(0.99, abs=1e-3)
    right = np.eye(4, dtype=np.float32)[np.arange(300) % 4] * np.linspace(8, 20, 300, dtype=np.float32)[:, None]
    found = fit_calibration(right, np.arange(300) % 4)  # its least confident hundredth is above .95
    assert (found.top1, found.coverage, found.threshold) == (1, 1, 0.95)


@pytest.mark.parametrize(("images", "enough"), [(71, False), (72, True)])
def test_a_threshold_takes_72_images_without_a_mistake(images, enough):
    confidence = np.linspace(0.55, 0.9, images)
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    assert (fit_calibration(logits, np.zeros(images, np.int64)).threshold < 0.95) == enough


def test_default_threshold_where_none_is_accurate_enough():
    for logits, targets in [
        make_calibrated_logits(2000, spread=0.3),  # weak
        make_calibrated_logits(15, spread=12),  # too few
        (np.zeros((50, 4), np.float32), np.arange(50) % 4),  # all equal
    ]:
        found = fit_calibration(logits, targets)
        assert found.threshold == 0.95
        assert found.coverage == pytest.approx((found.confidence(logits) >= 0.95).mean())
    assert found.answered_top1 is None


def test_uninformative_images_leave_the_temperature_near_1():
    assert fit_calibration(np.zeros((50, 4), np.float32), np.arange(50) % 4).temperature == pytest.approx(1, abs=1e-3)
    without_images = fit_calibration(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    assert without_images == Calibration(without_images.temperature, 0.95)
    assert without_images.temperature == pytest.approx(1, abs=1e-3)
    assert fit_calibration(np.zeros((9, 1), np.float32), np.zeros(9, np.int64)).temperature == pytest.approx(
        1, abs=1e-3
    )
    right = np.eye(4, dtype=np.float32)[np.arange(100) % 4] * 6  # all correct: the likelihood alone would choose 0
    assert 0.4 < fit_calibration(right, np.arange(100) % 4).temperature < 1


def test_saturated_logits_and_two_classes():
    targets = np.arange(200) % 2
    logits = np.where(np.arange(2) == targets[:, None], 1e4, -1e4).astype(np.float32)
    found = fit_calibration(logits, targets)
    assert (found.top1, found.coverage, found.threshold) == (1, 1, 0.95)
    found = fit_calibration(*make_calibrated_logits(5000, classes=2))
    assert found.temperature == pytest.approx(1, rel=0.1)
    assert 0.5 < found.threshold < 1


def test_class_without_images_changes_nothing():
    logits, targets = make_calibrated_logits(3000)
    wider = np.concatenate([logits, np.full((3000, 1), -40, np.float32)], axis=1)
    assert fit_calibration(wider, targets).temperature == pytest.approx(
        fit_calibration(logits, targets).temperature, rel=1e-4
    )


def test_nan_is_wrong_and_unsure():
    logits, targets = make_calibrated_logits(1000)
    clean = fit_calibration(logits, targets)
    logits = np.concatenate([logits, np.full((10, 5), np.nan, np.float32)])
    found = fit_calibration(logits, np.concatenate([targets, np.zeros(10, np.int64)]))
    assert found.temperature == clean.temperature
    assert found.top1 == pytest.approx(clean.top1 * 1000 / 1010)
    assert found.is_unsure(found.confidence(logits))[-10:].all()
    json.dumps(found.to_dict(), allow_nan=False)


def test_confidence_is_the_highest_probability_at_the_temperature():
    logits = np.array([[2.0, 0.0, 1.0]])
    expected = np.exp(1.0) / (np.exp(1.0) + 1 + np.exp(0.5))
    assert Calibration(2.0, 0.5).confidence(logits) == pytest.approx(expected)
    with np.errstate(divide="ignore"):
        p = np.log(np.array([[1.0, 0.0]], dtype=np.float32))
    assert Calibration(2.0, 0.5).confidence(p) == pytest.approx(1)


def test_ece_and_reliability_counted_by_hand():
    p = np.array([0.95, 0.85, 0.85, 0.45])
    right = np.array([True, True, False, True])
    found = reliability(p, right, bins=10)
    assert found.n.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 2, 1]
    assert found.accuracy[[4, 8, 9]].tolist() == [1, 0.5, 1]
    assert np.isnan(found.accuracy[0])
    assert ece(p, right, bins=10) == pytest.approx((0.55 + 2 * 0.35 + 0.05) / 4)
    assert reliability(np.array([0.0, 1.0, np.nan]), np.zeros(3, bool), bins=4).n.tolist() == [2, 0, 0, 1]
    assert ece(np.zeros(0), np.zeros(0, bool)) == 0


def test_coverage_counted_by_hand():
    found = coverage(np.array([0.5, 0.9, 0.5, np.nan]), np.array([True, True, False, False]))
    assert found.confidence.tolist() == [0.9, 0.5, 0]
    assert found.coverage.tolist() == [0.25, 0.75, 1]
    assert found.accuracy.tolist() == pytest.approx([1, 2 / 3, 0.5])
    assert len(coverage(np.zeros(0), np.zeros(0, bool)).coverage) == 0


def test_curve_has_a_point_at_every_tenth():
    logits, targets = make_calibrated_logits(500)
    curve = confidence_metrics(logits, targets, None)["curve"]
    assert [row["coverage"] for row in curve] == pytest.approx(np.arange(1, 11) / 10, abs=1e-9)
    assert [row["confidence"] for row in curve] == sorted((row["confidence"] for row in curve), reverse=True)
    assert curve[-1]["top1"] == (logits.argmax(1) == targets).mean()
    assert len(confidence_metrics(np.zeros((7, 3)), np.zeros(7, np.int64), None)["curve"]) == 1


def test_calibration_survives_json():
    found = fit_calibration(*make_calibrated_logits(300))
    again = json.loads(json.dumps(found.to_dict()))
    assert convert(again, Calibration, "there") == found
    for wrong in ({"temperature": 0}, {"temperature": None}, {"threshold": "high"}, {"threshold": float("nan")}):
        with pytest.raises(UserError, match="temperature|threshold"):
            convert({**again, **wrong}, Calibration, "there")


def test_average_of_several_calibrations():
    one, other = Calibration(2.0, 0.6), Calibration(0.5, 0.8)
    both = average_calibrations([one, other])
    assert (both.temperature, both.threshold, both.n) == (pytest.approx(1), 0.8, 0)
    assert average_calibrations([one]) is one
    assert average_calibrations([one, None]) is None


# ── in a run ──────────────────────────────────────────────────────────────────────────────────────


def test_training_stores_the_fit_of_its_validation_split(small_run):
    run = Run(small_run)
    best = run.named_checkpoint("best")
    stored, note = find_calibration(best, run)
    _, targets, logits = run.read_evaluation("val")
    assert stored == fit_calibration(logits, targets, "val")
    assert (stored.split, stored.n, note) == ("val", 269, "")
    assert run.summary()["calibration"] == stored.to_dict()
    assert describe_calibration(stored.to_dict()).startswith(f"unsure below {stored.threshold:.1%}: ")
    nothing = {**stored.to_dict(), "coverage": 0.0, "answered_top1": None}
    assert describe_calibration(nothing) == f"unsure below {stored.threshold:.1%}: no val image is above it"


def copy_without_calibration(small_run, to):
    """Copy the run as it is before it finishes and stores its calibration."""
    run = Run(shutil.copytree(small_run, to))
    for described in run.path.rglob(MODEL):
        found = json.loads(described.read_text())
        found.pop(KEY, None)
        described.write_text(json.dumps(found))
    return run


def test_unfinished_run_is_calibrated_without_writing(small_run, tmp_path):
    run = copy_without_calibration(small_run, tmp_path / "old")
    best = run.named_checkpoint("best")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    found, note = find_calibration(best, run)
    assert found == find_calibration(Run(small_run).named_checkpoint("best"), Run(small_run))[0]
    assert "fitted now on its val split" in note
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before
    (run.path / "evaluation" / "val.parquet").unlink()
    assert find_calibration(best, run) == (
        None,
        f"{run.path} has no confidence threshold: the logits of its val split are not stored.",
    )


def test_missing_calibration_has_a_reason(small_run, tmp_path):
    run = copy_without_calibration(small_run, tmp_path / "old")
    best = run.named_checkpoint("best")
    assert "Published weights" in find_calibration(None, None)[1]
    assert "only the best checkpoint of a run has one" in find_calibration(best, None)[1]
    note = load_ensemble([run.path, shutil.copytree(best, tmp_path / "alone")]).calibration()[1]
    assert "only the best checkpoint of a run has one" in note
    recipe = json.loads(run.recipe_json.read_text())
    run.recipe_json.write_text(json.dumps({**recipe, "validate_on": "test"}))
    assert "which nothing may be fitted on" in find_calibration(best, run)[1]
    run.recipe_json.write_text("{")
    assert "recipe.json is damaged" in find_calibration(best, run)[1]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (7, "calibration cannot be 7: expected an object"),
        ({"temperature": -1, "threshold": 0.5}, "calibration: temperature -1 and threshold 0.5 are not usable"),
        ({"temperature": 1}, "calibration lacks the field threshold"),
    ],
)
def test_damaged_calibration_is_reported(small_run, tmp_path, damage, reason):
    run = copy_without_calibration(small_run, tmp_path / "old")
    best = run.named_checkpoint("best")
    described = best / MODEL
    described.write_text(json.dumps({**json.loads(described.read_text()), KEY: damage}))
    with pytest.raises(UserError, match=rf"model\.json is damaged \(.*{reason}.*\); remove 'calibration' from it"):
        find_calibration(best, run)
    assert (best / WEIGHTS).is_file()
