import itertools
from functools import partial

import numpy as np
import pytest

from alexnet.messages.translator import Translator
from alexnet.plots.metrics import Confusion, cluster_classes, confusion_figure
from alexnet.plots.style import THEMES, render


def two_groups(n: int = 8) -> Confusion:
    """Of `n` classes, even classes are confused with even ones and odd classes with odd ones."""
    targets = np.repeat(np.arange(n), 20)
    predicted = targets.copy()
    predicted[::4] = (predicted[::4] + 2) % n
    return Confusion.from_predictions(targets, predicted, [f"c{i}" for i in range(n)])


def test_confused_classes_are_adjacent():
    confusion = two_groups()
    odd = [i % 2 for i in confusion.order]
    assert sum(a != b for a, b in itertools.pairwise(odd)) == 1  # one border
    assert sorted(confusion.order) == list(range(8))
    assert confusion.labels == tuple(f"c{i}" for i in confusion.order)
    assert confusion.counts.sum() == 160
    assert np.allclose(confusion.counts.diagonal(), 15)


def test_order_is_unchanged_without_confusion():
    assert cluster_classes(np.diag([3, 4, 5])).tolist() == [0, 1, 2]
    assert cluster_classes(np.array([[1, 9], [2, 8]])).tolist() == [0, 1]
    assert sorted(cluster_classes(np.zeros((4, 4), int))) == [0, 1, 2, 3]  # classes without images


def test_pairs_are_counted():
    targets, predicted = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 1, 0, 2])
    confusion = Confusion.from_predictions(targets, predicted, ["a", "b", "c"])
    assert confusion.most_frequent(9)[0] == ("a", "b", 2, 0.5)
    assert {pair[:3] for pair in confusion.most_frequent(9)} == {("a", "b", 2), ("a", "c", 1), ("b", "a", 1)}
    assert confusion.mistaken_for() == {"a": ("b", 2), "b": ("a", 1)}


@pytest.mark.parametrize("n", [2, 20, 70])
def test_figure_has_labels_up_to_60_classes(n):
    confusion = two_groups(n)
    svg = render(partial(confusion_figure, confusion), THEMES["dark"], translate=Translator("zh")).decode()
    assert "真实类别" in svg
    assert ("c1" in svg) == (n <= 60)
