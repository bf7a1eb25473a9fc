"""What resuming a run needs: its lock, its latest valid checkpoint, and the settings that may differ this time.

A process can be killed at any step and a disk can damage any file, so everything is verified:
checkpoints by their checksums, and the names in `last` and `best` by what the checkpoints contain.
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
from alexnet.training.auto_config import augmentation_settings
from alexnet.training.checkpoints import TrainState
from alexnet.training.recipe import FLAG_NAMES, Recipe

Log = Callable[[str], object]

# ── one process per run ───────────────────────────────────────────────────────────────────────────────────────

LOCK = ".lock"  # in the run folder while a process trains it
LOCK_TIMEOUT_S = 30.0  # the grace period that schedulers give a process before they kill it


class RunLock:
    """An exclusive lock on a run folder. The system releases it when the process ends, however it ends."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._handle: int | None = None

    def acquire(self, log: Log, timeout: float = LOCK_TIMEOUT_S) -> None:
        """Wait up to `timeout` seconds for another process that trains this run. Raises `UserError` after that."""
        deadline = time.monotonic() + timeout
        logged = False
        while True:
            try:
                handle = _try_lock(self.run.path / LOCK)
            except ImportError:  # Windows
                return
            except OSError as error:
                if os.access(self.run.path, os.W_OK):  # otherwise no process can train here
                    why = error.strerror or error
                    log(f"{self.run.path} cannot be locked ({why}): make sure that no other process is training it.")
                return
            if handle is not None:
                break
            if not logged:
                log(f"Another process is training {self.run.path}; waiting up to {timeout:.0f} s.")
            logged = True
            if time.monotonic() >= deadline:
                raise UserError(
                    f"{self.run.path} is being trained by another process; stop that process, or wait for it."
                )
            time.sleep(0.1)
        self._handle = handle
        # data-loading workers are forks of this process and may outlive it by seconds
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Remove the lock file and release the lock."""
        if self._handle is not None:
            with suppress(OSError):
                (self.run.path / LOCK).unlink()  # before releasing: the next process sees that its file is gone
            self._close()

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _try_lock(path: Path) -> int | None:
    """Create and lock the file `path` and return its handle; None if another process holds the
    lock or has just removed the file. Raises `OSError` where the file system has no locks."""
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)  # NFS locks only files open for writing
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


# ── the checkpoint to resume from ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ResumePoint:
    """A valid checkpoint folder, and whether the best checkpoint before it is lost."""

    folder: Path
    best_lost: bool

    def state(self, training: dict[str, Any]) -> TrainState:
        """Return the training state in its `training.pt`. If the weights of the best epoch are lost, the last
        epoch replaces it until a better one comes, or nothing does if the checkpoint lies within an epoch."""
        state = TrainState.from_training(training)
        if self.best_lost:
            state.best = state.history[-1] if state.history and not state.batch else None
        return state


def find_latest_valid(run: Run, log: Log) -> ResumePoint | None:
    """Return the newest checkpoint of `run` that passes verification; None if it has no checkpoint yet.

    Damaged checkpoints are quarantined and logged, and `last` and `best` are corrected.
    Raises `UserError` if all checkpoints are damaged.
    """
    checkpoints = run.checkpoints()
    if not checkpoints:
        run.named_checkpoint("last")  # raises if there was one
        return None
    damaged = []
    for folder in checkpoints:
        try:
            with _wrap_read_errors(folder):
                state = TrainState.from_training(read_training_state(folder))
                load_checkpoint(folder)
            break
        except CheckpointUnreadable:
            raise
        except UserError as error:
            damaged.append((folder, error))
    else:
        raise UserError(
            f"{_sentence(damaged[0][1])} All {len(checkpoints)} checkpoints of {run.path} are damaged; delete "
            f"{run.path / 'checkpoints'} and {run.path / 'last'} to train again from the start."
        )
    if damaged:
        check_writable(run)
    for bad, why in damaged:
        log(f"{_sentence(why)} Resuming from {folder.name} instead.")
        _quarantine(bad)
    best_lost = _repair_best(run, folder, state, log)
    if run.checkpoint_name("last") != folder.name:
        _write_name(run, "last", folder)
    return ResumePoint(folder, best_lost)


def _repair_best(run: Run, folder: Path, state: TrainState, log: Log) -> bool:
    """Make `best` name the checkpoint of the best epoch in `state`. Return whether that checkpoint is lost."""
    if state.best is None:
        return False
    named = run.checkpoint_name("best")
    why = ""
    for path in sorted(run.checkpoints(), key=lambda path: path.name != named):  # the named one first
        try:
            with _wrap_read_errors(path):
                model_json = read_model_json(path)
                if (model_json.get("step"), model_json.get("epoch")) != (state.best["step"], state.best["epoch"]):
                    continue
                load_checkpoint(path)
        except CheckpointUnreadable:
            raise
        except UserError as error:
            if path.name == named:
                why = _sentence(error)
                check_writable(run)
                _quarantine(path)
            continue
        if path.name != named:
            _write_name(run, "best", path)
        return False
    if state.history and not state.batch:
        _write_name(run, "best", folder)
        instead = f"epoch {state.history[-1]['epoch']}, the last one, replaces it until a better one comes"
    else:
        check_writable(run)
        (run.path / "best").unlink(missing_ok=True)
        instead = "the next epoch replaces it"
    if why:  # otherwise it is newer than the checkpoint to resume from, and will be written again
        log(f"{why} It was the best one; {instead}.")
    return True


@contextmanager
def _wrap_read_errors(folder: Path) -> Iterator[None]:
    """Turn an `OSError` into `CheckpointUnreadable`: a read error may be temporary and is no proof of damage."""
    try:
        yield
    except OSError as error:
        raise CheckpointUnreadable(folder, error) from error


def check_writable(run: Run) -> None:
    """Raise `UserError` if the run folder or its checkpoint folder is not writable."""
    for folder in (run.path, run.path / "checkpoints"):
        if folder.exists() and not os.access(folder, os.W_OK):
            raise UserError(f"{folder} is not writable; change its permissions, or resume a copy of {run.path}.")


def _write_name(run: Run, which: str, folder: Path) -> None:
    check_writable(run)
    write_text(run.path / which, folder.name + "\n")


def _quarantine(folder: Path) -> None:
    """Rename a damaged checkpoint so that it is no longer listed; it is deleted when the run is complete."""
    target = folder.with_name(f"{QUARANTINED}{folder.name}")
    while target.exists():
        target = target.with_name(target.name + "a")
    folder.rename(target)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith(".") else f"{text}."


def remove_partial_files(run: Run) -> None:
    """Remove files and checkpoints that a killed process left half-written."""
    for path in [*run.path.rglob(f"*{PARTIAL}"), *run.path.glob(f"checkpoints/{PARTIAL}-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("."):
            path.unlink(missing_ok=True)


# ── settings that differ from those the run was started with ──────────────────────────────────────────────────

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
