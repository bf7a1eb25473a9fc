"""The statistics of comparisons, against scipy and published values, and the rules of the verdict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from alexnet.ablation import stats
from alexnet.ablation.ablate import _write
from alexnet.ablation.claims import CLAIMS
from alexnet.ablation.results import Ablation, ArmResult, Outcome


def test_interval_and_p_are_students() -> None:
    from scipy.stats import ttest_rel

    a, b = np.random.default_rng(0).normal((0.8, 0.78), 0.01, (6, 2)).T
    expected = ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert stats.paired_interval(list(a - b)) == pytest.approx((interval.low, interval.high))
    assert stats.paired_p(list(a - b)) == pytest.approx(expected.pvalue)
    assert stats.paired_interval([0.1]) is stats.paired_p([0.1]) is None
    assert (stats.paired_p([0.0, 0.0]), stats.paired_p([0.1, 0.1])) == (1.0, 0.5)  # by the sign test
    assert stats.paired_interval([0.1, 0.1]) is None


@pytest.mark.parametrize(("p", "corrected"), [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # the example of R's p.adjust(method = "holm")
    ([0.6, 0.5], [1.0, 1.0]),
    ([0.02], [0.02]),
    ([], []),
])  # fmt: skip
def test_holm(p: list[float], corrected: list[float]) -> None:
    assert stats.holm(p) == pytest.approx(corrected)


def test_the_sign_test_is_exact_and_ignores_ties() -> None:
    assert stats.sign_p([1] * 5) == pytest.approx(2 / 2**5)
    assert stats.sign_p([1] * 4 + [-1, 0, 0]) == pytest.approx(2 * (1 + 5) / 2**5)
    assert stats.sign_p([0, 0]) == 1
    family = len(CLAIMS)  # why a race that is stopped has 10 pairs
    assert stats.sign_p([1] * stats.SIGN_PAIRS) * family < stats.SIGNIFICANCE
    assert stats.sign_p([1] * (stats.SIGN_PAIRS - 1)) * family > stats.SIGNIFICANCE


def test_the_number_of_pairs_depends_on_the_spread_alone() -> None:
    from scipy.stats import t

    narrow, wide = [0.010, 0.011, 0.012], [-0.02, 0.0, 0.05]
    assert stats.pairs_needed(narrow, 0.005) == 5
    assert stats.pairs_needed(wide, 0.005) == 12
    n = stats.pairs_needed([0.0, 0.01, 0.02], 0.009)
    widths = [float(t.ppf(0.975, k - 1)) * 0.01 / k**0.5 for k in (n - 1, n)]
    assert widths[0] > 0.009 >= widths[1]
    assert stats.pairs_needed([x + 0.5 for x in (0.0, 0.01, 0.02)], 0.009) == n


@pytest.mark.parametrize(("arguments", "expected"), [
    ((0.01, 0.001, 0.02, 5), "supports"),
    ((-0.01, 0.001, 0.02, 5), "contradicts"),
    ((0.01, 0.02, 0.06, 5), "leans"),
    ((-0.01, 0.02, 0.06, 5), "leans against"),
    ((0.01, 0.001, 0.001, 2), "leans"),  # too few pairs
    ((0.01, 0.06, 0.06, 12), "cannot tell"),
    ((0.01, None, None, 1), "cannot tell"),
    ((0.0, 1.0, 1.0, 5), "cannot tell"),
])  # fmt: skip
def test_verdicts_follow_the_rules(arguments: tuple[float, float | None, float | None, int], expected: str) -> None:
    assert stats.verdict(*arguments) == expected


def test_epochs_to_error_interpolates_between_epochs() -> None:
    def rows(*top1: float) -> list[dict[str, float]]:
        return [{"epoch": i, "train_top1": value} for i, value in enumerate(top1, 1)]

    assert stats.epochs_to_error(rows(0.5, 0.7, 0.8)) == pytest.approx(2.0)  # .3 at 1.5, .2 at 2.5
    assert stats.epochs_to_error(rows(0.75)) == pytest.approx(0.5)
    assert stats.epochs_to_error(rows(0.5, 0.6)) is None


def arm(name: str, values: list[float], **changes: object) -> ArmResult:
    """Return an arm whose runs have learned."""
    outcome = Outcome(0, "run", 0.0, top1=0.7, classes=10, images=10_000, epochs=10, last_gain=0.001)
    return ArmResult(name, [replace(outcome, seed=i, value=v, **changes) for i, v in enumerate(values)], {})


def compare(claim: str, part: ArmResult, without: ArmResult) -> Ablation:
    return Ablation(CLAIMS[claim], part, without, {}, len(part.values))


@pytest.mark.parametrize(("differences", "verdict"), [
    ([0.02, 0.021, 0.019, 0.02, 0.022], "supports"),
    ([-0.02, -0.021, -0.019, -0.02, -0.022], "contradicts"),
    ([0.02, 0.021, 0.019], "leans"),  # three pairs carry no more
    ([-0.02, 0.02, 0.01, 0.0, 0.005], "cannot tell"),
    ([0.02], "cannot tell"),
])  # fmt: skip
def test_the_verdict_of_one_comparison(differences: list[float], verdict: str) -> None:
    found = compare("lrn", arm("LRN", [0.5 + d for d in differences]), arm("none", [0.5] * len(differences)))
    assert found.verdict == verdict
    assert found.reason is None
    assert verdict in str(found)
    assert found.to_dict()["p"] == found.p


@pytest.mark.parametrize(("claim", "part", "without", "difference"), [
    ("lrn", 0.7, 0.6, 0.1),  # a higher accuracy,
    ("weight-decay", 0.1, 0.3, 0.2),  # a lower training error,
    ("dropout", 0.1, 0.3, 0.2),  # a smaller gap
    ("relu-vs-tanh", 5.0, 9.0, 4.0),  # and fewer epochs support a claim
])  # fmt: skip
def test_the_sign_of_a_difference(claim: str, part: float, without: float, difference: float) -> None:
    assert compare(claim, arm("a", [part]), arm("b", [without])).differences == pytest.approx([difference])


@pytest.mark.parametrize(("changes", "reason"), [
    ({"top1": 0.15}, "5 of 5 runs of 'none' are near chance"),
    ({"last_gain": 0.02}, "training top-1 of 'none' still rose by 2.0 points"),
    ({"epochs": 1}, "'none' was trained for a single epoch"),
])  # fmt: skip
def test_an_arm_that_did_not_learn_gives_no_verdict(changes: dict[str, float], reason: str) -> None:
    found = compare("lrn", arm("LRN", [0.7, 0.71, 0.72, 0.7, 0.71]), arm("none", [0.1] * 5, **changes))
    assert found.p is not None
    assert found.p < 1e-6
    assert found.verdict == "cannot tell"
    assert reason in str(found)


@pytest.mark.parametrize(("classes", "images", "least"), [
    (10, 10_000, 0.19), (2, 10_000, 0.55), (1000, 50_000, 0.1009),
    (2, 20, 0.75),  # guessing: more than 15 of 20 in fewer than one of a hundred trials
])  # fmt: skip
def test_what_counts_as_learned(classes: int, images: int, least: float) -> None:
    assert stats.learned_above(classes, images) == pytest.approx(least)


def test_a_race_that_was_stopped_is_decided_by_the_sign_test() -> None:
    relu = arm("ReLU", [4.0, 4.5, 5.0, 4.2, 4.1])
    tanh = arm("tanh", [30.0] * 5, reached=False)
    found = compare("relu-vs-tanh", relu, tanh)
    assert found.interval is None
    assert found.p == pytest.approx(2 / 2**5)
    assert found.verdict == "cannot tell"  # five signs carry no more
    assert "at least" in str(found)
    both = compare("relu-vs-tanh", arm("ReLU", [30.0] * 5, reached=False), tanh)
    assert both.p == 1
    steep = compare("relu-vs-tanh", relu, arm("tanh", [9.0, 9.5, 9.2, 9.4, 9.1], last_gain=0.05))
    assert steep.verdict == "supports"  # a race ends while the accuracy rises


def test_a_notebook_shows_the_figure_below_the_text(tmp_path: Path) -> None:
    found = compare("lrn", arm("LRN", [0.5], epochs=1), arm("none", [0.4]))
    assert "<img " not in found._repr_html_()
    written = _write(found, tmp_path)
    shown = written._repr_html_()
    assert "difference +10.00 %" in shown
    assert shown.count("<img class=") == 2  # for a light and a dark notebook
    assert replace(written, files=[]) == found
    drawn = (tmp_path / "lrn.svg").read_text(encoding="utf-8")
    assert "Result: not trained long enough to judge" in drawn
