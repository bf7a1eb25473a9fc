"""Do the two towers specialize, one in color and one in gray (paper, section 6.1 and figure 3)?

    python benchmarks/tower_colors.py claims/arms/ARM/seed-* untowered/seed-*   # finished run folders
    python docs/reproduction.py                                                 # the table in reproduction.md

By the paper, most kernels of conv1 on one GPU ignore color and most on the other respond to it, in every run and
whatever the initial weights; it gives no figure. Here, for each run:

- A kernel's color index is the share of its energy off the gray axis, from 0 (gray) to 1; 2/3 for random weights.
- The statistic is the difference between the towers' mean color indices, without its sign. p is the share of random
  splits of the same kernels into halves whose difference is as large: all splits, or 99,999 drawn and the one observed.
- p-values of several seeds are combined by Fisher's method.

Two controls: the same towers at their initial weights, and networks without towers, whose first and second half of
the kernels stand for the towers. Give runs of both kinds; which is which follows from the network.

The rule, fixed before the runs: "cannot tell" if the combined p is not below .05, or that of a control is; "supports"
if each of at least five runs has p below .05, and at least five networks without towers were measured; else "leans".

Writes DIR/results/tower-colors.json and DIR/img/tower-colors.svg; DIR (`--out`) is docs by default.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from matplotlib.figure import Figure
from scipy.stats import combine_pvalues, permutation_test

from alexnet import rng
from alexnet.ablation.stats import LEARNED_SHARE, MIN_PAIRS, SIGNIFICANCE
from alexnet.checkpoint import load_checkpoint
from alexnet.errors import UserError
from alexnet.models.model import AlexNet, build
from alexnet.plots.model import conv_weights
from alexnet.plots.style import Theme, new_figure, save_figure
from alexnet.run_dir import find_run
from alexnet.training.recipe import read_recipe

DOCS = Path(__file__).resolve().parents[1] / "docs"
RESAMPLES = 99_999
TRAINED, INITIAL, UNTOWERED = "two towers, trained", "two towers, initial weights", "no towers, trained"

Measured = dict[str, Any]


def color_index(kernels: np.ndarray) -> np.ndarray:
    """Return (n,), from 0 to 1: the share of the energy of (n, 3, k, k) kernels that is off the gray axis.

    The gray part of a kernel is the mean over R, G and B, in all three. Raises `UserError` for a kernel of zeros.
    """
    energy = np.square(kernels, dtype=np.float64).sum((1, 2, 3))
    if not energy.all():
        raise UserError(f"Kernel {int(energy.argmin())} of conv1 is zero and has no color; leave this run out.")
    gray = 3 * np.square(kernels.mean(1, dtype=np.float64)).sum((1, 2))
    return 1 - gray / energy


def compare_halves(colors: np.ndarray) -> Measured:
    """Compare the mean color index of the first and second half of the kernels, (n,), with random halves of them."""

    def distance(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        return np.abs(first.mean(axis) - second.mean(axis))

    test = permutation_test(
        np.split(colors, 2), distance, vectorized=True, n_resamples=RESAMPLES, alternative="greater",
        rng=np.random.default_rng(0),
    )  # fmt: skip
    return {
        "colors": colors.tolist(),
        "means": [float(half.mean()) for half in np.split(colors, 2)],
        "difference": float(test.statistic),
        "of_random_halves": float(test.null_distribution.mean()),
        "p": float(test.pvalue),
    }


def measure(folder: Path) -> dict[str, Measured]:
    """Compare the halves of conv1 in a finished run: trained, and for two towers also initial.

    Raises `UserError` if the run is not finished, has not learned (as in `alexnet ablate`) or was not trained from
    random weights, or if its network does not read RGB through an even number of kernels.
    """
    run = find_run(folder)
    recipe, last, summary = read_recipe(run.recipe_json), run.named_checkpoint("last"), run.summary()
    if last is None or not summary.get("complete"):
        raise UserError(f"{folder} is not finished; finish it with 'alexnet resume {folder}', or leave it out.")
    if recipe.model.weights is not None:
        raise UserError(f"{folder} was trained from given weights; the comparison needs random ones, so leave it out.")
    chance, top1 = 1 / summary["classes"], (summary.get("test") or summary["final"])["top1"]
    if top1 <= chance + LEARNED_SHARE * (1 - chance):
        raise UserError(f"{folder} has not learned (top-1 {top1:.1%}), so its kernels show nothing; leave it out.")
    checkpoint = load_checkpoint(last)
    model = checkpoint.model
    if not isinstance(model, AlexNet) or _conv1(model).shape[1] != 3 or len(_conv1(model)) % 2:
        raise UserError(f"{folder} has no AlexNet with an even number of kernels on RGB images; leave it out.")
    torch.manual_seed(rng.derive_seed(recipe.run.seed, "init"))  # as training does
    models = {TRAINED: model, INITIAL: build(model.spec)}
    if max(conv.groups for conv in model.spec.convs) == 1:
        models = {UNTOWERED: model}
    described = {"run": "/".join(folder.parts[-2:]), "seed": recipe.run.seed, "top1": top1}
    levels = np.array(checkpoint.preprocess.std)[:, None, None]  # kernels on pixels, whatever divided the channels
    return {
        group: described | compare_halves(color_index(_conv1(network) / levels)) for group, network in models.items()
    }


def _conv1(network: AlexNet) -> np.ndarray:
    return conv_weights(network)["conv1"]


def combine(measured: Sequence[dict[str, Measured]]) -> dict[str, Any]:
    """Return the runs, the number with p below .05 and the combined p of each group, and the verdict.

    Raises `UserError` if two runs of a group have the same seed: Fisher's method needs independent ones.
    """
    groups: dict[str, Any] = {}
    for name in (TRAINED, INITIAL, UNTOWERED):
        runs = [run[name] for run in measured if name in run]
        ps, seeds = [run["p"] for run in runs], [run["seed"] for run in runs]
        if len(set(seeds)) < len(seeds):
            raise UserError(f"Several runs ({name}) have the same seed, among {seeds}; give one run of each.")
        groups[name] = {
            "significant": sum(p < SIGNIFICANCE for p in ps),
            "p": float(combine_pvalues(ps, method="fisher").pvalue) if ps else None,
            "runs": runs,
        }
    return {"verdict": verdict(groups), "groups": groups}


def verdict(groups: dict[str, Any]) -> str:
    """Return the verdict by the rule above."""
    p, *controls = (groups[name]["p"] for name in (TRAINED, INITIAL, UNTOWERED))
    if p is None or p >= SIGNIFICANCE or any(c is not None and c < SIGNIFICANCE for c in controls):
        return "cannot tell"
    runs, untowered = (groups[name]["runs"] for name in (TRAINED, UNTOWERED))
    enough = min(len(runs), len(untowered)) >= MIN_PAIRS
    return "supports" if enough and groups[TRAINED]["significant"] == len(runs) else "leans"


def draw(found: dict[str, Any], theme: Theme) -> Figure:
    """Draw the color index of every kernel, by run and half, with the halves' means."""
    groups = {name: group for name, group in found["groups"].items() if group["runs"]}
    title = "Color of the kernels of conv1, by tower"
    caption = "Share of a kernel's energy off the gray axis. Blue: first tower or half; orange: second. Lines: means."
    widths = [max(2.6, 0.65 * len(group["runs"])) for group in groups.values()]
    figure = new_figure(1 + sum(widths), 4, title, caption)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (name, group) in zip(panels, groups.items(), strict=True):
        for x, run in enumerate(group["runs"]):
            halves = zip((-0.17, 0.17), np.split(np.array(run["colors"]), 2), (theme.blue, theme.orange), strict=True)
            for offset, half, color in halves:
                axes.scatter([x + offset] * len(half), half, s=9, color=color, alpha=0.6)
                axes.hlines(half.mean(), x + offset - 0.14, x + offset + 0.14, color=color)
        axes.set_title(name)
        axes.set_xticks(range(len(group["runs"])), [f"{run['seed']}\n{run['p']:.2g}" for run in group["runs"]])
        axes.set(xlabel="seed and p", ylim=(-0.02, 1.02))
    panels[0].set_ylabel("color index")
    return figure


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="finished run folders")
    parser.add_argument("--out", type=Path, default=DOCS)
    args = parser.parse_args(arguments)
    try:
        found = combine([measure(folder) for folder in args.runs])
    except UserError as error:
        sys.exit(str(error))
    save("tower-colors", found, folder=args.out / "results")
    save_figure(lambda theme, _: draw(found, theme), args.out / "img" / "tower-colors.svg")


if __name__ == "__main__":
    main()
