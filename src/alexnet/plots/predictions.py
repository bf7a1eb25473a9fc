"""Drawings of what networks answer: the five likeliest labels (figure 4 of the paper), the most alike training
pictures, mistakes and lucky hits, and how accuracy grew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from alexnet.inference.neighbors import Neighbor
from alexnet.plots.curves import draw_curve, run_lines
from alexnet.plots.model import bars
from alexnet.plots.style import Theme, clean, new_figure, show

# ── labels ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Answered:
    """A picture, its name, the labels that a network gives it with probabilities, and the true one where known."""

    image: Image.Image
    name: str
    labels: Sequence[tuple[str, float]]
    true: str | None = None


def top5_figure(answers: Sequence[Answered], theme: Theme, title: str = "") -> Figure:
    """Each picture above its labels as bars, the true label in orange: figure 4, left, of the paper."""
    columns = min(4, len(answers))
    rows = -(-len(answers) // columns)
    known = [a for a in answers if a.true is not None]
    caption = "Bars are probabilities."
    if known:
        right = sum(a.labels[0][0] == a.true for a in known)
        within = sum(a.true in [label for label, _ in a.labels] for a in known)
        caption += (
            f" Orange is the true label, as the picture's folder names it: {right} of {len(known)} first, {within} "
            f"within the first {len(known[0].labels)}."
        )
    figure = new_figure(max(6.5, 3.1 * columns), 1.2 + rows * 4.2, title or "The likeliest labels", caption)
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.3, 1.35] * rows)
    for i in range(rows * columns):
        above, below = grid[i // columns * 2, i % columns], grid[i // columns * 2 + 1, i % columns]
        if i >= len(answers):
            above.set_visible(False)
            below.set_visible(False)
            continue
        answer = answers[i]
        show(above, thumbnail(answer.image))
        known_label = answer.true is not None
        above.set_title(clean(answer.true if known_label and answer.true else answer.name, 26),
                        weight="bold" if known_label else "normal", loc="center")  # fmt: skip
        bars(below, answer.labels, answer.true, theme)
    return figure


def thumbnail(image: Image.Image, side: int = 320) -> np.ndarray:
    """The picture's middle square, uint8 RGB, at most so many pixels wide."""
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.convert("RGB").crop((left, top, left + short, top + short))
    return np.asarray(square.resize((side, side)) if short > side else square)


# ── neighbours ────────────────────────────────────────────────────────────────────────────────────────────────────


def similar_figure(
    queries: Sequence[Answered], found: Sequence[Sequence[tuple[Neighbor, Image.Image]]], layer: str, theme: Theme,
    title: str = "",
) -> Figure:  # fmt: skip
    """A row for each query: the picture, then its nearest training pictures; figure 4, right, of the paper."""
    columns = 1 + max(map(len, found))
    caption = (
        f"At the left the picture asked about; then the training pictures whose activations at {layer} are nearest, by "
        "Euclidean distance."
    )
    figure = new_figure(max(7.0, 1.95 * columns), 1.1 + 2.45 * len(queries), title or "The most alike", caption)
    grid = figure.subplots(len(queries), columns, squeeze=False)
    for row, query, near in zip(grid, queries, found, strict=True):
        show(row[0], thumbnail(query.image))
        said, p = query.labels[0]
        row[0].set_title(clean(query.name, 17), loc="center")
        row[0].set_xlabel(f"{clean(said, 13)} {p:.0%}")
        for spine in row[0].spines.values():
            spine.set(visible=True, color=theme.orange, linewidth=3)
        for axes, (neighbour, image) in zip(row[1:], near, strict=False):
            show(axes, thumbnail(image))
            axes.set_title(clean(neighbour.label, 17), loc="center")
            axes.set_xlabel(f"{neighbour.distance:.3g}")
        for axes in row[1 + len(near) :]:
            axes.set_visible(False)
    return figure


