"""Several trained networks asked together, as the paper averages 5 and 7 of them: the mean of their probabilities.

Members may differ in architecture and input size: each reads the picture by its own preprocessing. They must know the
same classes, which are matched by name. One network alone is an ensemble of one, and its logits come out unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.calibration import combine_calibrations, find_calibration
from alexnet.inference.crops import CENTER_CROP, Views, crop_views, log_mean, without_center_crop
from alexnet.inference.load import load_network
from alexnet.runtimes.calibration import Calibration
from alexnet.runtimes.engines import EXACT, Engine
from alexnet.runtimes.exported import Exported, check_exported
from alexnet.runtimes.loaded_model import LoadedModel
from alexnet.runtimes.select import EngineConfig, LazyEngine

RunNames = str | Path | Sequence[str | Path]
"""One run, or several as an ensemble."""


@dataclass(frozen=True)
class InputGroup:
    """One way of reading pictures, and the members (by number) that look at them so."""

    preprocess: EvalTransform
    """Of the first of the members: the geometry is that of all, mean and deviation are each one's own."""
    members: tuple[int, ...]


@dataclass(frozen=True)
class Ensemble:
    """Networks that know the same classes; `open_ensemble` checks it."""

    names: tuple[str, ...]
    members: tuple[LoadedModel | Exported, ...]
    orders: tuple[torch.Tensor, ...]
    """For each member its outputs in the order of `classes`, int64 (classes,)."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.members[0].classes

    def networks(self, wanted: EngineConfig) -> list[nn.Module | Engine]:
        """What computes each member: its module, on the device and in the layout that convolutions like best, or
        another engine; an exported file brings its own.

        Raises `UserError` where an exported file is to be computed by another engine, or elsewhere than on the CPU.
        """
        return [_network(member, wanted) for member in self.members]

    def calibration(self) -> tuple[Calibration | None, str]:
        """What tells the unsure answers, and a sentence on where it comes from, or why there is none."""
        return combine_calibrations(
            [
                m.calibration() if isinstance(m, Exported) else find_calibration(m.checkpoint, m.run)
                for m in self.members
            ]
        )

    def input_groups(self, views: Views) -> list[InputGroup]:
        """How pictures must be read for `views`: once for each scale and each different geometry of the members.

        Raises `UserError` for a scale that leaves less than a member reads.
        """
        found: dict[tuple[Any, ...], InputGroup] = {}
        for scale in views.scales:
            for i, member in enumerate(self.members):
                own = member.preprocess
                read = own if views == CENTER_CROP else without_center_crop(own, scale)
                # members of one size share the squares, not the crops: each cuts its own
                key = (scale, read.size, read.resize_side, read.channels, read.interpolation, read.squash)
                others = found[key].members if key in found else ()
                found[key] = InputGroup(read, (*others, i))
        return list(found.values())

    def average(self, logits: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """What all say together: of each member its logits (n, its classes) at each scale → (n, classes)."""
        orders = zip(logits, self.orders, strict=True)
        return log_mean(log_mean(scales)[:, order.to(scales[0].device)] for scales, order in orders)


def _network(member: LoadedModel | Exported, wanted: EngineConfig) -> nn.Module | Engine:
    if isinstance(member, Exported):
        check_exported(member.path, wanted.name, wanted.asked)
        return member.engine
    member.model.to(wanted.device).to(memory_format=torch.channels_last)
    return member.model if wanted.name == EXACT else LazyEngine(member, wanted)


def forward(
    network: nn.Module | Engine, images: torch.Tensor, preprocess: EvalTransform, views: Views = CENTER_CROP
) -> torch.Tensor:
    """Logits, float32 (n, classes), of uint8 images, read at one scale, on the network's device: of the only view, or,
    of several, the logarithm of their mean probability, whose softmax is that mean."""
    return log_mean(_look(network, view, preprocess) for view in crop_views(images, views, preprocess.size))


def _look(network: nn.Module | Engine, view: torch.Tensor, preprocess: EvalTransform) -> torch.Tensor:
    if isinstance(network, nn.Module):
        logits: torch.Tensor = network(preprocess.normalize(view).contiguous(memory_format=torch.channels_last))
        return logits.float()
    return torch.from_numpy(network.logits(view.cpu().numpy())).to(view.device)


def load_ensemble(runs: RunNames, checkpoint: str = "best", trust: bool = False) -> Ensemble:
    """The network or networks called `runs`, each as `formats.open_network` opens it.

    Raises `UserError` where that does, and if two do not know the same classes.
    """
    given = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not given:
        raise UserError("An ensemble needs at least one run; give a run folder.")
    names = tuple(map(str, given))
    members = tuple(load_network(run, checkpoint, trust) for run in given)
    for name, member in zip(names[1:], members[1:], strict=True):
        _same_classes(names[0], members[0].classes, name, member.classes)
    orders = [torch.from_numpy(_order(members[0].classes, member.classes)) for member in members]
    return Ensemble(names, members, tuple(orders))


def _same_classes(name: str, classes: tuple[str, ...], other: str, others: tuple[str, ...]) -> None:
    ours, theirs = Counter(classes), Counter(others)
    if ours == theirs:
        return
    missing = next(iter((ours - theirs) or (theirs - ours)))
    knows, lacks = (name, other) if missing in ours - theirs else (other, name)
    raise UserError(
        f"{name} knows {len(classes)} classes and {other} {len(others)}, and these are not the same: '{missing}' is in "
        f"{knows} and not in {lacks}; an ensemble needs networks that were trained on the same classes."
    )


def _order(classes: tuple[str, ...], others: tuple[str, ...]) -> np.ndarray:
    """For each of `classes` its place in `others`, a permutation of it. A name that occurs twice (ImageNet has two
    cranes) is taken in turn."""
    order = np.empty(len(classes), dtype=np.int64)
    order[np.argsort(classes, kind="stable")] = np.argsort(others, kind="stable")
    return order
