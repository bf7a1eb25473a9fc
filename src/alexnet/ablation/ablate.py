"""A claim as a controlled comparison: both sides trained with the same seeds, data and order, and the difference
judged by its spread.

For each seed one training with the part and one without it form a pair: same held-out pictures, same order, same
augmentation, same initial weights wherever the networks agree. The mean of the pairs' differences has Student's
interval, and the verdict is read off that interval alone. Every training is an ordinary run folder, named by what
was trained, so that a stopped comparison goes on where it was and claims share the runs that they have in common.
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
from typing import Any

from alexnet.ablation.claims import Arm, Claim, find_claim
from alexnet.errors import UserError
from alexnet.files import atomic_write, write_json
from alexnet.inference.evaluate import evaluate
from alexnet.run_dir import Run
from alexnet.training.api import train
from alexnet.training.progress import Silent
from alexnet.training.recipe import Recipe, with_settings
from alexnet.training.recipes import named_recipe

PILOT = 3  # pairs after which the spread is known well enough to say how many are needed
LEAST = 5  # pairs that a comparison gets at least, unless told otherwise
MOST = 20  # pairs that it gets at most
TARGET_ERROR = 0.25  # of the training images: figure 1 of the paper
OTHER_SEEDS = 1000  # added to seeds that must not be those of the other side

Say = Callable[[str], None]


@dataclass(frozen=True)
class ArmResult:
    """One side: a value for each seed (top-1, or epochs), and the folders of its runs."""

    name: str
    values: list[float]
    runs: list[str]
    settings: dict[str, Any]
    reached: bool = True
    """For epochs: whether every run came down to the target; where one did not, its number of epochs counts."""

    def to_dict(self) -> dict[str, Any]:
        spread = statistics.stdev(self.values) if len(self.values) > 1 else None
        return {**asdict(self), "mean": statistics.fmean(self.values), "deviation": spread}


@dataclass(frozen=True)
class Ablation:
    """What a comparison found. Differences are with minus without the part (epochs: without minus with)."""

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
        """supports, contradicts or cannot tell: on which side of zero the whole interval lies, if on one."""
        if self.interval is None or self.interval[0] <= 0 <= self.interval[1]:
            return "cannot tell"
        return "supports" if self.difference > 0 else "contradicts"

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `alexnet ablate`."""
        c = self.claim
        return {
            "claim": c.name, "says": c.says, "source": c.source, "figure": c.figure, "measure": c.measure,
            "difference": self.difference, "interval": list(self.interval) if self.interval else None,
            "verdict": self.verdict, "seeds": self.seeds, "differences": self.differences,
            "arms": [self.part.to_dict(), self.without.to_dict()], "recipe": self.recipe, "files": self.files,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.claim.name}: {self.claim.says}"]
        for arm in (self.part, self.without):
            values = ", ".join(_shown(v, self.claim.measure) for v in arm.values)
            short = "" if arm.reached else " (at least: not every run came down to the target)"
            lines.append(
                f"  {arm.name}: {_shown(statistics.fmean(arm.values), self.claim.measure)} mean of {values}{short}"
            )
        between = " to ".join(_shown(v, self.claim.measure, sign=True) for v in self.interval or ())
        lines.append(
            f"  difference {_shown(self.difference, self.claim.measure, sign=True)}"
            + (f" (95 % interval {between})" if between else " (one pair has no interval)")
            + f": {self.verdict} the claim".replace("tell the claim", "tell")
        )
        lines.append(f"  elsewhere: {self.claim.figure} ({self.claim.source})")
        return "\n".join([*lines, *self.files])


def _shown(value: float, measure: str, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.2f} %" if measure == "top1" else f"{value:{plus}.2f} epochs"


# ── statistics ────────────────────────────────────────────────────────────────────────────────────────────────


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Student's interval of the mean of paired differences; None for fewer than two."""
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    mean = statistics.fmean(differences)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean - half, mean + half


