"""A self-contained HTML page of sections, with every plot as PNG and SVG and every table as CSV in a folder next to it.

Sections are macros of a template; Python computes their values. A section that fails is replaced by the reason, and the
others are still shown. A plot is drawn once for both themes: its colors become CSS variables in the page.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image, ImageOps

from alexnet.errors import UserError
from alexnet.files import atomic_write, read_json, write_bytes, write_text
from alexnet.inference.neighbors import load_run_images
from alexnet.messages.translator import Translator, load_template
from alexnet.notebook.display import data_url, render_page
from alexnet.plots.style import EDGE_SHADOWS, THEMES, Draw, Theme, render_formats
from alexnet.run_dir import Run

LIGHT = THEMES["light"]
THUMBNAIL_SIDE = 224  # pixels of the longer side: shown at 112 in the page, sharp on high-density screens

Values = dict[str, Any]
"""Arguments of a section's macro."""


@dataclass(frozen=True)
class Column:
    """A table column: the key of its heading in the texts, and the format of its values."""

    key: str
    format: str = ""
    """A format specification such as `.1%`; "text", "long" (breaks anywhere), "file" or "bar" (a fraction)."""
    heading: str = ""
    """The heading itself, where it is not one of the texts."""


@dataclass(frozen=True)
class Table:
    """A table for the macro `table` of parts.html."""

    columns: Sequence[tuple[str, str]]
    """Heading and format of each column."""
    rows: Sequence[Sequence[Any]]
    sortable: bool = False


@dataclass(frozen=True)
class WrittenPage:
    """A page that was written, and the files of its plots and tables. Displays as the page in a notebook."""

    path: Path
    files: Sequence[Path] = field(default=(), repr=False)

    def _repr_html_(self) -> str:
        return render_page(self.path)


class Page:
    """Sections in the order in which they are added; `write` creates the file.

    `template` holds a macro for each section. Raises `UserError` if `path` does not end in .html, the folder for plots
    and tables cannot be created, or the language is unknown.
    """

    def __init__(self, path: Path, title: str, template: str, lang: str = "en") -> None:
        self.path, self.title, self.lang, self.translate = path, title, lang, Translator(lang)
        self.folder = path.with_suffix("")
        self.sections: list[Values] = []
        self.files: list[Path] = []
        self._macros: Any = load_template("alexnet.report", template, lang).module
        if path.is_dir() or path.suffix.lower() not in (".html", ".htm"):
            raise UserError(f"A report is an .html file, which {path} is not; choose a name that ends in .html.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"Cannot create {self.folder} ({error.strerror}); choose another --out.") from error

    def add(self, key: str, compute: Callable[[], Values | None], macro: str = "") -> None:
        """Add the section headed by the text `key`, unless `compute` returns None.

        Its body is the template's macro of that name, or `macro`, called with the values that `compute` returns.
        """
        section = {"key": key, "body": Markup(), "error": ""}
        try:
            values = compute()
            if values is None:
                return
            section["body"] = getattr(self._macros, macro or key)(**values)
        except Exception as error:  # a page with a missing section is better than no page
            section["error"] = str(error).strip() or type(error).__name__
        self.sections.append(section)

    def write(self) -> list[Path]:
        """Write the page. Return its path, followed by those of the plots and tables."""
        values: Values = {
            "title": self.title, "sections": self.sections, "folder": self.folder.name,
            "names": ", ".join(sorted({path.name for path in self.files})),
            "light": _css_variables(LIGHT), "dark": _css_variables(THEMES["dark"]), "edge_shadows": EDGE_SHADOWS,
        }  # fmt: skip
        write_text(self.path, load_template("alexnet.report", "page.html", self.lang).render(values))
        return [self.path, *self.files]

    def plot(self, name: str, draw: Draw) -> Markup:
        """Write `name`.svg and `name`.png, and return the figure as an SVG element."""
        files = render_formats(draw, LIGHT, ("svg", "png"), self.translate)
        for form, content in files.items():
            self._write_file(f"{name}.{form}", content)
        return _inline_svg(files["svg"].decode(), name)

    def table(
        self, name: str, columns: Sequence[Column], rows: Sequence[Sequence[Any]], sortable: bool = False
    ) -> Table:
        """Write `name`.csv, and return the table for the page."""
        headings = [column.heading or (self.translate(column.key) if column.key else "") for column in columns]
        file = io.StringIO()
        csv.writer(file).writerows([headings, *rows])
        # with the byte order mark, Excel reads the file as UTF-8
        self._write_file(f"{name}.csv", file.getvalue().encode("utf-8-sig", "backslashreplace"))
        return Table([(heading, c.format) for heading, c in zip(headings, columns, strict=True)], rows, sortable)

    def _write_file(self, name: str, content: bytes) -> None:
        write_bytes(self.folder / name, content)
        self.files.append(self.folder / name)


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


def _inline_svg(svg: str, name: str) -> Markup:
    """Return an SVG file as an element: colors as CSS variables, ids prefixed by `name`, no fixed size."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    for attribute in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {attribute}="[^"]*"', r"\1", svg, count=1)
    for variable, color in _theme_colors(LIGHT).items():
        svg = svg.replace(f": {color}", f": var(--{variable})")
    return Markup(svg)


# ── images ────────────────────────────────────────────────────────────────────────────────────────


def fit_square(image: Image.Image, side: int) -> Image.Image:
    """Fit an image into a square of `side` pixels; small images are enlarged by an integer factor to stay sharp."""
    longest = max(image.size)
    if longest > side:
        return ImageOps.contain(image, (side, side))
    factor = side // longest
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def load_thumbnails(run: Run, names: Sequence[str], folder: Path) -> tuple[dict[str, str], str]:
    """Return data URLs of the images that evaluations call `names`, and why others are missing.

    Images come from `folder` or, if they are not cached there yet, from the dataset.
    """
    paths = {
        name: folder / f"{hashlib.sha1(name.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}.jpg" for name in names
    }
    error = ""
    missing = [name for name, path in paths.items() if not path.is_file()]
    if missing:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, image in zip(missing, load_run_images(run, missing), strict=True):
                _save_thumbnail(image, paths[name])
        except Exception as failure:  # missing, moved or damaged data raises exceptions of many libraries
            error = str(failure).rstrip(".")
            _save_readable_files(run, {name: paths[name] for name in missing})
    urls = {name: data_url("image/jpeg", path.read_bytes()) for name, path in paths.items() if path.is_file()}
    return urls, error


def _save_readable_files(run: Run, paths: dict[str, Path]) -> None:
    """Save thumbnails of those image files that still exist, one by one."""
    try:
        root = Path(read_json(run.recipe_json, dict[str, Any])["data"])
    except (OSError, UserError, KeyError, TypeError):
        return
    for name, path in paths.items():
        try:
            if (root / name).is_file():
                _save_thumbnail(load_run_images(run, [name])[0], path)
        except Exception:
            continue


def _save_thumbnail(image: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        fit_square(image.convert("RGB"), THUMBNAIL_SIDE).save(temporary, "JPEG", quality=75)
