"""A claim as a paired comparison: both arms trained with the same seeds, data and order.

For each seed, a training with the part and one without it form a pair: same validation split, order, augmentation and,
wherever the networks agree, initial weights. The verdict follows from Student's confidence interval of the mean
difference alone. Every training is an ordinary run folder named after its recipe, so that an interrupted comparison
resumes and claims share runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.ablation.claims import Arm, Claim, find_claim
from alexnet.ablation.hog import hog_svm
from alexnet.errors import UserError
from alexnet.files import read_json, write_json
from alexnet.inference.evaluate import evaluate
from alexnet.plots.style import Theme, new_figure, save_figure
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.text import join_lines
from alexnet.training.api import train
from alexnet.training.recipe import Recipe, with_settings
from alexnet.training.recipes import named_recipe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PILOT_PAIRS = 3  # pairs trained before estimating how many are needed
MIN_PAIRS = 5  # unless --seeds is given
MAX_PAIRS = 20
TARGET_ERROR = 0.25  # training error, figure 1 of the paper
OTHER_SEEDS_OFFSET = 1000  # added to the seeds of an arm with `other_seeds`

Log = Callable[[str], None]


@dataclass(frozen=True)
class ArmResult:
    """One arm: a value per seed (top-1 or epochs), and its run folders."""

    name: str
    values: list[float]
    runs: list[str]
    settings: dict[str, Any]
    reached: bool = True
    """For epochs: whether every run reached the target error; if not, all its epochs count."""

    def to_dict(self) -> dict[str, Any]:
        spread = statistics.stdev(self.values) if len(self.values) > 1 else None
        return {**asdict(self), "mean": statistics.fmean(self.values), "deviation": spread}


@dataclass(frozen=True)
class Ablation:
    """The result of a comparison. Differences are with minus without the part (epochs: without minus with)."""

    claim: Claim
    part: ArmResult
    without: ArmResult
    seeds: list[int]
    differences: list[float]
    recipe: dict[str, Any] = field(repr=False)
    files: list[str] = field(default_factory=list)

    @property
    def difference(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        return paired_interval(self.differences)

    @property
    def verdict(self) -> str:
        """`supports` or `contradicts` if the whole interval is on one side of zero, else `cannot tell`."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "cannot tell"
        return "supports" if self.difference > 0 else "contradicts"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet ablate`."""
        c = self.claim
        return {
            "claim": c.name, "says": c.statement, "source": c.source, "figure": c.published, "measure": c.measure,
            "difference": self.difference, "interval": list(self.interval) if self.interval else None,
            "verdict": self.verdict, "seeds": self.seeds, "differences": self.differences,
            "arms": [self.part.to_dict(), self.without.to_dict()], "recipe": self.recipe, "files": self.files,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.claim.name}: {self.claim.statement}"]
        for arm in (self.part, self.without):
            values = ", ".join(_format(v, self.claim.measure) for v in arm.values)
            note = "" if arm.reached else " (at least: not every run reached the target)"
            lines.append(
                f"  {arm.name}: {_format(statistics.fmean(arm.values), self.claim.measure)} mean of {values}{note}"
            )
        interval = " to ".join(_format(v, self.claim.measure, sign=True) for v in self.interval or ())
        lines.append(
            f"  difference {_format(self.difference, self.claim.measure, sign=True)}"
            + (f" (95 % interval {interval})" if interval else " (one pair has no interval)")
            + f": {self.verdict} the claim".replace("tell the claim", "tell")
        )
        lines.append(f"  published: {self.claim.published} ({self.claim.source})")
        return join_lines(*lines, *self.files)


def _format(value: float, measure: str, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.2f} %" if measure == "top1" else f"{value:{plus}.2f} epochs"


# ── statistics ────────────────────────────────────────────────────────────────────────────────────


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return Student's confidence interval of the mean of paired differences; None for fewer than two."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    mean = statistics.fmean(differences)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean - half, mean + half


def pairs_needed(differences: Sequence[float], half_width: float) -> int:
    """Return how many pairs of this spread narrow the 95 % interval to ± `half_width`, between 5 and 20."""
    from scipy.stats import t

    spread = statistics.stdev(differences)
    for n in range(MIN_PAIRS, MAX_PAIRS):
        if float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n) <= half_width:
            return n
    return MAX_PAIRS


def target_half_width(differences: Sequence[float], measure: str) -> float:
    """Return the half width that resolves the pilot's difference, but not less than 0.25 points or 0.1 epochs."""
    finest = 0.0025 if measure == "top1" else 0.1
    return max(abs(statistics.fmean(differences)) / 2, finest)


def epochs_to_error(rows: Sequence[dict[str, Any]], error: float = TARGET_ERROR) -> float | None:
    """Return the epochs until the training error falls to `error`, interpolated linearly; None if it never does.

    `rows` are those of metrics.jsonl. Their `train_top1` is the mean over an epoch, so it is placed at its middle.
    """
    previous_epoch, previous = 0.0, 1.0
    for row in rows:
        epoch, current = row["epoch"] - 0.5, 1 - row["train_top1"]
        if current <= error:
            return previous_epoch + (epoch - previous_epoch) * (previous - error) / (previous - current)
        previous_epoch, previous = epoch, current
    return None


# ── running ───────────────────────────────────────────────────────────────────────────────────────


class _CountImages(Silent):
    """Progress that records the number of training images, for the estimate of a run's duration."""

    images = 0

    def step(self, *position: Any) -> None:
        self.images = position[3]


def base_recipe(recipe: str | None = None, data: Path | None = None, **settings: Any) -> Recipe:
    """Return the recipe both arms share: `recipe`, or `ablation`, or without data a small `digits`.

    `settings` override it, except those that are None.
    """
    if recipe is not None:
        base = named_recipe(recipe)
    elif data is not None:
        base = named_recipe("ablation")
    else:
        base = named_recipe("digits").replace(width=0.25, dropout=0.0)
    given = {"data": data, **settings}
    return with_settings(base, {key: value for key, value in given.items() if value is not None})


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

    Trains `seeds` pairs; by default as many as the spread of a pilot of three pairs requires, from 5 to 20. `budget`
    limits all trainings, in minutes: a pair that would not finish in time is not started. Finished runs in `out` are
    reused. Raises `UserError` before any training if the budget is too small for the pilot.
    """
    found, base, out = find_claim(claim), base or base_recipe(), Path(out)
    if seeds is not None and not 1 <= seeds <= OTHER_SEEDS_OFFSET:
        raise UserError(f"--seeds must be from 1 to {OTHER_SEEDS_OFFSET}, not {seeds}.")
    if budget is not None and not 0 < budget < math.inf:
        raise UserError(f"--budget must be a number of minutes above 0, not {budget}.")
    arms = (found.part, found.without)
    recipes = [arm_recipe(arm, base) for arm in arms]
    started = time.monotonic()
    pair_seconds = 0.0 if budget is None else _estimate_pair(arms, recipes, budget, seeds)
    target = seeds or MIN_PAIRS
    pairs: list[list[tuple[float, str, bool]]] = []  # of each arm: value, run, and whether it reached the target
    differences: list[float] = []
    while len(pairs) < target:
        seed = len(pairs)
        if budget is not None and time.monotonic() - started + pair_seconds > 60 * budget:
            log(f"The budget of {budget:g} minutes ends after {seed} of {target} pairs.")
            break
        pair_started = time.monotonic()
        pair = [_measure_arm(found, arm, recipe, seed, out) for arm, recipe in zip(arms, recipes, strict=True)]
        elapsed = time.monotonic() - pair_started
        pair_seconds = max(pair_seconds, elapsed)
        pairs.append(pair)
        values = [value for value, _, _ in pair]
        differences.append(values[0] - values[1] if found.measure == "top1" else values[1] - values[0])
        shown = (f"{arm.name} {_format(value, found.measure)}" for arm, value in zip(arms, values, strict=True))
        log(f"{found.name}, seed {seed}: {', '.join(shown)} ({elapsed:.0f} s)")
        if seeds is None and len(pairs) == PILOT_PAIRS:
            target = pairs_needed(differences, target_half_width(differences, found.measure))
            log(f"After {PILOT_PAIRS} pairs, their spread requires {target}.")
    results = []
    for arm, recipe, outcomes in zip(arms, recipes, zip(*pairs, strict=True), strict=True):
        of_seeds, runs, reached = zip(*outcomes, strict=True)
        changed = _changed_settings(recipe, base)
        results.append(ArmResult(arm.name, list(of_seeds), list(runs), changed, all(reached)))
    part, without = results
    settings = json.loads(base.to_json())
    return _write(Ablation(found, part, without, list(range(len(pairs))), differences, settings), out)


def _estimate_pair(arms: Sequence[Arm], recipes: Sequence[Recipe], budget: float, seeds: int | None) -> float:
    """Estimate the seconds of a pair of trainings. Raises `UserError` if the budget is too small for the pilot."""
    seconds = sum(_estimate_seconds(arm, recipe) for arm, recipe in zip(arms, recipes, strict=True))
    pairs = min(seeds or PILOT_PAIRS, PILOT_PAIRS)
    if seconds * pairs > 60 * budget:
        raise UserError(
            f"--budget {budget:g} minutes is too small: a pair of trainings takes about {seconds / 60:.1f} minutes "
            f"here and the interval needs {pairs}; give --budget {math.ceil(seconds * pairs / 60)}, fewer --epochs or "
            "a smaller --width."
        )
    return seconds


def arm_recipe(arm: Arm, base: Recipe) -> Recipe:
    """Return the recipe of an arm: the base with the arm's settings."""
    settings = {key: value(base) if callable(value) else value for key, value in arm.settings.items()}
    return with_settings(base, settings)


def _changed_settings(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    old, new = json.loads(base.to_json()), json.loads(recipe.to_json())
    return {key: value for key, value in new.items() if value != old[key]}


def _measure_arm(claim: Claim, arm: Arm, recipe: Recipe, seed: int, out: Path) -> tuple[float, str, bool]:
    """Train or reuse the run of an arm; return its value, its folder and whether it reached the target error."""
    recipe = recipe.replace(seed=seed + OTHER_SEEDS_OFFSET * arm.other_seeds)
    folder = out / "arms" / _recipe_key(recipe) / f"seed-{recipe.run.seed}"
    if arm.kind == "hog":
        value = _cached(folder.parent / f"hog-{recipe.run.seed}.json", lambda: hog_svm(recipe))
        return value, str(folder.parent), True
    run = Run(folder)
    if not (run.recipe_json.is_file() and run.summary().get("complete")):
        train(recipe, out=folder, resume=True, progress=Silent())
    if claim.measure == "epochs":
        epochs = epochs_to_error(run.metrics())
        return recipe.schedule.epochs if epochs is None else epochs, str(folder), epochs is not None
    if arm.kind == "ten-crop":
        value = _cached(folder.parent / f"ten-crop-{recipe.run.seed}.json", lambda: _top1(run, views=10))
    else:
        value = _top1(run, views=1)
    return value, str(folder), True


def _top1(run: Run, views: int) -> float:
    """Return the accuracy of the best epoch on the test split; without one, of the last epoch on val.

    The best epoch on val would be biased, since val chose it.
    """
    test = run.summary().get("test")
    if test and views == 1:
        return float(test["top1"])
    return float(evaluate(run.path, checkpoint="best" if test else "last", views=views)["top1"])


def _cached(path: Path, compute: Callable[[], float]) -> float:
    """Return the number in the file `path`, computing and writing it if there is no such file."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, compute())
    return read_json(path, float)


def _recipe_key(recipe: Recipe) -> str:
    """Return a readable folder name that is unique to the recipe without its seed.

    Settings at their default do not count, so that a setting added in a later version still finds the runs.
    """
    settings = {**_changed_settings(recipe, Recipe()), "seed": None}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=5).hexdigest()
    return f"{recipe.model.arch}-{recipe.model.norm}-{digest}"


def _estimate_seconds(arm: Arm, recipe: Recipe) -> float:
    """Estimate the duration of one run from a few steps in a temporary folder."""
    if arm.kind != "train":
        return 0.0  # ten-crop tests the other arm's run; HOG is included once the first pair is timed
    steps, progress = 10, _CountImages()
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        result = train(recipe, out=Path(folder) / "probe", limit_steps=steps, progress=progress)
        seconds = time.monotonic() - started
        row = Run(result.run).metrics()[0]
    training = progress.images / row["images_per_second"]
    validation = row["seconds"] - steps * (recipe.optimization.batch_size or 32) / row["images_per_second"]
    return seconds - row["seconds"] + recipe.schedule.epochs * (training + max(0.0, validation))


# ── output ────────────────────────────────────────────────────────────────────────────────────────


def _write(result: Ablation, out: Path) -> Ablation:
    paths = [out / f"{result.claim.name}.{suffix}" for suffix in ("json", "svg", "png")]
    result = replace(result, files=[str(p) for p in paths])
    for path in paths[1:]:
        save_figure(lambda theme, _: comparison_figure(result, theme), path)  # in English
    write_json(paths[0], result.to_dict())
    return result


def comparison_figure(result: Ablation, theme: Theme) -> Figure:
    """Plot the pairs, their differences with the interval, and both arms' accuracy by epoch."""
    factor, unit = (100, "top-1, %") if result.claim.measure == "top1" else (1, "epochs to 25 % training error")
    part, without, differences = (
        [factor * v for v in values] for values in (result.part.values, result.without.values, result.differences)
    )
    figure = new_figure(11, 4.6, f"{result.claim.name}: {result.verdict}", result.claim.statement)
    pairs, gap, curves = figure.subplots(1, 3, width_ratios=(1.1, 0.7, 1.6))
    for a, b in zip(without, part, strict=True):
        pairs.plot((0, 1), (a, b), color=theme.muted, linewidth=0.8, zorder=1)
    pairs.scatter([0] * len(without), without, color=theme.orange, zorder=2)
    pairs.scatter([1] * len(part), part, color=theme.blue, zorder=2)
    pairs.set_xticks((0, 1), (_wrap_name(result.without.name), _wrap_name(result.part.name)))
    pairs.set(xlim=(-0.4, 1.4), ylabel=unit)
    gap.axhline(0, color=theme.muted, linewidth=0.8)
    gap.scatter([0] * len(differences), differences, color=theme.muted, s=14, zorder=1)
    mean = factor * result.difference
    if result.interval:
        low, high = (factor * v for v in result.interval)
        gap.errorbar(0.5, mean, yerr=[[mean - low], [high - mean]], fmt="o", color=theme.foreground, capsize=5)
    gap.set_xticks((0, 0.5), ("pairs", "mean, 95 %"))
    gap.set(xlim=(-0.3, 0.8), ylabel="difference" + (", points" if factor == 100 else ", epochs saved"))
    _draw_curves(curves, result, (theme.orange, theme.blue))
    return figure


def _draw_curves(axes: Axes, result: Ablation, colors: tuple[str, str]) -> None:
    """Plot mean and range over the seeds of the accuracy by epoch, for arms that train."""
    key, name = (
        ("top1", "validation top-1, %") if result.claim.measure == "top1" else ("train_top1", "training top-1, %")
    )
    for arm, color, style in zip((result.without, result.part), colors, ("--", "-"), strict=True):
        tables = [Run(Path(run)).metrics() for run in arm.runs]
        epochs = min((len(rows) for rows in tables), default=0)
        if not epochs:
            continue
        heights = [[100 * rows[e][key] for rows in tables] for e in range(epochs)]
        at = list(range(1, epochs + 1))
        axes.fill_between(at, [min(h) for h in heights], [max(h) for h in heights], color=color, alpha=0.2, linewidth=0)
        axes.plot(at, [statistics.fmean(h) for h in heights], style, color=color, label=arm.name)
    axes.set(xlabel="epoch", ylabel=name)
    axes.grid()
    axes.legend(loc="lower right")


def _wrap_name(name: str) -> str:
    return "\n".join(name.split(" ", 1)) if len(name) > 12 else name
