import itertools
import json
import re

import numpy as np
import pytest

from alexnet.messages.texts import Translator
from alexnet.plots.confusion import Confusion, confusion_figure, leaves
from alexnet.plots.style import THEMES, rendered
from alexnet.report.report import confusion_html


def two_groups(n: int = 8) -> Confusion:
    """Even classes are confused among each other, and odd ones."""
    targets = np.repeat(np.arange(n), 20)
    said = targets.copy()
    said[::4] = (said[::4] + 2) % n
    return Confusion.of(targets, said, [f"c{i}" for i in range(n)])


def test_what_is_confused_stands_together():
    found = two_groups()
    odd = [i % 2 for i in found.order]
    assert sum(a != b for a, b in itertools.pairwise(odd)) == 1  # one border
    assert sorted(found.order) == list(range(8))
    assert found.labels == tuple(f"c{i}" for i in found.order)
    assert found.counts.sum() == 160
    assert np.allclose(found.counts.diagonal(), 15)


def test_without_confusion_the_order_stays():
    assert leaves(np.diag([3, 4, 5])).tolist() == [0, 1, 2]
    assert leaves(np.array([[1, 9], [2, 8]])).tolist() == [0, 1]
    assert sorted(leaves(np.zeros((4, 4), int))) == [0, 1, 2, 3]  # classes without pictures divide by nothing


def test_pairs_are_counted():
    targets = np.array([0, 0, 0, 0, 1, 1, 2])
    found = Confusion.of(targets, np.array([0, 1, 1, 2, 1, 0, 2]), ["a", "b", "c"])
    assert found.pairs(9)[0] == ("a", "b", 2, 0.5)
    assert {pair[:3] for pair in found.pairs(9)} == {("a", "b", 2), ("a", "c", 1), ("b", "a", 1)}
    assert found.mostly() == {"a": ("b", 2), "b": ("a", 1)}


@pytest.mark.parametrize(("n", "cells"), [(4, 16), (40, 0)])
def test_cells_are_elements_or_pixels(n, cells):
    found = two_groups(n)
    html = confusion_html(found, Translator())
    assert len(re.findall("<b", html)) == cells
    assert html.count("data:image/png") == (cells == 0)
    data = json.loads(re.search(r'id="confusion-data">(.*?)</script>', html).group(1))
    assert data["names"] == list(found.labels)
    assert [row.get(str(i)) for i, row in enumerate(data["cells"])] == found.counts.diagonal().tolist()


def test_a_class_may_be_called_anything():
    html = confusion_html(Confusion.of(np.array([0, 1]), np.array([1, 1]), ["</script><b>", "\udce9\n"]), Translator())
    assert "</script><b>" not in html
    html.encode()


@pytest.mark.parametrize("n", [2, 20, 70])
def test_the_picture(n):
    svg = rendered(lambda theme: confusion_figure(two_groups(n), theme, Translator("zh")), THEMES["dark"]).decode()
    assert "真实类别" in svg
    assert ("c1" in svg) == (n <= 60)
