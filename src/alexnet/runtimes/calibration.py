"""Calibrated confidence, and the threshold below which a prediction is unsure (selective prediction).

Networks are over- or underconfident, mostly by one factor. So all logits are divided by one number, the temperature,
fitted on the validation split (Guo et al. 2017). It does not change the order of labels: the probabilities that
`predict` prints are the network's own, and the softmax of the divided logits gives the confidence beside them.

The threshold on that confidence promises: of the predictions that are not unsure, at least 95 % are correct, on images
like those of the validation split. It is the lowest threshold for which the validation images show this: the 95 %
confidence interval (Clopper and Pearson) of the accuracy above it lies above 95 %, which takes 72 images without a
mistake. Where no threshold achieves this (a weak network, few images), it is .95, which keeps the promise as far as the
confidence is right. So that a network that is nearly always right also notices unfamiliar images, which are among the
least confident, the least confident hundredth of the validation images is unsure, too, but nothing above .95.

All is fitted on held-out images and never on the test split. It is stored in a checkpoint's `model.json` and in the
manifest of an exported file. `reliability` and `coverage` are the curves to plot.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.checkpoint import MODEL, read_model_json
from alexnet.errors import UserError
from alexnet.files import convert, read_json
from alexnet.run_dir import Run

KEY = "calibration"  # in model.json
MIN_ACCURACY = 0.95  # of the predictions above the threshold
MAX_COVERAGE = 0.99  # share of the validation images above the threshold, unless it is MIN_ACCURACY
LOG_TEMPERATURE_STD = 0.5  # of the prior: nearly all temperatures are within 1/e and e
BINS = 15  # of the expected calibration error, as in Guo et al.
NOT_FITTED = "its recipe validates on the test split, which nothing may be fitted on"


@dataclass(frozen=True)
class Calibration:
    """A temperature and a threshold: a prediction whose calibrated confidence is below the threshold is unsure.

    Raises `UserError` for a temperature that is not positive, or numbers that are not finite."""

    temperature: float
    """Logits are divided by it; above 1 where the network is overconfident."""
    threshold: float
    """Predictions of lower confidence are unsure."""
    split: str = "val"
    n: int = 0
    """Images that it was fitted on, and that the values below are measured on; 0 and None for an average of several."""
    top1: float | None = None
    ece_before: float | None = None
    """Expected calibration error of the plain softmax."""
    ece_after: float | None = None
    coverage: float | None = None
    """Share of predictions that are not unsure."""
    answered_top1: float | None = None
    """Accuracy of these; None where all are unsure."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature > 0 and math.isfinite(self.threshold)):
            values = f"temperature {self.temperature:g} and threshold {self.threshold:g}"
            raise UserError(f"calibration: {values} are not usable.")

    def confidence(self, logits: np.ndarray) -> np.ndarray:
        """Return the calibrated probability of the top label: (n, classes) → (n,) float64; NaN stays NaN.

        Log-probabilities are logits too.
        """
        return top_confidence(logits, self.temperature)

    def is_unsure(self, confidence: np.ndarray) -> np.ndarray:
        """Return which are below the threshold, or NaN: (n,) → (n,) bool."""
        return ~(confidence >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def top_confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the highest probability of each row at `temperature`, float64."""
    z = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):
        return np.asarray(1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1))


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────


def fit_calibration(logits: np.ndarray, targets: np.ndarray, split: str = "val") -> Calibration:
    """Fit temperature and threshold to `logits` (n, classes) and `targets` (n,) of held-out images.

    The temperature has the highest posterior under a weak log-normal prior around 1. The prior decides where the images
    carry no information: there are none, all logits are equal, or all predictions are correct (then the likelihood
    increases without bound as the temperature falls). Rows that are not finite are ignored in the fit of the
    temperature and count as wrong and unsure.
    """
    correct = correct_at(logits, targets, 1)
    finite = np.isfinite(logits).all(axis=1)
    temperature = _fit_temperature(logits[finite], targets[finite])
    confidence = top_confidence(logits, temperature)
    threshold = _choose_threshold(confidence, correct)
    if not len(targets):
        return Calibration(temperature, threshold, split)
    return Calibration(
        temperature,
        threshold,
        split,
        len(targets),
        top1=float(correct.mean()),
        ece_before=ece(top_confidence(logits, 1.0), correct),
        ece_after=ece(confidence, correct),
        **_selective_metrics(confidence >= threshold, correct),
    )


def _fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    z = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    own = z[np.arange(len(z)), targets].sum(dtype=np.float64)

    def cost(log_temperature: float) -> float:
        t = math.exp(log_temperature)
        likelihood = own / t - np.log(np.exp(z / t).sum(axis=1, dtype=np.float64)).sum()
        return float((log_temperature / LOG_TEMPERATURE_STD) ** 2 / 2 - likelihood)

    return math.exp(minimize_scalar(cost, bounds=(-4, 4), method="bounded").x)


def _choose_threshold(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Apply the rule above; a threshold is halfway between two predictions, so that an engine's last bits cannot
    matter."""
    from scipy.stats import beta

    curve = coverage(confidence, correct)
    answered = np.round(curve.coverage * len(correct))
    wrong = np.round(answered * (1 - curve.accuracy))
    lower_ends = beta.ppf(0.025, answered - wrong, wrong + 1)  # of the intervals of the accuracy; NaN if all are wrong
    shown, few = np.flatnonzero(lower_ends >= MIN_ACCURACY), np.flatnonzero(curve.coverage <= MAX_COVERAGE)
    if not len(shown):
        return MIN_ACCURACY

    def below(i: int) -> float:
        return float(curve.confidence[i : i + 2].mean())

    accurate = below(shown[-1]) if shown[-1] + 1 < len(curve.coverage) else 0.0
    return max(accurate, min(below(few[-1]), MIN_ACCURACY) if len(few) else MIN_ACCURACY)


def average_calibrations(calibrations: Sequence[Calibration | None]) -> Calibration | None:
    """Combine the calibrations of networks whose probabilities are averaged: the geometric mean of the temperatures and
    the highest threshold; None if a network has none.

    It is not fitted on the average, which is less confident than its members, so more predictions will be unsure.
    """
    known = [c for c in calibrations if c is not None]
    if not known or len(known) < len(calibrations):
        return None
    if len(known) == 1:
        return known[0]
    mean = math.exp(sum(math.log(c.temperature) for c in known) / len(known))
    return Calibration(mean, max(c.threshold for c in known), known[0].split)


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def find_calibration(folder: Path | None, run: Run | None) -> tuple[Calibration | None, str]:
    """Return the calibration of the checkpoint `folder` of `run`, and a note: where it comes from if it is not stored,
    or why there is none. Writes nothing. Raises `UserError` if `model.json` is damaged.

    Training stores it when it finishes. For a run that has not finished it is fitted here, on its stored validation
    logits.
    """
    if folder is None:
        return None, "Published weights have no confidence threshold."
    if stored := read_model_json(folder).get(KEY):
        try:
            return convert(stored, Calibration, KEY), ""
        except UserError as error:
            raise UserError(
                f"{folder / MODEL} is damaged ({str(error).rstrip('.')}); remove '{KEY}' from it or use another "
                "checkpoint."
            ) from error
    best = run.named_checkpoint("best") if run else None
    if run is None or best is None or best.resolve() != folder.resolve():
        return None, f"{folder} has no confidence threshold: only the best checkpoint of a run has one."
    try:
        split = read_json(run.recipe_json, dict[str, Any])["validate_on"]
    except (OSError, UserError, KeyError):
        return None, f"{run.path} has no confidence threshold: its recipe.json is damaged."
    if split == "test":
        return None, f"{run.path} has no confidence threshold: {NOT_FITTED}."
    evaluation = run.read_evaluation(split)
    if evaluation is None:
        return None, f"{run.path} has no confidence threshold: the logits of its {split} split are not stored."
    _, targets, logits = evaluation
    fitted = fit_calibration(logits, targets, split)
    return fitted, (
        f"{run.path} has no stored confidence threshold; it was fitted now on its {split} split: "
        f"{fitted.threshold:.1%}, at temperature {fitted.temperature:.3g}."
    )


def describe_calibration(stored: dict[str, Any] | None) -> str:
    """Return the sentence that ends a training: what was fitted, from `to_dict`, or why nothing was."""
    if stored is None:
        return f"no confidence threshold: {NOT_FITTED}"
    threshold, split, accuracy = (stored[key] for key in ("threshold", "split", "answered_top1"))
    if accuracy is None:
        return f"unsure below {threshold:.1%}: no {split} image is above it"
    return (
        f"unsure below {threshold:.1%}: {stored['coverage']:.2%} of {split} above it, {accuracy:.2%} of these correct"
    )


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────


def correct_at(logits: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return for each row whether its target is among the k highest logits: (n, classes), (n,) → (n,) bool.

    Ties count as wrong: a target that only equals the k-th highest of the others is not among them. Otherwise a network
    with constant output would have a high accuracy.
    """
    target_logits = np.take_along_axis(logits, targets[:, None], axis=1)
    rank = (logits >= target_logits).sum(axis=1)  # counts the target itself; NaN compares false
    return (rank <= k) & np.isfinite(target_logits[:, 0])


class Reliability(NamedTuple):
    """A reliability diagram. The means of an empty bin are NaN."""

    confidence: np.ndarray  # (bins,) mean
    accuracy: np.ndarray  # (bins,) mean
    n: np.ndarray  # (bins,) int64: images in it


class Coverage(NamedTuple):
    """The risk-coverage curve: one row for each distinct confidence, as the threshold falls."""

    confidence: np.ndarray  # (k,) decreasing: the threshold, itself included
    coverage: np.ndarray  # (k,) increasing to 1: the share of images above it
    accuracy: np.ndarray  # (k,): of these


def reliability(p: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Reliability:
    """Return confidence `p` (n,), from 0 to 1, against accuracy (`correct`, (n,) bool) in bins of equal width. NaN is
    0."""
    p = np.nan_to_num(p)
    index = np.clip(
        np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1
    )  # bins include their upper edge, as in Guo et al.
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, weights=p, minlength=bins) / count
        accuracy = np.bincount(index, weights=correct, minlength=bins) / count
    return Reliability(confidence, accuracy, n=count)


def ece(p: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: the gap between confidence and accuracy, averaged over images; 0 without
    images. Arguments as for `reliability`."""
    found = reliability(p, correct, bins)
    gaps = np.nan_to_num(np.abs(found.confidence - found.accuracy))
    return float((gaps * found.n).sum() / max(len(p), 1))


def coverage(p: np.ndarray, correct: np.ndarray) -> Coverage:
    """Return coverage and accuracy at each threshold among the confidences `p` (n,). NaN counts as 0."""
    order = np.argsort(-np.nan_to_num(p), kind="stable")
    falling = np.nan_to_num(p)[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(p) else np.array([], dtype=np.int64)
    return Coverage(falling[last], (last + 1) / max(len(p), 1), np.cumsum(correct[order])[last] / (last + 1))


def confidence_metrics(logits: np.ndarray, targets: np.ndarray, calibration: Calibration | None) -> dict[str, Any]:
    """Return the confidence metrics of `alexnet eval` for `logits` (n, classes) and `targets` (n,).

    `ece` of the plain softmax; `ece_calibrated`, and at the threshold `coverage` (the share of predictions that are not
    unsure) and `answered_top1` (their accuracy), None without a calibration; `curve`: [{`coverage`, `confidence`,
    `top1`}] at about every tenth.
    """
    correct = correct_at(logits, targets, 1)
    plain = top_confidence(logits, 1.0)
    confidence = calibration.confidence(logits) if calibration else plain
    curve = coverage(confidence, correct)
    tenths = sorted({int(np.searchsorted(curve.coverage, share - 1e-9)) for share in np.arange(1, 11) / 10})
    selective: dict[str, float | None] = {"coverage": None, "answered_top1": None}
    if calibration:
        selective = _selective_metrics(~calibration.is_unsure(confidence), correct)
    return {
        "ece": ece(plain, correct),
        "ece_calibrated": ece(confidence, correct) if calibration else None,
        **selective,
        "curve": [
            {"coverage": share, "confidence": lowest, "top1": top1}
            for lowest, share, top1 in zip(*(values[tenths].tolist() for values in curve), strict=True)
        ],
    }


def _selective_metrics(answered: np.ndarray, correct: np.ndarray) -> dict[str, float | None]:
    return {
        "coverage": float(answered.mean()),
        "answered_top1": float(correct[answered].mean()) if answered.any() else None,
    }
