"""Where a run that was stopped goes on: the newest checkpoint that is whole, and what the stop left behind.

A program can be killed in any step, and a disk can damage any file, so nothing is believed that is not checked: the
checkpoints by their checksums, and the names `last` and `best` by what the checkpoints say.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.checkpoint import CheckpointUnreadable, load_checkpoint, read_model_json, read_training_state
from alexnet.errors import UserError
from alexnet.files import PARTIAL, write_text
from alexnet.run_dir import QUARANTINED, Run
from alexnet.training.auto_config import augmentation
from alexnet.training.checkpoints import TrainState
from alexnet.training.recipe import FLAG_NAMES, Recipe

Say = Callable[[str], object]

LOCK = ".lock"  # in the run folder while a process trains it
PATIENCE = 30.0  # seconds to wait for another process to end: what schedulers give one that they stop


@dataclass(frozen=True)
class Start:
    """The checkpoint to go on from, and whether the best one before it is lost."""

    folder: Path
    best_lost: bool

    def position(self, training: dict[str, Any]) -> TrainState:
        """The position in its `training.pt`, which forgets a best epoch whose weights are lost: until a better one
        comes, this one takes its place, or nothing where it stands within an epoch."""
        position = TrainState.from_training(training)
        if self.best_lost:
            position.best = position.history[-1] if position.history and not position.batch else None
        return position


def find_latest_valid(run: Run, say: Say) -> Start | None:
    """The newest whole checkpoint of `run`, None where it has none yet. Sets aside those that are damaged, lets `last`
    and `best` name what is there, and says so. Raises `UserError` where none of its checkpoints is whole."""
    checkpoints = run.checkpoints()
    if not checkpoints:
        run.named_checkpoint("last")  # raises where there was one
        return None
    damaged = []
    for folder in checkpoints:
        try:
            with _reading(folder):
                position = TrainState.from_training(read_training_state(folder))
                load_checkpoint(folder)
            break
        except CheckpointUnreadable:
            raise
        except UserError as error:
            damaged.append((folder, error))
    else:
        raise UserError(
            f"{_sentence(damaged[0][1])} None of the {len(checkpoints)} checkpoints of {run.path} is whole; delete "
            f"{run.path / 'checkpoints'} and {run.path / 'last'} to train again from the start."
        )
    if damaged:
        check_writable(run)
    for bad, why in damaged:
        say(f"{_sentence(why)} Going on from {folder.name} instead.")
        _set_aside(bad)
    lost = _mend_best(run, folder, position, say)
    if run.name_in("last") != folder.name:
        _name(run, "last", folder)
    return Start(folder, lost)


def _mend_best(run: Run, folder: Path, position: TrainState, say: Say) -> bool:
    """Let `best` name the checkpoint of the best epoch in `position`. Whether it is lost."""
    if position.best is None:
        return False
    named = run.name_in("best")
    fitting = sorted(run.checkpoints(), key=lambda path: path.name != named)  # the one that is named first
    why = ""
    for path in fitting:
        try:
            with _reading(path):
                told = read_model_json(path)
                if (told.get("step"), told.get("epoch")) != (position.best["step"], position.best["epoch"]):
                    continue
                load_checkpoint(path)
        except CheckpointUnreadable:
            raise
        except UserError as error:
            if path.name == named:
                why = _sentence(error)
                check_writable(run)
                _set_aside(path)
            continue
        if path.name != named:
            _name(run, "best", path)
        return False
    if position.history and not position.batch:
        _name(run, "best", folder)
        instead = f"epoch {position.history[-1]['epoch']}, the last one, takes its place until a better one comes"
    else:
        check_writable(run)
        (run.path / "best").unlink(missing_ok=True)
        instead = "the next epoch takes its place"
    if why:  # else it was later than the checkpoint to go on from, and will be made again
        say(f"{why} It was the best one; {instead}.")
    return True


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """A context in which a read error condemns no checkpoint: it may pass, and the file be whole."""
    try:
        yield
    except OSError as error:
        raise CheckpointUnreadable(folder, error) from error


def check_writable(run: Run) -> None:
    """Raise `UserError` where the run folder, or that of its checkpoints, cannot be written."""
    for folder in (run.path, run.path / "checkpoints"):
        if folder.exists() and not os.access(folder, os.W_OK):
            raise UserError(f"{folder} cannot be written by you; make it writable, or go on with a copy of {run.path}.")


def _name(run: Run, which: str, folder: Path) -> None:
    check_writable(run)
    write_text(run.path / which, folder.name + "\n")


def _set_aside(folder: Path) -> None:
    """Take a damaged checkpoint out of the list; it is dropped when the run is complete."""
    aside = folder.with_name(f"{QUARANTINED}{folder.name}")
    while aside.exists():
        aside = aside.with_name(aside.name + "a")
    folder.rename(aside)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith(".") else f"{text}."


def remove_partial_files(run: Run) -> None:
    """Remove what was not whole yet when a process was killed."""
    for path in [*run.path.rglob(f"*{PARTIAL}"), *run.path.glob(f"checkpoints/{PARTIAL}-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("."):
            path.unlink(missing_ok=True)


class RunLock:
    """Holds a run folder for one process at a time. The system lets go of it when the process ends, however it ends."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._held: int | None = None

    def acquire(self, say: Say, patience: float = PATIENCE) -> None:
        """Wait for another process that trains this run to end. Raises `UserError` if it does not."""
        until = time.monotonic() + patience
        told = False
        while True:
            try:
                handle = _locked(self.run.path / LOCK)
            except ImportError:  # Windows
                return
            except OSError as error:
                if os.access(self.run.path, os.W_OK):  # else nobody trains here
                    why = error.strerror or error
                    say(f"{self.run.path} cannot be locked ({why}): see to it that no other process trains it.")
                return
            if handle is not None:
                break
            if not told:
                say(f"Another process trains {self.run.path}; waiting up to {patience:.0f} s for it to end.")
            told = True
            if time.monotonic() >= until:
                raise UserError(
                    f"{self.run.path} is being trained by another process; stop that one first, or wait for it."
                )
            time.sleep(0.1)
        self._held = handle
        # processes that read pictures are copies of this one, and may outlive it for seconds
        os.register_at_fork(after_in_child=self._forget)

    def release(self) -> None:
        """Let others have it."""
        if self._held is not None:
            with suppress(OSError):
                (self.run.path / LOCK).unlink()  # while it is held: who gets it next sees that it is gone
            self._forget()

    def _forget(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def _locked(path: Path) -> int | None:
    """A handle of the file `path`, which it locks; None where another process holds it, or has just removed it.
    Raises `OSError` where nothing can be locked."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # for writing: NFS locks nothing else
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.stat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return None


# ─── What a run goes on with where another setting is asked for than the one it began with.

FREE = frozenset(
    {"data", "labels", "device", "workers", "parallel", "compile", "tensorboard", "checkpoint_every",
     "keep_checkpoints", "in_memory", "deterministic", "num_classes", "dist_timeout"}
)  # fmt: skip
"""Settings that leave the experiment as it is. A device, compiling and where pictures are kept change last digits."""

FIXED = frozenset(
    {"arch", "image_size", "norm", "init", "activation", "width", "dropout", "spec_edits", "weights", "freeze",
     "backbone_lr_mult", "dropout_2012", "optimizer", "batch_size", "seed", "validate_on", "mean", "std", "mean_image",
     "squash", "crop_pct", "time_budget", "name", "dataset"}
)  # fmt: skip
"""Settings that the network, the split, the order of the pictures or the number of epochs has been made from."""

PATHS = ("data", "labels", "mean_image")


def apply_overrides(run: Path, stored: Recipe, wanted: Recipe, names: Iterable[str], force: bool) -> tuple[Recipe, str]:
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


def explicit_fields(stored: Recipe, wanted: Recipe) -> list[str]:
    """The settings that the whole recipe `wanted` sets, and does not leave to be chosen from data and machine."""
    left = {"name", "dataset", "auto_fields", *wanted.auto_fields}
    if wanted.time_budget is not None:
        left.add("epochs")
    if wanted.arch == "auto":
        left.add("width")
    if stored.weights is not None:
        left |= {"arch", "image_size", "width", "dropout", "mean", "std", "mean_image", "backbone_lr_mult"}
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
