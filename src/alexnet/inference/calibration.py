"""How sure the network is: its confidence, made honest, and below which threshold it is "unsure".

Networks are wrong about how right they are, mostly by one factor. So all logits are divided by one number, the
temperature, found on the validation split (Guo et al. 2017). It changes no order of labels: the probabilities that
`predict` prints stay the trainer's, and the softmax of the divided logits gives the confidence beside them.

The threshold, on that confidence, is chosen so that the answers above it are as many as possible, though at most 95 %
of the validation pictures, and at least 95 % of them right. The first bound is for networks that are right nearly
always: pictures unlike all others come out among the least sure, and would go unnoticed if nothing known did. Where no
threshold is known to do it (a weak network, a few pictures), it is .95, which promises the same by itself.

All of it is fitted on pictures that the weights were not trained on, and never on the test split. The functions at the
end draw the picture: `reliability` and `coverage`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet.checkpoint import MODEL, read_model_json
from alexnet.errors import UserError
from alexnet.inference.metrics import correct_at
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import KEY, Calibration, _first

RIGHT = 0.95  # of the answers above the threshold, at least
ANSWERED = 0.95  # of the validation pictures, at most
FEWEST = 20  # answers above a threshold that tell its accuracy: with fewer, one mistake is more than 5 %
SPREAD = 0.5  # of the logarithm of temperatures, expected before any picture is seen: nearly all within e and 1/e
BINS = 15  # of the expected calibration error, as in Guo et al.
WHY_NOT = "its recipe validates on the test split, by which nothing may be chosen"


# ── fitting ───────────────────────────────────────────────────────────────────────────────────────────────────


def fit_calibration(logits: np.ndarray, targets: np.ndarray, split: str = "val") -> Calibration:
    """Temperature and threshold for `logits` (n, classes) of pictures with `targets` (n,), which were held out.

    The temperature has the highest likelihood given a weak belief that it is near 1, which decides alone where
    pictures say nothing: there are none, their logits are all equal, or all are right (the likelihood then rises
    without end as the temperature falls). Rows that are not finite teach nothing and count as wrong and unsure.
    """
    right = correct_at(logits, targets, 1)
    finite = np.isfinite(logits).all(axis=1)
    temperature = _temperature(logits[finite], targets[finite])
    confidence = _first(logits, temperature)
    found = Calibration(temperature, _threshold(confidence, right), split, len(targets))
    if not found.n:
        return found
    return Calibration(
        **{
            **found.to_dict(),
            "top1": float(right.mean()),
            "ece_before": ece(_first(logits, 1.0), right),
            "ece_after": ece(confidence, right),
            **_answers(found, confidence, right),
        }
    )


def _temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    from scipy.optimize import minimize_scalar

    z = logits - logits.max(axis=1, keepdims=True, initial=-np.inf)
    own = z[np.arange(len(z)), targets].sum(dtype=np.float64)

    def cost(log_temperature: float) -> float:
        t = math.exp(log_temperature)
        likelihood = own / t - np.log(np.exp(z / t).sum(axis=1, dtype=np.float64)).sum()
        return float((log_temperature / SPREAD) ** 2 / 2 - likelihood)

    return math.exp(minimize_scalar(cost, bounds=(-4, 4), method="bounded").x)


def _threshold(confidence: np.ndarray, right: np.ndarray) -> float:
    """By the rule at the top; halfway between two answers, so that the last bits of an engine decide nothing."""
    found = coverage(confidence, right)
    fits = (found.coverage <= ANSWERED) & (found.accuracy >= RIGHT) & (found.coverage * len(right) >= FEWEST)
    if not fits.any():
        return RIGHT
    last = int(np.flatnonzero(fits)[-1])  # never the last of all: that covers everything
    return float(found.confidence[last : last + 2].mean())


def together(calibrations: Sequence[Calibration | None]) -> Calibration | None:
    """Of several networks whose probabilities are averaged: the geometric mean of their temperatures and the highest
    of their thresholds, or None if one of them has none. Of one network, its own.

    It was not fitted on the average, which is less sure than its members: expect more to be called unsure.
    """
    known = [c for c in calibrations if c is not None]
    if not known or len(known) < len(calibrations):
        return None
    if len(known) == 1:
        return known[0]
    mean = math.exp(sum(math.log(c.temperature) for c in known) / len(known))
    return Calibration(mean, max(c.threshold for c in known), known[0].split)


# ── finding ───────────────────────────────────────────────────────────────────────────────────────────────────


def find_calibration(folder: Path | None, run: Run | None) -> tuple[Calibration | None, str]:
    """The calibration of the checkpoint in `folder` of `run`, and a sentence: how it was come by if it is not the
    stored one, or why there is none. Writes nothing. Raises `UserError` if `model.json` is damaged.

    Runs from before calibration was stored have it fitted now, on what they kept of their validation split.
    """
    if folder is None:
        return None, "Published weights come without a threshold for 'unsure'."
    if stored := read_model_json(folder).get(KEY):
        try:
            return Calibration.from_dict(dict(stored)), ""
        except (TypeError, ValueError) as error:
            raise UserError(
                f"{folder / MODEL} is damaged (calibration: {error}); take '{KEY}' out of it or use another checkpoint."
            ) from error
    best = run.named_checkpoint("best") if run else None
    if run is None or best is None or best.resolve() != folder.resolve():
        return None, f"{folder} has no threshold for 'unsure': the best checkpoint of a run has."
    try:
        validated_on = json.loads(run.recipe_json.read_text(encoding="utf-8"))["validate_on"]
    except (OSError, ValueError, KeyError, TypeError):
        return None, f"{run.path} has no threshold for 'unsure': its recipe.json is damaged."
    if validated_on == "test":
        return None, f"{run.path} has no threshold for 'unsure': {WHY_NOT}."
    kept = run.read_evaluation(validated_on)
    if kept is None:
        return None, f"{run.path} has no threshold for 'unsure': it keeps no logits of its {validated_on} split."
    found = fit_calibration(kept[2], kept[1], validated_on)
    return found, (
        f"{run.path} stores no threshold for 'unsure'; it was fitted now on its {validated_on} split: "
        f"{found.threshold:.1%}, at temperature {found.temperature:.3g}."
    )


def combine_calibrations(each: Sequence[tuple[Calibration | None, str]]) -> tuple[Calibration | None, str]:
    """`together` for what `find` found of each network, with the sentences of all."""
    missing = [note for calibration, note in each if calibration is None]
    return together([calibration for calibration, _ in each]), " ".join(missing or [note for _, note in each if note])


def describe_calibration(stored: dict[str, Any] | None) -> str:
    """The sentence that ends a training: what was fitted, as `to_dict` gives it, or why nothing was."""
    if stored is None:
        return f"no threshold for 'unsure': {WHY_NOT}"
    right = f", {stored['answered_top1']:.2%} of them right" if stored["answered_top1"] is not None else ""
    return f"unsure below {stored['threshold']:.1%}: {stored['coverage']:.2%} of {stored['split']} answered{right}"


# ── measuring ─────────────────────────────────────────────────────────────────────────────────────────────────


class Reliability(NamedTuple):
    """Of each bin of confidence; where it is empty, the means are NaN."""

    confidence: np.ndarray  # (bins,) mean
    accuracy: np.ndarray  # (bins,) mean
    n: np.ndarray  # (bins,) int64: pictures in it


class Coverage(NamedTuple):
    """What is answered as the threshold falls, one row for each different confidence."""

    confidence: np.ndarray  # (k,) falling: the threshold, which is answered too
    coverage: np.ndarray  # (k,) rising to 1: the share that is answered
    accuracy: np.ndarray  # (k,): the share of the answered that is right


def reliability(p: np.ndarray, right: np.ndarray, bins: int = BINS) -> Reliability:
    """Confidence `p` (n,), from 0 to 1, against accuracy (`right`, (n,) bool) in bins of equal width. NaN is 0."""
    p = np.nan_to_num(p)
    which = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)  # a bin has its upper edge, as in Guo et al.
    count = np.bincount(which, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(which, weights=p, minlength=bins) / count
        accuracy = np.bincount(which, weights=right, minlength=bins) / count
    return Reliability(confidence, accuracy, n=count)


def ece(p: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error: the gap between confidence and accuracy, averaged over pictures, 0 where there are
    none. Arguments as for `reliability`."""
    found = reliability(p, right, bins)
    gaps = np.nan_to_num(np.abs(found.confidence - found.accuracy))
    return float((gaps * found.n).sum() / max(len(p), 1))


