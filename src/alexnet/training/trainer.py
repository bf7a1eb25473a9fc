"""Training of a network: prepared data and a recipe in, a run folder with a trained network out.

A step (`step.py`) depends only on the recipe and the step's number, including the order of the
images. Resuming therefore means: load weights, momentum and `TrainState`, and continue with the
next step. The trainer does not know the command line, the kind of dataset, or the architecture.

Read `Trainer.fit`, then `_train_epoch`, `_end_epoch` and `_finish`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator
from dataclasses import replace
from enum import IntEnum
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from alexnet.checkpoint import load_checkpoint, update_model_json
from alexnet.data.loader import Batch
from alexnet.device import peak_memory
from alexnet.errors import TrainingFailed, UserError, WorkerDied
from alexnet.files import write_json, write_text
from alexnet.inference import calibration
from alexnet.inference.evaluate import Outputs, run_network
from alexnet.models.model import Network
from alexnet.progress import Progress
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import KEY
from alexnet.training.checkpoints import Checkpoints, TrainState, divergence_advice, hash_samples, wrap_write_errors
from alexnet.training.diagnostics import dead_relus, find_alarms, save_image_grid
from alexnet.training.optim import Hyperparameters, schedule_at
from alexnet.training.setup import TrainSetup
from alexnet.training.signals import Interrupted, StopSignal
from alexnet.training.step import TrainStep
from alexnet.training.time_budget import TimeBudget

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


class StopRequested(Exception):
    """A stop during an evaluation, which is discarded and repeated on resume."""


class Trainer:
    """Trains one run; `fit` trains to the end and returns the content of `summary.json`."""

    def __init__(
        self, setup: TrainSetup, run: Run, model: Network, progress: Progress, budget: TimeBudget | None = None
    ) -> None:
        self.setup, self.recipe, self.run, self.progress = setup, setup.recipe, run, progress
        self.device, self.precision, self.parallel = setup.device, setup.precision, setup.parallel
        self.parameters = sum(t.numel() for t in model.parameters())
        self.train_step = TrainStep(setup, model)
        self.model, self.optimizer = self.train_step.model, self.train_step.optimizer
        self.scaler = self.train_step.scaler
        train = setup.dataset.splits["train"]
        self.state = TrainState(images=len(train), samples=hash_samples(train.names, train.targets))
        self.budget = budget
        self.resumed = False
        self.alarms: list[dict[str, Any]] = []
        self.checkpoints = Checkpoints(run, setup)
        self.stop = StopSignal()

    def restore(self, state: TrainState, training: dict[str, Any]) -> None:
        """Continue from `state` and the other content of its `training.pt`; the model has its weights already."""
        if state.processes != (world_size := self.parallel.shard.world_size):
            self.progress.log(
                f"Checkpoint written by {state.processes} process(es), resuming with {world_size}: batches and their "
                "order are the same; sums are added in another order, so results may differ in the last digits."
            )
        state.images, state.samples = self.state.images, self.state.samples
        self.state = state
        # Take the parameter groups from the recipe, which may have changed, and the momentum from the checkpoint.
        groups = self.optimizer.state_dict()["param_groups"]
        saved = {**training["optimizer"], "param_groups": groups}
        self.parallel.load_optimizer(self.optimizer, self.model, saved)
        self.scaler.load_state_dict(training["scaler"])
        self.parallel.load_buffers_state(self.model, training.get("statistics", []))
        self.checkpoints.resume_from(state)
        self.resumed = True
        # A crash may have left a line too many, a line too few, or half a line.
        rows = "".join(json.dumps(row) + "\n" for row in state.history)
        self.parallel.on_rank0(lambda: write_text(self.run.metrics_jsonl, rows))
        for done in range(1, len(state.history) + 1):  # alarms already raised
            self._new_alarms(state.history[:done])
        if self.alarms:
            self.parallel.on_rank0(lambda: write_json(self.run.path / "alarms.json", self.alarms))

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> dict[str, Any]:
        """Train until the last epoch or `limit_steps`, then evaluate the best checkpoint; return the summary.

        Raises `Interrupted` after a signal, once a checkpoint is saved.
        """
        state = self.state
        state.processes = self.parallel.shard.world_size
        for warning in self.parallel.warnings(self.model):
            self.progress.log(warning)
        try:
            with wrap_write_errors(self.run.path), self.stop:
                if not self.resumed:
                    self.parallel.on_rank0(self._save_augmented)
                while not self._finished():
                    try:
                        self._train_epoch()
                        if state.batch < len(self.setup.train) and not self._at_limit():
                            self._save()  # stopped in the middle of the epoch
                        else:
                            self._end_epoch()
                    except StopRequested:  # validation will be repeated
                        self._save()
                    except (UserError, WorkerDied) as error:  # an image can no longer be read
                        self._save()
                        self.parallel.on_rank0(self.checkpoints.wait)
                        kind = UserError if isinstance(error, UserError) else TrainingFailed
                        raise kind(f"{error} Then resume with: alexnet resume {self.run.path}") from error
                    signum = self.parallel.all_reduce_max(self.stop.received)
                    if signum is not None and not self._finished():
                        self._raise_interrupted(f"Checkpoint saved at step {state.step:,}.", signum)
                try:
                    return self._finish()
                except StopRequested:
                    signum = self.parallel.all_reduce_max(self.stop.received) or 0
                    self._raise_interrupted("Training finished; test evaluation pending.", signum)
        finally:
            self.checkpoints.close()

    def _train_epoch(self) -> None:
        """Train the rest of the current epoch, until its end, `limit_steps` or a stop signal."""
        state, epoch, train = self.state, self.state.epoch, self.setup.train
        self.train_step.train()
        pending: list[torch.Tensor] = []  # (loss, hits) of steps, still on the device
        seconds_before, began = state.seconds, time.monotonic()
        batches = self.parallel.sync_data_errors(train.batches(epoch, start=state.batch))
        if self._at_limit():  # resumed after the last step: only validation is left
            return
        try:
            while True:
                waiting_since = time.monotonic()
                batch = next(batches, None)
                if batch is None:
                    return
                state.waited += time.monotonic() - waiting_since
                loss, hits = self._train_batch(batch, epoch)
                pending.append(torch.stack([loss * batch.row_range.total, hits.to(loss.dtype)]))
                state.step += 1
                state.batch += 1
                state.seen += batch.row_range.total
                state.seconds = seconds_before + time.monotonic() - began
                action = self.parallel.all_reduce_max(self._requested_action()) or Action.CONTINUE
                if action == Action.RAISE:
                    self.parallel.on_rank0(self.checkpoints.check)
                done = action >= Action.STOP or self._at_limit() or state.batch == len(train)
                if done or action == Action.SAVE or state.batch % LOG_EVERY == 0:
                    self._accumulate_metrics(pending)
                    loss_mean, top1 = state.loss_sum / state.seen, state.hits / state.seen
                    self._check_finite(loss_mean)
                    self.progress.step(epoch + 1, self.recipe.epochs, state.seen, train.samples, loss_mean, top1)
                if done:
                    return
                if action == Action.SAVE:
                    self._save()
        except (UserError, WorkerDied):
            self._accumulate_metrics(pending)
            raise
        finally:
            if isinstance(batches, Generator):
                batches.close()  # ends the worker processes, even if an exception's traceback keeps this frame alive

    def _train_batch(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one optimizer step; return the mean loss and the number of correct predictions, on the device."""
        return self.train_step(batch, epoch, self.state.step, self._hyperparameters(self.state.step))

    def _hyperparameters(self, step: int) -> Hyperparameters:
        return schedule_at(self.recipe, step, len(self.setup.train), self.state.history)

    def _accumulate_metrics(self, pending: list[torch.Tensor]) -> None:
        """Add the (loss, hits) of `pending` steps to the epoch's sums and clear the list.

        They are added one by one, so that the sums do not depend on when this is called, to the
        last bit.
        """
        for loss, hits in self.parallel.all_reduce_sum(torch.stack(pending)).tolist() if pending else ():
            self.state.loss_sum += loss
            self.state.hits += hits
        pending.clear()

    def _requested_action(self) -> Action:
        if self.checkpoints.failed:
            return Action.RAISE
        if self.stop.received is not None:
            return Action.STOP
        return Action.SAVE if self.checkpoints.due(self.state.step) else Action.CONTINUE

    def _finished(self) -> bool:
        return self.state.finished(self.recipe)

    def _at_limit(self) -> bool:
        return self.recipe.limit_steps is not None and self.state.step >= self.recipe.limit_steps

    def _save(self) -> None:
        self.checkpoints.save(self.model, self.optimizer, self.scaler, self.state, best=False)

    def _raise_interrupted(self, message: str, signum: int) -> NoReturn:
        self.parallel.on_rank0(self.checkpoints.wait)
        raise Interrupted(f"{message} Resume with: alexnet resume {self.run.path}", signum)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss became {loss} before step {self.state.step:,}: {divergence_advice(self.recipe)}."
            )

    # ── at the end of an epoch ────────────────────────────────────────────────────────────────────

    def _end_epoch(self) -> None:
        """Validate, compare with the best epoch and save; metrics are written and shown once the checkpoint is."""
        state, recipe = self.state, self.recipe
        began = time.monotonic()
        outputs = self._evaluate(recipe.validate_on)
        metrics = self.parallel.on_rank0(lambda: outputs.measure(self.setup.classes))
        self._check_finite(metrics["loss"])
        row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "split": recipe.validate_on,
            "train_loss": state.loss_sum / max(state.seen, 1),
            "train_top1": state.hits / max(state.seen, 1),
            "val_loss": metrics["loss"],
            "top1": metrics["top1"],
            "top5": metrics["top5"],
            "lr": self._hyperparameters(max(state.step - 1, 0)).lr,
            "images_per_second": state.seen / state.seconds if state.seconds else 0.0,
            "seconds": state.seconds + time.monotonic() - began,
            "waiting": state.waited / state.seconds if state.seconds else 0.0,
            "memory": peak_memory(self.device),
            "dead": {} if self._dead_relu_inputs is None else dead_relus(self.model, self._dead_relu_inputs),
        }
        row = self.parallel.on_rank0(lambda: row)
        state.epoch += 1
        state.history.append(row)
        is_best = recipe.validate_on == "test" or state.best is None or _is_better(row, state.best)
        if is_best:
            state.best = row
        state.start_epoch()
        best, summary, alarms = state.best, self._summary(), self._new_alarms(state.history)

        def after_save() -> None:
            self.run.append_metrics(row)
            if is_best:
                self._write_evaluation(recipe.validate_on, outputs)
            write_json(self.run.path / "summary.json", summary)
            self.progress.epoch({**row, "best": best}, recipe.epochs, recipe.validate_on)
            for alarm in alarms:
                self.progress.log(alarm["text"])
            if alarms:
                write_json(self.run.path / "alarms.json", self.alarms)

        self.checkpoints.save(self.model, self.optimizer, self.scaler, state, best=is_best, then=after_save)
        if self.budget is not None and not self._finished():
            self._adjust_epochs(self.budget)

    def _evaluate(self, split: str) -> Outputs:
        """Return the network's outputs for `split`; with several processes, complete on rank 0 only.

        All processes check for a stop equally often, although some may have fewer batches.
        """
        self.parallel.sync_buffers(self.model)
        batches, local = self.setup.evaluation[split], None
        most_batches = self.parallel.all_reduce_max(len(batches)) or 0
        checks = iter(range(1, most_batches))  # none after the last batch

        def update(done: int, total: int, what: str) -> None:
            self.progress(done, total, what)
            if next(checks, None) is not None:
                self._check_stop()

        if len(batches):
            local = run_network(self.model, batches, self.setup.preprocess, self.device, update)
        for _ in checks:  # other ranks have more batches
            self._check_stop()
        return cast(Outputs, self.parallel.gather(local))

    def _check_stop(self) -> None:
        """Raise `StopRequested` in all processes if any received a signal more than `EVAL_GRACE_S` ago."""
        stop = self.stop.received is not None and time.monotonic() - self.stop.since > EVAL_GRACE_S
        if self.parallel.all_reduce_max(int(stop)):
            raise StopRequested

    def _adjust_epochs(self, budget: TimeBudget) -> None:
        """Change the number of epochs to what fits the time: fewer, or more after the first epoch."""
        epochs = budget.fit_epochs(self.state.history, self.recipe.epochs)
        if epochs != self.recipe.epochs:
            self.recipe = replace(self.recipe, epochs=epochs)
            # First save the finished epoch, which was trained by the old number and must not be repeated by the new.
            self.parallel.on_rank0(self.checkpoints.wait)
            self.parallel.on_rank0(lambda: write_text(self.run.recipe_json, self.recipe.to_json() + "\n"))
            self.progress.log(f"{epochs} epochs fit the time budget.")

    def _new_alarms(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Add the alarms raised by the last of `rows` to `alarms` and return them; each kind is raised once a run."""
        known = {alarm["kind"] for alarm in self.alarms}
        found = find_alarms(rows, self.recipe, len(self.setup.classes))
        new = [{"epoch": rows[-1]["epoch"], "kind": kind, "text": text} for kind, text in found if kind not in known]
        self.alarms += new
        return new

    @cached_property
    def _dead_relu_inputs(self) -> torch.Tensor | None:
        """The first validation images, preprocessed; None if this process has no validation images."""
        batch = next(iter(self.setup.evaluation[self.recipe.validate_on].batches(0)), None)
        if batch is None:
            return None
        return self.setup.preprocess.normalize(batch.images[:DEAD_RELU_IMAGES].to(self.device))

    def _save_augmented(self) -> None:
        """Write `augmented.png`: the first training batch as the network reads it."""
        batch, n = next(iter(self.setup.train.batches(0))), AUGMENTED_IMAGES
        crop_ids = batch.crop_ids[:n] if batch.crop_ids is not None else None
        first = Batch(batch.images[:n], batch.targets[:n], batch.ids[:n], crop_ids)
        images = self.train_step.denormalized_inputs(first, 0, self._hyperparameters(0))
        save_image_grid(self.run.path / "augmented.png", images)

    # ── at the end of the run ─────────────────────────────────────────────────────────────────────

    def _finish(self) -> dict[str, Any]:
        """Evaluate the best checkpoint on the test split and complete the summary; safe to repeat after a crash."""
        self.parallel.on_rank0(self.checkpoints.wait)
        best = self.run.named_checkpoint("best")
        assert best is not None, "a run has at least one epoch"
        selection_split = self.recipe.validate_on
        with_test = "test" in self.setup.evaluation and selection_split != "test"
        test = {}
        if self.resumed or with_test:
            self.parallel.load_weights(self.model, load_checkpoint(best).model.state_dict())
        if self.resumed:  # what is written after the last checkpoint may be missing
            validated = self._evaluate(selection_split)
            self.parallel.on_rank0(lambda: self._write_evaluation(selection_split, validated))
        if with_test:
            outputs = self._evaluate("test")
            self.parallel.on_rank0(lambda: self._write_evaluation("test", outputs))
            metrics = self.parallel.on_rank0(lambda: outputs.measure(self.setup.classes))
            test = {"test": {k: metrics[k] for k in ("top1", "top5", "loss", "n", "interval")}}
        calibrated = self.parallel.on_rank0(partial(self._calibrate, best)) if selection_split != "test" else None
        summary = self._summary(**test, calibration=calibrated, complete=True)
        self.parallel.on_rank0(lambda: write_json(self.run.path / "summary.json", summary))
        self.parallel.on_rank0(self.run.remove_quarantined)
        return self.run.summary()

    def _calibrate(self, best: Path) -> dict[str, Any]:
        """Fit the confidence calibration on the split that selected the checkpoint; store it in its `model.json`."""
        stored = self.run.read_evaluation(self.recipe.validate_on)
        assert stored is not None, "written when the checkpoint was selected"
        _, targets, logits = stored
        fitted = calibration.fit_calibration(logits, targets, self.recipe.validate_on).to_dict()
        update_model_json(best, KEY, fitted)
        return fitted

    def _write_evaluation(self, split: str, outputs: Outputs) -> None:
        names = self.setup.dataset.splits[split].names
        self.run.write_evaluation(split, [names[i] for i in outputs.ids], outputs.targets, outputs.logits)

    def _summary(self, **more: Any) -> dict[str, Any]:
        rows = self.state.history
        keys = ("epoch", "top1", "top5", "val_loss")
        best = self.state.best or rows[-1]
        return {
            "best": {k: best[k] for k in keys},
            "final": {k: rows[-1][k] for k in keys},
            "split": self.recipe.validate_on,
            "epochs": len(rows),
            "steps": self.state.step,
            "seconds": sum(r["seconds"] for r in rows),
            "images_per_second": rows[-1]["images_per_second"],
            "parameters": self.parameters,
            "arch": self.setup.spec.name,
            "classes": len(self.setup.classes),
            "precision": self.precision.name,
            "device": str(self.device),
            **more,
        }


def _is_better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    return (row["top1"], -row["val_loss"]) > (best["top1"], -best["val_loss"])
