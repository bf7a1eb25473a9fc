"""Starting a run and going on with one: what `alexnet.train` and `alexnet.resume` do.

Everything that can be wrong with the input is found before the run folder is made.
"""

from __future__ import annotations

import csv
import io
import json
import time
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import torch

from alexnet import rng
from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.data.split import read_split, write_split
from alexnet.device import cpu_name, rank, world_size
from alexnet.errors import UserError
from alexnet.files import atomic_write, printable, write_json, write_text
from alexnet.inference.calibration import describe_calibration
from alexnet.models.model import Network, build
from alexnet.run_dir import Run, environment, find_run, package_version
from alexnet.training.checkpoints import TrainState, hash_samples, wrap_write_errors
from alexnet.training.config_parsing import seconds_of
from alexnet.training.distributed import make_parallel
from alexnet.training.optim import scale_for_2012_dropout, schedule_at
from alexnet.training.progress import Progress, WithTensorBoard, check_tensorboard, default_progress
from alexnet.training.recipe import Recipe, read_recipe, with_settings
from alexnet.training.recipes import find_recipe
from alexnet.training.resume import (
    RunLock,
    apply_overrides,
    check_writable,
    explicit_fields,
    find_latest_valid,
    remove_partial_files,
)
from alexnet.training.setup import TrainSetup, prepare_training
from alexnet.training.time_budget import TimeBudget, estimate_epochs
from alexnet.training.trainer import Trainer
from alexnet.training.transfer import frozen_layers, load_backbone


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: its folder and what `summary.json` says. Shows itself in a notebook."""

    run: Path
    summary: dict[str, Any] = field(repr=False)
    already_finished: bool = False

    def __str__(self) -> str:
        best, split = self.summary["best"], self.summary["split"]
        chosen = "last" if split == "test" else "best"
        text = f"{split} top-1 {best['top1']:.2%}, top-5 {best['top5']:.2%} at epoch {best['epoch']} (the {chosen})"
        if test := self.summary.get("test"):
            low, high = test["interval"]
            text += f"\ntest top-1 {test['top1']:.2%} (95 % interval {low:.2%} to {high:.2%}), top-5 {test['top5']:.2%}"
        if "calibration" in self.summary:  # earlier runs have none
            text += f"\n{describe_calibration(self.summary['calibration'])}"
        return f"{text}\nrun {self.run}"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{r['epoch']}</td><td>{r['train_loss']:.4f}</td><td>{r['val_loss']:.4f}</td>"
            f"<td>{r['top1']:.2%}</td><td>{r['images_per_second']:,.0f}</td></tr>"
            for r in Run(self.run).metrics()
        )
        head = "<tr><th>epoch</th><th>train loss</th><th>loss</th><th>top-1</th><th>images/s</th></tr>"
        return f"<p>{escape(str(self)).replace(chr(10), '<br>')}</p><table>{head}{rows}</table>"


def train(
    recipe: Recipe | str | Path = "digits",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainingResult:
    """Train `recipe` (a name, a recipe.json, a folder of pictures, or a `Recipe`) into the folder `out`.

    `settings` change the recipe, as flags do: `train("digits", epochs=5)`. `out` defaults to `runs/<recipe>-<time>`;
    with `resume`, a run that it holds already goes on instead, and with `force` also where the settings make another
    experiment of it. Raises `UserError` before anything is written if the
    input is bad, `TrainingFailed` if the loss becomes NaN or the disk is full, and `Interrupted`, after saving, on
    Ctrl-C or SIGTERM.
    """
    recipe = with_settings(recipe if isinstance(recipe, Recipe) else find_recipe(str(recipe)), settings)
    folder = Path(out) if out is not None else None
    if resume and folder is None:
        raise UserError("--resume needs --out, the folder of the run to go on with; or use 'alexnet resume RUN'.")
    if resume and folder is not None and (folder / "recipe.json").is_file():
        return resume_run(Run(folder), progress=progress, wanted=recipe, force=force)
    Run.check_free(folder)
    began = time.monotonic()
    if recipe.tensorboard:
        check_tensorboard()
    if recipe.time_budget and (recipe.parallel == "towers" or world_size() > 1):
        raise UserError(f"--time-budget is for one process, not for --parallel {recipe.parallel}; give --epochs.")
    parallel = make_parallel(recipe.parallel, recipe.device, recipe.dist_timeout)
    report = progress or default_progress()
    alone: RunLock | None = None
    try:
        prepared = prepare_training(recipe, report, parallel=parallel)
        model = _fresh(prepared)
        prepared, budget = _in_time(prepared, model, began, report)
        run = parallel.on_rank0(lambda: Run.create(prepared.recipe.name, folder, prepared.recipe.to_json()))
        alone = RunLock(run)
        parallel.on_rank0(partial(alone.acquire, report.log))
        with wrap_write_errors(run.path):
            parallel.on_rank0(lambda: remove_partial_files(run))
            parallel.on_rank0(lambda: _write_facts(run, prepared))
        report = _with_curves(report, prepared.recipe, run)
        return TrainingResult(run.path, Trainer(prepared, run, model, report, budget).fit())
    except Exception as error:
        parallel.raise_peer_error(error)
        raise
    finally:
        report.close()
        if alone:
            alone.release()
        parallel.close()


def resume(
    run: str | Path,
    *,
    epochs: str | int | None = None,
    parallel: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainingResult:
    """Go on with the run in folder `run` (or `last`); the rest as in `resume_run`."""
    wanted = None if epochs is None else str(epochs)
    return resume_run(
        find_run(run), epochs=wanted, parallel=parallel, force=force, progress=progress, settings=settings
    )


def resume_run(
    run: Run,
    *,
    epochs: str | None = None,
    parallel: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    wanted: Recipe | None = None,
    settings: dict[str, Any] | None = None,
) -> TrainingResult:
    """Go on with `run` from its newest whole checkpoint, or from the start where there is none yet.

    `epochs`, as `+N` or `N`, extends it; from there on the learning rate is that of a run of so many epochs, and one
    that had stopped early no longer does so. A finished run without `epochs` is returned as it is. What `wanted`, a
    whole recipe, or `settings` set differently is followed where it leaves the experiment as it is, and else with
    `force` alone. `parallel`: a run may go on in another number of processes than it began with. Without it, one
    process goes on as one, and several as the run's recipe says: as towers, or dividing each batch.
    """
    recipe = read_recipe(run.recipe_json)
    if wanted is not None and (wanted.name, wanted.dataset) != (recipe.name, recipe.dataset):
        raise UserError(f"{run.path} holds a run of '{recipe.name}', not of '{wanted.name}'; choose another --out.")
    asked = parallel or (wanted.parallel if wanted is not None else "auto")
    if asked == "auto" and recipe.parallel == "towers" and world_size() > 1:
        asked = "towers"
    processes = make_parallel(asked, recipe.device, (wanted or recipe).dist_timeout)
    report = progress or default_progress()
    alone = RunLock(run)
    try:
        processes.on_rank0(lambda: alone.acquire(report.log))
        begun = recipe
        recipe, changed = _followed(run, recipe, wanted, settings or {}, force)
        with wrap_write_errors(run.path):
            start = processes.on_rank0(lambda: find_latest_valid(run, report.log))
        training = read_training_state(start.folder) if start else None
        position = start.position(training) if start and training else TrainState()
        ended = position.finished(recipe)
        summary = run.summary()
        if ended and epochs is None and position.matches_summary(summary):
            return TrainingResult(run.path, summary, already_finished=True)
        check_writable(run)
        processes.on_rank0(lambda: remove_partial_files(run))
        if changed:
            report.log(changed)
        if epochs is not None:
            now = position.epoch if ended else recipe.epochs
            recipe = replace(recipe, epochs=_extended(now, epochs), limit_steps=None)
            if position.early_stopped(recipe):  # else there would be nothing to train
                report.log(
                    f"It had stopped early, after {recipe.early_stop} epochs without a better one; from here on it "
                    "does not stop early."
                )
                recipe = replace(recipe, early_stop=0)
        if start and (other := _elsewhere(run)):
            report.log(other)
        split = read_split(run.split_csv) if run.split_csv.is_file() else None
        saved = load_checkpoint(start.folder) if start else None
        prepared = prepare_training(recipe, report, split, saved, processes)
        if saved:
            _check_data(run, prepared, saved.classes, position, force)
            model = saved.model
        else:
            model = _fresh(prepared)
            processes.on_rank0(lambda: _write_facts(run, prepared))
        if recipe != begun:
            processes.on_rank0(lambda: write_text(run.recipe_json, prepared.recipe.to_json() + "\n"))
        report = _with_curves(report, prepared.recipe, run)
        loop = Trainer(prepared, run, model, report)
        if training:
            loop.restore(position, training)
            report.log(f"Going on after step {position.step:,}, in epoch {position.epoch + 1}.")
        else:
            report.log("There is no checkpoint yet; training begins anew.")
        if epochs is not None:
            report.log(_extension(prepared, position, recipe.epochs))
        return TrainingResult(run.path, loop.fit())
    except Exception as error:
        processes.raise_peer_error(error)
        raise
    finally:
        report.close()
        alone.release()
        processes.close()


def _fresh(prepared: TrainSetup) -> Network:
    """The network with the initial weights of the recipe's seed."""
    torch.manual_seed(rng.derive_seed(prepared.recipe.seed, "init"))
    model = build(prepared.spec)
    if prepared.recipe.dropout_2012:
        scale_for_2012_dropout(model)
    if prepared.start is not None:
        load_backbone(model, prepared.start, prepared.classes)
    frozen_layers(model, prepared.recipe.freeze)  # what is no layer should be told before the run folder is made
    return model


