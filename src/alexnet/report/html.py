"""A self-contained page of sections, and beside it each plot as PNG and SVG and each table as CSV.

A section that cannot be made says why in a sentence, and the rest goes on. A plot is drawn once for both themes: in the
page its colours are CSS variables.
"""

from __future__ import annotations

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

from alexnet.errors import UserError
from alexnet.files import atomic_write, printable, write_text
from alexnet.messages.texts import Translator
from alexnet.plots.style import FALLBACKS, THEMES, Theme, rendered, rendered_as

Plot = Callable[[Theme, Translator], Any]  # Any: a matplotlib figure

PAPER = THEMES["light"]
COLOURS = {
    PAPER.paper: "paper", PAPER.ink: "ink", PAPER.faint: "faint",
    **{colour: f"series{i}" for i, colour in enumerate(PAPER.series)},
}  # fmt: skip


def _variables(theme: Theme) -> str:
    named = {"paper": theme.paper, "ink": theme.ink, "faint": theme.faint}
    named |= {f"series{i}": colour for i, colour in enumerate(theme.series)}
    rgb = {"good": theme.blue, "bad": theme.orange}
    channels = {name: " ".join(str(int(c[i : i + 2], 16)) for i in (1, 3, 5)) for name, c in rgb.items()}
    return " ".join(f"--{name}: {value};" for name, value in (named | channels).items())


STYLE = f""":root {{ color-scheme: light dark; --line: #8884; --soft: #8881; {_variables(THEMES["light"])} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(THEMES["dark"])} }} }}
"""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading's key in the texts, and how its values are written."""

    key: str
    form: str = ""
    """A format such as `.1%`; "text" for words, "long" for words that may break anywhere, "bar" for a fraction
    drawn as a bar."""
    name: str = ""
    """The heading itself, where it is no text of ours."""


class Page:
    """Sections in order, as they are added; `write` makes the file, and plots and tables lie in a folder beside it."""

    def __init__(self, path: Path, title: str, words: Translator) -> None:
        self.path, self.title, self.words = path, title, words
        self.folder = path.with_suffix("")
        self.parts: list[tuple[str, str]] = []
        self.files: list[Path] = []
        if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"A report is written to a file that ends in .html, and {path} is none; change its name.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be made ({error.strerror}); choose another --out.") from error

    def add(self, key: str, make: Callable[[], str]) -> None:
        """The section headed by the text `key`; left out where `make` gives nothing."""
        try:
            body = make()
        except Exception as error:  # a page with a part missing is better than none
            why = str(error).strip() or type(error).__name__
            body = f'<p class="quiet">{text(self.words("part_failed", why=why))}</p>'
        if body:
            self.parts.append((key, body))

    def write(self) -> list[Path]:
        """Write the page, and return its path followed by those of the plots and tables."""
        names = ", ".join(sorted({path.name for path in self.files}))
        self.add("files", lambda: f"<p>{text(self.words('files_are', folder=self.folder.name, names=names))}</p>")
        links = "".join(f'<a href="#{key}">{text(self.words(key))}</a>' for key, _ in self.parts[1:])
        sections = [
            f'<section id="{key}">{f"<h2>{text(self.words(key))}</h2>" if i else ""}{body}</section>'
            for i, (key, body) in enumerate(self.parts)
        ]
        sections.insert(1, f"<nav>{links}</nav>")
        title = text(self.title)
        page = (
            f'<!doctype html>\n<html lang="{self.words.tag}"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
            f"<style>{STYLE}{_part('page.css')}</style></head><body><h1>{title}</h1>" + "\n".join(sections)
        )  # fmt: skip
        write_text(self.path, f"{page}<script>{_part('page.js')}</script></body></html>\n")
        return [self.path, *self.files]

    # ── what sections are made of ─────────────────────────────────────────────────────────────────────────────────

    def plot(self, name: str, draw: Plot, inline: bool = True) -> str:
        """Draw `name`.png and .svg, and return the figure for the page (nothing unless `inline`)."""
        svg, png = rendered_as(lambda theme: draw(theme, self.words), PAPER, ("svg", "png"))
        if self.words.lang != "en" and not _has_chinese():  # a browser finds a font, a picture holds boxes
            png = rendered(lambda theme: draw(theme, Translator("en")), PAPER, "png")
        self._keep(f"{name}.svg", svg)
        self._keep(f"{name}.png", png)
        return f"<figure>{_inline(svg.decode(), name)}</figure>" if inline else ""

    def table(self, name: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]], sortable: bool = False) -> str:
        """Write `name`.csv and return the table for the page."""
        heads = [column.name or self.words(column.key) for column in columns]
        file = io.StringIO()
        csv.writer(file).writerows([heads, *rows])
        self._keep(f"{name}.csv", file.getvalue().encode("utf-8-sig", "backslashreplace"))  # so that Excel knows
        kinds = ("text", "long", "bar")
        classes = [f' class="{c.form}"' if c.form in kinds else "" for c in columns]
        head = "".join(f"<th{kind}>{text(h)}</th>" for kind, h in zip(classes, heads, strict=True))
        body = "".join(
            "<tr>" + "".join(_cell(value, c.form) for c, value in zip(columns, row, strict=True)) + "</tr>"
            for row in rows
        )
        kind = ' class="sortable"' if sortable else ""
        return f'<div class="wide"><table{kind}><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _keep(self, name: str, content: bytes) -> None:
        path = self.folder / name
        with atomic_write(path) as beside:
            beside.write_bytes(content)
        self.files.append(path)


def text(words: object) -> str:
    """Anything, a file name with odd bytes included, as text on a page."""
    return escape(printable(str(words)))


def _part(name: str) -> str:
    return (resources.files("alexnet.report") / name).read_text(encoding="utf-8")


def data_json(name: str, value: Any) -> str:
    """Data for the page's script."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{printable(content)}</script>'


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "<td></td>"
    if form in ("text", "long"):
        return f'<td class="{form}">{text(value)}</td>'
    if form == "bar":
        return f'<td class="bar" data-v="{value:.4f}"><div style="width:{100 * value:.1f}%"></div></td>'
    return f'<td data-v="{value}">{value:{form}}</td>'


def _has_chinese() -> bool:
    return bool(set(FALLBACKS[:8]) & set(font_manager.get_font_names()))


def _inline(svg: str, name: str) -> str:
    """An SVG file as an element of the page: colours as variables, and identifiers of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r'<svg([^>]*?) width="[^"]*"', r"<svg\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1), count=1
    )
    for colour, variable in COLOURS.items():
        svg = svg.replace(f": {colour}", f": var(--{variable})")
    return svg
