"""Rendering of matplotlib figures: light and dark themes, PNG, SVG and HTML files, and what the figures share.

A figure is given as a function of a theme, so that an HTML page can hold both themes and show the one that the reader's
system prefers. pyplot is not used: no display, no global state, no backend. Colors are those of Okabe and Ito, which
are distinguishable with color-vision deficiency.
"""

from __future__ import annotations

import io
import logging
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from markupsafe import Markup
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter
from PIL import Image
from rich.cells import cell_len, set_cell_size

from alexnet.calls import public
from alexnet.errors import UserError, unknown_name
from alexnet.files import printable, write_bytes
from alexnet.messages.translator import Translator, load_template
from alexnet.notebook.display import data_url, render_figure

SUFFIXES = (".png", ".svg", ".html")
EDGE_SHADOWS = Markup("""
  background:
    linear-gradient(to right, var(--background) 30%, transparent) left / 3rem 100% local,
    linear-gradient(to left, var(--background) 30%, transparent) right / 3rem 100% local,
    linear-gradient(to right, var(--shadow), transparent) left / 1rem 100%,
    linear-gradient(to left, var(--shadow), transparent) right / 1rem 100%;
  background-repeat: no-repeat;
""")
"""CSS of a box that scrolls sideways: a shadow at an edge says that more lies beyond it. The covers, of the color
--background, scroll with the content."""
DPI = 150
MIN_SPAN = 0.05  # of an axis of percentages

# Used for glyphs that DejaVu, the font of matplotlib, lacks: class and file names may be in any script.
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Heiti SC",
    "Microsoft YaHei", "SimHei", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Noto Serif CJK SC",
    "Droid Sans Fallback", "Arial Unicode MS",
)  # fmt: skip
FALLBACK_FONTS = (*CHINESE_FONTS, "Noto Sans", "Noto Sans Devanagari", "Noto Sans Arabic")
NO_FONT = (
    "Some letters of a figure are in no installed font, and are drawn as boxes; install one that has them, for Chinese "
    "the package fonts-noto-cjk (Debian, Ubuntu), google-noto-sans-cjk-fonts (Fedora) or noto-fonts-cjk (Arch)."
)
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # many Chinese fonts have no bold letters


@dataclass(frozen=True)
class Theme:
    """The colors of a figure or page."""

    name: str
    background: str
    foreground: str
    muted: str
    """Grid lines, frames and secondary text."""
    series: tuple[str, ...]
    """Distinguishable with color-vision deficiency, the first two best."""

    @property
    def blue(self) -> str:
        return self.series[0]

    @property
    def orange(self) -> str:
        return self.series[1]

    @property
    def diverging(self) -> LinearSegmentedColormap:
        """From blue (negative) through the background (zero) to orange (positive)."""
        return LinearSegmentedColormap.from_list("diverging", [self.blue, self.background, self.orange])