def _in_time(
    prepared: TrainSetup, model: Network, began: float, report: Progress
) -> tuple[TrainSetup, TimeBudget | None]:
    """With --time-budget: the recipe with as many epochs as fit, and what the loop keeps to."""
    recipe = prepared.recipe
    if recipe.time_budget is None:
        return prepared, None
    epochs, budget = estimate_epochs(prepared, model, TimeBudget(seconds_of(recipe.time_budget), began))
    if epochs >= 1:
        report.log(f"{epochs} epochs fit {recipe.time_budget}; the first one will tell better.")
    else:
        report.log(f"Not even one epoch fits {recipe.time_budget}; one is trained all the same.")
    return replace(prepared, recipe=replace(recipe, epochs=max(epochs, 1))), budget


def _with_curves(report: Progress, recipe: Recipe, run: Run) -> Progress:
    """`report`, and TensorBoard's files too where the recipe wants them; written by the first process."""
    return WithTensorBoard(report, run.path / "tensorboard") if recipe.tensorboard and rank() == 0 else report


def _write_facts(run: Run, prepared: TrainSetup) -> None:
    """What was found out before training: the machine, the split, the files left out."""
    write_json(run.path / "env.json", environment(prepared.device, prepared.recipe.seed))
    if prepared.source.split_rows:
        with atomic_write(run.split_csv) as beside:
            write_split(beside, prepared.source.split_rows)
    if prepared.source.bad:
        text = io.StringIO()
        csv.writer(text).writerows([("path", "reason"), *((printable(p), r) for p, r in prepared.source.bad)])
        write_text(run.path / "bad_files.csv", text.getvalue())