def pairs_needed(differences: Sequence[float], half_width: float) -> int:
    """How many pairs with the spread of these narrow the 95 % interval to ± `half_width`; between LEAST and MOST."""
    from scipy.stats import t

    spread = statistics.stdev(differences)
    for n in range(LEAST, MOST):
        if float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n) <= half_width:
            return n
    return MOST


def wanted_half_width(differences: Sequence[float], measure: str) -> float:
    """Narrow enough to see the pilot's difference, and to call one absent that is below a quarter point (or a
    tenth of an epoch)."""
    finest = 0.0025 if measure == "top1" else 0.1
    return max(abs(statistics.fmean(differences)) / 2, finest)


def epochs_to_error(rows: Sequence[dict[str, Any]], error: float = TARGET_ERROR) -> float | None:
    """Epochs until the training error falls to `error`, between epochs in a line; None if it never does.

    `rows` are those of metrics.jsonl, whose `train_top1` is the mean over an epoch and so stands for its middle.
    """
    before_epoch, before = 0.0, 1.0
    for row in rows:
        epoch, now = row["epoch"] - 0.5, 1 - row["train_top1"]
        if now <= error:
            return before_epoch + (epoch - before_epoch) * (before - error) / (before - now)
        before_epoch, before = epoch, now
    return None


# ── running ───────────────────────────────────────────────────────────────────────────────────────────────────


class _Watch(Silent):
    """Counts the training images of a run, which is all that an estimate of its cost needs."""

    images = 0

    def step(self, *position: Any) -> None:
        self.images = position[3]


def base_recipe(recipe: str | None = None, data: Path | None = None, **settings: Any) -> Recipe:
    """What both sides have in common: `recipe`, or the small `ablation` recipe; without data the digits'.

    `settings` that are None are left as they are.
    """
    if recipe is not None:
        base = named_recipe(recipe)
    elif data is not None:
        base = named_recipe("ablation")
    else:
        base = replace(named_recipe("digits"), width=0.25, dropout=0.0)
    given = {"data": data, **settings}
    return with_settings(base, {key: value for key, value in given.items() if value is not None})


def ablate(
    claim: str,
    *,
    base: Recipe | None = None,
    seeds: int | None = None,
    budget: float | None = None,
    out: str | Path = "runs/ablate",
    say: Say = lambda _: None,
) -> Ablation:
    """Test the claim called `claim` on `base` and write `<out>/<claim>.json`, `.svg` and `.png`.

    Trains `seeds` pairs; without that as many as the spread of a pilot of three pairs asks for, from 5 to 20.
    `budget`, in minutes, bounds the whole: a pair that would not end in time is not begun. Finished runs in `out` are
    used again. Raises `UserError` before any training if the budget cannot pay for the pilot.
    """
    found, base, out = find_claim(claim), base or base_recipe(), Path(out)
    if seeds is not None and not 1 <= seeds <= OTHER_SEEDS:
        raise UserError(f"--seeds must be from 1 to {OTHER_SEEDS}, not {seeds}.")
    if budget is not None and not 0 < budget < math.inf:
        raise UserError(f"--budget is a number of minutes above 0, not {budget}.")
    arms = (found.part, found.without)
    recipes = [recipe_of(arm, base) for arm in arms]
    began, pair_seconds = time.monotonic(), 0.0
    if budget is not None:
        pair_seconds = sum(_seconds(arm, recipe) for arm, recipe in zip(arms, recipes, strict=True))
        least = min(seeds or PILOT, PILOT)
        if pair_seconds * least > 60 * budget:
            raise UserError(
                f"--budget {budget:g} minutes is too small to say anything: a pair of trainings takes about "
                f"{pair_seconds / 60:.1f} minutes here and an interval needs {least}; give --budget "
                f"{math.ceil(pair_seconds * least / 60)}, fewer --epochs or a smaller --width."
            )
    wanted = seeds or LEAST
    values: tuple[list[float], list[float]] = ([], [])
    runs: tuple[list[str], list[str]] = ([], [])
    reached = [True, True]
    differences: list[float] = []
    while len(differences) < wanted:
        seed = len(differences)
        if budget is not None and time.monotonic() - began + pair_seconds > 60 * budget:
            say(f"The budget of {budget:g} minutes ends after {seed} of {wanted} pairs.")
            break
        pair_began = time.monotonic()
        for side, (arm, recipe) in enumerate(zip(arms, recipes, strict=True)):
            value, run = _value(found, arm, recipe, seed, out)
            reached[side] &= value is not None
            values[side].append(recipe.epochs if value is None else value)
            runs[side].append(str(run))
        took = time.monotonic() - pair_began
        pair_seconds = max(pair_seconds, took)
        sign = 1 if found.measure == "top1" else -1
        differences.append(sign * (values[0][-1] - values[1][-1]))
        say(
            f"{found.name}, seed {seed}: {arms[0].name} {_shown(values[0][-1], found.measure)}, "
            f"{arms[1].name} {_shown(values[1][-1], found.measure)} ({took:.0f} s)"
        )
        if seeds is None and len(differences) == PILOT:
            wanted = pairs_needed(differences, wanted_half_width(differences, found.measure))
            say(f"After {PILOT} pairs their spread asks for {wanted}.")
    results = [
        ArmResult(arm.name, values[i], runs[i], _changed(recipes[i], base), reached[i]) for i, arm in enumerate(arms)
    ]
    result = Ablation(
        found, results[0], results[1], list(range(len(differences))), differences, json.loads(base.to_json())
    )
    return _write(result, out)