# ── mistakes ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Example:
    """A picture of an evaluated split and what the network said of it."""

    name: str
    true: str
    said: str
    p: float
    """Probability of what it said."""


def find_examples(
    names: Sequence[str], targets: np.ndarray, logits: np.ndarray, classes: Sequence[str], count: int
) -> tuple[list[Example], list[Example]]:
    """The `count` most confident mistakes, the surest first, and the `count` least sure successes."""
    shifted = logits - logits.max(1, keepdims=True)
    probabilities = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
    said, p = logits.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(said != targets)
    right = np.flatnonzero(said == targets)
    mistakes = wrong[np.argsort(-p[wrong], kind="stable")][:count]
    lucky = right[np.argsort(p[right], kind="stable")][:count]

    def cases(rows: np.ndarray) -> list[Example]:
        return [Example(names[i], classes[targets[i]], classes[said[i]], float(p[i])) for i in rows]

    return cases(mistakes), cases(lucky)


def mistakes_figure(
    mistakes: Sequence[tuple[Example, Image.Image]], lucky: Sequence[tuple[Example, Image.Image]], theme: Theme,
    title: str = "",
) -> Figure:  # fmt: skip
    """Two rows of pictures with what was said, what is true, and the file's name."""
    columns = max(len(mistakes), len(lucky), 3)
    caption = "Above each picture its file; below what the network said, how sure it was, and the truth."
    figure = new_figure(2.1 * columns, 6.9, title or "Mistakes", caption)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for part, cases, heading, none in (
        (above, mistakes, "The most confident mistakes", "No mistakes: every picture was labelled rightly."),
        (below, lucky, "The least sure successes", "No successes."),
    ):
        part.suptitle(heading if cases else none, x=0.012, ha="left", size=13, weight="normal", color=theme.orange)
        row = part.subplots(1, columns, squeeze=False)[0]
        for axes in row[len(cases) :]:
            axes.set_visible(False)
        for axes, (case, image) in zip(row, cases, strict=False):
            show(axes, thumbnail(image))
            verdict = f"not {clean(case.true, 14)}" if case.said != case.true else "is right"
            axes.set_xlabel(f"{clean(case.said, 13)} {case.p:.0%}\n{verdict}")
            file = "/".join(PurePosixPath(case.name).parts[-2:])
            axes.set_title(clean(file, 26), loc="center", size=9, color=theme.faint)
    return figure


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────────────────


def curves_figure(runs: Mapping[str, Sequence[Mapping[str, Any]]], theme: Theme, title: str = "") -> Figure:
    """Loss and top-1 by epoch of one run, or of several in colours of their own; rows are those of metrics.jsonl."""
    from matplotlib.lines import Line2D

    splits = sorted({str(rows[0]["split"]) for rows in runs.values()})
    caption = (
        f"Solid: {' or '.join(splits)}, plain pictures. Dashed: training, on augmented pictures and with label "
        "smoothing where it is used, while the network still learns. The dot is the best epoch."
    )
    figure = new_figure(11, 5.2 + 0.3 * (len(runs) > 4), title or "How it learned", caption)
    left, right = figure.subplots(1, 2)
    draw_curve(left, runs, "train_loss", "val_loss", theme)
    draw_curve(right, runs, "train_top1", "top1", theme, best=True)
    peaks = [max(row["top1"] for row in rows) for rows in runs.values()]
    lines = run_lines([f"{clean(name, 30)}: {peak:.1%}" for name, peak in zip(runs, peaks, strict=True)], theme, 40)
    if len(runs) == 1:
        lines = [Line2D([], [], color=theme.blue, label=splits[0]),
                 Line2D([], [], color=theme.orange, ls="--", label="training")]  # fmt: skip
    for axes, heading in ((left, "loss"), (right, f"top-1: {max(peaks):.1%} at best")):
        axes.set_title(heading)
        axes.set_xlabel("epoch")
    right.legend(handles=lines, loc="best")
    return figure
