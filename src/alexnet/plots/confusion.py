"""The confusion matrix: in an order that puts confusions together, as a picture, and as a part of a page that can be
read with two hundred classes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from alexnet.messages.texts import Translator
from alexnet.plots.style import Theme, clean

NUMBERED = 30  # classes up to which each cell is an element with its number
ORDERED = 400  # classes up to which the order of the tree's leaves is the best one, which takes n³ steps


@dataclass(frozen=True)
class Confusion:
    """How often each true class got each label."""

    counts: np.ndarray
    """int64 (classes, classes): row true, column said; in the order of `order`."""
    labels: tuple[str, ...]
    order: np.ndarray
    """For each row the class's index in the network."""

    @cached_property
    def shares(self) -> np.ndarray:
        """Of each row, 0…1; rows without pictures are zero."""
        return np.asarray(self.counts / np.maximum(self.counts.sum(1, keepdims=True), 1))

    @classmethod
    def of(cls, targets: np.ndarray, said: np.ndarray, classes: Sequence[str]) -> Confusion:
        """From true and given class indices, (n,) each."""
        n = len(classes)
        counts = np.bincount(targets * n + said, minlength=n * n).reshape(n, n)
        order = leaves(counts)
        return cls(counts[np.ix_(order, order)], tuple(classes[i] for i in order), order)

    def pairs(self, most: int) -> list[tuple[str, str, int, float]]:
        """The most frequent confusions: true, said, how often, share of the true class."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        first = np.argsort(-wrong, axis=None, kind="stable")[:most]
        cells = [divmod(int(cell), len(wrong)) for cell in first]
        return [
            (self.labels[i], self.labels[j], int(wrong[i, j]), float(self.shares[i, j]))
            for i, j in cells
            if wrong[i, j]
        ]

    def mostly(self) -> dict[str, tuple[str, int]]:
        """For each class that was mistaken: what it was most often taken for, and how often."""
        wrong = self.counts.copy()
        np.fill_diagonal(wrong, 0)
        most = wrong.argmax(1)
        return {
            label: (self.labels[most[i]], int(wrong[i, most[i]]))
            for i, label in enumerate(self.labels)
            if wrong[i, most[i]]
        }


def leaves(counts: np.ndarray) -> np.ndarray:
    """An order of the classes in which those that are confused stand together: the leaves of a tree that joins the
    most confused first (average linkage). Without any confusion the order stays."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    n = len(counts)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    alike = (shares + shares.T) / 2
    np.fill_diagonal(alike, 0)
    if n < 3 or not alike.any():
        return np.arange(n)
    apart = squareform(alike.max() - alike, checks=False)
    tree = linkage(apart, "average", optimal_ordering=n <= ORDERED)
    return np.asarray(leaves_list(tree))


def colours(found: Confusion) -> tuple[np.ndarray, np.ndarray]:
    """How strong each cell is, 0…1 (classes, classes), and whether it is on the diagonal."""
    return np.sqrt(found.shares), np.eye(len(found.counts), dtype=bool)


def confusion_figure(found: Confusion, theme: Theme, words: Translator) -> Figure:
    """The matrix as a picture: labels up to 60 classes, numbers up to 20."""
    n = len(found.labels)
    side = float(np.clip(0.42 * n + 2.2, 5, 11))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    strength, own = colours(found)
    paper = np.array(to_rgb(theme.paper))
    paint = np.where(own[..., None], np.array(to_rgb(theme.blue)), np.array(to_rgb(theme.orange)))
    alpha = 0.75 * strength[..., None]
    axes.imshow(paint * alpha + paper * (1 - alpha), interpolation="none")
    if n <= 60:
        size = float(np.clip(400 / n, 5, 10))
        names = [clean(label, 16) for label in found.labels]
        axes.set_xticks(range(n), names, rotation=90, size=size)
        axes.set_yticks(range(n), names, size=size)
    else:
        axes.set(xticks=[], yticks=[])
    if n <= 20:
        for i, j in np.argwhere(found.counts):
            axes.text(j, i, f"{found.counts[i, j]}", ha="center", va="center", size=9 if n <= 12 else 7)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)
    axes.set_xlabel(words("said"))
    axes.set_ylabel(words("true"))
    return figure


def _pixels(strength: np.ndarray, own: np.ndarray) -> bytes:
    """A PNG with a pixel a cell, transparent where nothing is, in colours that show on light and dark pages."""
    rgba = np.empty((*strength.shape, 4), np.uint8)
    rgba[..., :3] = np.where(own[..., None], (43, 140, 204), (226, 110, 20))
    rgba[..., 3] = np.round(255 * strength)
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG", optimize=True)
    return file.getvalue()
