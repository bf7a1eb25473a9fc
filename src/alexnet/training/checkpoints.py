"""Checkpoints written while training goes on: when one is due, what is copied, and the thread that writes it.

The training thread stops for a copy in memory and no longer. The rest (files, checksums, the rename into place) is done
by a thread of its own, one checkpoint at a time; one more may wait, copied, for its turn. What goes wrong there is
raised in the training thread at its next step. No network is written that is not finite: a loss tells of the step
before only.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alexnet.errors import TrainingFailed, UserError
from alexnet.models.model import Network
from alexnet.run_dir import Run
from alexnet.training.config_parsing import parse_interval
from alexnet.training.distributed.base import mean_buffers
from alexnet.training.recipe import Recipe
from alexnet.training.setup import TrainSetup

# What a process asks of all of them after a step, as one number, the largest of which is agreed upon.
DUE, STOP, FAILED = 1, 100, 1000  # a checkpoint; to stop (added to a signal's number); to hear what went wrong


class Checkpoints:
    """Those of one run. In several processes all of them save, and the first one writes."""

    def __init__(self, run: Run, setup: TrainSetup) -> None:
        self.run, self.prepared, self.parallel = run, setup, setup.parallel
        self._steps, self._seconds = parse_interval(setup.recipe.checkpoint_every)
        self._threads: list[threading.Thread] = []  # one that writes, and one that waits until that is done
        self._failure: BaseException | None = None
        self._saved: tuple[int, int] | None = None  # step and epoch of the newest
        self._when = time.monotonic()

    def resume_from(self, position: TrainState) -> None:
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
        position: TrainState,
        *,
        best: bool,
        then: Callable[[], object] | None = None,
    ) -> None:
        """Copy everything, to be written once the one before is. In the first process, and its thread that writes,
        `then` is called when all is on disk. Raises what went wrong with an earlier one."""
        place = (position.step, position.epoch)
        if place == self._saved:  # nothing has happened since
            return
        whole = self.parallel.gather_model(model)
        statistics = self.parallel.buffers_state(model)
        training: dict[str, Any] = {
            "position": position.to_dict(),
            "optimizer": self.parallel.gather_optimizer(optimizer, model),
            "scaler": scaler.state_dict(),
        }
        if statistics:
            training["statistics"] = statistics

        def begin() -> None:
            for thread in self._threads[:-1]:
                thread.join()  # two copies are enough
            before = self._threads[-1:]
            self.check()
            weights = _copied({**whole.state_dict(), **mean_buffers(statistics)})
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

        self.parallel.on_rank0(begin)
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
                    f"After step {step:,} {name} is no longer finite: {divergence_advice(self.prepared.recipe)}. "
                    "The checkpoint before it is kept."
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


def divergence_advice(recipe: Recipe) -> str:
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
def wrap_write_errors(run: Path) -> Iterator[None]:
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


# ─── What `training.pt` means: where training stands, besides the weights.


def hash_samples(names: Iterable[str], targets: torch.Tensor) -> str:
    """16 hexadecimal digits of the names of pictures and their class numbers, in order: another order, or another
    picture, is another experiment."""
    found = hashlib.sha256(targets.cpu().numpy().tobytes())
    for name in names:
        found.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return found.hexdigest()[:16]


@dataclass
class TrainState:
    """Where training stands. All counts are from the beginning of the run unless said."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # finished epochs
    batch: int = 0  # batches done in the epoch after them
    seen: int = 0  # images of that epoch
    loss_sum: float = 0.0  # over those images
    hits: float = 0.0  # of those images, how many were right
    seconds: float = 0.0  # wall time spent in that epoch
    waited: float = 0.0  # of it, until the next batch was there
    processes: int = 1  # that learn from different parts of a batch
    pictures: int = 0  # training pictures that there are; 0 in what earlier versions wrote
    samples: str = ""  # `digest` of them; empty in what earlier versions wrote
    best: dict[str, Any] | None = None  # the row of the best epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.jsonl

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_training(cls, training: dict[str, Any]) -> TrainState:
        """The position in what `training.pt` holds. Raises `UserError` if it is not ours."""
        try:
            _ = training["optimizer"]["state"], training["scaler"]  # what goes on from there reads these too
            return cls(**training["position"])
        except (KeyError, TypeError) as error:
            raise UserError("The checkpoint's training.pt was written by other software or another version.") from error

    def finished(self, recipe: Recipe) -> bool:
        """Whether a run by `recipe` has no epoch left to train or to validate."""
        if self.batch:
            return False
        limit = recipe.limit_steps
        return self.epoch >= recipe.epochs or (limit is not None and self.step >= limit) or self.early_stopped(recipe)

    def early_stopped(self, recipe: Recipe) -> bool:
        """Whether the last `early_stop` epochs brought none that is better."""
        if not recipe.early_stop or self.best is None:
            return False
        return bool(self.epoch - self.best["epoch"] >= recipe.early_stop)

    def matches_summary(self, summary: dict[str, Any]) -> bool:
        """Whether a `summary.json` is that of a run which is complete here: an extension may have been killed since."""
        there = (summary.get("steps"), summary.get("epochs"))
        return bool(summary.get("complete")) and there == (self.step, len(self.history))

    def start_epoch(self) -> None:
        """Forget the sums of the epoch that has just ended."""
        self.batch = self.seen = 0
        self.loss_sum = self.hits = self.seconds = self.waited = 0.0
