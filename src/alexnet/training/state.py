"""What `training.pt` means: where training stands, besides the weights.

    position   the step, the place in the epoch, the sums of the epoch so far, the finished epochs' metrics
    optimizer  the state dict of SGD: its momentum
    scaler     the state dict of the fp16 loss scaler
    statistics where several processes train batch norm: each one's running statistics, whose mean is with the weights

There is no generator state: every draw is a function of the seed and the step.
Only tensors, numbers, strings, lists and dicts, so that torch's restricted loader reads it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from alexnet.errors import UserError
from alexnet.training.recipe import Recipe


def digest(names: Iterable[str], targets: torch.Tensor) -> str:
    """16 hexadecimal digits of the names of pictures and their class numbers, in order: another order, or another
    picture, is another experiment."""
    found = hashlib.sha256(targets.cpu().numpy().tobytes())
    for name in names:
        found.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()[:16]


@dataclass
class Position:
    """Where training stands. All counts are from the beginning of the run unless said."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # finished epochs
    batch: int = 0  # batches done in the epoch after them
    seen: int = 0  # images of that epoch
    loss_sum: float = 0.0  # over those images
    hits: float = 0.0  # of those images, how many were right
    seconds: float = 0.0  # wall time spent in that epoch
    waited: float = 0.0  # of it, until the next batch was there
    processes: int = 1  # that learn from different parts of a batch
    pictures: int = 0  # training pictures that there are; 0 in what earlier versions wrote
    samples: str = ""  # `digest` of them; empty in what earlier versions wrote
    best: dict[str, Any] | None = None  # the row of the best epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.jsonl

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_training(cls, training: dict[str, Any]) -> Position:
        """The position in what `training.pt` holds. Raises `UserError` if it is not ours."""
        try:
            _ = training["optimizer"]["state"], training["scaler"]  # what goes on from there reads these too
            return cls(**training["position"])
        except (KeyError, TypeError) as error:
            raise UserError("The checkpoint's training.pt was written by other software or another version.") from error

    def ended(self, recipe: Recipe) -> bool:
        """Whether a run by `recipe` has no epoch left to train or to validate."""
        if self.batch:
            return False
        limit = recipe.limit_steps
        return self.epoch >= recipe.epochs or (limit is not None and self.step >= limit) or self.late(recipe)

    def late(self, recipe: Recipe) -> bool:
        """Whether the last `early_stop` epochs brought none that is better."""
        if not recipe.early_stop or self.best is None:
            return False
        return bool(self.epoch - self.best["epoch"] >= recipe.early_stop)

    def told_by(self, summary: dict[str, Any]) -> bool:
        """Whether a `summary.json` is that of a run which is complete here: an extension may have been killed since."""
        there = (summary.get("steps"), summary.get("epochs"))
        return bool(summary.get("complete")) and there == (self.step, len(self.history))

    def start_epoch(self) -> None:
        """Forget the sums of the epoch that has just ended."""
        self.batch = self.seen = 0
        self.loss_sum = self.hits = self.seconds = self.waited = 0.0