def recipe_of(arm: Arm, base: Recipe) -> Recipe:
    """What one side trains: the base with the arm's settings."""
    settings = {key: value(base) if callable(value) else value for key, value in arm.settings.items()}
    return with_settings(base, settings)


def _changed(recipe: Recipe, base: Recipe) -> dict[str, Any]:
    old, new = json.loads(base.to_json()), json.loads(recipe.to_json())
    return {key: value for key, value in new.items() if value != old[key]}


def _value(claim: Claim, arm: Arm, recipe: Recipe, seed: int, out: Path) -> tuple[float | None, Path]:
    """What one side gives with one seed, and the folder that it came from."""
    recipe = replace(recipe, seed=seed + OTHER_SEEDS * arm.other_seeds)
    folder = out / "arms" / _key(recipe) / f"seed-{recipe.seed}"
    if arm.kind == "hog":
        from alexnet.ablation.hog import hog_svm

        return _kept(folder.parent / f"hog-{recipe.seed}.json", lambda: hog_svm(recipe)), folder.parent
    run = Run(folder)
    if not (run.recipe_json.is_file() and run.summary().get("complete")):
        train(recipe, out=folder, resume=True, progress=Silent())
    if claim.measure == "epochs":
        return epochs_to_error(run.metrics()), folder
    if arm.kind == "ten-crop":
        return _kept(folder.parent / f"ten-crop-{recipe.seed}.json", lambda: _top1(run, views=10)), folder
    return _top1(run, views=1), folder


def _top1(run: Run, views: int) -> float:
    """Accuracy on the test split of the epoch that validation chose; without a test split, of the last epoch on val,
    since the best of several would flatter."""
    test = run.summary().get("test")
    if test and views == 1:
        return float(test["top1"])
    return float(evaluate(run.path, checkpoint="best" if test else "last", views=views)["top1"])


