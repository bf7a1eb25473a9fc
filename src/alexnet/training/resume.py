"""The settings that may differ when a run is resumed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alexnet.errors import UserError
from alexnet.training.auto_config import augmentation_settings
from alexnet.training.recipe import SETTINGS, Recipe
from alexnet.training.transfer import CHOSEN_BY_WEIGHTS


def apply_overrides(run: Path, stored: Recipe, given: Recipe, names: Iterable[str], force: bool) -> tuple[Recipe, str]:
    """Return the `stored` recipe with the settings `names` as in `given`, and a sentence on what changed (or "").

    Raises `UserError` for a setting that cannot change within a run, and, without
    `force`, for one that changes the experiment.
    """
    before, after = stored.as_dict(), given.as_dict()
    changed = [n for n in names if _comparable(n, after[n]) != _comparable(n, before[n])]

    def texts(values: dict[str, Any], names: Iterable[str]) -> str:
        return ", ".join(SETTINGS[n].as_argument(values[n]) for n in names)

    if fixed := [n for n in changed if SETTINGS[n].on_resume == "fixed"]:
        raise UserError(
            f"{run} was started with {texts(before, fixed)}, which cannot change within a run; leave out "
            f"{texts(after, fixed)}, or choose another --out."
        )
    if (other := [n for n in changed if SETTINGS[n].on_resume == "force"]) and not force:
        longer = (
            f" (to train longer: alexnet resume {run} --epochs {after['epochs']})"
            if "epochs" in other and after["epochs"] > before["epochs"]
            else ""
        )
        raise UserError(
            f"{run} was started with {texts(before, other)}; {texts(after, other)} would change "
            f"the experiment: leave it out{longer}, or add --force."
        )
    if not changed:
        return stored, ""
    sentence = f"{run} resumes with {texts(after, changed)} (before: {texts(before, changed)})."
    return stored.replace(**{n: after[n] for n in changed}), sentence


def explicit_fields(stored: Recipe, given: Recipe) -> list[str]:
    """Return the names of the settings that the complete recipe `given` sets, rather than leaves to be chosen."""
    chosen = {"name", "dataset", "auto_fields", *given.auto_fields}
    if given.schedule.time_budget is not None:
        chosen.add("epochs")
    if given.model.arch == "auto":
        chosen.add("width")
    if stored.model.weights is not None:
        chosen |= set(CHOSEN_BY_WEIGHTS)
    if stored.augmentation.level != "auto":
        chosen |= set(augmentation_settings(stored.augmentation.level, stored.model.image_size or 0))
    values = given.as_dict()
    return [name for name in values if name not in chosen and values[name] not in (None, "auto", "own")]


def _comparable(name: str, value: Any) -> Any:
    """Return a setting's value, a path as an absolute one."""
    is_path = isinstance(value, Path) or (name == "mean_image" and value not in ("none", "own"))
    return Path(value).absolute() if is_path else value
