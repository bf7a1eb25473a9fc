"""Curves by epoch of one run or several, as lines on axes: shared by `alexnet show curves` and the pages of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from alexnet.messages.texts import Translator
from alexnet.plots.style import Theme, clean

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows of metrics.jsonl by the run's name."""


def marker_of(i: int, runs: int, theme: Theme) -> str:
    """A sign for run `i`, once there are more runs than colours."""
    return ("o", "s", "^", "D")[i // len(theme.series) % 4] if runs > len(theme.series) else ""


def draw_curve(
    axes: Axes, runs: Runs, train: str | None, val: str, theme: Theme, best: bool = False, minutes: bool = False
) -> None:
    """For each run `val` as a solid line and `train` as a dashed one, over epochs or minutes; `best` adds a dot where
    `val` is largest. Of a run alone the dashed line has a colour of its own."""
    for i, (_, rows) in enumerate(runs.items()):
        colour = theme.series[i % len(theme.series)]
        few: dict[str, Any] = {"marker": marker_of(i, len(runs), theme) or ("." if len(rows) < 40 else "")}
        epochs = [row["epoch"] for row in rows]
        at = np.cumsum([row["seconds"] for row in rows]) / 60 if minutes else epochs
        if train:
            quiet: dict[str, Any] = {"color": theme.orange} if len(runs) == 1 else {"color": colour, "alpha": 0.6}
            axes.plot(at, [row[train] for row in rows], "--", **quiet, **few)
        axes.plot(at, [row[val] for row in rows], "-", lw=2.2, color=colour, **few)
        if best:
            peak = max(range(len(rows)), key=lambda e: rows[e][val])
            axes.plot(at[peak], rows[peak][val], "o", color=colour, ms=9)
    if not minutes:
        if max(map(len, runs.values())) == 1:
            axes.set_xlim(0, 2)  # or the axis shows thousandths of an epoch
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if val.startswith("top"):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=True)


def run_lines(names: Sequence[str], theme: Theme, letters: int = 30) -> list[Line2D]:
    """What a legend says of several runs."""
    return [
        Line2D([], [], color=theme.series[i % len(theme.series)], marker=marker_of(i, len(names), theme),
               label=clean(name, letters))
        for i, name in enumerate(names)
    ]  # fmt: skip


def panel(width: float = 5.2, height: float = 3.3) -> tuple[Figure, Axes]:
    """A plot that can still be read at the width of a phone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def curve_figure(
    runs: Runs, train: str | None, val: str, theme: Theme, words: Translator, title: str, minutes: bool = False
) -> Figure:
    """One kind of curve: of a run alone with what is training and what not, of several with their names."""
    figure, axes = panel()
    draw_curve(axes, runs, train, val, theme, best=val == "top1", minutes=minutes)
    axes.set_title(title)
    axes.set_xlabel(words("minutes_axis" if minutes else "epoch"))
    handles: list[Line2D] = []
    if len(runs) > 1:
        handles = run_lines(list(runs), theme, 24)
    elif train:
        split = str(next(iter(runs.values()))[0]["split"])
        handles = [Line2D([], [], color=theme.blue, label=split, lw=2.2),
                   Line2D([], [], color=theme.orange, ls="--", label=words("training"))]  # fmt: skip
    if handles:  # in the corner that learning curves leave free
        rising = val.startswith("top")
        axes.legend(
            handles=handles, loc="lower right" if rising else "upper right", fontsize=9 if len(runs) > 1 else 11
        )
    return figure
