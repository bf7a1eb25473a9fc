"""A claim as a paired comparison: both arms trained with the same seeds, data and order.

For each seed, a training with the part and one without it form a pair: same validation split, order, augmentation and,
wherever the networks agree, initial weights. The rules of the verdict are in `stats.py`. Every training is an ordinary
run folder named after its recipe, so that an interrupted comparison resumes and claims share runs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexnet.ablation import stats
from alexnet.ablation.claims import CLAIMS, Arm, Claim, find_claim
from alexnet.ablation.figure import comparison_figure
from alexnet.ablation.hog import hog_svm
from alexnet.ablation.results import Ablation, ArmResult, Outcome, format_value, pair_differences
from alexnet.errors import TrainingFailed, UserError
from alexnet.files import read_json, write_json
from alexnet.inference.evaluate import evaluate
from alexnet.plots.style import Drawing
from alexnet.progress import Plain, Silent
from alexnet.run_dir import Run
from alexnet.training.api import train
from alexnet.training.recipe import Recipe, with_settings
from alexnet.training.recipes import LEVELS, named_recipe

OTHER_SEEDS_OFFSET = 1000  # added to the seeds of an arm with `other_seeds`
RATE_SEED = 2000  # on which a learning rate is chosen; never among the tested
RATE_EPOCHS = 3  # epochs of such a training
GRAY = ("digits", "fashion-mnist")  # datasets without color

Log = Callable[[str], None]


def base_recipe(recipe: str | None = None, data: Path | None = None, **settings: Any) -> Recipe:
    """Return the recipe both arms share: `recipe`, or `ablation`, without data on the embedded digits.

    `settings` override it, except those that are None.
    """
    base = named_recipe(recipe or "ablation")
    if recipe is None and data is None:
        base = base.replace(dataset="digits", std=LEVELS[:1], flip=False, batch_size=32)
    given = {"data": data, **settings}
    return with_settings(base, {key: value for key, value in given.items() if value is not None})


# ── one claim ─────────────────────────────────────────────────────────────────────────────────────


def ablate(
    claim: str,
    *,
    base: Recipe | None = None,
    seeds: int | None = None,
    budget: float | None = None,
    out: str | Path = "runs/ablate",
    log: Log = lambda _: None,
) -> Ablation:
    """Test `claim` on the recipe `base` and write `<out>/<claim>.json`, `.svg` and `.png`.

    Trains `seeds` pairs; by default as many as the spread of the first three requires, from 5 to 12. `budget`
    limits all trainings, in minutes: a pair that would not finish in time is not started. Finished runs in `out` are
    reused. Raises `UserError` before any training if the budget is too small for the first three.
    """
    found, base, out = find_claim(claim), base or base_recipe(), Path(out)
    _check_limits(seeds, budget)
    if found.needs_color and base.data.dataset in GRAY:
        raise UserError(f"The claim '{claim}' is about color, and the {base.data.dataset} are gray; give --data.")
    arms = (found.part, found.without)
    recipes = [arm_recipe(arm, base) for arm in arms]
    started = time.monotonic()
    pair_seconds = 0.0
    if budget is not None:
        log(f"{claim}: measuring how long a pair of trainings takes")
        pair_seconds = _estimate_pair(found, recipes, budget, seeds, out)
    rates: list[dict[str, float]] = []
    for i, arm in enumerate(arms):
        recipes[i], errors = choose_rate(found, arm, recipes[i], out, log)
        rates.append(errors)
    target = seeds or stats.MIN_PAIRS
    pairs: list[list[Outcome]] = []  # of both arms
    while len(pairs) < target:
        seed = len(pairs)
        if budget is not None and time.monotonic() - started + pair_seconds > 60 * budget:
            log(f"The budget of {budget:g} minutes ends after {seed} of {target} pairs.")
            break
        pair_started = time.monotonic()
        pair = [measure_arm(found, arm, recipe, seed, out, log) for arm, recipe in zip(arms, recipes, strict=True)]
        elapsed = time.monotonic() - pair_started
        pair_seconds = max(pair_seconds, elapsed)
        pairs.append(pair)
        shown = (f"{arm.name} {format_value(o.value, found.measure)}" for arm, o in zip(arms, pair, strict=True))
        log(f"{claim}, seed {seed}: {', '.join(shown)} ({elapsed:.0f} s)")
        if seeds is None and len(pairs) == stats.PILOT_PAIRS:
            target = _fix_pairs(found, pairs)
            log(f"{claim}: the spread of {stats.PILOT_PAIRS} pairs requires {target}.")
    if not pairs:
        raise UserError(f"--budget {budget:g} minutes ended before the first pair of '{claim}'; give more.")
    part, without = (
        ArmResult(arm.name, list(outcomes), _changed_settings(recipe, base), errors)
        for arm, recipe, errors, outcomes in zip(arms, recipes, rates, zip(*pairs, strict=True), strict=True)
    )
    return _write(Ablation(found, part, without, json.loads(base.to_json()), target), out)


def _check_limits(seeds: int | None, budget: float | None) -> None:
    if seeds is not None and not 1 <= seeds <= OTHER_SEEDS_OFFSET:
        raise UserError(f"--seeds must be from 1 to {OTHER_SEEDS_OFFSET}, not {seeds}.")
    if budget is not None and not 0 < budget < math.inf:
        raise UserError(f"--budget must be a number of minutes above 0, not {budget}.")


def _fix_pairs(claim: Claim, pairs: Sequence[Sequence[Outcome]]) -> int:
    """Return how many pairs are needed, by the spread of the first ones."""
    if not all(outcome.reached for pair in pairs for outcome in pair):
        return stats.SIGN_PAIRS
    part, without = ([outcome.value for outcome in arm] for arm in zip(*pairs, strict=True))
    differences = pair_differences(claim.measure, part, without)
    return stats.pairs_needed(differences, stats.HALF_WIDTHS[claim.measure])


def arm_recipe(arm: Arm, base: Recipe) -> Recipe:
    """Return the recipe of an arm: the base with the arm's settings."""
    settings = {key: value(base) if callable(value) else value for key, value in arm.settings.items()}
    return with_settings(base, settings)


