import json
import re

import numpy as np
import pytest

from alexnet.messages.translator import Translator
from alexnet.plots.confusion import Confusion
from alexnet.report.confusion import matrix_html
from alexnet.report.html import Page
from confusions import two_groups


@pytest.fixture
def page(tmp_path):
    return Page(tmp_path / "a.html", "a", Translator())


@pytest.mark.parametrize(("n", "cells"), [(4, 16), (40, 0)])
def test_cells_are_elements_or_pixels(page, n, cells):
    confusion = two_groups(n)
    html = matrix_html(page, confusion)
    assert len(re.findall("<b", html)) == cells
    assert html.count("data:image/png") == (cells == 0)
    data = json.loads(re.search(r'id="confusion-data">(.*?)</script>', html).group(1))
    assert data["names"] == list(confusion.labels)
    assert [row.get(str(i)) for i, row in enumerate(data["cells"])] == confusion.counts.diagonal().tolist()


def test_class_names_are_escaped(page):
    targets, predicted = np.array([0, 1]), np.array([1, 1])
    html = matrix_html(page, Confusion.from_predictions(targets, predicted, ["</script><b>", "\udce9\n"]))
    assert "</script><b>" not in html
    html.encode()
