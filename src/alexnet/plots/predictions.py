"""Figures of predictions on images: top-5 labels (figure 4 of the paper), similar training images, and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from alexnet.inference.neighbors import Neighbor
from alexnet.messages.translator import Translator
from alexnet.plots.model import draw_label_bars
from alexnet.plots.style import Theme, new_figure, shorten, show_image


@dataclass(frozen=True)
class ImagePrediction:
    """An image, its file name, predicted labels with probabilities, and the true label if it is known."""

    image: Image.Image
    name: str
    labels: Sequence[tuple[str, float]]
    true: str | None = None


def top5_figure(predictions: Sequence[ImagePrediction], name: str, theme: Theme, translate: Translator) -> Figure:
    """Draw each image above bars for its labels, the true label in orange, as in figure 4 (left) of the paper."""
    columns = min(4, len(predictions))
    rows = -(-len(predictions) // columns)
    title, notes = translate("figure_top", name=name), [translate("figure_top_note")]
    if known := [p for p in predictions if p.true is not None]:
        top1 = sum(p.labels[0][0] == p.true for p in known)
        top_k = sum(p.true in [label for label, _ in p.labels] for p in known)
        k = len(known[0].labels)
        notes.append(translate("figure_top_known", top1=top1, n=len(known), k=k, top_k=top_k))
    figure = new_figure(max(6.5, 3.1 * columns), 1.2 + rows * 4.2, title, translate.join(notes))
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.3, 1.35] * rows)
    for i in range(rows * columns):
        upper, lower = grid[i // columns * 2, i % columns], grid[i // columns * 2 + 1, i % columns]
        if i >= len(predictions):
            upper.set_visible(False)
            lower.set_visible(False)
            continue
        prediction = predictions[i]
        show_image(upper, center_square(prediction.image))
        upper.set_title(shorten(prediction.true or prediction.name, 26),
                        weight="bold" if prediction.true is not None else "normal", loc="center")  # fmt: skip
        draw_label_bars(lower, prediction.labels, prediction.true, theme)
    return figure


def center_square(image: Image.Image, side: int = 320) -> np.ndarray:
    """Return the central square of an image, uint8 RGB, reduced to at most `side` pixels."""
    side = min(side, *image.size)
    return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side)))


def similar_figure(
    queries: Sequence[ImagePrediction], neighbors: Sequence[Sequence[tuple[Neighbor, Image.Image]]], layer: str,
    name: str, theme: Theme, translate: Translator,
) -> Figure:  # fmt: skip
    """Draw a row per query: the image, then its nearest training images, as in figure 4 (right) of the paper."""
    columns = 1 + max(map(len, neighbors))
    title, caption = translate("figure_similar", name=name), translate("figure_similar_note", layer=layer)
    figure = new_figure(max(7.0, 1.95 * columns), 1.1 + 2.45 * len(queries), title, caption)
    grid = figure.subplots(len(queries), columns, squeeze=False)
    for row, query, nearest in zip(grid, queries, neighbors, strict=True):
        show_image(row[0], center_square(query.image))
        label, p = query.labels[0]
        row[0].set_title(shorten(query.name, 17), loc="center")
        row[0].set_xlabel(f"{shorten(label, 13)} {p:.0%}")
        row[0].spines[:].set(visible=True, color=theme.orange, linewidth=3)
        for axes, (neighbor, image) in zip(row[1:], nearest, strict=False):
            show_image(axes, center_square(image))
            axes.set_title(shorten(neighbor.label, 17), loc="center")
            axes.set_xlabel(f"{neighbor.distance:.3g}")
        for axes in row[1 + len(nearest) :]:
            axes.set_visible(False)
    return figure


@dataclass(frozen=True)
class Predictions:
    """The logits of every image of a split."""

    names: Sequence[str]
    targets: np.ndarray
    """int64 (n,)."""
    logits: np.ndarray
    """float32 (n, classes)."""

    @property
    def predicted(self) -> np.ndarray:
        """Index of the most probable class, int64 (n,)."""
        return np.asarray(self.logits.argmax(1))

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, float64 (n,)."""
        return np.asarray(1 / np.exp(self.logits - self.logits.max(1, keepdims=True)).sum(1, dtype=np.float64))


@dataclass(frozen=True)
class Example:
    """An evaluated image and its prediction."""

    name: str
    true: str
    predicted: str
    confidence: float


def find_examples(found: Predictions, classes: Sequence[str], count: int) -> tuple[list[Example], list[Example]]:
    """Return the `count` most confident mistakes and the `count` least confident correct predictions."""
    targets, predicted, confidence = found.targets, found.predicted, found.confidence
    wrong = np.flatnonzero(predicted != targets)
    correct = np.flatnonzero(predicted == targets)

    def examples(rows: np.ndarray) -> list[Example]:
        return [Example(found.names[i], classes[targets[i]], classes[predicted[i]], float(confidence[i])) for i in rows]

    return (
        examples(wrong[np.argsort(-confidence[wrong], kind="stable")][:count]),
        examples(correct[np.argsort(confidence[correct], kind="stable")][:count]),
    )


def mistakes_figure(
    mistakes: Sequence[tuple[Example, Image.Image]], least_confident_correct: Sequence[tuple[Example, Image.Image]],
    name: str, split: str, n: int, accuracy: float, theme: Theme, translate: Translator,
) -> Figure:  # fmt: skip
    """Draw two rows of images with file name, prediction and true class.

    The title says that the network `name` has this `accuracy` on the `n` images of `split`.
    """
    title = translate("figure_mistakes", name=name, accuracy=accuracy, n=n, split=translate.split(split))
    columns = max(len(mistakes), len(least_confident_correct), 3)
    figure = new_figure(2.1 * columns, 6.9, title, translate("figure_mistakes_note"))
    upper, lower = figure.subfigures(2, 1, squeeze=False)[:, 0]
    for part, examples, heading, heading_if_empty in (
        (upper, mistakes, "mistakes", "figure_no_mistakes"),
        (lower, least_confident_correct, "least_confident_correct", "figure_none_correct"),
    ):
        heading = translate(heading if examples else heading_if_empty)
        part.suptitle(heading, x=0.012, ha="left", size=13, weight="normal", color=theme.orange)
        row = part.subplots(1, columns, squeeze=False)[0]
        for axes in row[len(examples) :]:
            axes.set_visible(False)
        for axes, (example, image) in zip(row, examples, strict=False):
            show_image(axes, center_square(image))
            wrong = example.predicted != example.true
            true = translate("figure_true", label=shorten(example.true, 14))
            verdict = true if wrong else translate("figure_correct")
            axes.set_xlabel(f"{shorten(example.predicted, 13)} {example.confidence:.0%}\n{verdict}")
            file = "/".join(PurePosixPath(example.name).parts[-2:])
            axes.set_title(shorten(file, 26), loc="center", size=9, color=theme.muted)
    return figure