def _changed_settings(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    old, new = json.loads(base.to_json()), json.loads(recipe.to_json())
    return {key: value for key, value in new.items() if value != old[key]}


def _write(result: Ablation, out: Path) -> Ablation:
    paths = [out / f"{result.claim.name}.{suffix}" for suffix in ("json", "svg", "png")]
    result = replace(result, files=[str(p) for p in paths])
    figure = Drawing(lambda theme, _: comparison_figure(result, theme), paths[1])  # in English
    for path in paths[1:]:
        figure.save(path)
    write_json(paths[0], result.to_dict())
    return replace(result, figure=figure)


# ── all claims ────────────────────────────────────────────────────────────────────────────────────


def ablate_all(
    *,
    base: Recipe,
    seeds: int | None = None,
    budget: float | None = None,
    out: str | Path = "runs/ablate",
    log: Log = lambda _: None,
) -> list[Ablation]:
    """Test every claim in the order of `CLAIMS`, each as `ablate` does, and return the results.

    A claim that cannot be tested, because of its data or of a training whose loss became NaN, is logged and left out;
    so are those for which `budget`, in minutes for all of them, has no time left.
    """
    _check_limits(seeds, budget)
    started, results = time.monotonic(), []
    for name in CLAIMS:
        left = None if budget is None else budget - (time.monotonic() - started) / 60
        if left is not None and left <= 0:
            log(f"The budget of {budget:g} minutes ends before '{name}'.")
            break
        try:
            results.append(ablate(name, base=base, seeds=seeds, budget=left, out=out, log=log))
        except (UserError, TrainingFailed) as error:
            log(f"{name} is not tested: {error}")
    return results


# ── one training ──────────────────────────────────────────────────────────────────────────────────


class _Labeled(Plain):
    """Plain progress whose lines begin with what is trained, from the first image that is read."""

    def __init__(self, label: str, log: Log) -> None:
        super().__init__()
        self._label, self._log, self._started = label, log, False

    def __call__(self, done: int, total: int, what: str) -> None:
        self._start()
        super().__call__(done, total, what)

    def step(self, *_: Any) -> None:
        self._start()

    def log(self, text: str) -> None:
        self._log(f"{self._label}: {text}")

    def _start(self) -> None:
        if not self._started:
            self._started = True
            self.log("training")


def _train(recipe: Recipe, folder: Path, label: str, log: Log) -> Run:
    """Train `recipe` into `folder`, resume it there, or return the finished run."""
    run = Run(folder)
    if not _is_complete(folder):
        train(recipe, out=folder, resume=True, progress=_Labeled(label, log))
    return run


def _is_complete(folder: Path) -> bool:
    run = Run(folder)
    return run.recipe_json.is_file() and bool(run.summary().get("complete"))


def choose_rate(claim: Claim, arm: Arm, recipe: Recipe, out: Path, log: Log) -> tuple[Recipe, dict[str, float]]:
    """Return the recipe with the learning rate of the arm's grid that learns fastest, and all errors by rate.

    The fastest has the lowest training error after a few epochs; one whose loss becomes NaN has an error of 1.
    """
    if not arm.rates:
        return recipe, {}
    errors = {}
    for rate in arm.rates:
        candidate = recipe.replace(lr=rate, seed=RATE_SEED, epochs=min(RATE_EPOCHS, recipe.schedule.epochs))
        label = f"{claim.name}, {arm.name} at the learning rate {rate:g}"
        try:
            run = _train(candidate, _run_folder(candidate, out), label, log)
            errors[f"{rate:g}"] = 1 - run.metrics()[-1]["train_top1"]
        except TrainingFailed:
            errors[f"{rate:g}"] = 1.0
    best = min(arm.rates, key=lambda rate: errors[f"{rate:g}"])
    log(f"{claim.name}: the learning rate of {arm.name} is {best:g}")
    return recipe.replace(lr=best), errors


def measure_arm(claim: Claim, arm: Arm, recipe: Recipe, seed: int, out: Path, log: Log) -> Outcome:
    """Train an arm or reuse its run, and measure it."""
    recipe = recipe.replace(seed=seed + OTHER_SEEDS_OFFSET * arm.other_seeds)
    folder = _run_folder(recipe, out)
    label = f"{claim.name}, {arm.name}, seed {recipe.run.seed}"
    cached = functools.partial(_cached, folder.parent, recipe.run.seed)
    if arm.kind == "hog":
        log(label)
        top1, classes, images = cached("hog", lambda: list(hog_svm(recipe)))
        return Outcome(recipe.run.seed, str(folder.parent), top1, top1, int(classes), int(images))
    run = _train(recipe, folder, label, log)
    rows, summary = run.metrics(), run.summary()
    gain = rows[-1]["train_top1"] - rows[-2]["train_top1"] if len(rows) > 1 else 0.0
    outcome = Outcome(
        recipe.run.seed, str(folder), 0.0, 0.0, summary["classes"], 0, len(rows), gain, seconds=summary["seconds"]
    )
    if claim.measure in ("train_error", "gap"):  # of the last network, so that nothing is selected
        train_top1, _ = cached("train", lambda: _top1(run, "last", split="train"))
        top1, images = cached("last", lambda: _top1(run, "last"))
        value = train_top1 - top1 if claim.measure == "gap" else 1 - train_top1
        return replace(outcome, value=value, top1=top1, images=int(images), train_top1=train_top1)
    # The best epoch on val, measured on test; without a test split the last epoch, as val chose the best.
    checkpoint = "best" if summary.get("test") else "last"
    if arm.kind == "ten-crop":
        top1, images = cached("ten-crop", lambda: _top1(run, checkpoint, views=10))
    elif checkpoint == "best":
        top1, images = summary["test"]["top1"], summary["test"]["n"]
    else:
        top1, images = cached("last", lambda: _top1(run, checkpoint))
    outcome = replace(outcome, value=top1, top1=top1, images=int(images))
    if claim.measure == "epochs":
        epochs = stats.epochs_to_error(rows)
        return replace(outcome, value=len(rows) if epochs is None else epochs, reached=epochs is not None)
    return outcome


def _top1(run: Run, checkpoint: str, split: str = "auto", views: int = 1) -> list[float]:
    """Return the top-1 accuracy of a run, and the number of images it was measured on."""
    found = evaluate(run.path, checkpoint=checkpoint, split=split, views=views)
    return [float(found["top1"]), found["n"]]


def _cached(folder: Path, seed: int, what: str, compute: Callable[[], list[float]]) -> list[float]:
    """Return the numbers in `<folder>/<what>-<seed>.json`, computing and writing them if there is no such file."""
    path = folder / f"{what}-{seed}.json"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, compute())
    return read_json(path, list[float])


