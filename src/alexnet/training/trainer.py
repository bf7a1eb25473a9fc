"""The training loop: a prepared recipe, a network and a run folder in, a trained network in the folder out.

What happens at a step (`step.py`) follows from the recipe and the step's number alone, the order of the images
included. So going on after a stop is: load weights and momentum, and start at that step. The loop knows no command
line, no data set and no architecture.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn, cast

import torch

from alexnet.checkpoint import load_checkpoint, update_model_json
from alexnet.data.loader import Batch
from alexnet.device import peak_memory
from alexnet.errors import ReaderDied, TrainingFailed, UserError
from alexnet.files import write_json, write_text
from alexnet.inference import calibration
from alexnet.inference.evaluate import Outputs, run_network
from alexnet.models.model import Network
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import KEY
from alexnet.training.checkpoints import (
    DUE,
    FAILED,
    STOP,
    Checkpoints,
    TrainState,
    divergence_advice,
    hash_samples,
    wrap_write_errors,
)
from alexnet.training.diagnostics import dead_channels, find_alarms, save_image_grid
from alexnet.training.optim import Hyperparameters, schedule_at
from alexnet.training.progress import Progress
from alexnet.training.setup import TrainSetup
from alexnet.training.signals import Interrupted, StopSignal
from alexnet.training.step import TrainStep
from alexnet.training.time_budget import TimeBudget

LOG_EVERY = 20  # steps between looks at the loss: each look waits for the device
AUGMENTED_IMAGES = 32  # pictures of augmented.png
EVAL_GRACE_S = 5.0  # seconds for which an evaluation goes on after a signal to stop, of the 30 that schedulers give
DEAD_RELU_IMAGES = 128  # validation pictures on which channels are looked for that are never active


class Trainer:
    """One run. `fit` trains to the end and returns what `summary.json` says."""

    def __init__(
        self, setup: TrainSetup, run: Run, model: Network, progress: Progress, budget: TimeBudget | None = None
    ) -> None:
        self.setup, self.recipe, self.run, self.progress = setup, setup.recipe, run, progress
        self.device, self.precision, self.parallel = setup.device, setup.precision, setup.parallel
        self.parameters = sum(t.numel() for t in model.parameters())
        self.train_step = TrainStep(setup, model)
        self.model, self.optimizer = self.train_step.model, self.train_step.optimizer
        self.scaler = self.train_step.scaler
        self.state = _beginning(setup)
        self.budget = budget
        self.restored = False
        self.alarms: list[dict[str, Any]] = []
        self.checkpoints = Checkpoints(run, setup)
        self.stop = StopSignal()

    def restore(self, state: TrainState, training: dict[str, Any]) -> None:
        """Go on from `position`; the weights are in the model already."""
        fresh, self.state = self.state, state
        if state.processes != (now := self.parallel.shard.world_size):
            self.progress.log(
                f"Saved in {state.processes}, going on in {now} (processes that share each batch): batches and "
                "their order stay as they were; sums are added up in another order, so that last digits can differ."
            )
        state.pictures, state.samples = fresh.pictures, fresh.samples
        # the groups are the recipe's, which may have been given changes since; the momentum is the checkpoint's
        groups = self.optimizer.state_dict()["param_groups"]
        saved = {**training["optimizer"], "param_groups": groups}
        self.parallel.load_optimizer(self.optimizer, self.model, saved)
        self.scaler.load_state_dict(training["scaler"])
        self.parallel.load_buffers_state(self.model, training.get("statistics", []))
        self.checkpoints.resume_from(state)
        self.restored = True
        # a crash may have left a line too many, one too few, or half a line
        rows = "".join(json.dumps(row) + "\n" for row in state.history)
        self.parallel.on_rank0(lambda: write_text(self.run.metrics_jsonl, rows))
        for done in range(1, len(state.history) + 1):  # what was said before
            self._new_alarms(state.history[:done])
        if self.alarms:
            self.parallel.on_rank0(lambda: write_json(self.run.path / "alarms.json", self.alarms))

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> dict[str, Any]:
        """Train until the last epoch or `limit_steps`; then evaluate the result. Returns the summary."""
        p = self.state
        p.processes = self.parallel.shard.world_size
        for sentence in self.parallel.warnings(self.model):
            self.progress.log(sentence)
        try:
            with wrap_write_errors(self.run.path), self.stop as stop:
                if not self.restored:
                    self.parallel.on_rank0(self._draw_augmented)
                while not self._ended():
                    try:
                        self._train_epoch()
                        if p.batch < len(self.setup.train) and not self._at_limit():
                            self._save(best=False)  # stopped in mid-epoch
                        else:
                            self._end_epoch()
                    except StopRequested:  # to stop while validating, which will be done anew
                        self._save(best=False)
                    except (UserError, ReaderDied) as error:  # a picture that was readable is so no longer
                        self._save_now()
                        kind = UserError if isinstance(error, UserError) else TrainingFailed
                        raise kind(f"{error} Then go on with: alexnet resume {self.run.path}") from error
                    signum = self.parallel.all_reduce_max(stop.received)
                    if signum is not None and not self._ended():
                        self._stopped(f"Saved after step {p.step:,}; go on with", signum)
                try:
                    return self._finish()
                except StopRequested:
                    signum = self.parallel.all_reduce_max(stop.received) or 0
                    self._stopped("The network is trained, and its test is left; go on with", signum)
        finally:
            self.checkpoints.close()

    def _stopped(self, what: str, signum: int) -> NoReturn:
        self.parallel.on_rank0(self.checkpoints.wait)
        raise Interrupted(f"{what}: alexnet resume {self.run.path}", signum)

    def _train_epoch(self) -> None:
        """The rest of the current epoch, or as much as `limit_steps` or a stop signal leaves of it."""
        p, epoch, train = self.state, self.state.epoch, self.setup.train
        self.train_step.train()
        steps: list[torch.Tensor] = []  # loss and hits of those that nobody has looked at
        before, began = p.seconds, time.monotonic()
        batches = self.parallel.sync_data_errors(train.batches(epoch, start=p.batch))
        if self._at_limit():  # stopped after the very last step: only the validation is left
            return
        try:
            while True:
                asked = time.monotonic()
                batch = next(batches, None)
                if batch is None:
                    return
                p.waited += time.monotonic() - asked
                loss, hits = self._train_batch(batch, epoch)
                steps.append(torch.stack([loss * batch.row_range.total, hits.to(loss.dtype)]))
                p.step += 1
                p.batch += 1
                p.seen += batch.row_range.total
                p.seconds = before + time.monotonic() - began
                asked = self.parallel.all_reduce_max(self._requested_action()) or 0
                if asked >= FAILED:
                    self.parallel.on_rank0(self.checkpoints.check)
                done = asked >= STOP or self._at_limit() or p.batch == len(train)
                if done or asked == DUE or p.batch % LOG_EVERY == 0:
                    self._accumulate_metrics(steps)
                    loss_now, hits_now = p.loss_sum / p.seen, p.hits / p.seen
                    self._check_finite(loss_now)
                    self.progress.step(epoch + 1, self.recipe.epochs, p.seen, train.samples, loss_now, hits_now)
                if asked == DUE and not done:
                    self._save(best=False)
                if done:
                    return
        except (UserError, ReaderDied):
            self._accumulate_metrics(steps)
            raise
        finally:
            if isinstance(batches, Generator):
                batches.close()  # ends the processes that read pictures, also where an error holds on to this frame

    def _accumulate_metrics(self, steps: list[torch.Tensor]) -> None:
        """Add what the device holds of these steps to the sums of the epoch, one by one: the same sums to the last bit
        whenever one looks."""
        p = self.state
        for loss, hits in self.parallel.all_reduce_sum(torch.stack(steps)).tolist() if steps else ():
            p.loss_sum += loss
            p.hits += hits
        steps.clear()

    def _train_batch(self, batch: Batch, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on a batch; the mean loss and the number right, on the device."""
        return self.train_step(batch, epoch, self.state.step, self._hyperparameters(self.state.step))

    def _hyperparameters(self, step: int) -> Hyperparameters:
        return schedule_at(self.recipe, step, len(self.setup.train), self.state.history)

    def _requested_action(self) -> int | None:
        """What this process asks of all of them after a step."""
        if self.checkpoints.failed:
            return FAILED
        if self.stop.received is not None:
            return STOP + self.stop.received
        return DUE if self.checkpoints.due(self.state.step) else None

    def _ended(self) -> bool:
        return self.state.finished(self.recipe)

    def _at_limit(self) -> bool:
        return self.recipe.limit_steps is not None and self.state.step >= self.recipe.limit_steps

    # ── at the end of an epoch ────────────────────────────────────────────────────────────────────────────────

    def _end_epoch(self) -> None:
        """Validate, judge, save, and once that is on disk say that the epoch is done."""
        p, recipe = self.state, self.recipe
        began = time.monotonic()
        outputs = self._evaluate(recipe.validate_on)
        figures = self.parallel.on_rank0(lambda: outputs.measure(self.setup.classes))
        self._check_finite(figures["loss"])
        row = {
            "epoch": p.epoch + 1,
            "step": p.step,
            "split": recipe.validate_on,
            "train_loss": p.loss_sum / max(p.seen, 1),
            "train_top1": p.hits / max(p.seen, 1),
            "val_loss": figures["loss"],
            "top1": figures["top1"],
            "top5": figures["top5"],
            "lr": self._hyperparameters(max(p.step - 1, 0)).lr,
            "images_per_second": p.seen / p.seconds if p.seconds else 0.0,
            "seconds": p.seconds + time.monotonic() - began,
            "waiting": p.waited / p.seconds if p.seconds else 0.0,
            "memory": peak_memory(self.device),
            "dead": {} if self._some_pictures is None else dead_channels(self.model, self._some_pictures),
        }
        row = self.parallel.on_rank0(lambda: row)
        p.epoch += 1
        p.history.append(row)
        chosen = recipe.validate_on == "test" or p.best is None or _better(row, p.best)
        if chosen:
            p.best = row
        p.start_epoch()
        best, summary, alarms = p.best, self._summary(), self._new_alarms(p.history)

        def then() -> None:
            self.run.append_metrics(row)
            if chosen:
                self._store_evaluation(recipe.validate_on, outputs)
            write_json(self.run.path / "summary.json", summary)
            self.progress.epoch({**row, "best": best}, recipe.epochs, recipe.validate_on)
            self._warn(alarms)

        self.checkpoints.save(self.model, self.optimizer, self.scaler, p, best=chosen, then=then)
        if self.budget is not None and not self._ended():
            self._keep_to(self.budget)

    def _evaluate(self, split: str) -> Outputs:
        """What the network says of a split; of several processes the first alone may have it whole."""
        self.parallel.sync_buffers(self.model)
        batches, own = self.setup.evaluation[split], None
        done = iter(
            range(1, self.parallel.all_reduce_max(len(batches)) or 0)
        )  # after the last batch nothing is left to stop

        def evaluated(pictures: int, total: int, what: str) -> None:
            self.progress.update(pictures, total, what)
            if next(done, None) is not None:
                self._check_stop()

        if len(batches):
            own = run_network(self.model, batches, self.setup.preprocess, self.device, evaluated)
        for _ in done:  # others have more batches, and wait for an answer after each
            self._check_stop()
        return cast(Outputs, self.parallel.gather(own))

    def _check_stop(self) -> None:
        """Raises `_Asked`, in all processes, where an evaluation goes on although one of them is to stop."""
        asked = self.stop.received is not None and time.monotonic() - self.stop.since > EVAL_GRACE_S
        if self.parallel.all_reduce_max(int(asked)):
            raise StopRequested

    def _finish(self) -> dict[str, Any]:
        """Report the chosen network on the test set and complete the summary; may be done again after a crash."""
        self.parallel.on_rank0(self.checkpoints.wait)
        best = self.run.named_checkpoint("best")
        assert best is not None, "a run has at least one epoch"
        steered_by = self.recipe.validate_on
        with_test = "test" in self.setup.evaluation and steered_by != "test"
        test = {}
        if self.restored or with_test:
            self.parallel.load_weights(self.model, load_checkpoint(best).model.state_dict())
        if self.restored:  # what was written after the last checkpoint may be missing
            validated = self._evaluate(steered_by)
            self.parallel.on_rank0(lambda: self._store_evaluation(steered_by, validated))
        if with_test:
            outputs = self._evaluate("test")
            self.parallel.on_rank0(lambda: self._store_evaluation("test", outputs))
            figures = self.parallel.on_rank0(lambda: outputs.measure(self.setup.classes))
            test = {"test": {k: figures[k] for k in ("top1", "top5", "loss", "n", "interval")}}
        fitted = self.parallel.on_rank0(partial(self._calibrate, best)) if steered_by != "test" else None
        summary = self._summary(**test, calibration=fitted, complete=True)
        self.parallel.on_rank0(lambda: write_json(self.run.path / "summary.json", summary))
        self.parallel.on_rank0(self.run.remove_quarantined)
        return self.run.summary()

    def _calibrate(self, best: Path) -> dict[str, Any]:
        """Find how sure the chosen network may be, on what it was chosen by, and keep it beside its weights."""
        kept = self.run.read_evaluation(self.recipe.validate_on)
        assert kept is not None, "written when the checkpoint was chosen"
        _, targets, logits = kept
        fitted = calibration.fit_calibration(logits, targets, self.recipe.validate_on).to_dict()
        update_model_json(best, KEY, fitted)
        return fitted

    def _store_evaluation(self, split: str, outputs: Outputs) -> None:
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

    # ── saving and warning ────────────────────────────────────────────────────────────────────────────────────

    def _save(self, *, best: bool) -> None:
        self.checkpoints.save(self.model, self.optimizer, self.scaler, self.state, best=best)

    def _save_now(self) -> None:
        self._save(best=False)
        self.parallel.on_rank0(self.checkpoints.wait)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss became {loss} before step {self.state.step:,}: {divergence_advice(self.recipe)}."
            )

    def _warn(self, new: list[dict[str, Any]]) -> None:
        """Say in plain words, once a run, what goes wrong and what usually helps; `alarms.json` keeps it."""
        for alarm in new:
            self.progress.log(alarm["text"])
        if new:
            write_json(self.run.path / "alarms.json", self.alarms)

    def _new_alarms(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The alarms of kinds that were not known yet, which are so now."""
        known = {alarm["kind"] for alarm in self.alarms}
        found = find_alarms(rows, self.recipe, len(self.setup.classes))
        new = [{"epoch": rows[-1]["epoch"], "kind": kind, "text": text} for kind, text in found if kind not in known]
        self.alarms += new
        return new

    def _keep_to(self, budget: TimeBudget) -> None:
        """Fewer epochs, or after the first one more, where the time is not what was expected."""
        epochs = budget.fit_epochs(self.state.history, self.recipe.epochs)
        if epochs != self.recipe.epochs:
            self.recipe = replace(self.recipe, epochs=epochs)
            self.parallel.on_rank0(
                self.checkpoints.wait
            )  # so that no epoch done by the old number is left to be repeated
            self.parallel.on_rank0(lambda: write_text(self.run.recipe_json, self.recipe.to_json() + "\n"))
            self.progress.log(f"{epochs} epochs fit the time.")

    @cached_property
    def _some_pictures(self) -> torch.Tensor | None:
        """The first validation pictures as the network reads them; None where this process reads none."""
        batch = next(iter(self.setup.evaluation[self.recipe.validate_on].batches(0)), None)
        if batch is None:
            return None
        return self.setup.preprocess.normalize(batch.images[:DEAD_RELU_IMAGES].to(self.device))

    def _draw_augmented(self) -> None:
        """Show in `augmented.png` what the network is trained on: the first batch as it reads it."""
        batch, n = next(iter(self.setup.train.batches(0))), AUGMENTED_IMAGES
        crop_ids = batch.crop_ids[:n] if batch.crop_ids is not None else None
        first = Batch(batch.images[:n], batch.targets[:n], batch.ids[:n], crop_ids)
        shown = self.train_step.denormalized_inputs(first, 0, self._hyperparameters(0))
        save_image_grid(self.run.path / "augmented.png", shown)


class StopRequested(Exception):
    """To stop in the middle of an evaluation, which changes nothing."""


def _beginning(prepared: TrainSetup) -> TrainState:
    """Before the first step, on these pictures."""
    train = prepared.dataset.splits["train"]
    return TrainState(pictures=len(train), samples=hash_samples(train.names, train.targets))


def _better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    return (row["top1"], -row["val_loss"]) > (best["top1"], -best["val_loss"])
