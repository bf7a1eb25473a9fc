"""The settings that may differ when a run is resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alexnet.errors import UserError
from alexnet.training.auto_config import augmentation_settings
from alexnet.training.recipe import FLAG_NAMES, Recipe

MAY_CHANGE = frozenset(
    {"data", "labels", "device", "workers", "parallel", "compile", "tensorboard", "checkpoint_every",
     "keep_checkpoints", "in_memory", "deterministic", "num_classes", "dist_timeout"}
)  # fmt: skip
"""Settings that do not change the experiment, although device, compile and in_memory can change last digits."""

CANNOT_CHANGE = frozenset(
    {"arch", "image_size", "norm", "init", "activation", "width", "dropout", "spec_edits", "weights", "freeze",
     "backbone_lr_mult", "dropout_2012", "optimizer", "batch_size", "seed", "validate_on", "mean", "std", "mean_image",
     "squash", "crop_pct", "time_budget", "name", "dataset"}
)  # fmt: skip
"""Settings that already determine the network, the split, the order of the images or the number of epochs."""

PATHS = ("data", "labels", "mean_image")


def apply_overrides(run: Path, stored: Recipe, given: Recipe, names: Iterable[str], force: bool) -> tuple[Recipe, str]:
    """Return the `stored` recipe with the settings `names` as in `given`, and a sentence on what changed (or "").

    Raises `UserError` for a setting that cannot change within a run, and, without
    `force`, for one that changes the experiment.
    """
    changed = {n: getattr(given, n) for n in names if _comparable(given, n) != _comparable(stored, n)}
    if fixed := [n for n in changed if n in CANNOT_CHANGE]:
        raise UserError(
            f"{run} was started with {format_settings(stored, fixed)}, which cannot change within a run; leave out "
            f"{format_settings(given, fixed)}, or choose another --out."
        )
    if (other := [n for n in changed if n not in MAY_CHANGE]) and not force:
        longer = f" (to train longer: alexnet resume {run} --epochs {given.epochs})" if "epochs" in other else ""
        raise UserError(
            f"{run} was started with {format_settings(stored, other)}; {format_settings(given, other)} would change "
            f"the experiment: leave it out{longer}, or add --force."
        )
    if not changed:
        return stored, ""
    sentence = f"{run} resumes with {format_settings(given, changed)} (before: {format_settings(stored, changed)})."
    return dataclasses.replace(stored, **changed), sentence


def explicit_fields(stored: Recipe, given: Recipe) -> list[str]:
    """Return the names of the settings that the complete recipe `given` sets, rather than leaves to be chosen."""
    chosen = {"name", "dataset", "auto_fields", *given.auto_fields}
    if given.time_budget is not None:
        chosen.add("epochs")
    if given.arch == "auto":
        chosen.add("width")
    if stored.weights is not None:
        chosen |= {"arch", "image_size", "width", "dropout", "mean", "std", "mean_image", "backbone_lr_mult"}
    if stored.augment != "auto":
        chosen |= set(augmentation_settings(stored.augment, stored.image_size or 0))
    names = [field.name for field in dataclasses.fields(Recipe) if field.name not in chosen]
    return [name for name in names if getattr(given, name) not in (None, "auto", "own")]


def _comparable(recipe: Recipe, name: str) -> Any:
    """Return a setting's value, a path as an absolute one."""
    value = getattr(recipe, name)
    return Path(value).absolute() if name in PATHS and value not in (None, "none", "own") else value


def format_settings(recipe: Recipe, names: Iterable[str]) -> str:
    """Return settings as they are typed on the command line: "--lr 0.1, padding=4"."""
    return ", ".join(as_flag(name, getattr(recipe, name)) for name in names)


def as_flag(name: str, value: Any) -> str:
    """Return a setting as a flag, or as NAME=VALUE for --set if there is no such flag."""
    if name not in FLAG_NAMES:
        return f"{name}={value}"
    flag = name.replace("_", "-")
    return f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"
