"""What a run goes on with where another setting is asked for than the one it began with.

Some settings change no result (how many processes read pictures), some make another experiment of it (the learning
rate), and some cannot change at all in a run (the network). No torch here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alexnet.errors import UserError
from alexnet.training.fit import augmentation
from alexnet.training.recipe import FLAG_NAMES, Recipe

FREE = frozenset(
    {"data", "labels", "device", "workers", "parallel", "compile", "tensorboard", "checkpoint_every",
     "keep_checkpoints", "in_memory", "deterministic", "num_classes", "lost_after"}
)  # fmt: skip
"""Settings that leave the experiment as it is. A device, compiling and where pictures are kept change last digits."""

FIXED = frozenset(
    {"arch", "image_size", "norm", "init", "activation", "width", "dropout", "edits", "weights", "freeze", "old_lr",
     "unscaled_dropout", "optimizer", "batch_size", "seed", "validate_on", "mean", "std", "mean_image", "stretch",
     "crop_pct", "time_budget", "name", "source"}
)  # fmt: skip
"""Settings that the network, the split, the order of the pictures or the number of epochs has been made from."""

PATHS = ("data", "labels", "mean_image")


def follow(run: Path, stored: Recipe, wanted: Recipe, names: Iterable[str], force: bool) -> tuple[Recipe, str]:
    """The recipe to go on with where `wanted` sets the settings `names`, and a sentence on what is new; empty where
    nothing is. Raises `UserError` for what a run cannot change, and without `force` for what makes another experiment
    of it."""
    changed = {n: getattr(wanted, n) for n in names if _plain(wanted, n) != _plain(stored, n)}
    if fixed := [n for n in changed if n in FIXED]:
        raise UserError(
            f"{run} was begun with {_told(stored, fixed)}, which cannot change in a run; leave out "
            f"{_told(wanted, fixed)}, or choose another --out."
        )
    if (other := [n for n in changed if n not in FREE]) and not force:
        longer = f" (to train longer: alexnet resume {run} --epochs {wanted.epochs})" if "epochs" in other else ""
        raise UserError(
            f"{run} was begun with {_told(stored, other)}; {_told(wanted, other)} would make another experiment of it: "
            f"leave that out{longer}, or add --force."
        )
    if not changed:
        return stored, ""
    sentence = f"{run} goes on with {_told(wanted, changed)} (before: {_told(stored, changed)})."
    return dataclasses.replace(stored, **changed), sentence


def named_by(stored: Recipe, wanted: Recipe) -> list[str]:
    """The settings that the whole recipe `wanted` sets, and does not leave to be chosen from data and machine."""
    left = {"name", "source", "fitted", *wanted.fitted}
    if wanted.time_budget is not None:
        left.add("epochs")
    if wanted.arch == "auto":
        left.add("width")
    if stored.weights is not None:
        left |= {"arch", "image_size", "width", "dropout", "mean", "std", "mean_image", "old_lr"}
    if stored.augment != "auto":
        left |= set(augmentation(stored.augment, stored.image_size or 0))
    names = [field.name for field in dataclasses.fields(Recipe) if field.name not in left]
    return [name for name in names if getattr(wanted, name) not in (None, "auto", "own")]


def _plain(recipe: Recipe, name: str) -> Any:
    value = getattr(recipe, name)
    return Path(value).absolute() if name in PATHS and value not in (None, "none", "own") else value


def _told(recipe: Recipe, names: Iterable[str]) -> str:
    """Settings as they are typed."""
    return ", ".join(_typed(name, getattr(recipe, name)) for name in names)


def _typed(name: str, value: Any) -> str:
    if name not in FLAG_NAMES:
        return f"{name}={value}"
    flag = name.replace("_", "-")
    return f"--{flag} {value}" if not isinstance(value, bool) else f"--{flag}" if value else f"--no-{flag}"
