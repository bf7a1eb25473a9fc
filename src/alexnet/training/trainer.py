"""Training of a network: prepared data and a recipe in, a run folder with a trained network out.

A step (`step.py`) depends only on the recipe and the step's number, including the order of the
images. Resuming therefore means: load weights, momentum and `TrainState`, and continue with the
next step. The trainer does not know the command line, the kind of dataset, or the architecture.

Read `Trainer.fit`, then `train_epoch`, `step`, `evaluate`, `save` and `finish`.
"""

from __future__ import annotations

import json
import math
import shlex
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from enum import IntEnum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from alexnet.checkpoint import load_checkpoint, update_model_json
from alexnet.data.loader import Batch
from alexnet.device import peak_memory, rank
from alexnet.errors import ShownAsMessage, TrainingFailed, UserError, WorkerDied
from alexnet.files import write_json, write_text
from alexnet.inference.evaluate import Outputs, run_networks
from alexnet.models.model import Network
from alexnet.progress import Position, Progress
from alexnet.run_dir import Run
from alexnet.runtimes import calibration
from alexnet.signals import StopSignal
from alexnet.training.checkpoints import Checkpoints, TrainState, divergence_advice, hash_samples, wrap_write_errors
from alexnet.training.diagnostics import all_alarms, dead_relus, lrn_warning, save_image_grid
from alexnet.training.distributed.base import read_together
from alexnet.training.distributed.data_parallel import average_batch_norm, batch_norm_warning
from alexnet.training.optim import Hyperparameters, schedule_at
from alexnet.training.recipe import Recipe
from alexnet.training.setup import TrainSetup
from alexnet.training.step import TrainStep
from alexnet.training.threads import ThreadChoice
from alexnet.training.time_budget import TOLERANCE, TimeBudget, with_plan

PROGRESS_S = 1.0  # seconds between writes of progress.json, for the page of the run
LOG_EVERY = 20  # steps between reads of the loss: each read waits for the device
AUGMENTED_IMAGES = 32  # images in augmented.png
EVAL_GRACE_S = 5.0  # seconds an evaluation continues after a stop signal; schedulers kill after 30
DEAD_RELU_IMAGES = 128  # validation images on which dead ReLUs are counted


class Action(IntEnum):
    """What a process requests of all processes after a step; the largest of all requests wins."""

    CONTINUE = 0
    SAVE = 1  # a checkpoint is due
    STOP = 2  # a signal was received
    RAISE = 3  # writing a checkpoint has failed