def _run_folder(recipe: Recipe, out: Path) -> Path:
    """Return the folder of a run: readable, and unique to the recipe and its seed.

    Settings at their default do not count, so that a setting added in a later version still finds the runs.
    """
    settings = {**_changed_settings(recipe, Recipe()), "seed": None}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=5).hexdigest()
    return out / "arms" / f"{recipe.model.arch}-{recipe.model.norm}-{digest}" / f"seed-{recipe.run.seed}"


# ── durations ─────────────────────────────────────────────────────────────────────────────────────


def _estimate_pair(claim: Claim, recipes: Sequence[Recipe], budget: float, seeds: int | None, out: Path) -> float:
    """Estimate the seconds of a pair of trainings. Raises `UserError` if the budget is too small for the first three;
    finished runs take no time."""
    pairs = min(seeds or stats.PILOT_PAIRS, stats.PILOT_PAIRS)
    seconds, needed = 0.0, 0.0
    for arm, recipe in zip((claim.part, claim.without), recipes, strict=True):
        folders = (_run_folder(recipe.replace(seed=seed), out) for seed in range(pairs))
        missing = pairs if arm.other_seeds or arm.rates else sum(not _is_complete(folder) for folder in folders)
        if missing:
            run = _estimate_seconds(arm, recipe)
            seconds, needed = seconds + run, needed + missing * run
    if needed > 60 * budget:
        raise UserError(
            f"--budget {budget:g} minutes is too small: a pair of trainings takes about {seconds / 60:.1f} minutes "
            f"here and the interval needs {pairs}; give --budget {math.ceil(needed / 60)}, fewer --epochs or "
            "a smaller --width."
        )
    return seconds


def _estimate_seconds(arm: Arm, recipe: Recipe) -> float:
    """Estimate the duration of one run from a few steps in a temporary folder."""
    if arm.kind != "train":
        return 0.0  # ten-crop tests the other arm's run; HOG is included once the first pair is timed
    steps = 10
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        result = train(recipe, out=Path(folder) / "probe", limit_steps=steps, progress=Silent())
        seconds = time.monotonic() - started
        row = Run(result.run).metrics()[0]
    training = sum(result.summary["class_images"]) / row["images_per_second"]
    validation = row["seconds"] - steps * (recipe.optimization.batch_size or 32) / row["images_per_second"]
    return seconds - row["seconds"] + recipe.schedule.epochs * (training + max(0.0, validation))
