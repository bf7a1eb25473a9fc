"""Training and resuming a run, without its report page (which `alexnet.api` adds).

All bad input is detected before the run folder is created.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alexnet import rng
from alexnet.checkpoint import load_checkpoint, read_training_state
from alexnet.data.dataset import read_bad_files, read_split, write_split
from alexnet.data.loader import evaluation_batches
from alexnet.data.processes import check_main_module
from alexnet.device import environment, rank, world_size
from alexnet.errors import UserError
from alexnet.files import atomic_write, encode_csv, printable, write_bytes, write_json, write_text
from alexnet.inference.evaluate import has_top5
from alexnet.messages.translator import Translator
from alexnet.models.model import Network, build
from alexnet.progress import Progress, WithTensorBoard, check_tensorboard, default_progress, split_name
from alexnet.run_dir import Run, find_run
from alexnet.runtimes.calibration import describe_calibration
from alexnet.text import join_lines
from alexnet.training.checkpoints import TrainState, find_latest_valid, wrap_write_errors
from alexnet.training.diagnostics import LIKELY_CAUSES
from alexnet.training.distributed import connect
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.optim import scale_for_2012_dropout
from alexnet.training.recipe import Recipe, read_recipe, with_settings
from alexnet.training.recipes import default_recipe, find_recipe
from alexnet.training.resume import (
    apply_overrides,
    check_same_data,
    compare_environment,
    describe_extension,
    explicit_fields,
    extend,
)
from alexnet.training.setup import TrainSetup, prepare_training
from alexnet.training.speed import restore_threads
from alexnet.training.threads import ThreadChoice
from alexnet.training.time_budget import TimeBudget, fit_time_budget
from alexnet.training.trainer import Trainer
from alexnet.training.transfer import fit_last_layer, fits_from_fc6, frozen_layers, load_backbone

OnStart = Callable[[Path, Callable[[str], object]], object]
"""Receives the run folder, and what shows the user a line."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished run: its folder and its `summary.json`. Displays as a table in a notebook."""

    run: Path
    summary: dict[str, Any] = field(repr=False)
    already_finished: bool = False
    lang: str = field(default="en", repr=False, compare=False)

    def __str__(self) -> str:
        translate = Translator(self.lang)
        best, split = self.summary["best"], split_name(self.summary["split"], translate)
        steps, all_steps = self.summary["steps"], self.summary.get("steps_per_epoch", 0)

        def top5(metrics: dict[str, Any]) -> str:
            shown = has_top5(int(self.summary.get("classes", 0)))
            return translate("result_top5", top5=metrics["top5"]) if shown else ""

        when = "part" if steps < all_steps else "last" if self.summary["split"] == "test" else "best"
        values = {"split": split, "top1": best["top1"], "top5": top5(best)}
        if when == "part":
            lines = [translate("result_part", **values, steps=steps, all=all_steps)]
        else:
            lines = [translate(f"result_{when}", **values, epoch=best["epoch"])]
        if test := self.summary.get("test"):
            low, high = test["interval"]
            lines.append(translate("result_test", top1=test["top1"], low=low, high=high, top5=top5(test)))
        counts = self.summary.get("class_images", [0])
        if best["top1"] <= (share := max(counts) / max(sum(counts), 1)):
            causes = translate("comma").join(map(translate.sentence, LIKELY_CAUSES))
            lines.append(translate("result_chance", share=share, causes=causes))
        calibration = translate.sentence(describe_calibration(self.summary["calibration"]))
        return join_lines(*lines, calibration, translate("result_run", run=self.run))

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_table

        translate = Translator(self.lang)
        rows = [
            (r["epoch"], f"{r['train_loss']:.4f}", f"{r['val_loss']:.4f}", f"{r['top1']:.2%}",
             f"{r['images_per_second']:,.0f}")
            for r in Run(self.run).metrics()
        ]  # fmt: skip
        columns = ("epoch", "result_train_loss", "result_val_loss", "result_top1", "result_speed")
        has_report = (self.run / "report.html").is_file()
        report = translate("result_report", run=repr(str(self.run))) if has_report else ""
        folded = translate("result_epochs", n=len(rows)) if len(rows) > 5 else ""
        return render_table(str(self), rows, [translate(key) for key in columns], note=report, folded=folded)


