"""A self-contained HTML page of sections, with every plot as PNG and SVG and every table as CSV in a folder next to it.

A section that fails is replaced by the reason, and the others are still shown. A plot is drawn once for both themes:
its colors become CSS variables in the page.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from alexnet.errors import UserError
from alexnet.files import atomic_write, printable, write_text
from alexnet.messages.translator import Translator
from alexnet.plots.style import FALLBACK_FONTS, THEMES, Theme, render, render_formats

LIGHT = THEMES["light"]


def _theme_colors(theme: Theme) -> dict[str, str]:
    named = {"background": theme.background, "foreground": theme.foreground, "muted": theme.muted}
    return named | {f"series{i}": color for i, color in enumerate(theme.series)}


def _css_variables(theme: Theme) -> str:
    """Return the colors of `theme`, those of the confusion matrix as "R G B" so that cells can add transparency."""
    channels = {
        name: " ".join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))
        for name, color in (("good", theme.blue), ("bad", theme.orange))
    }
    return " ".join(f"--{name}: {value};" for name, value in (_theme_colors(theme) | channels).items())


STYLE = f""":root {{ color-scheme: light dark; --line: #8884; --soft: #8881; {_css_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_css_variables(THEMES["dark"])} }} }}
"""


@dataclass(frozen=True)
class Column:
    """A table column: the key of its heading in the texts, and the format of its values."""

    key: str
    format: str = ""
    """A format specification such as `.1%`; "text", "long" (text that may break anywhere) or "bar" (a fraction)."""
    heading: str = ""
    """The heading itself, where it is not one of the texts."""


class Page:
    """Sections in the order in which they are added; `write` creates the file.

    Raises `UserError` if `path` does not end in .html or the folder for plots and tables cannot be created.
    """

    def __init__(self, path: Path, title: str, translate: Translator) -> None:
        self.path, self.title, self.translate = path, title, translate
        self.folder = path.with_suffix("")
        self.sections: list[tuple[str, str]] = []
        self.files: list[Path] = []
        if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"A report is an .html file, which {path} is not; choose a name that ends in .html.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot create {self.folder} ({error.strerror}); choose another --out.") from error

    def add(self, key: str, render: Callable[[], str]) -> None:
        """Add the section headed by the text `key`, unless `render` returns nothing."""
        try:
            body = render()
        except Exception as error:  # a page with a missing section is better than no page
            body = self.paragraph("part_failed", "quiet", why=str(error).strip() or type(error).__name__)
        if body:
            self.sections.append((key, body))

    def write(self) -> list[Path]:
        """Write the page. Return its path, followed by those of the plots and tables."""
        names = ", ".join(sorted({path.name for path in self.files}))
        self.add("files", lambda: self.paragraph("files_note", folder=self.folder.name, names=names))
        links = "".join(f'<a href="#{key}">{self.text(key)}</a>' for key, _ in self.sections[1:])
        sections = [
            f'<section id="{key}">{f"<h2>{self.text(key)}</h2>" if i else ""}{body}</section>'
            for i, (key, body) in enumerate(self.sections)
        ]
        sections.insert(1, f"<nav>{links}</nav>")
        title = escape_text(self.title)
        page = (
            f'<!doctype html>\n<html lang="{self.translate.tag}"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
            f"<style>{STYLE}{_read_asset('page.css')}</style></head><body><h1>{title}</h1>" + "\n".join(sections)
        )  # fmt: skip
        write_text(self.path, f"{page}<script>{_read_asset('page.js')}</script></body></html>\n")
        return [self.path, *self.files]

    # ── parts of a section ────────────────────────────────────────────────────────────────────────────────────────

    def text(self, key: str, **values: Any) -> str:
        """Return a text in the page's language, escaped."""
        return escape_text(self.translate(key, **values))

    def paragraph(self, key: str, css_class: str = "", **values: Any) -> str:
        """Return a text as a paragraph."""
        attribute = f' class="{css_class}"' if css_class else ""
        return f"<p{attribute}>{self.text(key, **values)}</p>"

    def details(self, key: str, body: str) -> str:
        """Return `body` folded below the text `key`."""
        return f"<details><summary>{self.text(key)}</summary>{body}</details>"

    def plot(self, name: str, draw: Callable[[Theme, Translator], Figure], inline: bool = True) -> str:
        """Write `name`.svg and `name`.png, and return the figure for the page (nothing unless `inline`)."""
        svg, png = render_formats(lambda theme: draw(theme, self.translate), LIGHT, ("svg", "png"))
        if self.translate.lang != "en" and not _has_chinese_font():  # a browser substitutes a font, a PNG cannot
            png = render(lambda theme: draw(theme, Translator("en")), LIGHT, "png")
        self._write_file(f"{name}.svg", svg)
        self._write_file(f"{name}.png", png)
        return f"<figure>{_inline_svg(svg.decode(), name)}</figure>" if inline else ""

    def table(self, name: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]], sortable: bool = False) -> str:
        """Write `name`.csv, and return the table for the page."""
        headings = [column.heading or (self.translate(column.key) if column.key else "") for column in columns]
        file = io.StringIO()
        csv.writer(file).writerows([headings, *rows])
        # with the byte order mark, Excel reads the file as UTF-8
        self._write_file(f"{name}.csv", file.getvalue().encode("utf-8-sig", "backslashreplace"))
        classes = [f' class="{c.format}"' if c.format in ("text", "long", "bar") else "" for c in columns]
        head = "".join(f"<th{name}>{escape_text(h)}</th>" for name, h in zip(classes, headings, strict=True))
        body = "".join(
            "<tr>" + "".join(_cell(value, c.format) for c, value in zip(columns, row, strict=True)) + "</tr>"
            for row in rows
        )
        css_class = ' class="sortable"' if sortable else ""
        return f'<div class="wide"><table{css_class}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _write_file(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
        self.files.append(path)


def escape_text(value: object) -> str:
    """Return `value` as HTML text; undecodable bytes of file names become printable."""
    return escape(printable(str(value)))


def json_script(name: str, value: Any) -> str:
    """Return an element that holds `value` as JSON for the page's script."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{printable(content)}</script>'


def jpeg_url(image: Image.Image, quality: int) -> str:
    """Return an RGB or grayscale image as a data URL."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return data_url("image/jpeg", file.getvalue())


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def _read_asset(name: str) -> str:
    return (resources.files("alexnet.report") / name).read_text(encoding="utf-8")


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "<td></td>"
    if form in ("text", "long"):
        return f'<td class="{form}">{escape_text(value)}</td>'
    if form == "bar":
        return f'<td class="bar" data-v="{value:.4f}"><div style="width:{100 * value:.1f}%"></div></td>'
    return f'<td data-v="{value}">{value:{form}}</td>'


def _has_chinese_font() -> bool:
    return bool(set(FALLBACK_FONTS[:8]) & set(font_manager.get_font_names()))


def _inline_svg(svg: str, name: str) -> str:
    """Return an SVG file as an element: colors as CSS variables, ids prefixed by `name`, no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for attribute in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", svg, count=1)
    for variable, color in _theme_colors(LIGHT).items():
        svg = svg.replace(f": {color}", f": var(--{variable})")
    return svg
