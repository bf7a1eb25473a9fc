"""Report sections on classes: the confusion matrix as an HTML grid, the most frequent confusions, results by class."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from alexnet.plots.confusion import Confusion, confusion_figure
from alexnet.plots.style import shorten
from alexnet.report.html import Column, Page, data_url, escape_text, json_script
from alexnet.report.run_data import RunData

MAX_PAIRS = 12
MAX_ELEMENTS = 30  # classes up to which each cell is an element with its count


def confusion_html(page: Page, confusion: Confusion) -> str:
    """Return the matrix and a table of the most frequent confusions; write the figure."""
    page.plot("confusion", lambda theme, translate: confusion_figure(confusion, theme, translate), inline=False)
    columns = (Column("true", "text"), Column("predicted", "text"), Column("count", ",d"), Column("share", ".1%"))
    pairs = confusion.most_frequent(MAX_PAIRS)
    table = f"<div><h3>{page.text('pairs')}</h3>{page.table('confusions', columns, pairs)}</div>" if pairs else ""
    return page.paragraph("confusion_note") + f"<div class='beside'>{matrix_html(page, confusion)}{table}</div>"


def matrix_html(page: Page, confusion: Confusion) -> str:
    """Return the matrix with headings that stay in view, a slider for the cell size, and the count at the pointer.

    Cells are elements up to `MAX_ELEMENTS` classes, else an image with one pixel per cell.
    """
    n = len(confusion.labels)
    names = [shorten(label, 40) for label in confusion.labels]
    headings = "".join(f'<span title="{name}">{name}</span>' for name in map(escape_text, names))
    cell_px = 34 if n <= 12 else 26 if n <= MAX_ELEMENTS else 14 if n <= 60 else max(2, 640 // n)
    data = {
        "names": names,
        "text": page.translate("cell"),
        "cells": [{int(j): int(row[j]) for j in np.flatnonzero(row)} for row in confusion.counts],
    }
    slider = f'<input type="range" min="2" max="48" value="{cell_px}" data-of="confusion-data">'
    tiny = " tiny" if cell_px < 11 else ""
    return (
        f'<div><div class="zoom"><label>{page.text("zoom")} {slider}</label>'
        f'<output class="quiet">{page.text("point")}</output></div>'
        f'<div class="matrix{tiny}" data-of="confusion-data" style="--n:{n};--cell:{cell_px}px">'
        f'<div class="corner">{page.text("true_predicted")}</div><div class="predicted">{headings}</div>'
        f'<div class="true">{headings}</div><div class="cells">{_cells_html(confusion)}</div></div>'
        f"{json_script('confusion-data', data)}</div>"
    )


def _cells_html(confusion: Confusion) -> str:
    if len(confusion.labels) > MAX_ELEMENTS:
        return f'<img alt="" src="{data_url("image/png", _pixels(confusion))}">'
    strengths, cells = confusion.strengths, []
    for i, row in enumerate(confusion.counts):
        for j, count in enumerate(row):
            css_class = ' class="diagonal"' if i == j else ""
            style = f'style="--s:{strengths[i, j]:.2f}"'
            cells.append(f"<b{css_class} {style}>{count}</b>" if count else "<b></b>")
    return "".join(cells)


def _pixels(confusion: Confusion) -> bytes:
    """Return a PNG with one pixel per cell, transparent where the count is 0, in colors that suit both themes."""
    rgba = np.empty((*confusion.counts.shape, 4), np.uint8)
    rgba[..., :3] = np.where(confusion.diagonal[..., None], (43, 140, 204), (226, 110, 20))
    rgba[..., 3] = np.round(255 * confusion.strengths)
    file = io.BytesIO()
    Image.fromarray(rgba).save(file, "PNG", optimize=True)
    return file.getvalue()


def classes_html(page: Page, data: RunData, confusion: Confusion) -> str:
    """Return a table of the classes, the lowest F1 first."""
    assert data.metrics is not None  # a confusion matrix comes from predictions
    mistaken_for = confusion.mistaken_for()
    columns = (
        Column("class", "text"), Column("images", ",d"), Column("precision", ".1%"), Column("recall", ".1%"),
        Column("f1", ".3f"), Column("", "bar"), Column("mistaken_for", "text"), Column("count", ",d"),
    )  # fmt: skip
    rows = [
        (c["label"], c["n"], c["precision"], c["recall"], c["f1"], c["f1"], *mistaken_for.get(c["label"], ("", None)))
        for c in sorted(data.metrics["per_class"], key=lambda c: c["f1"])
    ]
    return page.paragraph("classes_note") + page.table("classes", columns, rows, sortable=True)