def _followed(
    run: Run, recipe: Recipe, wanted: Recipe | None, settings: dict[str, Any], force: bool
) -> tuple[Recipe, str]:
    """The run's recipe with what is asked for besides, and a sentence; as `follow`, which raises `UserError`."""
    if wanted is not None:
        names = [name for name in explicit_fields(recipe, wanted) if name != "parallel"]
        return apply_overrides(run.path, recipe, wanted, names, force)
    return apply_overrides(run.path, recipe, with_settings(recipe, settings), settings, force)


def _elsewhere(run: Run) -> str:
    """What is other than where the run began and changes the last digits of its sums; empty where nothing is."""
    try:
        then = json.loads((run.path / "env.json").read_text(encoding="utf-8"))
        versions = dict(then["versions"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""
    now: dict[str, Any] = {p: package_version(p) for p in ("torch", "torchvision", "numpy", "pillow")}
    before = {package: versions.get(package) for package in now}
    now |= {"cpu": cpu_name(), "threads": torch.get_num_threads()}
    before |= {"cpu": then.get("cpu"), "threads": then.get("threads")}
    other = [f"{key} {before[key]}, now {now[key]}" for key in now if before[key] not in (None, now[key])]
    return f"The run began with {'; '.join(other)}: the last digits of its figures may differ." if other else ""


def _check_data(run: Run, prepared: TrainSetup, classes: tuple[str, ...], position: TrainState, force: bool) -> None:
    """Raise `UserError` where the data are not those that the run began with."""
    if classes != prepared.classes:
        raise UserError(
            f"The data now has the {len(prepared.classes)} classes {', '.join(prepared.classes[:9])}, but "
            f"{run.path} was trained on {len(classes)}: {', '.join(classes[:9])}; put the folders back as they were."
        )
    train = prepared.source.splits["train"]
    now = len(train)
    if position.pictures not in (0, now) and not force:
        raise UserError(
            f"The data now has {now:,} training pictures and {run.path} began with {position.pictures:,}: in another "
            "order it would be another experiment; put them back as they were, or add --force."
        )
    if position.samples not in ("", hash_samples(train.names, train.targets)) and not force:
        raise UserError(
            f"The training pictures have other names or labels than those that {run.path} began with: it would be "
            "another experiment; put them back as they were, or add --force."
        )


def _extension(prepared: TrainSetup, position: TrainState, epochs: int) -> str:
    """Which learning rates an extended run gets."""
    rates = [
        schedule_at(prepared.recipe, step, len(prepared.train), position.history).lr
        for step in (position.step, epochs * len(prepared.train) - 1)
    ]
    return (
        f"Extended to {epochs} epochs: the learning rate goes on as that of a run of {epochs} epochs "
        f"({prepared.recipe.schedule}), from {rates[0]:.3g} now to {rates[1]:.3g} at the end."
    )


def _extended(now: int, wanted: str) -> int:
    """The number of epochs that `--epochs +N` or `--epochs N` means for a run of `now` epochs."""
    digits = wanted.removeprefix("+")
    if not digits.isdecimal() or len(digits) > 9 or int(digits) == 0:  # Python turns no 5,000 digits into a number
        raise UserError(f"--epochs must be a number such as {now + 10}, or +10 for ten more, not '{wanted}'.")
    epochs = now + int(digits) if wanted.startswith("+") else int(digits)
    if epochs <= now:
        raise UserError(f"The run already has {now} epochs; --epochs must be larger, or +N for N more.")
    return epochs
