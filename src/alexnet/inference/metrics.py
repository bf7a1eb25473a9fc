"""Evaluation metrics from logits: top-1, top-5, loss, per-class precision and recall, and the interval of top-1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's confidence interval of the proportion `hits`/`n`, valid also for small n and near 0 and 1."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    ci = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return float(ci.low), float(ci.high)


def correct_at(logits: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Return for each row whether its target is among the k highest logits: (n, classes), (n,) → (n,) bool.

    Ties count as wrong: a target that only equals the k-th highest of the others is not among them. Otherwise a network
    with constant output would have a high accuracy.
    """
    target_logits = np.take_along_axis(logits, targets[:, None], axis=1)
    rank = (logits >= target_logits).sum(axis=1)  # counts the target itself; NaN compares false
    return (rank <= k) & np.isfinite(target_logits[:, 0])


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean negative log-probability of the targets, in nats, computed in float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(z).sum(axis=1))
    return float(np.mean(log_sum - z[np.arange(len(z)), targets]))


def compute_metrics(logits: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return all metrics of an evaluation; accuracies are fractions of 1.

    `logits` (n, classes) float, `targets` (n,) int → `top1`, `top5`, `loss`, `n`, `interval` (95 % of top1),
    `per_class`: label, n, precision, recall, f1 in class order (0 where nothing was predicted or present).
    """
    from sklearn.metrics import precision_recall_fscore_support

    n = len(targets)
    top1 = correct_at(logits, targets, 1)
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, logits.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0
    )
    return {
        "top1": float(top1.mean()),
        "top5": float(correct_at(logits, targets, min(5, len(classes))).mean()),
        "loss": cross_entropy(logits, targets),
        "n": n,
        "interval": list(wilson_interval(int(top1.sum()), n)),
        "per_class": [
            {"label": label, "n": int(support[i]), "precision": float(precision[i]),
             "recall": float(recall[i]), "f1": float(f1[i])}
            for i, label in enumerate(classes)
        ],
    }  # fmt: skip