def coverage(p: np.ndarray, right: np.ndarray) -> Coverage:
    """How many are answered, and how well, at each threshold that confidence `p` (n,) gives. NaN counts as 0."""
    order = np.argsort(-np.nan_to_num(p), kind="stable")
    falling = np.nan_to_num(p)[order]
    last = np.flatnonzero(np.append(falling[1:] != falling[:-1], True)) if len(p) else np.array([], dtype=np.int64)
    return Coverage(falling[last], (last + 1) / max(len(p), 1), np.cumsum(right[order])[last] / (last + 1))


def describe_answers(logits: np.ndarray, targets: np.ndarray, calibration: Calibration | None) -> dict[str, Any]:
    """What `alexnet eval` says of confidence, for `logits` (n, classes) of any pictures with `targets` (n,):

    `ece` of the plain softmax; `ece_calibrated`, `coverage` (the share that is answered) and `answered_top1` at the
    threshold, None without a calibration; `curve`: [{`coverage`, `confidence`, `top1`}] at about every tenth.
    """
    right = correct_at(logits, targets, 1)
    plain = _first(logits, 1.0)
    confidence = calibration.confidence(logits) if calibration else plain
    at = coverage(confidence, right)
    tenths = sorted({int(np.searchsorted(at.coverage, share - 1e-9)) for share in np.arange(1, 11) / 10})
    return {
        "ece": ece(plain, right),
        "ece_calibrated": ece(confidence, right) if calibration else None,
        **(_answers(calibration, confidence, right) if calibration else {"coverage": None, "answered_top1": None}),
        "curve": [
            {"coverage": float(at.coverage[i]), "confidence": float(at.confidence[i]), "top1": float(at.accuracy[i])}
            for i in tenths
        ],
    }  # fmt: skip


def _answers(calibration: Calibration, confidence: np.ndarray, right: np.ndarray) -> dict[str, float | None]:
    answered = ~calibration.is_unsure(confidence)
    return {
        "coverage": float(answered.mean()),
        "answered_top1": float(right[answered].mean()) if answered.any() else None,
    }
