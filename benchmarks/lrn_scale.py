"""LRN, the constant k^-β in its place, and nothing, on inputs of 0 to 255 and on inputs of unit variance.

    python benchmarks/lrn_scale.py cifar10/           # writes results/lrn-scale.json and .svg
    python benchmarks/lrn_scale.py cifar10/ --epochs 3 --seeds 1 --out /tmp/try --results /tmp/try

The bench of `alexnet ablate` with the paper's LRN (size 5, the printed α of 1e-4, k 2) on CIFAR-10 (JPEG). This α
belongs to inputs of 0 to 255: on those of unit variance the sum of squares is negligible beside k, and LRN multiplies
by k^-β = .5946 and does nothing else. Each arm has the best of five learning rates, chosen on a seed that is not among
the tested. A killed run continues where it was.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from common import RESULTS, save
from matplotlib.figure import Figure

from alexnet.ablation.ablate import arm_recipe, base_recipe, choose_rate, measure_arm
from alexnet.ablation.claims import Arm, Claim
from alexnet.ablation.stats import paired_interval
from alexnet.plots.style import Theme, new_figure, save_figure

RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
INPUTS = {"0 to 255": {}, "unit variance": {"std": None}}
NORMS = {
    "LRN": {"norm": "lrn", "spec_edits": ("half-hidden",)},
    "the constant k^-β": {"norm": "lrn", "spec_edits": ("half-hidden", "constant-lrn")},
    "nothing": {"norm": "none", "spec_edits": ("half-hidden",)},
}


def measure(data: Path, epochs: int | None, seeds: int, out: Path) -> dict[str, dict[str, dict[str, object]]]:
    """Train every arm with every seed; return top-1, interval and rates by inputs and norm."""
    base = base_recipe(data=data, epochs=epochs)
    found: dict[str, dict[str, dict[str, object]]] = {}
    for inputs, scale in INPUTS.items():
        for norm, settings in NORMS.items():
            arm = Arm(f"{norm}, inputs {inputs}", {**scale, **settings}, rates=RATES)
            claim = Claim("lrn-scale", "", "", "", arm, arm)
            recipe, errors = choose_rate(claim, arm, arm_recipe(arm, base), out, print)
            values = [measure_arm(claim, arm, recipe, seed, out, print).value for seed in range(seeds)]
            found.setdefault(inputs, {})[norm] = {
                "lr": recipe.optimization.lr, "train_error_by_rate": errors, "top1": values,
                "mean": statistics.fmean(values), "interval": paired_interval(values),
            }  # fmt: skip
    return found


def draw(found: dict[str, dict[str, dict[str, object]]], theme: Theme) -> Figure:
    figure = new_figure(8, 3.6, "LRN's α belongs to inputs of 0 to 255", "CIFAR-10 (JPEG): test top-1 of each seed")
    for axes, (inputs, arms) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        for x, arm in enumerate(arms.values()):
            values = [100 * value for value in arm["top1"]]
            axes.scatter([x] * len(values), values, color=theme.blue)
            axes.hlines(statistics.fmean(values), x - 0.2, x + 0.2, color=theme.foreground)
        axes.set(title=f"inputs: {inputs}", xlim=(-0.5, len(arms) - 0.5))
        axes.set_xticks(range(len(arms)), list(arms))
        axes.grid(axis="y")
    figure.axes[0].set_ylabel("top-1, %")
    return figure


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path, help="class folders in train/ and test/")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/lrn-scale"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    result = measure(arguments.data, arguments.epochs, arguments.seeds, arguments.out)
    save("lrn-scale", result, folder=arguments.results)
    save_figure(lambda theme, _: draw(result, theme), arguments.results / "lrn-scale.svg")
