"""The confusion matrix, with its classes ordered so that confused classes are adjacent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from alexnet.messages.translator import Translator
from alexnet.plots.style import Theme, shorten

MAX_OPTIMAL_ORDER = 400  # classes up to which leaves are ordered optimally, which takes n³ steps


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
        """True for correct predictions, bool (classes, classes)."""
        return np.eye(len(self.counts), dtype=bool)

    @property
    def mistakes(self) -> np.ndarray:
        """`counts` with a diagonal of zeros."""
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
        axes.set_xticks(range(n), names, rotation=90, size=size)
        axes.set_yticks(range(n), names, size=size)
    else:
        axes.set(xticks=[], yticks=[])
    if n <= 20:
        for i, j in np.argwhere(confusion.counts):
            axes.text(j, i, f"{confusion.counts[i, j]}", ha="center", va="center", size=9 if n <= 12 else 7)
    for spine in axes.spines.values():
        spine.set_color(theme.muted)
    axes.set_xlabel(translate("predicted"))
    axes.set_ylabel(translate("true"))
    return figure
