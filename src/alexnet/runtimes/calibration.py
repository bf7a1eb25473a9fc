"""The calibration of a network: a temperature and a confidence threshold, and the data they were fitted on.

It is fitted by `inference.calibration`, and stored in a checkpoint's `model.json` and in the manifest of an exported
file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

KEY = "calibration"  # in model.json


@dataclass(frozen=True)
class Calibration:
    """A temperature and a threshold. A prediction whose calibrated confidence is below the threshold is unsure."""

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

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Calibration:
        """Return the inverse of `to_dict`, ignoring unknown keys. Raises `ValueError` for damaged values."""
        known = {key: found[key] for key in cls.__dataclass_fields__ if key in found}
        calibration = cls(
            **{**known, "temperature": _number(found, "temperature"), "threshold": _number(found, "threshold")}
        )
        if calibration.temperature <= 0:
            raise ValueError(f"temperature {calibration.temperature:g} is not positive")
        return calibration


def _number(found: dict[str, Any], key: str) -> float:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{key} is not a number")
    return float(value)


def top_confidence(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return the highest probability of each row at `temperature`, float64."""
    z = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):
        return np.asarray(1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1))
