"""An ensemble of trained networks, as the paper averages 5 and 7 of them: the mean of their probabilities.

Members may differ in architecture and input size: each has its own preprocessing. They must have
the same classes, which are matched by name. One network alone is an ensemble of one, and its logits
are unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet.data.transforms import EvalTransform
from alexnet.device import pick_device
from alexnet.errors import UserError
from alexnet.inference.crops import CENTER_CROP, Views, crop_views, log_mean, without_center_crop
from alexnet.inference.load import calibration_images, load_network
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions, options_for
from alexnet.runtimes.calibration import Calibration, average_calibrations
from alexnet.runtimes.engines import EXACT, Engine, LoadedModel
from alexnet.runtimes.select import EngineConfig, LazyEngine

if TYPE_CHECKING:
    import torch
    from torch import nn

RunNames = str | Path | Sequence[str | Path]
"""One run, or several as an ensemble."""


@dataclass(frozen=True)
class InputGroup:
    """The members (by index) that share one geometry and scale, and so the same input images."""

    preprocess: EvalTransform
    """Of the first member: all share its geometry, but each has its own mean and deviation."""
    members: tuple[int, ...]


@dataclass(frozen=True)
class Ensemble:
    """Networks with the same classes. Raises `UserError` if two have different classes."""

    names: tuple[str, ...]
    members: tuple[LoadedModel, ...]

    def __post_init__(self) -> None:
        for name, member in zip(self.names[1:], self.members[1:], strict=True):
            _check_same_classes(self.names[0], self.classes, name, member.classes)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.members[0].classes

    @cached_property
    def orders(self) -> tuple[np.ndarray, ...]:
        """For each member its outputs in the order of `classes`, int64 (classes,)."""
        return tuple(_match_order(self.classes, member.classes) for member in self.members)

    def calibration(self) -> tuple[Calibration | None, str]:
        """Return the combined calibration, and a note on where it comes from, or why there is none."""
        missing = [member.calibration_note for member in self.members if member.calibration is None]
        notes = missing or [member.calibration_note for member in self.members if member.calibration_note]
        return average_calibrations([member.calibration for member in self.members]), " ".join(notes)

    def open(self, engine: str, device: str, calibrate: str | Path | None, log: Callable[[str], object]) -> Ensemble:
        """Return the members ready to compute: modules on the device, channels_last, or in another
        engine. Arguments as for `load`."""
        if all(member.engine is not None for member in self.members):
            return self
        images = partial(calibration_images, folder=Path(calibrate) if calibrate else None)
        config = EngineConfig(engine, pick_device(device), device, images, recalibrate=bool(calibrate), log=log)
        import torch

        for member in self.members:
            if member.engine is None:
                member.model.to(config.device).to(memory_format=torch.channels_last)
        if engine == EXACT:
            return self
        opened = (m if m.engine else replace(m, engine=LazyEngine(m, config)) for m in self.members)
        return replace(self, members=tuple(opened))

    def input_groups(self, views: Views) -> list[InputGroup]:
        """Return how images must be read for `views`: once for each scale and each geometry of the members.

        Raises `UserError` for a scale that is too small for a member's input.
        """
        groups: dict[tuple[Any, ...], InputGroup] = {}
        for scale in views.scales:
            for i, member in enumerate(self.members):
                own = member.preprocess
                read = own if views == CENTER_CROP else without_center_crop(own, scale)
                # members of one size share the squares, but each cuts its own crops
                key = (
                    scale, read.size, read.resize_side, read.channels, read.interpolation, read.squash, read.value_range
                )  # fmt: skip
                others = groups[key].members if key in groups else ()
                groups[key] = InputGroup(read, (*others, i))
        return list(groups.values())

    def average(self, logits: Sequence[Sequence[torch.Tensor]]) -> torch.Tensor:
        """Return the logarithm of the mean probability (n, classes) of each member's logits (n, its
        classes) at each scale."""
        return log_mean(log_mean(scales)[:, order] for scales, order in zip(logits, self.orders, strict=True))


def forward(
    network: nn.Module | Engine, images: torch.Tensor, preprocess: EvalTransform, views: Views = CENTER_CROP
) -> torch.Tensor:
    """Return logits, float32 (n, classes), of uint8 images at one scale, on the network's device:
    of several views the logarithm of their mean probability."""
    return log_mean(_forward_view(network, view, preprocess) for view in crop_views(images, views, preprocess.size))


def _forward_view(network: nn.Module | Engine, view: torch.Tensor, preprocess: EvalTransform) -> torch.Tensor:
    import torch
    from torch import nn

    if isinstance(network, nn.Module):
        logits: torch.Tensor = network(preprocess.normalize(view).contiguous(memory_format=torch.channels_last))
        return logits.float()
    return torch.from_numpy(network.logits(view.cpu().numpy())).to(view.device)


def load_ensemble(
    runs: RunNames,
    checkpoint: str = "best",
    trust: bool = False,
    file: FileOptions = NO_OPTIONS,
    log: Callable[[str], object] = lambda _: None,
) -> Ensemble:
    """Load the network or networks called `runs` with `load_network`; `file` describes all files of
    weights among them, and `log` receives what was assumed about them.

    Raises `UserError` where that does, and if two have different classes.
    """
    given = [runs] if isinstance(runs, (str, Path)) else list(runs)
    if not given:
        raise UserError("An ensemble needs at least one run; give a run folder.")
    members = [load_network(run, checkpoint, trust, options_for(run, given, file), log) for run in given]
    places = [(member.checkpoint or Path(run)).resolve() for run, member in zip(given, members, strict=True)]
    for i, place in enumerate(places):
        if (first := places.index(place)) < i:
            raise UserError(f"{given[first]} and {given[i]} are the same network; name it once.")
    return Ensemble(tuple(map(str, given)), tuple(members))


def _check_same_classes(name: str, classes: tuple[str, ...], other: str, others: tuple[str, ...]) -> None:
    ours, theirs = Counter(classes), Counter(others)
    if ours == theirs:
        return
    missing = next(iter((ours - theirs) or (theirs - ours)))
    has, lacks = (name, other) if missing in ours - theirs else (other, name)
    raise UserError(
        f"{name} has {len(classes)} classes and {other} {len(others)}, and they differ: '{missing}' is in {has} and "
        f"not in {lacks}; an ensemble needs networks trained on the same classes."
    )


def _match_order(classes: tuple[str, ...], others: tuple[str, ...]) -> np.ndarray:
    """Return for each of `classes` its index in `others`, a permutation of it. Duplicate names
    (ImageNet has two cranes) are matched in order."""
    order = np.empty(len(classes), dtype=np.int64)
    order[np.argsort(classes, kind="stable")] = np.argsort(others, kind="stable")
    return order