THEMES = {
    "light": Theme("light", "#ffffff", "#1a1a1a", "#737373", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")),
    "dark": Theme("dark", "#161a1d", "#eeeeee", "#9a9a9a", ("#56b4e9", "#e69f00", "#2fcf9f", "#e39ac6", "#f0e442")),
}

Draw = Callable[[Theme, Translator], Figure]


def get_theme(name: str) -> Theme:
    if name not in THEMES:
        raise unknown_name("theme", name, THEMES)
    return THEMES[name]


def check_path(out: Path) -> None:
    """Raise `UserError` unless a figure can be written to `out`: a file with one of `SUFFIXES`."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"A figure cannot be written as {out}; choose a name that ends in {', '.join(SUFFIXES)}.")
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file in it.")


def save_figure(draw: Draw, out: Path, theme: str = "light", lang: str = "en") -> Path:
    """Write a figure to `out` atomically: .png and .svg in `theme`, .html in both. Text in SVG stays text.

    Raises `UserError` as `check_path` and `get_theme` do, and for an unknown language.
    """
    check_path(out)
    chosen, form = get_theme(theme), out.suffix.lower()[1:]
    translate = Translator(lang)
    content = _render_html(draw, translate).encode() if form == "html" else render(draw, chosen, form, translate)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, content)
    return out


@dataclass(frozen=True)
class Drawing:
    """A figure that a notebook shows, and that `save` writes to a file."""

    draw: Draw = field(repr=False)
    default: Path
    """Where `save` writes it unless told otherwise."""
    theme: str | None = None
    """None: the notebook's own, and light in a file."""
    lang: str = "en"

    @public("save")
    def save(self, out: str | Path | None = None) -> Path:
        """Write the figure as `save_figure` does, and return its path."""
        return save_figure(self.draw, Path(out) if out else self.default, self.theme or "light", self.lang)

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a PNG, and its width in CSS pixels: half as many on a screen of twice the density. Without a theme
        also HTML with two, of which the light or the dark one is shown, as the notebook is."""
        light = render(self.draw, get_theme(self.theme or "light"), "png", Translator(self.lang))
        width = Image.open(io.BytesIO(light)).width * 96 // DPI
        found: dict[str, Any] = {"image/png": light}
        if self.theme is None:
            dark = render(self.draw, THEMES["dark"], "png", Translator(self.lang))
            found["text/html"] = render_figure(self.default.stem, light, dark, width)
        return found, {"image/png": {"width": width}}


def render(draw: Draw, theme: Theme, form: str = "svg", translate: Translator | None = None) -> bytes:
    """Return the bytes of a png or svg file; the same figure always gives the same bytes."""
    return render_formats(draw, theme, (form,), translate or Translator())[form]


def render_formats(draw: Draw, theme: Theme, forms: Sequence[str], translate: Translator) -> dict[str, bytes]:
    """Render one figure in several formats; its layout, which takes most of the time, is computed once.

    A PNG is in English where no font has Chinese: a browser substitutes a font in an SVG, but not in a PNG. Warns of
    letters that are boxes in a PNG.
    """
    if "png" in forms and translate.lang != "en" and not has_chinese_font():
        rest = [form for form in forms if form != "png"]
        return {"png": render(draw, theme, "png"), **(render_formats(draw, theme, rest, translate) if rest else {})}
    contents, missing = _draw_formats(draw, theme, forms, translate)
    if missing and _add_new_fonts():
        contents, missing = _draw_formats(draw, theme, forms, translate)
    if missing and "png" in forms:
        warnings.warn(NO_FONT, stacklevel=2)
    return contents


def _draw_formats(
    draw: Draw, theme: Theme, forms: Sequence[str], translate: Translator
) -> tuple[dict[str, bytes], bool]:
    """Return the files of a figure, and whether it has letters that are in none of the fonts."""
    contents = {}
    with mpl.rc_context(rc_params(theme)), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure = draw(theme, translate)
        for form in forms:
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else None)
            figure.set_layout_engine("none")
            contents[form] = file.getvalue()
    return contents, any("Glyph" in str(warning.message) for warning in caught)


def has_chinese_font() -> bool:
    """Return whether an installed font has Chinese letters."""

    def is_listed() -> bool:
        return not set(CHINESE_FONTS).isdisjoint(font_manager.fontManager.get_font_names())

    return is_listed() or (_add_new_fonts() and is_listed())


@cache
def _add_new_fonts() -> bool:
    """Add the fonts that were installed after matplotlib listed them in its cache; return whether there were any."""
    manager = font_manager.fontManager
    new = set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}
    for path in sorted(new):
        with suppress(Exception):  # of a damaged file, or of a format that matplotlib does not read
            manager.addfont(path)
    return bool(new)


def _render_html(draw: Draw, translate: Translator) -> str:
    drawn: list[Figure] = []

    def draw_transparent(theme: Theme, translate: Translator) -> Figure:
        figure = draw(theme, translate)
        figure.patch.set_alpha(0)  # shows the shadows of the template, and the background of the page
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        drawn.append(figure)
        return figure

    light, dark = (
        data_url("image/svg+xml", render(draw_transparent, THEMES[name], "svg", translate)) for name in THEMES
    )
    title, width = drawn[0].get_suptitle(), 96 * drawn[0].get_figwidth()  # CSS pixels
    return load_template("alexnet.plots", "figure.html", translate.lang).render(
        title=title.splitlines()[0] if title else "alexnet show", width=width, light=light, dark=dark,
        dark_background=THEMES["dark"].background, edge_shadows=EDGE_SHADOWS,
    )  # fmt: skip


def rc_params(theme: Theme) -> Any:
    installed = set(font_manager.fontManager.get_font_names())
    return {
        "font.family": ["DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed)],
        "font.size": 12, "axes.titlesize": 12, "axes.labelsize": 12, "figure.titlesize": 16, "figure.labelsize": 11,
        "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11,
        "figure.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 5,
        "figure.facecolor": theme.background, "savefig.facecolor": theme.background,
        "axes.facecolor": theme.background, "text.color": theme.foreground, "axes.labelcolor": theme.foreground,
        "axes.titlecolor": theme.foreground, "axes.edgecolor": theme.muted, "xtick.color": theme.foreground,
        "ytick.color": theme.foreground, "grid.color": theme.muted, "grid.alpha": 0.3,
        "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "axes.prop_cycle": cycler(color=theme.series),
        "svg.fonttype": "none", "svg.hashsalt": "alexnet", "text.parse_math": False,
    }  # fmt: skip


# ── parts of figures ──────────────────────────────────────────────────────────────────────────────


def new_figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Return a figure of `width` × `height` inches without axes, with a title above and a caption below."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    figure.suptitle(shorten(title, int(width * 8)), x=0.012, ha="left")
    letters_per_line = int(width * (6.6 if is_wide(caption) else 12.2))  # at 11 points
    figure.supxlabel(textwrap.fill(caption, letters_per_line), x=0.012, ha="left")
    return figure


def new_panel(width: float = 5.2, height: float = 3.3) -> tuple[Figure, Axes]:
    """Return a figure with a single plot, readable at the width of a phone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def shorten(text: str, length: int) -> str:
    """Return `text` on one line of at most `length` letters, a Chinese character being two: cut in the middle, with
    unprintable characters as "?"."""
    text = "".join(c if c.isprintable() else "?" for c in printable(text))
    if cell_len(text) <= length:
        return text
    last = length // 3
    return set_cell_size(text, length - 1 - last).rstrip() + "…" + set_cell_size(text[::-1], last)[::-1].lstrip()


def is_wide(text: str) -> bool:
    """Return whether most letters of `text` are as wide as high, as those of Chinese are."""
    return sum(unicodedata.east_asian_width(letter) in "WF" for letter in text) * 2 > len(text)


def use_percent(*axes: Axis) -> None:
    """Label the ticks of plotted axes with percentages. Axes show at least `MIN_SPAN`: less would magnify chance."""
    for axis in axes:
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}%"))
        low, high = axis.get_view_interval()
        if high - low < MIN_SPAN:
            middle = min((low + high) / 2, 1 + 0.04 * MIN_SPAN - MIN_SPAN / 2)
            axis.set_view_interval(middle - MIN_SPAN / 2, middle + MIN_SPAN / 2, ignore=True)


def show_image(axes: Axes, image: np.ndarray, **options: Any) -> None:
    """Show an image, (H, W, 3), (H, W, 1) or (H, W), without ticks. Small images are enlarged without smoothing."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2 and "cmap" not in options:
        options |= {"cmap": "gray", "vmin": 0, "vmax": 255}
    axes.imshow(image, **({"interpolation": "nearest" if max(image.shape[:2]) <= 128 else "antialiased"} | options))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
