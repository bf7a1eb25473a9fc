"""The figure of one comparison: pairs, their differences with the interval, and accuracy by epoch."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.ticker import MaxNLocator

from alexnet.ablation.results import Ablation
from alexnet.plots.style import Theme, new_figure, use_percent
from alexnet.run_dir import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNITS = {
    "top1": "top-1 accuracy", "train_error": "training error", "gap": "training minus test top-1",
    "epochs": "epochs to 25 % training error",
}  # fmt: skip


def comparison_figure(result: Ablation, theme: Theme) -> Figure:
    """Plot the pairs, their differences with the interval, and both arms' accuracy by epoch."""
    factor = 1 if result.claim.measure == "epochs" else 100
    part, without, differences = result.part.values, result.without.values, [factor * d for d in result.differences]
    note = f"{result.claim.statement} Result: {result.reason}." if result.reason else result.claim.statement
    figure = new_figure(11, 4.6, f"{result.claim.name}: {result.verdict}", note)
    pairs, gap, curves = figure.subplots(1, 3, width_ratios=(1.1, 0.7, 1.6))
    for a, b in zip(without, part, strict=True):
        pairs.plot((0, 1), (a, b), color=theme.muted, linewidth=0.8, zorder=1)
    pairs.scatter([0] * len(without), without, color=theme.orange, zorder=2)
    pairs.scatter([1] * len(part), part, color=theme.blue, zorder=2)
    pairs.set_xticks((0, 1), (_wrap_name(result.without.name), _wrap_name(result.part.name)))
    pairs.set(xlim=(-0.4, 1.4), title=UNITS[result.claim.measure])
    if factor == 100:
        use_percent(pairs.yaxis)
    gap.axhline(0, color=theme.muted, linewidth=0.8)
    gap.scatter([0] * len(differences), differences, color=theme.muted, s=14, zorder=1)
    mean = factor * result.difference
    if result.interval:
        low, high = (factor * v for v in result.interval)
        gap.errorbar(0.5, mean, yerr=[[mean - low], [high - mean]], fmt="o", color=theme.foreground, capsize=5)
    gap.set_xticks((0, 0.5), ("pairs", "mean,\n95% interval"))
    gap.set(xlim=(-0.3, 0.8), title="difference in points" if factor == 100 else "epochs saved")
    for axes in (pairs, gap):
        axes.grid(axis="y")
    _draw_curves(curves, result, (theme.orange, theme.blue))
    return figure


def _draw_curves(axes: Axes, result: Ablation, colors: tuple[str, str]) -> None:
    """Plot mean and range over the seeds of the accuracy by epoch, for arms that train."""
    key, name = (
        ("top1", "validation top-1 accuracy")
        if result.claim.measure in ("top1", "gap")
        else ("train_top1", "training top-1 accuracy")
    )
    for arm, color, style in zip((result.without, result.part), colors, ("--", "-"), strict=True):
        tables = [Run(Path(run)).metrics() for run in arm.runs]
        epochs = min((len(rows) for rows in tables), default=0)
        if not epochs:
            continue
        heights = [[rows[e][key] for rows in tables] for e in range(epochs)]
        at = list(range(1, epochs + 1))
        axes.fill_between(at, [min(h) for h in heights], [max(h) for h in heights], color=color, alpha=0.2, linewidth=0)
        marker = "o" if epochs == 1 else None  # a line of one point is invisible
        axes.plot(at, [statistics.fmean(h) for h in heights], style, marker=marker, color=color, label=arm.name)
    use_percent(axes.yaxis)
    axes.set(xlabel="epoch", title=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid()
    axes.legend(loc="best")


def _wrap_name(name: str) -> str:
    return "\n".join(name.split(" ", 1)) if len(name) > 12 else name
