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

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

KEY = "calibration"  # in model.json


@dataclass(frozen=True)
class Calibration:
    """A temperature and a threshold, and what they were fitted on."""

    temperature: float
    """Logits are divided by it; above 1 where the network is too sure."""
    threshold: float
    """Answers of less confidence are unsure."""
    split: str = "val"
    n: int = 0
    """Pictures that it was fitted on. The figures below are of them; 0 and None where it was not fitted as a whole."""
    top1: float | None = None
    ece_before: float | None = None
    """Expected calibration error of the plain softmax."""
    ece_after: float | None = None
    coverage: float | None = None
    """The share that is answered: not unsure."""
    answered_top1: float | None = None
    """The share of the answered that is right; None where nothing is answered."""

    def confidence(self, logits: np.ndarray) -> np.ndarray:
        """How sure the network is of its first label, from 0 to 1: (n, classes) → (n,) float64, NaN for NaN.

        Logarithms of probabilities are logits too.
        """
        return _first(logits, self.temperature)

    def is_unsure(self, confidence: np.ndarray) -> np.ndarray:
        """Which are below the threshold: (n,) → (n,) bool; NaN is."""
        return ~(confidence >= self.threshold)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Calibration:
        """Raises `ValueError` for what `to_dict` does not give; keys that it does not know are passed over."""
        known = {key: found[key] for key in cls.__dataclass_fields__ if key in found}
        calibration = cls(
            **{**known, "temperature": _number(found, "temperature"), "threshold": _number(found, "threshold")}
        )
        if calibration.temperature <= 0:
            raise ValueError(f"a temperature of {calibration.temperature:g}")
        return calibration


def _number(found: dict[str, Any], key: str) -> float:
    value = found.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"its {key} is no number")
    return float(value)


def _first(logits: np.ndarray, temperature: float) -> np.ndarray:
    """The highest probability of each row at `temperature`, in float64."""
    z = logits.astype(np.float64) / temperature
    with np.errstate(invalid="ignore"):
        return np.asarray(1 / np.exp(z - z.max(axis=1, keepdims=True)).sum(axis=1))
