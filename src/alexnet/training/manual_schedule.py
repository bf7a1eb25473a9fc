"""The schedule made by hand, as data: what changes at the start of which epoch.

In 2012 rates were lowered, layers frozen and the colour noise switched off by stopping the program and starting it
again with other settings. A recipe lists such moments beforehand. No torch here, as `recipe.py` has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alexnet.errors import UserError


@dataclass(frozen=True)
class ScheduleChange:
    """What holds from the start of `epoch` until a later change sets it anew. What is None stays as it is.

    Epochs count from 1, as in `metrics.jsonl`. Rates are what they will be, not factors; a rate of 0 freezes. Of two
    changes at one epoch the later one in the list wins.
    """

    epoch: int
    layers: tuple[str, ...] = ()
    """Of which layers `lr` and `bias_lr` are, as 'alexnet arch NAME' lists them; empty: of all."""
    lr: float | None = None
    """Learning rate of the weights. The biases keep theirs."""
    bias_lr: float | None = None
    """Learning rate of the biases, and of the weights of normalisation layers."""
    pca_noise: float | None = None
    """Strength of the colour noise, whatever `layers` says."""

    @property
    def rates(self) -> dict[str, float]:
        """The rates that it sets, by kind of parameter: "weights" and "biases"."""
        return {kind: r for kind, r in (("weights", self.lr), ("biases", self.bias_lr)) if r is not None}


# The run of the paper's single network, from the comments of the released code's layers/layer-params-145.cfg: weights
# from .01, colour noise from .1, ended at epoch 91. Biases stay at .02; conv1's stand at 0 with its weights in the end.
SCHEDULE_145 = (
    ScheduleChange(25, lr=1e-3),
    ScheduleChange(51, lr=1e-4),
    ScheduleChange(67, ("conv1",), lr=1e-5, pca_noise=0.0),
    ScheduleChange(72, ("conv1",), lr=0.0, bias_lr=0.0),
    ScheduleChange(79, lr=1e-5),
    ScheduleChange(79, ("conv1",), lr=0.0, bias_lr=0.0),
)


def check_changes(changes: Sequence[ScheduleChange]) -> None:
    """Raises `UserError` for a change that no training can follow."""
    before = 1
    for change in changes:
        name = f"The change at epoch {change.epoch}"
        if change.epoch < 1:
            raise UserError(f"{name} comes before the first epoch; count epochs from 1.")
        if change.epoch < before:
            raise UserError(f"{name} stands after one at epoch {before}; list the changes by epoch.")
        before = change.epoch
        values = {"lr": change.lr, "bias_lr": change.bias_lr, "pca_noise": change.pca_noise}
        given = {key: value for key, value in values.items() if value is not None}
        if not given:
            raise UserError(f"{name} changes nothing; give it lr, bias_lr or pca_noise.")
        for key, value in given.items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name} sets {key} to {value}; it must be a finite number and not negative.")


def check_layers(changes: Sequence[ScheduleChange], network: str, layers: Iterable[str]) -> None:
    """Raises `UserError` for a change that names none of `layers`, those of `network` that have weights."""
    known = list(layers)
    for change in changes:
        for layer in change.layers:
            if layer not in known:
                raise UserError(
                    f"The change at epoch {change.epoch} names the layer '{layer}', which '{network}' does not have; "
                    f"choose from {', '.join(known)}."
                )
