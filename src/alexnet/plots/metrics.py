"""Figures of metrics: curves by epoch, of one run or several, the confusion matrix, and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.cells import cell_len

from alexnet.messages.translator import Translator
from alexnet.plots.style import Theme, is_wide, new_figure, new_panel, shorten, use_percent
from alexnet.runtimes.calibration import Calibration, coverage, reliability

MAX_OPTIMAL_ORDER = 400  # classes up to which leaves are ordered optimally, which takes n³ steps
BINS = 10  # of the reliability diagram; with more, few images make a jagged line

# ── curves ────────────────────────────────────────────────────────────────────────────────────────

Histories = Mapping[str, Sequence[Mapping[str, Any]]]
"""The lines of metrics.jsonl by name of the run."""


def curves_figure(runs: Histories, theme: Theme, translate: Translator) -> Figure:
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
    if len(runs) > 1:
        axes.legend(handles=lines, loc="best", fontsize=9)
    elif lines and val.startswith("top"):  # in the corner that learning curves leave free
        axes.legend(handles=lines, loc="lower right")
    elif lines:
        axes.legend(handles=lines, loc="upper right")
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
    """Draw a color per run; for a single run training has its own color. `mark_best` adds a dot at the best epoch."""
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
            best = max(range(len(y)), key=lambda n: (y[n], -history[n]["val_loss"]))  # as training chooses it
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
    return [Line2D([], [], color=theme.blue, label=val, lw=2.2),
            Line2D([], [], color=theme.orange, ls="--", label=train)]  # fmt: skip


def _run_lines(names: Sequence[str], theme: Theme, length: int) -> list[Line2D]:
    return [
        Line2D([], [], color=theme.series[i % len(theme.series)], marker=_marker(i, len(names), theme),
               label=shorten(name, length))
        for i, name in enumerate(names)
    ]  # fmt: skip


# ── confusion matrix ──────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Confusion:
    """How often each true class was predicted as each class."""

    counts: np.ndarray
    """int64 (classes, classes): rows true, columns predicted, both in `order`."""
    labels: tuple[str, ...]
    order: np.ndarray
    """The class index of each row, (classes,)."""

    @classmethod
    def from_predictions(cls, targets: np.ndarray, predicted: np.ndarray, classes: Sequence[str]) -> Confusion:
        """Count true and predicted class indices, (n,) each."""
        n = len(classes)
        counts = np.bincount(targets * n + predicted, minlength=n * n).reshape(n, n)
        order = cluster_classes(counts)
        return cls(counts[np.ix_(order, order)], tuple(classes[i] for i in order), order)

    @cached_property
    def shares(self) -> np.ndarray:
        """`counts` as shares of each row, 0…1; rows without images are zero."""
        return np.asarray(self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1))

    @property
    def strengths(self) -> np.ndarray:
        """Color strength of each cell, 0…1 (classes, classes)."""
        return np.asarray(np.sqrt(self.shares))

    @property
    def diagonal(self) -> np.ndarray:
        return np.eye(len(self.counts), dtype=bool)

    @property
    def mistakes(self) -> np.ndarray:
        return np.where(self.diagonal, 0, self.counts)

    def most_frequent(self, count: int) -> list[tuple[str, str, int, float]]:
        """Return the most frequent confusions: true class, predicted class, images, share of the true class."""
        mistakes = self.mistakes
        cells = np.argsort(-mistakes, axis=None, kind="stable")[:count]
        pairs = [divmod(int(cell), len(mistakes)) for cell in cells]
        return [
            (self.labels[i], self.labels[j], int(mistakes[i, j]), float(self.shares[i, j]))
            for i, j in pairs
            if mistakes[i, j]
        ]

    def mistaken_for(self) -> dict[str, tuple[str, int]]:
        """Return, for each class with mistakes, the class most often predicted instead, and how often."""
        mistakes = self.mistakes
        most = mistakes.argmax(1)
        return {
            label: (self.labels[most[i]], int(mistakes[i, most[i]]))
            for i, label in enumerate(self.labels)
            if mistakes[i, most[i]]
        }


def cluster_classes(counts: np.ndarray) -> np.ndarray:
    """Return an order of the classes in which confused classes are adjacent: the leaves of hierarchical clustering
    with average linkage. Without any confusion the order is unchanged."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    n = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    similarity = (shares + shares.T) / 2
    np.fill_diagonal(similarity, 0)
    if n < 3 or not similarity.any():
        return np.arange(n)
    distances = squareform(similarity.max() - similarity, checks=False)
    return np.asarray(leaves_list(linkage(distances, "average", optimal_ordering=n <= MAX_OPTIMAL_ORDER)))