class Trainer:
    """Trains one run; `fit` trains to the end and returns the content of `summary.json`."""

    def __init__(
        self,
        setup: TrainSetup,
        run: Run,
        model: Network,
        progress: Progress,
        budget: TimeBudget | None = None,
        threads: ThreadChoice | None = None,
    ) -> None:
        self.setup, self.recipe, self.run, self.progress = setup, setup.recipe, run, progress
        self.device, self.parallel, self.budget = setup.device, setup.parallel, budget
        self.threads = threads  # None: their number stays
        self.parameters = sum(t.numel() for t in model.parameters())
        self.train_step = TrainStep(setup, model)
        self.model, self.optimizer = self.train_step.model, self.train_step.optimizer
        train = setup.dataset.splits["train"]
        self.state = TrainState(images=len(train), samples=hash_samples(train.names, train.targets))
        self.state.processes, self.state.threads = self.parallel.shard.world_size, torch.get_num_threads()
        self.resumed = False
        self.pending: list[torch.Tensor] = []  # (loss, hits) of steps, still on the device
        self.checkpoints = Checkpoints(run, setup)
        self.stop = StopSignal()
        self._progress_written = -math.inf

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> dict[str, Any]:
        """Train until the last epoch or `limit_steps`, then test the best checkpoint; return the summary.

        Raises `Interrupted` after a signal, once a checkpoint is saved.
        """
        with self._always_saved():
            if warning := batch_norm_warning(self.parallel, self.device, self.model):
                self.progress.log(warning)
            if not self.resumed:
                self.parallel.broadcast_object(self._save_augmented)
                if self._dead_relu_inputs is not None and (text := lrn_warning(self.model, self._dead_relu_inputs)):
                    self.progress.log(text)
                if self.setup.fits_last_layer(self.model):
                    self._save_fitted()
            while not self.state.finished(self.recipe):
                self._check_stop()
                self.train_epoch()
                self.end_epoch()
            return self.finish()

    def train_epoch(self) -> None:
        """Train the rest of the current epoch, until its end, `limit_steps` or a stop signal."""
        state, train = self.state, self.setup.train
        self.train_step.train()
        began = time.monotonic() - state.seconds
        self.progress(state.seen, self._position().total, f"epoch {state.epoch + 1}/{self.recipe.schedule.epochs}")
        self._write_progress()
        with closing(read_together(self.parallel, train.batches(state.epoch, start=state.batch))) as batches:
            while not self._epoch_done():
                waiting_since = time.monotonic()
                batch = next(batches)
                state.waited += time.monotonic() - waiting_since
                self.step(batch)
                state.seconds = time.monotonic() - began
                self._write_progress()
                if self.budget is not None and self.budget.due():
                    self._follow_budget(self.budget)
                action = self._next_action()
                if action or self._epoch_done() or state.batch % LOG_EVERY == 0:
                    self._report_loss()
                if action == Action.SAVE:
                    self.save()
                if action == Action.STOP:
                    self._check_stop()

    def step(self, batch: Batch) -> None:
        """Take one optimizer step and count it; its loss stays on the device."""
        state = self.state
        loss, hits = self.train_step(batch, state.epoch, state.step, self.hyperparameters(state.step))
        self.pending.append(torch.stack([loss * batch.row_range.total, hits.to(loss.dtype)]))
        state.step += 1
        state.batch += 1
        state.seen += batch.row_range.total

    def evaluate(self, split: str) -> Outputs | None:
        """Return the network's outputs for `split`; with several processes, on rank 0 only.

        All processes check for a stop equally often, although some may have fewer batches.
        """
        average_batch_norm(self.parallel, self.model)
        batches, outputs = self.setup.evaluation[split], None
        checks = iter(range(1, self._max(len(batches))))  # none after the last batch

        def update(done: int, total: int, what: str) -> None:
            self.progress(done, total, what)
            if next(checks, None) is not None:
                self._check_stop(EVAL_GRACE_S)

        if len(batches):
            networks = [(self.model, self.setup.preprocess)]
            (outputs,) = run_networks(networks, batches, self.device, update)
        for _ in checks:  # other ranks have more batches
            self._check_stop(EVAL_GRACE_S)
        return _merge_outputs(self.parallel.gather(outputs))

    def save(self, *, best: bool = False, then: Callable[[], object] | None = None) -> None:
        """Save a checkpoint while training continues; on rank 0 call `then` once it is on disk."""
        self._read_sums()
        self.checkpoints.save(self.train_step, self.state, best=best, then=then)

    # ── within an epoch ───────────────────────────────────────────────────────────────────────────

    def hyperparameters(self, step: int) -> Hyperparameters:
        """Return the learning rates and the noise of optimizer step `step`."""
        return schedule_at(self.recipe, step, len(self.setup.train), self.state.history)

    def _epoch_done(self) -> bool:
        limit = self.recipe.schedule.limit_steps
        return self.state.batch == len(self.setup.train) or (limit is not None and self.state.step >= limit)

    def _next_action(self) -> Action:
        """Return what to do after a step: what any process requests. Raises the error of writing a checkpoint."""
        own = Action.CONTINUE
        if self.checkpoints.failed:
            own = Action.RAISE
        elif not self._epoch_done():  # otherwise validation and the next checkpoint are next
            stop, due = self.stop.received is not None, self.checkpoints.due(self.state.step)
            own = Action.STOP if stop else Action.SAVE if due else Action.CONTINUE
        action = Action(self._max(own))
        if action == Action.RAISE:
            self.parallel.broadcast_object(self.checkpoints.check)
        return action

    def _max(self, value: int) -> int:
        """Return the largest `value` of all processes."""
        return int(self.parallel.all_reduce(torch.tensor(value), "max"))

    def _check_stop(self, grace: float = 0.0) -> None:
        """Raise `Interrupted` in all processes if any received a signal at least `grace` seconds ago."""
        due = self.stop.received is not None and time.monotonic() - self.stop.since >= grace
        if signum := self._max((self.stop.received or 0) if due else 0):
            done = f"Checkpoint saved at step {self.state.step:,}."
            if self.state.finished(self.recipe):
                done = "Training finished; test evaluation pending."
            raise Interrupted(f"{done} Resume with: alexnet resume {self.run.path}", signum)

    @contextmanager
    def _always_saved(self) -> Iterator[None]:
        """Save a checkpoint, and say how to resume, when a signal or an unreadable image ends training."""
        try:
            with wrap_write_errors(self.run.path), self.stop:
                try:
                    yield
                except (Interrupted, UserError, WorkerDied) as error:
                    self.save()
                    self.parallel.broadcast_object(self.checkpoints.wait)
                    if isinstance(error, Interrupted):
                        raise
                    kind = UserError if isinstance(error, UserError) else TrainingFailed
                    raise kind(f"{error} Then resume with: alexnet resume {self.run.path}") from error
        finally:
            self.checkpoints.close()

    def _read_sums(self) -> None:
        """Add the (loss, hits) of the `pending` steps to the epoch's sums.

        They are added one by one, so that the sums do not depend on when this is called, to the
        last bit.
        """
        for loss, hits in self.parallel.all_reduce(torch.stack(self.pending), "sum").tolist() if self.pending else ():
            self.state.loss_sum += loss
            self.state.hits += hits
        self.pending.clear()

    def _report_loss(self) -> None:
        """Show the epoch's mean loss and top-1 so far. Raises `TrainingFailed` if the loss is not finite."""
        self._read_sums()
        loss, top1 = self.state.loss_sum / self.state.seen, self.state.hits / self.state.seen
        self._check_finite(loss)
        self.progress.step(self._position(), loss, top1)

    @property
    def _planned_steps(self) -> int:
        """The number of steps of the run, unless it stops early."""
        schedule, all_epochs = self.recipe.schedule, self.recipe.schedule.epochs * len(self.setup.train)
        return all_epochs if schedule.limit_steps is None else min(schedule.limit_steps, all_epochs)

    def _position(self) -> Position:
        state, train, planned = self.state, self.setup.train, self._planned_steps

        def images(steps: int) -> int:
            epochs, rest = divmod(steps, len(train))
            return epochs * train.samples + (train.bounds[rest - 1][1] if rest else 0)

        before = state.epoch * train.samples
        total = min(images(planned) - before, train.samples)
        return Position(
            state.epoch + 1, self.recipe.schedule.epochs, state.seen, total, before + state.seen, images(planned)
        )

    def _write_progress(self) -> None:
        """Write `progress.json`, which the page of the run reads, from time to time."""
        if rank() == 0 and time.monotonic() - self._progress_written >= PROGRESS_S:
            self._progress_written = time.monotonic()
            progress = {"step": self.state.step, "steps": self._planned_steps, "steps_per_epoch": len(self.setup.train)}
            with suppress(OSError):  # the page can do without; checkpoints cannot, and report a full disk
                write_json(self.run.progress_json, progress, flush=False)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss became {loss} before step {self.state.step:,}: {divergence_advice(self.recipe)}."
            )

    # ── at the end of an epoch ────────────────────────────────────────────────────────────────────

    def end_epoch(self) -> None:
        """Validate, compare with the best epoch and save; metrics are written and shown once the checkpoint is."""
        state, recipe, validate_on = self.state, self.recipe, self.recipe.data.validate_on
        batches, training_s = state.batch, state.seconds
        row, outputs = self._validate()
        state.end_epoch(row, is_best=validate_on == "test" or state.best is None or _is_better(row, state.best))
        if self.threads is not None and not state.finished(recipe):
            self.threads.after_epoch(self.model, state.history)  # before saving: a resumed run repeats the choice
            state.threads = torch.get_num_threads()
        planned = False
        if self.budget is not None and not state.finished(recipe):
            self.budget.measure_steps(state.epoch - 1, batches, training_s)
            self.budget.measure_epoch(training_s, row["seconds"] - training_s)
            planned = self._plan_steps(self.budget)
        recipe = self.recipe
        is_best, summary = state.best is row, self._summary()
        size = len(self.setup.train)
        shown = {
            **row,
            "best": state.best,
            "steps_per_epoch": size,
            "epochs_left": (self._planned_steps - state.step) / size,
        }
        alarms = all_alarms(state.history, recipe, len(self.setup.classes))

        def after_save() -> None:
            self.run.append_metrics(row)
            if is_best:
                self._write_evaluation(validate_on, outputs)
            if planned:
                self._write_recipe(recipe)
            write_json(self.run.path / "summary.json", summary)
            self.progress.epoch(shown, recipe.schedule.epochs, validate_on)
            for alarm in alarms:
                if alarm["epoch"] == row["epoch"]:
                    self.progress.log(alarm["text"])
            if alarms:
                write_json(self.run.path / "alarms.json", alarms)

        self.save(best=is_best, then=after_save)

    def _validate(self) -> tuple[dict[str, Any], Outputs | None]:
        """Return the epoch's line of `metrics.jsonl`, and the outputs on the validation split (on rank 0)."""
        state, split, began = self.state, self.recipe.data.validate_on, time.monotonic()
        outputs = self.evaluate(split)
        metrics = self._measure(outputs)
        self._check_finite(metrics["loss"])
        row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "split": split,
            "train_loss": state.loss_sum / max(state.seen, 1),
            "train_top1": state.hits / max(state.seen, 1),
            "val_loss": metrics["loss"],
            "top1": metrics["top1"],
            "top5": metrics["top5"],
            "lr": self.hyperparameters(max(state.step - 1, 0)).lr,
            "images_per_second": state.seen / state.seconds if state.seconds else 0.0,
            "seconds": state.seconds + time.monotonic() - began,
            "threads": state.threads,
            "waiting": state.waited / state.seconds if state.seconds else 0.0,
            "memory": peak_memory(self.device),
            "dead": {} if self._dead_relu_inputs is None else dead_relus(self.model, self._dead_relu_inputs),
        }
        return self.parallel.broadcast_object(lambda: row), outputs

    def _measure(self, outputs: Outputs | None) -> dict[str, Any]:
        """Return the metrics of the outputs on rank 0, in all processes."""
        return self.parallel.broadcast_object(lambda: cast(Outputs, outputs).measure(self.setup.classes))

    def _plan_steps(self, budget: TimeBudget) -> bool:
        """Change the number of steps to what fits the time; return whether it changed, and must be written.

        It is written once a checkpoint of this step is: steps by the old number are never repeated by the new one.
        """
        steps, before = budget.plan(self.state.step), self.recipe.schedule.limit_steps or 0
        if abs(steps - before) <= TOLERANCE * before:
            return False
        self.recipe = with_plan(self.recipe, steps, budget.steps_per_epoch)
        return True

    def _follow_budget(self, budget: TimeBudget) -> None:
        """Plan again within an epoch."""
        budget.measure_steps(self.state.epoch, self.state.batch, self.state.seconds)
        if not self._epoch_done() and self._plan_steps(budget):
            recipe = self.recipe
            self.save(then=lambda: self._write_recipe(recipe))

    def _write_recipe(self, recipe: Recipe) -> None:
        write_text(self.run.recipe_json, recipe.to_json() + "\n")

    @cached_property
    def _dead_relu_inputs(self) -> torch.Tensor | None:
        """The first validation images, preprocessed; None if this process has no validation images."""
        batch = next(iter(self.setup.evaluation[self.recipe.data.validate_on].batches(0)), None)
        if batch is None:
            return None
        return self.setup.preprocess.normalize(batch.images[:DEAD_RELU_IMAGES].to(self.device))

    @cached_property
    def _class_images(self) -> list[int]:
        """The number of training images of each class."""
        targets = np.asarray(self.setup.dataset.splits["train"].targets)
        return np.bincount(targets, minlength=len(self.setup.classes)).tolist()

    # ── at the start and the end of the run ───────────────────────────────────────────────────────

    def restore(self, state: TrainState, training: dict[str, Any]) -> None:
        """Continue from `state` and the other content of its `training.pt`; the model has its weights already."""
        if state.processes != self.state.processes:
            self.progress.log(
                f"Checkpoint written by {state.processes} process(es), resuming with {self.state.processes}: batches "
                "and their order are the same; sums are added in another order, so results may differ in the last "
                "digits."
            )
        now, self.state = self.state, state
        state.images, state.samples = now.images, now.samples
        state.processes, state.threads = now.processes, now.threads
        # Take the parameter groups from the recipe, which may have changed, and the momentum from the checkpoint.
        groups = self.optimizer.state_dict()["param_groups"]
        saved = {**training, "optimizer": {**training["optimizer"], "param_groups": groups}}
        self.parallel.load_state_dict(self.model, self.optimizer, saved)
        self.train_step.scaler.load_state_dict(training["scaler"])
        self.checkpoints.resume_from(state)
        self.progress.resume(state.history)
        self.resumed = True
        alarms = all_alarms(state.history, self.recipe, len(self.setup.classes))

        def repair() -> None:  # a crash may have left a line too many, a line too few, or half a line
            write_text(self.run.metrics_jsonl, "".join(json.dumps(row) + "\n" for row in state.history))
            if alarms:
                write_json(self.run.path / "alarms.json", alarms)

        self.parallel.broadcast_object(repair)

    def _save_fitted(self) -> None:
        """Save the network whose last layer was fitted before training, as the best until an epoch is better."""
        row, outputs = self._validate()
        self.state.best = {**row, "epoch": 0}
        split = self.recipe.data.validate_on
        text = (
            f"A linear classifier on its features: {split} top-1 {row['top1']:.2%}. Training continues; to try this "
            f"one meanwhile: alexnet predict {shlex.quote(str(self.run.path))} IMAGE"
        )

        def after_save() -> None:
            self._write_evaluation(split, outputs)
            self.progress.log(text)

        self.save(best=True, then=after_save)

    def _save_augmented(self) -> None:
        """Write `augmented.png`: the first training batch as the network reads it."""
        batch, n = next(iter(self.setup.train.batches(0))), AUGMENTED_IMAGES
        crop_ids = batch.crop_ids[:n] if batch.crop_ids is not None else None
        first = Batch(batch.images[:n], batch.targets[:n], batch.ids[:n], crop_ids)
        images = self.train_step.denormalized_inputs(first, 0, self.hyperparameters(0))
        save_image_grid(self.run.path / "augmented.png", images)

    def finish(self) -> dict[str, Any]:
        """Evaluate the best checkpoint on the test split and complete the summary; safe to repeat after a crash."""
        on_rank0, selection_split = self.parallel.broadcast_object, self.recipe.data.validate_on
        on_rank0(self.checkpoints.wait)
        best = self.run.named_checkpoint("best")
        assert best is not None, "a run has at least one epoch"
        with_test = "test" in self.setup.evaluation and selection_split != "test"
        more: dict[str, Any] = {}
        if self.resumed or with_test:
            weights = load_checkpoint(best).model.state_dict()
            self.parallel.load_state_dict(self.model, self.optimizer, {"model": weights})
        if self.resumed:  # what is written after the last checkpoint may be missing
            validated = self.evaluate(selection_split)
            on_rank0(lambda: self._write_evaluation(selection_split, validated))
        if with_test:
            outputs = self.evaluate("test")
            on_rank0(lambda: self._write_evaluation("test", outputs))
            metrics = self._measure(outputs)
            more["test"] = {k: metrics[k] for k in ("top1", "top5", "loss", "n", "interval")}
        more["calibration"] = on_rank0(partial(self._calibrate, best)) if selection_split != "test" else None
        summary = self._summary(**more, complete=True)
        on_rank0(lambda: write_json(self.run.path / "summary.json", summary))
        on_rank0(self.run.remove_quarantined)
        on_rank0(lambda: self.run.progress_json.unlink(missing_ok=True))
        return self.run.summary()

    def _calibrate(self, best: Path) -> dict[str, Any]:
        """Fit the confidence calibration on the split that selected the checkpoint; store it in its `model.json`."""
        stored = self.run.read_evaluation(self.recipe.data.validate_on)
        assert stored is not None, "written when the checkpoint was selected"
        _, targets, logits = stored
        fitted = calibration.fit_calibration(logits, targets, self.recipe.data.validate_on).to_dict()
        update_model_json(best, calibration.KEY, fitted)
        return fitted

    def _write_evaluation(self, split: str, outputs: Outputs | None) -> None:
        assert outputs is not None, "called on rank 0"
        names = self.setup.dataset.splits[split].names
        self.run.write_evaluation(split, [names[i] for i in outputs.ids], outputs.targets, outputs.logits)

    def _summary(self, **more: Any) -> dict[str, Any]:
        """Return the content of `summary.json` after the last finished epoch."""
        rows, keys = self.state.history, ("epoch", "top1", "top5", "val_loss")
        best = self.state.best or rows[-1]
        return {
            "best": {k: best[k] for k in keys},
            "final": {k: rows[-1][k] for k in keys},
            "split": self.recipe.data.validate_on,
            "epochs": len(rows),
            "steps": self.state.step,
            "steps_per_epoch": len(self.setup.train),
            "seconds": sum(r["seconds"] for r in rows),
            # of the whole run: all epochs have the same number of images; 0 if one was too short to measure
            "images_per_second": statistics.harmonic_mean([r["images_per_second"] for r in rows]),
            "parameters": self.parameters,
            "arch": self.setup.spec.name,
            "classes": len(self.setup.classes),
            "class_images": self._class_images,
            "precision": self.setup.precision.name,
            "device": str(self.device),
            **more,
        }


def _merge_outputs(parts: list[Outputs | None]) -> Outputs | None:
    """Return the outputs of all processes in the order of the split; images that several have evaluated, once."""
    found = [part for part in parts if part is not None]
    if len(found) <= 1:
        return found[0] if found else None
    ids, first = np.unique(np.concatenate([part.ids for part in found]), return_index=True)
    columns = (np.concatenate([getattr(part, name) for part in found])[first] for name in ("targets", "logits"))
    return Outputs(ids, *columns)


def _is_better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    return (row["top1"], -row["val_loss"]) > (best["top1"], -best["val_loss"])


class Interrupted(ShownAsMessage):
    """Training was stopped by a signal and saved; `exit_code` is 128 + its number: 130 (Ctrl-C), 143 (SIGTERM), …"""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum
