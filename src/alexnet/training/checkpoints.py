"""Checkpoints written while training goes on: when one is due, what is copied, and the thread that writes it.

The training thread stops for a copy in memory and no longer. The rest (files, checksums, the rename into place) is done
by a thread of its own, one checkpoint at a time; one more may wait, copied, for its turn. What goes wrong there is
raised in the training thread at its next step. No network is written that is not finite: a loss tells of the step
before only.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alexnet.errors import TrainingFailed
from alexnet.networks.model import Network
from alexnet.runs import Run
from alexnet.training.parallel import mean_of
from alexnet.training.prepare import Prepared
from alexnet.training.recipe import Recipe
from alexnet.training.settings import interval_of
from alexnet.training.state import Position

# What a process asks of all of them after a step, as one number, the largest of which is agreed upon.
DUE, STOP, FAILED = 1, 100, 1000  # a checkpoint; to stop (added to a signal's number); to hear what went wrong


class Checkpoints:
    """Those of one run. In several processes all of them save, and the first one writes."""

    def __init__(self, run: Run, prepared: Prepared) -> None:
        self.run, self.prepared, self.parallel = run, prepared, prepared.parallel
        self._steps, self._seconds = interval_of(prepared.recipe.checkpoint_every)
        self._threads: list[threading.Thread] = []  # one that writes, and one that waits until that is done
        self._failure: BaseException | None = None
        self._saved: tuple[int, int] | None = None  # step and epoch of the newest
        self._when = time.monotonic()

    def begin_at(self, position: Position) -> None:
        """Training goes on from the checkpoint of `position`."""
        self._saved = (position.step, position.epoch)

    @property
    def failed(self) -> bool:
        """Whether there is something for `check` to raise."""
        return self._failure is not None

    def due(self, step: int) -> bool:
        """Whether to save within the epoch, after `step`; not as long as the one before is being written."""
        if any(thread.is_alive() for thread in self._threads):
            return False
        if self._steps is not None:
            return step // self._steps > (self._saved[0] if self._saved else 0) // self._steps
        return self._seconds is not None and time.monotonic() - self._when >= self._seconds

    def save(
        self,
        model: Network,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        position: Position,
        *,
        best: bool,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Copy everything, to be written once the one before is. In the first process, and its thread that writes,
        `then` is called when all is on disk. Raises what went wrong with an earlier one."""
        place = (position.step, position.epoch)
        if place == self._saved:  # nothing has happened since
            return
        whole = self.parallel.whole(model)
        statistics = self.parallel.statistics(model)
        training: dict[str, Any] = {
            "position": position.to_dict(),
            "optimizer": self.parallel.whole_optimizer(optimizer, model),
            "scaler": scaler.state_dict(),
        }
        if statistics:
            training["statistics"] = statistics

        def begin() -> None:
            for thread in self._threads[:-1]:
                thread.join()  # two copies are enough
            before = self._threads[-1:]
            self.check()
            weights = _copied({**whole.state_dict(), **mean_of(statistics)})
            write = partial(
                self.run.save_checkpoint,
                model=whole,
                classes=self.prepared.classes,
                preprocess=self.prepared.preprocess,
                step=position.step,
                epoch=position.epoch,
                training=_copied(training),
                best=best,
                weights=weights,
                keep=self.prepared.recipe.keep_checkpoints,
            )
            steps = (partial(self._check_finite, weights, position.step), write, then or (lambda: None))
            thread = threading.Thread(target=self._write, args=(before, position.step, *steps), name="checkpoint")
            self._threads = [*before, thread]
            thread.start()

        self.parallel.first(begin)
        self._saved, self._when = place, time.monotonic()

    def check(self) -> None:
        """Raise what went wrong in the thread that writes."""
        failure, self._failure = self._failure, None
        try:
            if failure is not None:
                raise failure
        finally:
            del failure  # which would hold on to this frame, and so to the processes that read pictures

    def wait(self) -> None:
        """Wait until what was begun is on disk. Raises what went wrong."""
        self.close()
        self.check()

    def close(self) -> None:
        """Wait until what was begun is on disk, or is known not to be."""
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _check_finite(self, weights: dict[str, torch.Tensor], step: int) -> None:
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise TrainingFailed(
                    f"After step {step:,} {name} is no longer finite: {too_high(self.prepared.recipe)}. The checkpoint "
                    "before it is kept."
                )

    def _write(self, before: list[threading.Thread], step: int, *parts: Callable[[], object]) -> None:
        for thread in before:
            thread.join()
        if self.failed:
            return
        try:
            for part in parts:
                part()
        except OSError as error:
            why = error.strerror or error
            self._failure = TrainingFailed(
                f"The checkpoint after step {step:,} could not be written to {self.run.path}: {why}; make room, then "
                f"'alexnet resume {self.run.path}' goes on from the one before."
            )
            self._failure.__cause__ = error
        except BaseException as error:
            self._failure = error


def too_high(recipe: Recipe) -> str:
    """Why numbers stop being finite, and what helps."""
    return f"the learning rate is too high for this network; try --lr {recipe.lr / 3:.2g} or --set clip_norm=1"


def _copied(value: Any) -> Any:
    """`value` with its tensors copied into memory of their own on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(entry) for entry in value)
    return value


@contextmanager
def saying_where(run: Path) -> Iterator[None]:
    """A context in which a run folder that cannot be written ends training with a sentence."""
    try:
        yield
    except OSError as error:
        inside = isinstance(error.filename, str) and Path(error.filename).is_relative_to(run)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS) or inside:
            raise TrainingFailed(
                f"{run} cannot be written: {error.strerror or error}; make room or give it back, then "
                f"'alexnet resume {run}' goes on from the last checkpoint."
            ) from error
        raise
