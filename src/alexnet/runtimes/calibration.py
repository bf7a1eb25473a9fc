"""The calibration of a network: a temperature and a confidence threshold, and the data they were fitted on.

It is fitted by `inference.calibration`, and stored in a checkpoint's `model.json` and in the manifest of an exported
file.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from alexnet.errors import UserError

KEY = "calibration"  # in model.json


@dataclass(frozen=True)
class Calibration:
    """A temperature and a threshold. A prediction whose calibrated confidence is below the threshold is unsure.

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
