"""Where a run that was stopped goes on: the newest checkpoint that is whole, and what the stop left behind.

A program can be killed in any step, and a disk can damage any file, so nothing is believed that is not checked: the
checkpoints by their checksums, and the names `last` and `best` by what the checkpoints say.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet.errors import UserError
from alexnet.runs import WRITING, Run, describe, read_model, read_training, write_text
from alexnet.training.state import Position

Say = Callable[[str], object]

PATIENCE = 30.0  # seconds to wait for another process to end: what schedulers give one that they stop


@dataclass(frozen=True)
class Start:
    """The checkpoint to go on from, and whether the best one before it is lost."""

    folder: Path
    best_lost: bool

    def position(self, training: dict[str, Any]) -> Position:
        """The position in its `training.pt`, which forgets a best epoch whose weights are lost: until a better one
        comes, this one takes its place, or nothing where it stands within an epoch."""
        position = Position.from_training(training)
        if self.best_lost:
            position.best = position.history[-1] if position.history and not position.batch else None
        return position


def find_start(run: Run, say: Say) -> Start | None:
    """The newest whole checkpoint of `run`, None where it has none yet. Sets aside those that are damaged, lets `last`
    and `best` name what is there, and says so. Raises `UserError` where none of its checkpoints is whole."""
    checkpoints = run.checkpoints()
    if not checkpoints:
        run.named_checkpoint("last")  # raises where there was one
        return None
    damaged = []
    for folder in checkpoints:
        try:
            position = Position.from_training(read_training(folder))
            read_model(folder)
            break
        except (UserError, OSError) as error:
            damaged.append((folder, error))
    else:
        raise UserError(
            f"{_sentence(damaged[0][1])} None of the {len(checkpoints)} checkpoints of {run.path} is whole; delete "
            f"{run.path / 'checkpoints'} and {run.path / 'last'} to train again from the start."
        )
    for bad, why in damaged:
        say(f"{_sentence(why)} Going on from {folder.name} instead.")
        _set_aside(bad)
    lost = _mend_best(run, folder, position, say)
    if _names(run, "last") != folder.name:
        write_text(run.path / "last", folder.name + "\n")
    return Start(folder, lost)


def _mend_best(run: Run, folder: Path, position: Position, say: Say) -> bool:
    """Let `best` name the checkpoint of the best epoch in `position`. Whether it is lost."""
    if position.best is None:
        return False
    named = _names(run, "best")
    fitting = sorted(run.checkpoints(), key=lambda path: path.name != named)  # the one that is named first
    why = ""
    for path in fitting:
        try:
            told = describe(path)
            if (told.get("step"), told.get("epoch")) != (position.best["step"], position.best["epoch"]):
                continue
            read_model(path)
        except (UserError, OSError) as error:
            if path.name == named:
                why = _sentence(error)
                _set_aside(path)
            continue
        if path.name != named:
            write_text(run.path / "best", path.name + "\n")
        return False
    if position.history and not position.batch:
        write_text(run.path / "best", folder.name + "\n")
        instead = f"epoch {position.history[-1]['epoch']}, the last one, takes its place until a better one comes"
    else:
        (run.path / "best").unlink(missing_ok=True)
        instead = "the next epoch takes its place"
    if why:  # else it was later than the checkpoint to go on from, and will be made again
        say(f"{why} It was the best one; {instead}.")
    return True


def _names(run: Run, which: str) -> str | None:
    try:
        return (run.path / which).read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None


def _set_aside(folder: Path) -> None:
    """Take a damaged checkpoint out of the list; it is dropped when the next one is written."""
    aside = folder.with_name(f".damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith(".") else f"{text}."


def tidy(run: Run) -> None:
    """Remove what was not whole yet when a process was killed."""
    for path in [*run.path.rglob(f"*{WRITING}"), *run.path.glob(f"checkpoints/{WRITING}-*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith("."):
            path.unlink(missing_ok=True)


class Alone:
    """Holds a run folder for one process at a time. The system lets go of it when the process ends, however it ends."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._held: int | None = None

    def take(self, say: Say, patience: float = PATIENCE) -> None:
        """Wait for another process that trains this run to end. Raises `UserError` if it does not."""
        try:
            import fcntl
        except ImportError:  # Windows
            return
        handle = os.open(self.run.path, os.O_RDONLY)
        until = time.monotonic() + patience
        told = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"Another process trains {self.run.path}; waiting up to {patience:.0f} s for it to end.")
                told = True
                if time.monotonic() >= until:
                    os.close(handle)
                    raise UserError(
                        f"{self.run.path} is being trained by another process; stop that one first, or wait for it."
                    ) from None
                time.sleep(0.1)
            except OSError:  # a file system without locks
                os.close(handle)
                return
        self._held = handle
        # processes that read pictures are copies of this one, and may outlive it for seconds
        os.register_at_fork(after_in_child=self.let_go)

    def let_go(self) -> None:
        """Let others have it."""
        if self._held is not None:
            os.close(self._held)
            self._held = None