def confusion_figure(confusion: Confusion, theme: Theme, translate: Translator) -> Figure:
    """Draw the matrix: labels up to 60 classes, counts up to 20."""
    n = len(confusion.labels)
    side = float(np.clip(0.42 * n + 2.2, 5, 11))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    colors = np.where(confusion.diagonal[..., None], np.array(to_rgb(theme.blue)), np.array(to_rgb(theme.orange)))
    alpha = 0.75 * confusion.strengths[..., None]
    axes.imshow(colors * alpha + np.array(to_rgb(theme.background)) * (1 - alpha), interpolation="none")
    if n <= 60:
        size = float(np.clip(400 / n, 5, 10))
        names = [shorten(label, 16) for label in confusion.labels]
        flat = max(map(cell_len, names)) <= 3  # digits and letters need no turning
        heads = [name if flat else _stack(name) for name in names]
        axes.set_xticks(range(n), heads, size=size)
        for head, name in zip(axes.get_xticklabels(), names, strict=True):
            head.set_rotation(0 if flat or is_wide(name) else 90)
        axes.set_yticks(range(n), names, size=size)
    else:
        axes.set(xticks=[], yticks=[])
    if n <= 20:
        for i, j in np.argwhere(confusion.counts):
            axes.text(j, i, f"{confusion.counts[i, j]}", ha="center", va="center", size=9 if n <= 12 else 7)
    axes.spines[:].set_color(theme.muted)
    axes.set_xlabel(translate("predicted"))
    axes.set_ylabel(translate("true"))
    return figure


def _stack(name: str) -> str:
    """Return a Chinese name as a column of letters, which is how Chinese is written vertically."""
    return "\n".join(name) if is_wide(name) else name


# ── calibration ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Confidence:
    """The confidence of each prediction and whether it is correct, (n,) each."""

    correct: np.ndarray
    uncalibrated: np.ndarray
    """Probability of the predicted class."""
    calibrated: np.ndarray | None
    """The same with the temperature; None without a calibration."""
    calibration: Calibration | None
    note: str
    """Where the calibration comes from if it is not the stored one, or why there is none."""

    @property
    def reported(self) -> np.ndarray:
        """The confidence that predictions report: calibrated if there is a calibration."""
        return self.uncalibrated if self.calibrated is None else self.calibrated


def reliability_figure(confidence: Confidence, theme: Theme, translate: Translator) -> Figure:
    """Plot accuracy by confidence; below the diagonal the network is overconfident.

    The area of a dot is the share of images in its bin. Bins with few images are left out: their accuracy is noise.
    """
    n = len(confidence.correct)
    min_images = max(min(5, n / 20), n / 500)
    figure, axes = new_panel(5.2, 4.2)
    axes.plot((0, 1), (0, 1), color=theme.muted, lw=1)
    lines = [(confidence.uncalibrated, "--", theme.orange, translate("before"))]
    if confidence.calibrated is not None:
        lines.append((confidence.calibrated, "-", theme.blue, translate("after")))
    for p, style, color, label in lines:
        bins = reliability(p, confidence.correct, BINS)
        shown = bins.n >= min_images
        axes.plot(bins.confidence[shown], bins.accuracy[shown], style, color=color, label=label)
        areas = 8 + 250 * bins.n[shown] / bins.n.sum()
        axes.scatter(bins.confidence[shown], bins.accuracy[shown], areas, color=color)
    axes.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.03), xlabel=translate("confidence"), ylabel=translate("accuracy"))
    axes.set_title(translate("reliability_diagram"))
    use_percent(axes.xaxis, axes.yaxis)
    axes.grid(visible=True)
    axes.legend(loc="best")
    return figure


def coverage_figure(confidence: Confidence, theme: Theme, translate: Translator) -> Figure:
    """Plot the accuracy of the most confident predictions against their share, and mark the threshold."""
    figure, axes = new_panel(5.2, 4.2)
    curve = coverage(confidence.reported, confidence.correct)
    points = np.unique(np.linspace(0, len(curve.coverage) - 1, 400).astype(int))  # of tens of thousands
    axes.plot(curve.coverage[points], curve.accuracy[points], color=theme.blue, lw=2.2)
    calibration = confidence.calibration
    if calibration is not None and (accepted := ~calibration.is_unsure(confidence.reported)).any():
        label = f"{translate('unsure_below')} {calibration.threshold:.1%}"
        axes.plot(accepted.mean(), confidence.correct[accepted].mean(), "o", color=theme.orange, ms=10, label=label)
        axes.legend(loc="best")
    low = float(min(curve.accuracy[curve.coverage > 0.05].min(initial=1.0), confidence.correct.mean()))
    axes.set(xlim=(-0.02, 1.03), ylim=(max(0.0, low - 0.05 * (1.02 - low)), 1 + 0.04 * (1 - low)))
    axes.set(xlabel=translate("accepted_share"), ylabel=translate("accepted_accuracy"))
    axes.set_title(translate("accuracy_coverage_curve"))
    use_percent(axes.xaxis, axes.yaxis)
    axes.grid(visible=True)
    return figure
