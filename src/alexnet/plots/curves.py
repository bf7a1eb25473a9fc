"""Metrics by epoch, of one run or several: two plots for `alexnet show curves`, one plot per metric for reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from alexnet.messages.translator import Translator
from alexnet.plots.style import Theme, new_figure, new_panel, shorten, use_percent

Histories = Mapping[str, Sequence[Mapping[str, Any]]]
"""The lines of metrics.jsonl by name of the run."""


def curves_figure(runs: Histories, theme: Theme, translate: Translator) -> Figure:
    """Plot loss and top-1 accuracy by epoch side by side."""
    splits = sorted({translate.split(str(history[0]["split"])) for history in runs.values()})
    title = translate("figure_curves", name=next(iter(runs))) if len(runs) == 1 else translate("curves")
    caption = translate("curves_note", split=" / ".join(splits))
    figure = new_figure(11, 5.2 + 0.3 * (len(runs) > 4), title, caption)
    left, right = figure.subplots(1, 2)
    _draw_curves(left, runs, "train_loss", "val_loss", theme)
    _draw_curves(right, runs, "train_top1", "top1", theme, mark_best=True)
    best = {name: max(epoch["top1"] for epoch in history) for name, history in runs.items()}
    left.set(title=translate("loss"), xlabel=translate("epoch"))
    right.set(title=translate("figure_best_top1", best=max(best.values())), xlabel=translate("epoch"))
    if len(runs) == 1:
        lines = _split_lines(splits[0], translate.split("train"), theme)
    else:
        lines = _run_lines([f"{shorten(name, 30)}: {top1:.1%}" for name, top1 in best.items()], theme, 40)
    right.legend(handles=lines, loc="best")
    return figure


def metric_figure(
    runs: Histories, title_key: str, train: str | None, val: str, theme: Theme, translate: Translator,
    minutes: bool = False,
) -> Figure:  # fmt: skip
    """Plot one metric: `val` solid and `train` dashed, over epochs or `minutes` of training, below a text as title."""
    figure, axes = new_panel()
    _draw_curves(axes, runs, train, val, theme, mark_best=val == "top1", minutes=minutes)
    axes.set(title=translate(title_key), xlabel=translate("minutes_axis" if minutes else "epoch"))
    lines: list[Line2D] = []
    if len(runs) > 1:
        lines = _run_lines(list(runs), theme, 24)
    elif train:
        split = str(next(iter(runs.values()))[0]["split"])
        lines = _split_lines(translate.split(split), translate.split("train"), theme)
    if lines:  # in the corner that learning curves leave free
        rising = val.startswith("top")
        axes.legend(handles=lines, loc="lower right" if rising else "upper right", fontsize=9 if len(runs) > 1 else 11)
    return figure


def accuracy_figure(
    top1: Mapping[str, float], intervals: Mapping[str, tuple[float, float]], theme: Theme, translate: Translator
) -> Figure:
    """Plot the accuracy of each run as a dot, and its confidence interval, where there is one, as a line."""
    figure, axes = new_panel(5.2, 1.2 + 0.42 * len(top1))
    for i, (name, accuracy) in enumerate(top1.items()):
        color = theme.series[i % len(theme.series)]
        if name in intervals:
            axes.plot(intervals[name], (i, i), color=color, lw=3, solid_capstyle="butt")
        axes.plot(accuracy, i, "o", color=color, ms=9)
    axes.set_yticks(range(len(top1)), [shorten(name, 22) for name in top1])
    axes.set_ylim(len(top1) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    use_percent(axes.xaxis)
    axes.set_xlabel(translate("top1"))
    axes.grid(axis="x")
    return figure


def _draw_curves(
    axes: Axes, runs: Histories, train: str | None, val: str, theme: Theme, mark_best: bool = False,
    minutes: bool = False,
) -> None:  # fmt: skip
    """Draw a color per run; for a single run training has its own color. `mark_best` adds a dot at the maximum."""
    for i, history in enumerate(runs.values()):
        color = theme.series[i % len(theme.series)]
        points: dict[str, Any] = {"marker": _marker(i, len(runs), theme) or ("." if len(history) < 40 else "")}
        x = [epoch["epoch"] for epoch in history]
        if minutes:
            x = list(np.cumsum([epoch["seconds"] for epoch in history]) / 60)
        if train:
            style: dict[str, Any] = {"color": theme.orange} if len(runs) == 1 else {"color": color, "alpha": 0.6}
            axes.plot(x, [epoch[train] for epoch in history], "--", **style, **points)
        y = [epoch[val] for epoch in history]
        axes.plot(x, y, "-", lw=2.2, color=color, **points)
        if mark_best:
            best = max(range(len(y)), key=y.__getitem__)
            axes.plot(x[best], y[best], "o", color=color, ms=9)
    if not minutes:
        if max(map(len, runs.values())) == 1:
            axes.set_xlim(0, 2)  # otherwise the ticks are thousandths of an epoch
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if val.startswith("top"):
        use_percent(axes.yaxis)
    axes.grid(visible=True)


def _marker(i: int, runs: int, theme: Theme) -> str:
    """Return the marker of run `i`, or "" while each run has its own color."""
    return ("o", "s", "^", "D")[i // len(theme.series) % 4] if runs > len(theme.series) else ""


def _split_lines(val: str, train: str, theme: Theme) -> list[Line2D]:
    """Return the legend of a single run."""
    return [Line2D([], [], color=theme.blue, label=val, lw=2.2),
            Line2D([], [], color=theme.orange, ls="--", label=train)]  # fmt: skip


def _run_lines(names: Sequence[str], theme: Theme, length: int) -> list[Line2D]:
    """Return the legend of several runs."""
    return [
        Line2D([], [], color=theme.series[i % len(theme.series)], marker=_marker(i, len(names), theme),
               label=shorten(name, length))
        for i, name in enumerate(names)
    ]  # fmt: skip
