"""Learning rates and PCA noise set by hand at the start of given epochs, as data. Needs no torch.

In 2012 rates were lowered, layers frozen and the color noise switched off by stopping the
program and restarting it with other settings. A recipe lists these moments in `lr_changes`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from alexnet.errors import UserError


@dataclass(frozen=True)
class ScheduleChange:
    """Values that hold from the start of `epoch` until a later change. None leaves a value as it is.

    Epochs count from 1, as in `metrics.jsonl`. Rates are absolute, not factors; a rate
    of 0 freezes. If two changes have the same epoch, the later one in the list wins.
    """

    epoch: int
    layers: tuple[str, ...] = ()
    """The layers that `lr` and `bias_lr` apply to, named as by 'alexnet arch NAME'; empty: all."""
    lr: float | None = None
    """Learning rate of the weights. Biases keep theirs."""
    bias_lr: float | None = None
    """Learning rate of the biases and of the weights of normalization layers."""
    pca_noise: float | None = None
    """Strength of the PCA noise, independent of `layers`."""

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates it sets, by kind of parameter: "weights" and "biases"."""
        return {kind: r for kind, r in (("weights", self.lr), ("biases", self.bias_lr)) if r is not None}


# The run of the paper's single network, from the comments in the released code's layers/layer-params-145.cfg: weights
# start at .01, PCA noise at .1, and training ends at epoch 91. Biases stay at .02; at the end those of conv1 are frozen
# together with its weights.
SCHEDULE_145 = (
    ScheduleChange(25, lr=1e-3),
    ScheduleChange(51, lr=1e-4),
    ScheduleChange(67, ("conv1",), lr=1e-5, pca_noise=0.0),
    ScheduleChange(72, ("conv1",), lr=0.0, bias_lr=0.0),
    ScheduleChange(79, lr=1e-5),
    ScheduleChange(79, ("conv1",), lr=0.0, bias_lr=0.0),
)


def check_changes(changes: Sequence[ScheduleChange]) -> None:
    """Raise `UserError` for changes that are out of order, empty or out of range."""
    before = 1
    for change in changes:
        name = f"The entry of lr_changes for epoch {change.epoch}"
        if change.epoch < 1:
            raise UserError(f"{name} comes before the first epoch; count epochs from 1.")
        if change.epoch < before:
            raise UserError(f"{name} follows one for epoch {before}; sort the list by epoch.")
        before = change.epoch
        values = {"lr": change.lr, "bias_lr": change.bias_lr, "pca_noise": change.pca_noise}
        given = {key: value for key, value in values.items() if value is not None}
        if not given:
            raise UserError(f"{name} changes nothing; give it lr, bias_lr or pca_noise.")
        for key, value in given.items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name} sets {key} to {value}; it must be finite and not negative.")


def check_layers(changes: Sequence[ScheduleChange], network: str, layers: Iterable[str]) -> None:
    """Raise `UserError` for a change of a layer that is not in `layers`, those of `network` that have weights."""
    known = list(layers)
    for change in changes:
        for layer in change.layers:
            if layer not in known:
                raise UserError(
                    f"The entry of lr_changes for epoch {change.epoch} names the layer '{layer}', which '{network}' "
                    f"does not have; choose from {', '.join(known)}."
                )
