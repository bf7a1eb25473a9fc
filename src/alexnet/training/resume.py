"""What may differ when a run is resumed: settings, the number of epochs, the environment; not the data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from alexnet.device import cpu_name, package_version
from alexnet.errors import UserError
from alexnet.files import read_json
from alexnet.progress import Progress
from alexnet.run_dir import Run
from alexnet.training.checkpoints import TrainState, hash_samples
from alexnet.training.optim import plateau_ended, schedule_at
from alexnet.training.recipe import SETTINGS, Recipe, augmentation_settings
from alexnet.training.setup import TrainSetup
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


class _Environment(TypedDict):
    """What env.json holds, among others."""

    versions: dict[str, str | None]
    cpu: str | None


def compare_environment(run: Run) -> str:
    """Return a warning about changes since the start of the run that alter last digits; "" if there are none."""
    try:
        env = read_json(run.path / "env.json", _Environment)
    except (OSError, UserError):
        return ""
    versions = {p: package_version(p) for p in ("torch", "torchvision", "numpy", "pillow")}
    now: dict[str, Any] = {**versions, "cpu": cpu_name()}
    before = {**env["versions"], "cpu": env["cpu"]}
    changes = [f"{key} {before[key]}, now {now[key]}" for key in now if before.get(key) not in (None, now[key])]
    return f"Environment changed ({'; '.join(changes)}); results may differ in the last digits." if changes else ""


def check_same_data(run: Run, setup: TrainSetup, classes: tuple[str, ...], state: TrainState, force: bool) -> None:
    """Raise `UserError` if the classes or, without `force`, the training images differ from those of the run."""
    if classes != setup.classes:
        raise UserError(
            f"The data now has {len(setup.classes)} classes ({', '.join(setup.classes[:9])}), but {run.path} was "
            f"trained on {len(classes)}: {', '.join(classes[:9])}; restore the class folders."
        )
    train = setup.dataset.splits["train"]
    now = len(train)
    if state.images not in (0, now) and not force:
        raise UserError(
            f"The data now has {now:,} training images, but {run.path} was started with {state.images:,}, so their "
            "order would change the experiment; restore them, or add --force."
        )
    if state.samples not in ("", hash_samples(train.names, train.targets)) and not force:
        raise UserError(
            f"The training images have other names or labels than when {run.path} was started, which would change the "
            "experiment; restore them, or add --force."
        )


def describe_extension(setup: TrainSetup, state: TrainState, epochs: int) -> str:
    """Return a sentence on the learning rates of an extended run."""
    rates = [
        schedule_at(setup.recipe, step, len(setup.train), state.history).lr
        for step in (state.step, epochs * len(setup.train) - 1)
    ]
    return (
        f"Extended to {epochs} epochs: the learning rate follows the {setup.recipe.schedule.kind} schedule of a run of "
        f"{epochs} epochs, from {rates[0]:.3g} now to {rates[1]:.3g} at the end."
    )


def extend(recipe: Recipe, state: TrainState, epochs: str, progress: Progress) -> Recipe:
    """Return the recipe of a run extended by `--epochs`."""
    now = state.epoch if state.finished(recipe) else recipe.schedule.epochs
    recipe = recipe.replace(epochs=_parse_epochs(epochs, now), limit_steps=None)
    if state.early_stopped(recipe):  # otherwise there would be nothing to train
        s = recipe.schedule
        cause = f"after {s.early_stop} epochs without improvement" if s.early_stop else "at its stop_error"
        progress.log(f"The run had stopped early, {cause}; early stopping is off from here on.")
        recipe = recipe.replace(early_stop=0, stop_error=0.0)
    if plateau_ended(recipe, state.history):
        progress.log(f"The run had ended at the plateau after {recipe.schedule.max_drops} drops; max_drops is off now.")
        recipe = recipe.replace(max_drops=None)
    return recipe


def _parse_epochs(text: str, now: int) -> int:
    """Return the number of epochs that `--epochs +N` or `--epochs N` means for a run of `now` epochs."""
    digits = text.removeprefix("+")
    if not digits.isdecimal() or len(digits) > 9 or int(digits) == 0:  # int() rejects 5,000 digits
        raise UserError(f"--epochs must be a number such as {now + 10}, or +10 for ten more, not '{text}'.")
    epochs = now + int(digits) if text.startswith("+") else int(digits)
    if epochs <= now:
        raise UserError(f"The run already has {now} epochs; --epochs must be larger, or +N for N more.")
    return epochs