def train(
    recipe: Recipe | str | Path | None = None,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    began: float | None = None,
    on_start: OnStart | None = None,
    lang: str = "en",
    **settings: Any,
) -> TrainingResult:
    """Train `recipe` (a name, a recipe.json, a folder of images, or a `Recipe`) into the run folder `out`, and write
    the report there.

    Without `recipe`, the images that `data` or `labels` name, or else the digits. `settings` override the recipe, as
    flags do: `train("digits", epochs=5)`. `out` defaults to `runs/<name>-<time>` (see `Recipe.run_name`). With
    `resume`, a run already in `out` is resumed; with `force` even if the settings change the experiment. A time budget
    counts from `began`, by `time.monotonic`, or else from this call. `on_start` is called, on rank 0, when the run
    folder exists and training begins. What is shown is in the language `lang`, en or zh. Raises `UserError` for bad
    input before anything is written, `TrainingFailed` if the loss becomes NaN or the disk is full, and `Interrupted`,
    after saving a checkpoint, on Ctrl-C or SIGTERM.

    >>> result = alexnet.train("digits", epochs=2, width=0.25, out="runs/digits")
    >>> result.run.name, result.summary["epochs"]
    ('digits', 2)
    """
    called = time.monotonic()
    began = called if began is None else began
    check_main_module("the training")
    if not isinstance(recipe, Recipe):
        recipe = find_recipe(str(recipe or default_recipe(settings)))
    if settings:
        recipe = with_settings(recipe, settings)
    folder = Path(out) if out is not None else None
    if resume and folder is None:
        raise UserError("--resume needs --out, the folder of the run to resume; or use 'alexnet resume RUN'.")
    if resume and folder is not None and (folder / "recipe.json").is_file():
        original = read_recipe(folder / "recipe.json")
        if (recipe.name, recipe.data.dataset) != (original.name, original.data.dataset):
            raise UserError(f"{folder} holds a run of '{original.name}', not of '{recipe.name}'; choose another --out.")
        names = [name for name in explicit_fields(original, recipe) if name != "parallel"]
        mode = recipe.run.parallel
        return _resume(Run(folder), original, recipe, names, mode, None, force, progress, on_start, lang)
    Run.check_free(folder)
    if recipe.run.tensorboard:
        check_tensorboard()
    if recipe.schedule.time_budget and (recipe.run.parallel == "towers" or world_size() > 1):
        raise UserError(f"--time-budget needs a single process, not --parallel {recipe.run.parallel}; give --epochs.")
    with _session(recipe.run.parallel, recipe, progress, lang) as (parallel, display, stack):
        setup = prepare_training(recipe, display, parallel=parallel)
        model = _new_model(setup)
        threads = ThreadChoice(setup, torch.get_num_threads(), display)
        threads.start(model)
        setup, budget = fit_time_budget(setup, model, began, called - began, display)
        run = parallel.broadcast_object(lambda: Run.create(setup.recipe.run_name, folder, setup.recipe.to_json()))
        parallel.broadcast_object(lambda: stack.enter_context(run.lock(display.log)))
        return _fit(stack, setup, run, model, display, threads, on_start, lang, budget=budget)


def resume(
    run: str | Path,
    *,
    epochs: str | int | None = None,
    parallel: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    on_start: OnStart | None = None,
    lang: str = "en",
    settings: dict[str, Any] | None = None,
    **more_settings: Any,
) -> TrainingResult:
    """Resume `run` (a run folder or `last`) from its latest valid checkpoint, or from the start if it has none.

    `epochs`, as `+N` or `N`, extends it: the learning rate then follows the schedule of the longer run, and a run that
    stopped early no longer does. Without `epochs` a finished run is returned as it is. Settings, in a dict or as
    keywords, that do not change the experiment are applied; others need `force`. `parallel` and the number of processes
    may differ from before; `parallel` defaults to `none` for one process, and for several to `towers` if the run used
    it, else `data`. What is shown is in the language `lang`, en or zh.

    >>> alexnet.resume("runs/digits", epochs="+1").summary["epochs"]
    3
    """
    check_main_module("the training")
    found = find_run(run)
    original = read_recipe(found.recipe_json)
    settings = {**(settings or {}), **more_settings}
    given = with_settings(original, settings)
    mode = parallel or "auto"
    return _resume(found, original, given, list(settings), mode, epochs, force, progress, on_start, lang)


