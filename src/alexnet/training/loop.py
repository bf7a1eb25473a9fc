"""The training loop: a prepared recipe, a network and a run folder in, a trained network in the folder out.

What happens at a step follows from the recipe and the step's number alone: the order of the images, their
augmentation, dropout, MixUp and the learning rate. So going on after a stop is: load weights and momentum, and
start at that step. The loop knows no command line, no data set and no architecture.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from alexnet import runtime
from alexnet.data.augment import augment, mix
from alexnet.data.colour import colour_noise
from alexnet.errors import TrainingFailed, UserError
from alexnet.inference.evaluate import Outputs, run_network
from alexnet.networks.layers import drawn_dropout
from alexnet.networks.model import Network
from alexnet.runs import Run, read_model, write_json, write_text
from alexnet.training.interruption import Interrupted, StopSignal
from alexnet.training.optim import Plan, make_optimizer, plan
from alexnet.training.prepare import Prepared
from alexnet.training.progress import Progress
from alexnet.training.state import Position

LOOK_EVERY = 20  # steps between looks at the loss: each look waits for the device


class Loop:
    """One run. `fit` trains to the end and returns what `summary.json` says."""

    def __init__(self, prepared: Prepared, run: Run, model: Network, report: Progress) -> None:
        self.prepared, self.recipe, self.run, self.report = prepared, prepared.recipe, run, report
        self.device, self.precision = prepared.device, prepared.precision
        layout = torch.channels_last if self.recipe.channels_last else torch.contiguous_format
        self.layout: torch.memory_format = layout
        self.parallel = prepared.parallel
        self.parameters = sum(t.numel() for t in model.parameters())
        self.model = self.parallel.split(model).to(self.device).to(memory_format=layout)
        self.network = torch.compile(self.model) if self.recipe.compile else self.model  # what the forward pass calls
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.scaler = self.parallel.scaler(self.device, enabled=self.precision.name == "fp16")
        self.position = Position()
        self.restored = False
        self.alarmed: set[str] = set()

    def restore(self, position: Position, training: dict[str, Any]) -> None:
        """Go on from `position`; the weights are in the model already."""
        self.position = position
        # the groups are the recipe's, which may have been given changes since; the momentum is the checkpoint's
        groups = self.optimizer.state_dict()["param_groups"]
        saved = {**training["optimizer"], "param_groups": groups}
        self.parallel.load_optimizer(self.optimizer, self.model, saved)
        self.scaler.load_state_dict(training["scaler"])
        self.restored = True
        # a crash may have left a line too many, one too few, or half a line
        rows = "".join(json.dumps(row) + "\n" for row in position.history)
        self.parallel.first(lambda: write_text(self.run.metrics_jsonl, rows))

    # ── the loop ──────────────────────────────────────────────────────────────────────────────────────────────

    def fit(self) -> dict[str, Any]:
        """Train until the last epoch or `limit_steps`; then evaluate the result. Returns the summary."""
        p = self.position
        with StopSignal() as stop:
            while not self._ended():
                try:
                    self._train_epoch(stop)
                except UserError as error:  # a picture that was readable before training is so no longer
                    self._save(best=False)
                    raise UserError(f"{error} Then go on with: alexnet resume {self.run.path}") from error
                if p.batch < len(self.prepared.train) and not self._at_limit():
                    self._save(best=False)  # stopped in mid-epoch
                else:
                    self._end_epoch()
                signum = self.parallel.latest(stop.received)
                if signum is not None and not self._ended():
                    raise Interrupted(
                        f"Saved after step {p.step:,}; go on with: alexnet resume {self.run.path}", signum
                    )
            return self._finish()

    def _train_epoch(self, stop: StopSignal) -> None:
        """The rest of the current epoch, or as much as `limit_steps` or a stop signal leaves of it."""
        p, epoch, train = self.position, self.position.epoch, self.prepared.train
        self.model.train()
        loss_sum = torch.tensor(p.loss_sum, dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        sums = torch.stack([loss_sum, torch.tensor(p.hits, dtype=loss_sum.dtype)]).to(self.device)
        before, began = p.seconds, time.monotonic()
        if self._at_limit():  # stopped after the very last step: only the validation is left
            return
        try:
            for batch in train.batches(epoch, start=p.batch):
                loss, hits = self._train_step(batch.images, batch.targets, batch.ids, epoch)
                sums += torch.stack([loss * len(batch.ids), hits]).to(sums.dtype)
                p.step += 1
                p.batch += 1
                p.seen += len(batch.ids)
                p.seconds = before + time.monotonic() - began
                stopping = self.parallel.latest(stop.received) is not None
                done = stopping or self._at_limit() or p.batch == len(train)
                if done or p.batch % LOOK_EVERY == 0:
                    loss_now, hits_now = (sums / p.seen).tolist()
                    self._check_finite(loss_now)
                    self.report.step(epoch + 1, self.recipe.epochs, p.seen, train.samples, loss_now, hits_now)
                if done:
                    return
        finally:
            p.loss_sum, p.hits = sums.tolist()

    def _train_step(
        self, images: torch.Tensor, targets: torch.Tensor, ids: torch.Tensor, epoch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step on a batch, in `accumulate` parts; the mean loss and the number right, on the device.

        Each part counts by its share of the images, so that the step is that of the whole batch, also where the
        last batch of an epoch does not divide evenly.
        """
        recipe, step = self.recipe, self.position.step
        torch.manual_seed(runtime.derive_seed(recipe.seed, "step", step))  # MixUp and dropout not ours draw from here
        now = self._plan(step)
        now.set_rates(self.optimizer)
        images = images.to(self.device, non_blocking=self.device.type == "cuda")
        if (changes := self.prepared.train.on_device) is not None:
            images = augment(images, ids, epoch, recipe.seed, changes, self.prepared.preprocess.size)
        targets = targets.to(self.device, non_blocking=self.device.type == "cuda")
        x = self.prepared.preprocess.normalise(images)
        if (basis := self.prepared.colour_basis) is not None:
            std, divide = self.prepared.preprocess.std, recipe.colour_divide
            x = colour_noise(x, ids, epoch, recipe.seed, basis, now.colour_noise, std=std, divide=divide)
        x, y = mix(x, targets, len(self.prepared.classes), self.prepared.augment)
        n = len(x)
        total = torch.zeros((), device=self.device)
        hits = torch.zeros((), device=self.device)
        rows = slice(0, 0)
        for part_x, part_y in zip(x.chunk(recipe.accumulate), y.chunk(recipe.accumulate), strict=True):
            rows = slice(rows.stop, rows.stop + len(part_x))
            dropout = drawn_dropout(self.model, n, rows, partial(runtime.derive_seed, recipe.seed, "dropout", step))
            with dropout, self.precision.autocast(self.device):
                logits = self.network(part_x.contiguous(memory_format=self.layout))
            loss = F.cross_entropy(logits.float(), part_y, label_smoothing=recipe.label_smoothing)
            loss = loss * (len(part_x) / n)
            self.scaler.scale(loss / self.parallel.processes).backward()
            total += loss.detach()
            answers = part_y if part_y.ndim == 1 else part_y.argmax(dim=1)  # of a mixture, its larger share
            hits += (logits.argmax(dim=1) == answers).sum()
        self.scaler.unscale_(self.optimizer)
        if recipe.clip_norm is not None:
            self.parallel.clip(self.model, recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total, hits

    def _plan(self, step: int) -> Plan:
        return plan(self.recipe, step, len(self.prepared.train), self.position.history)

    def _ended(self) -> bool:
        return self.position.ended(self.recipe.epochs, self.recipe.limit_steps)

    def _at_limit(self) -> bool:
        return self.recipe.limit_steps is not None and self.position.step >= self.recipe.limit_steps

    # ── at the end of an epoch ────────────────────────────────────────────────────────────────────────────────

    def _end_epoch(self) -> None:
        """Validate, judge, save, and only then say that the epoch is done."""
        p, recipe = self.position, self.recipe
        began = time.monotonic()
        outputs = self._evaluate(recipe.validate_on)
        figures = outputs.measure(self.prepared.classes)
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
            "lr": self._plan(max(p.step - 1, 0)).lr,
            "images_per_second": p.seen / p.seconds if p.seconds else 0.0,
            "seconds": p.seconds + time.monotonic() - began,
        }
        p.epoch += 1
        p.history.append(row)
        chosen = recipe.validate_on == "test" or p.best is None or _better(row, p.best)
        if chosen:
            p.best = row
        p.start_epoch()
        self._save(best=chosen)
        self.parallel.first(lambda: self.run.append_metrics(row))
        if chosen:
            self._write_evaluation(recipe.validate_on, outputs)
        self._write_summary()
        self.report.epoch(row, recipe.epochs, recipe.validate_on)
        self._warn(row)

    def _evaluate(self, split: str) -> Outputs:
        batches = self.prepared.evaluation[split]
        return run_network(self.model, batches, self.prepared.preprocess, self.device, self.report.work)

    def _finish(self) -> dict[str, Any]:
        """Report the chosen network on the test set and complete the summary; may be done again after a crash."""
        best = self.run.named_checkpoint("best")
        assert best is not None, "a run has at least one epoch"
        steered_by = self.recipe.validate_on
        with_test = "test" in self.prepared.evaluation and steered_by != "test"
        test = {}
        if self.restored or with_test:
            self.parallel.load(self.model, read_model(best).model.state_dict())
        if self.restored:  # what was written after the last checkpoint may be missing
            self._write_evaluation(steered_by, self._evaluate(steered_by))
        if with_test:
            outputs = self._evaluate("test")
            self._write_evaluation("test", outputs)
            figures = outputs.measure(self.prepared.classes)
            test = {"test": {k: figures[k] for k in ("top1", "top5", "loss", "n", "interval")}}
        self._write_summary(**test, complete=True)
        return self.run.summary()

    def _write_evaluation(self, split: str, outputs: Outputs) -> None:
        names = self.prepared.source.splits[split].names
        paths = [names[i] for i in outputs.ids]
        self.parallel.first(lambda: self.run.write_evaluation(split, paths, outputs.targets, outputs.logits))

    def _write_summary(self, **more: Any) -> None:
        rows = self.position.history
        keys = ("epoch", "top1", "top5", "val_loss")
        best = self.position.best or rows[-1]
        summary = {
            "best": {k: best[k] for k in keys},
            "final": {k: rows[-1][k] for k in keys},
            "split": self.recipe.validate_on,
            "epochs": len(rows),
            "steps": self.position.step,
            "seconds": sum(r["seconds"] for r in rows),
            "images_per_second": rows[-1]["images_per_second"],
            "parameters": self.parameters,
            "arch": self.prepared.spec.name,
            "classes": len(self.prepared.classes),
            "precision": self.precision.name,
            "device": str(self.device),
            **more,
        }
        self.parallel.first(lambda: write_json(self.run.path / "summary.json", summary))

    # ── saving and warning ────────────────────────────────────────────────────────────────────────────────────

    def _save(self, *, best: bool) -> None:
        model = self.parallel.whole(self.model)
        training = {
            "position": self.position.to_dict(),
            "optimizer": self.parallel.whole_optimizer(self.optimizer, self.model),
            "scaler": self.scaler.state_dict(),
        }
        save = partial(
            self.run.save_checkpoint,
            model=model,
            classes=self.prepared.classes,
            preprocess=self.prepared.preprocess,
            step=self.position.step,
            epoch=self.position.epoch,
            training=training,
            best=best,
        )
        try:
            self.parallel.first(save)
        except OSError as error:
            raise TrainingFailed(
                f"The checkpoint after step {self.position.step:,} could not be written to {self.run.path}: "
                f"{error.strerror}; make room, then 'alexnet resume {self.run.path}' goes on from the one before."
            ) from error

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss became {loss} before step {self.position.step:,}: the learning rate is too high for "
                f"this network; try --lr {self.recipe.lr / 3:.2g} or --clip-norm 1."
            )

    def _warn(self, row: dict[str, Any]) -> None:
        """Say in plain words, once, that the network is not learning, and what usually helps."""
        chance = math.log(len(self.prepared.classes))
        if "stuck" not in self.alarmed and row["step"] >= 100 and row["train_loss"] > 0.985 * chance:
            self.alarmed.add("stuck")
            self.report.say(
                f"The loss is {row['train_loss']:.3f}, and guessing among {len(self.prepared.classes)} classes gives "
                f"{chance:.3f}: nothing is being learned yet; if the next epochs stay here, try --norm batch, "
                f"--init kaiming, or --lr {self.recipe.lr / 3:.2g} or {self.recipe.lr * 3:.2g}."
            )


def _better(row: dict[str, Any], best: dict[str, Any]) -> bool:
    return (row["top1"], -row["val_loss"]) > (best["top1"], -best["val_loss"])
