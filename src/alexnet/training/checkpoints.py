"""Checkpoints during training: the position they hold, writing them in the background, and finding them again.

The training thread only waits for a copy in memory. A separate thread writes the files and
checksums and renames them into place, one checkpoint at a time; one more copy may be queued. Its
errors are raised in the training thread at the next step. Weights that are not finite are never
written: the loss only describes the weights before the step.

A process can be killed at any step and a disk can damage any file, so everything is verified when a
run resumes: checkpoints by their checksums, and the names in `last` and `best` by what the
checkpoints contain.
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
from pathlib import Path
from typing import Any

# Here, not in the writing thread, which writes Parquet: scikit-learn, asked for metrics meanwhile by the main thread,
# would find pyarrow half imported in sys.modules and raise AttributeError.
import pyarrow.parquet  # noqa: F401
import torch

from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.errors import TrainingFailed, UserError
from alexnet.run_dir import Run
from alexnet.training.optim import plateau_ended
from alexnet.training.recipe import Recipe, parse_interval
from alexnet.training.setup import TrainSetup
from alexnet.training.step import TrainStep


@dataclass
class TrainState:
    """Where training stands, stored in `training.pt` as "position". Counts start at the beginning of the run."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # finished epochs
    batch: int = 0  # batches done in the current epoch
    seen: int = 0  # images of the current epoch
    loss_sum: float = 0.0  # over those images
    hits: float = 0.0  # correct predictions among them
    seconds: float = 0.0  # wall time spent in the current epoch
    waited: float = 0.0  # part of it spent waiting for batches
    processes: int = 1  # processes that share each batch
    threads: int = 0  # threads of each of them; 0: unknown
    images: int = 0  # training images
    samples: str = ""  # `hash_samples` of them
    best: dict[str, Any] | None = None  # row of the best epoch
    history: list[dict[str, Any]] = field(default_factory=list)  # rows of metrics.jsonl

    @classmethod
    def from_training(cls, training: dict[str, Any]) -> TrainState:
        """Read the state from the content of `training.pt`. Raises `UserError` if other software wrote it."""
        try:
            _ = training["optimizer"]["state"], training["scaler"]  # resuming reads these too
            return cls(**training["position"])
        except (KeyError, TypeError) as error:
            raise UserError("The checkpoint's training.pt was written by other software or another version.") from error

    def finished(self, recipe: Recipe) -> bool:
        """Whether a run by `recipe` has no epoch left to train or to validate."""
        if self.batch:
            return False
        epochs, limit = recipe.schedule.epochs, recipe.schedule.limit_steps
        if self.epoch >= epochs or (limit is not None and self.step >= limit):
            return True
        return self.early_stopped(recipe) or plateau_ended(recipe, self.history)

    def early_stopped(self, recipe: Recipe) -> bool:
        """Whether none of the last `early_stop` epochs was better than the best before them, or the training error
        has fallen to `stop_error`."""
        if self.best is None or not self.history:  # no epoch yet, but perhaps a fitted last layer
            return False
        schedule = recipe.schedule
        idle = schedule.early_stop and self.epoch - self.best["epoch"] >= schedule.early_stop
        reached = schedule.stop_error and 1 - self.history[-1]["train_top1"] <= schedule.stop_error
        return bool(idle or reached)

    def matches_summary(self, summary: dict[str, Any]) -> bool:
        """Whether `summary.json` describes a run complete at this state; a killed extension leaves the old summary."""
        counts = (summary.get("steps"), summary.get("epochs"))
        return bool(summary.get("complete")) and counts == (self.step, len(self.history))

    def end_epoch(self, row: dict[str, Any], *, is_best: bool) -> None:
        """Add the epoch's line of metrics.jsonl and reset its sums."""
        self.epoch += 1
        self.history.append(row)
        self.best = row if is_best else self.best
        self.batch = self.seen = 0
        self.loss_sum = self.hits = self.seconds = self.waited = 0.0