def _kept(path: Path, compute: Callable[[], float]) -> float:
    """The number in `path`, computed and written there if it is not there yet."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, compute())
    return float(json.loads(path.read_text(encoding="utf-8")))


def _key(recipe: Recipe) -> str:
    """A folder name for all that is trained but the seed: readable, and different for every other recipe. Settings
    left as they are do not count, so that a new setting in a later version finds the old runs."""
    settings = {**_changed(recipe, Recipe()), "seed": None}
    digest = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=5).hexdigest()
    return f"{recipe.arch}-{recipe.norm}-{digest}"


def _seconds(arm: Arm, recipe: Recipe) -> float:
    """About how long one run takes, from a few steps of it in a folder that is thrown away."""
    if arm.kind != "train":
        return 0.0  # ten-crop tests what the other side trains; what HOG costs, the first pair shows
    steps, watch = 10, _Watch()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        result = train(recipe, out=Path(folder) / "probe", limit_steps=steps, progress=watch)
        took = time.monotonic() - began
        row = Run(result.run).metrics()[0]
    training = watch.images / row["images_per_second"]
    validating = row["seconds"] - steps * (recipe.batch_size or 32) / row["images_per_second"]
    return took - row["seconds"] + recipe.epochs * (training + max(0.0, validating))


# ── what it looks like ────────────────────────────────────────────────────────────────────────────────────────


def _write(result: Ablation, out: Path) -> Ablation:
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{result.claim.name}.{suffix}" for suffix in ("json", "svg", "png")]
    result = replace(result, files=[str(p) for p in paths])
    for path in paths[1:]:
        with atomic_write(path) as beside:
            _draw(result, beside, path.suffix[1:])
    write_json(paths[0], result.to_dict())
    return result


def _draw(result: Ablation, path: Path, form: str) -> None:
    """The pairs, their difference with its interval, and the accuracy by epoch of both sides."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    blue, orange, grey = "#0072b2", "#d55e00", "#777777"
    factor, unit = (100, "top-1, %") if result.claim.measure == "top1" else (1, "epochs to 25 % training error")
    part = [factor * v for v in result.part.values]
    without = [factor * v for v in result.without.values]
    figure, (pairs, gap, curves) = plt.subplots(
        1, 3, figsize=(11, 3.6), layout="constrained", width_ratios=(1.1, 0.7, 1.6)
    )
    figure.suptitle(f"{result.claim.name}: {result.verdict}", fontsize=12)
    for a, b in zip(without, part, strict=True):
        pairs.plot((0, 1), (a, b), color=grey, linewidth=0.8, zorder=1)
    pairs.scatter([0] * len(without), without, color=orange, zorder=2)
    pairs.scatter([1] * len(part), part, color=blue, zorder=2)
    pairs.set_xticks((0, 1), (_wrapped(result.without.name), _wrapped(result.part.name)))
    pairs.set_xlim(-0.4, 1.4)
    pairs.set_ylabel(unit)
    differences = [factor * d for d in result.differences]
    gap.axhline(0, color=grey, linewidth=0.8)
    gap.scatter([0] * len(differences), differences, color=grey, s=14, zorder=1)
    mean = factor * result.difference
    if result.interval:
        low, high = (factor * v for v in result.interval)
        gap.errorbar(0.3, mean, yerr=[[mean - low], [high - mean]], fmt="o", color="black", capsize=5)
    gap.set_xticks((0, 0.3), ("pairs", "mean, 95 %"))
    gap.set_xlim(-0.2, 0.55)
    gap.set_ylabel("difference" + (", points" if factor == 100 else ", epochs saved"))
    _draw_curves(curves, result, (orange, blue))
    figure.savefig(path, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    plt.close(figure)


def _draw_curves(axes: Any, result: Ablation, colours: tuple[str, str]) -> None:
    """Mean and range over the seeds of what each epoch reached, where epochs were trained."""
    key, name = (
        ("top1", "validation top-1, %") if result.claim.measure == "top1" else ("train_top1", "training top-1, %")
    )
    for arm, colour, style in zip((result.without, result.part), colours, ("--", "-"), strict=True):
        tables = [Run(Path(run)).metrics() for run in arm.runs]
        epochs = min((len(rows) for rows in tables), default=0)
        if not epochs:
            continue
        heights = [[100 * rows[e][key] for rows in tables] for e in range(epochs)]
        at = list(range(1, epochs + 1))
        axes.fill_between(
            at, [min(h) for h in heights], [max(h) for h in heights], color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(at, [statistics.fmean(h) for h in heights], style, color=colour, label=arm.name)
    axes.set_xlabel("epoch")
    axes.set_ylabel(name)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=9)


def _wrapped(name: str) -> str:
    return "\n".join(name.split(" ", 1)) if len(name) > 12 else name