def _resume(
    run: Run,
    original: Recipe,
    given: Recipe,
    names: list[str],
    mode: str,
    epochs: str | int | None,
    force: bool,
    progress: Progress | None,
    on_start: OnStart | None,
    lang: str,
) -> TrainingResult:
    """Resume `run`, started with the recipe `original`, with the settings `names` of `given`; the rest as `resume`."""
    if mode == "auto" and original.run.parallel == "towers" and world_size() > 1:
        mode = "towers"
    with _session(mode, given, progress, lang) as (parallel, display, stack):
        parallel.broadcast_object(lambda: stack.enter_context(run.lock(display.log)))
        recipe, changes = apply_overrides(run.path, original, given, names, force)
        with wrap_write_errors(run.path):
            start = parallel.broadcast_object(partial(find_latest_valid, run, display.log))
        folder, state = start or (None, TrainState())
        summary = run.summary()
        if epochs is None and state.finished(recipe) and state.matches_summary(summary):
            return TrainingResult(run.path, summary, already_finished=True, lang=lang)
        run.check_writable()
        if changes:
            display.log(changes)
        if epochs is not None:
            recipe = extend(recipe, state, str(epochs), display)
        if folder is None:
            # What is written before training may be incomplete: the data is read and checked as for a new run.
            setup, saved = prepare_training(recipe, display, parallel=parallel), None
        else:
            if warning := compare_environment(run):
                display.log(warning)
            split = read_split(run.split_csv) if run.split_csv.is_file() else None
            bad, saved = read_bad_files(run.path / "bad_files.csv"), load_checkpoint(folder)
            setup = prepare_training(recipe, display, split, saved, parallel, bad)
            check_same_data(run, setup, saved.classes, state, force)
        if recipe != original:
            parallel.broadcast_object(lambda: write_text(run.recipe_json, setup.recipe.to_json() + "\n"))
        model = saved.model if saved else _new_model(setup)
        threads = ThreadChoice(setup, torch.get_num_threads(), display)
        if start is None:
            display.log("The run has no checkpoint yet; training from the start.")
            threads.start(model)
        else:
            threads.resume(model, state.threads)
        if epochs is not None:
            display.log(describe_extension(setup, state, recipe.schedule.epochs))
        return _fit(stack, setup, run, model, display, threads, on_start, lang, start=start)


@contextmanager
def _session(
    mode: str, recipe: Recipe, progress: Progress | None, lang: str
) -> Iterator[tuple[SingleProcess, Progress, ExitStack]]:
    """Connect the processes, show progress, and restore the threads; what is entered into the stack is left first."""
    with (
        closing(progress or default_progress(lang)) as display,
        restore_threads(),
        connect(mode, recipe.run.device, recipe.run.dist_timeout) as parallel,
        ExitStack() as stack,
    ):
        yield parallel, display, stack


def _fit(
    stack: ExitStack,
    setup: TrainSetup,
    run: Run,
    model: Network,
    progress: Progress,
    threads: ThreadChoice,
    on_start: OnStart | None,
    lang: str,
    *,
    budget: TimeBudget | None = None,
    start: tuple[Path, TrainState] | None = None,
) -> TrainingResult:
    """Train in the locked `run`, from the beginning or from `start`: a checkpoint folder and the state in it."""

    def prepare_folder() -> None:
        run.remove_partial_files()
        if start is None:
            _write_metadata(run, setup)

    with wrap_write_errors(run.path):
        setup.parallel.broadcast_object(prepare_folder)
    if setup.recipe.run.tensorboard and rank() == 0:
        progress = stack.enter_context(closing(WithTensorBoard(progress, run.path / "tensorboard")))
    if on_start is not None and rank() == 0:
        on_start(run.path, progress.log)
    trainer = Trainer(setup, run, model, progress, budget, threads)
    if start is not None:
        folder, state = start
        trainer.restore(state, read_training_state(folder))
        progress.log(f"Resuming after step {state.step:,}, in epoch {state.epoch + 1}.")
    return TrainingResult(run.path, trainer.fit(), lang=lang)


def _new_model(setup: TrainSetup) -> Network:
    """Return the network with the initial weights of the recipe's seed, or those that --weights names."""
    torch.manual_seed(rng.derive_seed(setup.recipe.run.seed, "init"))
    model = build(setup.spec)
    if setup.recipe.optimization.dropout_2012:
        scale_for_2012_dropout(model)
    if setup.pretrained is not None:
        load_backbone(model, setup.pretrained, setup.classes)
        if setup.fits_last_layer(model):
            batches = evaluation_batches(setup.dataset.splits["train"], setup.preprocess, setup.train.workers)
            from_fc6 = fits_from_fc6(setup.pretrained, setup.recipe.model.freeze)
            fit_last_layer(model.to(setup.device), batches, setup.device, from_fc6=from_fc6)
    frozen_layers(model, setup.recipe.model.freeze)  # raises for unknown layers before the run folder is created
    return model


def _write_metadata(run: Run, setup: TrainSetup) -> None:
    """Write what is known before training: the environment, the split and the unreadable files."""
    write_json(run.path / "env.json", environment(setup.device, setup.recipe.run.seed))
    if setup.dataset.split_rows:
        with atomic_write(run.split_csv) as partial_file:
            write_split(partial_file, setup.dataset.split_rows)
    if setup.dataset.bad:
        rows = [("path", "reason"), *((printable(name), reason) for name, reason in setup.dataset.bad)]
        write_bytes(run.path / "bad_files.csv", encode_csv(rows))