def hash_samples(names: Iterable[str], targets: torch.Tensor) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of image names and class indices, in order.

    Other images or another order make another experiment.
    """
    sha256 = hashlib.sha256(targets.cpu().numpy().tobytes())
    for name in names:
        sha256.update(name.encode("utf-8", "surrogateescape") + b"\0")
    return sha256.hexdigest()[:16]


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


class Checkpoints:
    """The checkpoints of one run. All processes call `save`; rank 0 writes."""

    def __init__(self, run: Run, setup: TrainSetup) -> None:
        self.run, self.setup, self.parallel = run, setup, setup.parallel
        self._every_steps, self._every_seconds = parse_interval(setup.recipe.run.checkpoint_every)
        # The thread that writes, and one that waits for it. They end, since the OpenMP threads of a living one would
        # share the cores with those of training, which then sleep at every barrier: 5 to 10 % slower on two cores.
        self._writing: list[threading.Thread] = []
        self._error: BaseException | None = None
        self._saved: tuple[int, int] | None = None  # step and epoch of the newest checkpoint
        self._saved_at = time.monotonic()

    def resume_from(self, state: TrainState) -> None:
        """Count from the checkpoint that holds `state`."""
        self._saved = (state.step, state.epoch)

    @property
    def failed(self) -> bool:
        """Whether `check` would raise."""
        return self._error is not None

    def due(self, step: int) -> bool:
        """Whether to save within the epoch, after `step`; never while another checkpoint is being written."""
        if any(thread.is_alive() for thread in self._writing):
            return False
        if self._every_steps is not None:
            return step // self._every_steps > (self._saved[0] if self._saved else 0) // self._every_steps
        return self._every_seconds is not None and time.monotonic() - self._saved_at >= self._every_seconds

    def save(
        self, trained: TrainStep, state: TrainState, *, best: bool, then: Callable[[], object] | None = None
    ) -> None:
        """Copy everything to the CPU and write it in the background, after the checkpoint before it.

        Does nothing if no step was taken since the last one. On rank 0 the writing thread calls
        `then` once all files are on disk. Raises the error of an earlier checkpoint.
        """
        key = (state.step, state.epoch)
        if key == self._saved:
            return
        full = self.parallel.state_dict(trained.model, trained.optimizer)
        full |= {"position": dataclasses.asdict(state), "scaler": trained.scaler.state_dict()}

        def start() -> None:
            for thread in self._writing[:-1]:
                thread.join()  # two copies are enough
            self.check()
            training = _copy_to_cpu(full)
            weights = training.pop("model")

            def write() -> None:
                self._check_finite(weights, key[0])
                self.run.save_checkpoint(
                    model=trained.model,
                    classes=self.setup.classes,
                    preprocess=self.setup.preprocess,
                    step=key[0],
                    epoch=key[1],
                    training=training,
                    weights=weights,
                    best=best,
                    keep=self.setup.recipe.run.keep_checkpoints,
                )
                if then is not None:
                    then()

            earlier = self._writing[-1:]
            thread = threading.Thread(target=self._keep_error, args=(earlier, key[0], write), name="checkpoint")
            self._writing = [*earlier, thread]
            thread.start()

        self.parallel.broadcast_object(start)
        self._saved, self._saved_at = key, time.monotonic()

    def check(self) -> None:
        """Raise the writing thread's error, if any."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame, and so the worker processes

    def wait(self) -> None:
        """Wait until every started checkpoint is on disk. Raises the writing thread's error."""
        self.close()
        self.check()

    def close(self) -> None:
        """Wait until every started checkpoint is written or has failed."""
        for thread in self._writing:
            thread.join()

    def _check_finite(self, weights: dict[str, torch.Tensor], step: int) -> None:
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise TrainingFailed(
                    f"After step {step:,} {name} is no longer finite: {divergence_advice(self.setup.recipe)}. "
                    "The previous checkpoint is kept."
                )

    def _keep_error(self, earlier: list[threading.Thread], step: int, write: Callable[[], None]) -> None:
        """Call `write` after the threads `earlier`, unless a checkpoint has failed; `check` raises its error."""
        for thread in earlier:
            thread.join()
        if self.failed:
            return
        try:
            write()
        except OSError as error:
            self._error = TrainingFailed(
                f"The checkpoint after step {step:,} could not be written to {self.run.path}: "
                f"{error.strerror or error}; free some space, then 'alexnet resume {self.run.path}' continues from the "
                "previous checkpoint."
            )
            self._error.__cause__ = error
        except BaseException as error:
            self._error = error


