"""HTML for notebooks: tables, predictions beside their images, the progress of a training; images as data URLs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.messages.translator import Translator, load_template

if TYPE_CHECKING:
    from PIL import Image

PANEL = (280, 110)
"""Width and height in pixels of the plotted area of a learning curve."""


def render_table(
    title: str, rows: Sequence[Sequence[object]], head: Sequence[str] = (), bars: bool = False, note: str = "",
    folded: str = "",
) -> str:  # fmt: skip
    """Return a table with a title above and a note below; `bars` draws each row's last cell, a percentage.

    With `folded` the rows are shown after a click on this text.
    """
    columns = zip(*rows, strict=True)
    numeric = [all(str(cell)[:1].isdigit() or cell == "" for cell in column) for column in columns]
    return _render(
        "table.html", title=title, rows=rows, head=head, bars=bars, note=note, folded=folded,
        align=["right" if one else "left" for one in numeric],
    )  # fmt: skip


def render_predictions(predictions: Sequence[dict[str, Any]], note: str = "") -> str:
    """Return images beside bars of their labels, several side by side.

    Each prediction has a `title`, an `image` (a data URL or None) and `rows` of label and percentage.
    """
    return _render("predictions.html", predictions=predictions, note=note)


def render_progress(
    bar: tuple[int, int, str] | None,
    rows: Sequence[dict[str, Any]],
    epochs: int,
    split: str,
    texts: Sequence[str],
    lang: str = "en",
) -> str:
    """Return a progress bar (done, total, text), the learning curves of `rows` of metrics.jsonl, and lines of text.

    `split` is the name, in the language `lang`, of the one that the rows were validated on.
    """
    panels = [
        _curve(Translator(lang)("loss"), rows, epochs, ("train_loss", "val_loss")),
        _curve("top-1", rows, epochs, ("train_top1", "top1")),
    ]
    return _render("progress.html", lang, bar=bar, panels=panels if rows else [], split=split, texts=texts, size=PANEL)


def render_page(path: Path) -> str:
    """Return a self-contained HTML file in a frame, which also shows it offline and where the file is not served."""
    return _render("page.html", path=path, content=path.read_text(encoding="utf-8"))


def render_figure(title: str, light: bytes, dark: bytes, width: int) -> str:
    """Return two PNG files of a figure, `width` CSS pixels wide: the dark one is shown where JupyterLab, VS Code, Colab
    or a page of documentation is dark, which may differ from what the system prefers; the light one elsewhere."""
    urls = {"light": data_url("image/png", light), "dark_url": data_url("image/png", dark)}
    return _render("figure.html", title=title, width=width, **urls)


def render_text(text: str) -> str:
    """Return lines of text."""
    return _render("text.html", text=text)


def _curve(name: str, rows: Sequence[dict[str, Any]], epochs: int, keys: tuple[str, str]) -> dict[str, Any]:
    """Return the axis and the points, in pixels, of a training curve and of the one on the other split."""
    width, height = PANEL
    values = [[row[key] for row in rows] for key in keys]
    finite = [v for line in values for v in line if math.isfinite(v)] or [1.0]
    # a loss that explodes is cut at twice the first one
    top = 1.0 if name == "top-1" else max(min(max(finite), 2 * finite[0]), 1e-9)
    lines = [
        [
            (width * (row["epoch"] - 1) / max(epochs - 1, 1), height * (1 - min(value / top, 1.0)))
            for row, value in zip(rows, line, strict=True)
            if math.isfinite(value)
        ]
        for line in values
    ]
    return {
        "name": name, "top": "100 %" if name == "top-1" else f"{top:.3g}", "epochs": epochs,
        "lines": [(" ".join(f"{x:.1f},{y:.1f}" for x, y in line), line[-1:]) for line in lines],
    }  # fmt: skip


def _render(template: str, lang: str = "en", **values: Any) -> str:
    return load_template("alexnet.notebook", template, lang).render(values)


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def image_url(image: Image.Image, form: str = "JPEG", **options: Any) -> str:
    """Return an image as a data URL of a JPEG or PNG file; `options` are those of Pillow's `save`."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return data_url(f"image/{form.lower()}", file.getvalue())