def _copy_to_cpu(value: Any) -> Any:
    """Return `value` with every tensor in it copied to the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copy_to_cpu(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copy_to_cpu(entry) for entry in value)
    return value


def divergence_advice(recipe: Recipe) -> str:
    """Return why a loss or weight stops being finite, and what helps."""
    lr = recipe.optimization.lr / 3
    return f"the learning rate is too high for this network; try --lr {lr:.2g} or --set clip_norm=1"


@contextmanager
def wrap_write_errors(run: Path) -> Iterator[None]:
    """Raise `TrainingFailed` instead of an `OSError` that means the run, or the file it names, cannot be written.

    A read-only file system without a file's name is none of these: it may be shared memory.
    """
    try:
        yield
    except OSError as error:
        named = Path(error.filename).absolute() if isinstance(error.filename, str) else None
        inside = named is not None and named.is_relative_to(run.absolute())
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if inside or full or (named is not None and error.errno == errno.EROFS):
            raise TrainingFailed(
                f"{run if inside or named is None else named} cannot be written: {error.strerror or error}; free some "
                f"space or restore it, then 'alexnet resume {run}' continues from the last checkpoint."
            ) from error
        raise


# ── finding them again ────────────────────────────────────────────────────────────────────────────


def find_latest_valid(run: Run, log: Callable[[str], object]) -> tuple[Path, TrainState] | None:
    """Return the newest undamaged checkpoint of `run` and its training state; None if it has no checkpoint yet.

    Damaged checkpoints are quarantined and logged, and `last` and `best` are corrected. If the
    weights of the best epoch are lost, the last epoch replaces it until a better one comes, or
    nothing does if the checkpoint lies within an epoch. Raises `UserError` if all checkpoints are
    damaged.
    """
    checkpoints = run.checkpoints()
    if not checkpoints:
        run.named_checkpoint("last")  # raises if there was one
        return None
    newest = state = best = None
    damaged: dict[Path, str] = {}
    for folder in checkpoints:
        try:
            found = state or TrainState.from_training(read_training_state(folder))
            saved = load_checkpoint(folder)
        except OSError as error:  # may be temporary, and is no proof of damage
            raise UserError(
                f"{folder} cannot be read ({error.strerror or error}); it may still be intact: "
                "try again once it can be read."
            ) from error
        except UserError as error:
            damaged[folder] = str(error).removesuffix(".") + "."
            continue
        newest, state = newest or folder, found
        if state.best is not None and (saved.step, saved.epoch) == (state.best["step"], state.best["epoch"]):
            best = best or folder
    if newest is None or state is None:
        raise UserError(
            f"{damaged[checkpoints[0]]} All {len(checkpoints)} checkpoints of {run.path} are damaged; delete "
            f"{run.path / 'checkpoints'} and {run.path / 'last'} to train again from the start."
        )
    instead, named = "", run.checkpoint_name("best")
    if state.best is not None and best is None and state.history and not state.batch:
        state.best, best = state.history[-1], newest
        instead = f"epoch {state.best['epoch']}, the last one, replaces it until a better one comes"
    elif best is None:
        state.best, instead = None, "the next epoch replaces it"
    names = {"last": newest.name, "best": best.name if best else None}
    if damaged or any(run.checkpoint_name(which) != name for which, name in names.items()):
        run.check_writable()
    for folder, why in damaged.items():
        if folder.name > newest.name:
            why += f" Resuming from {newest.name} instead."
        elif instead and folder.name == named:
            why += f" It was the best one; {instead}."
        log(why)
        run.quarantine(folder)
    for which, name in names.items():
        run.name_checkpoint(which, name)
    return newest, state
