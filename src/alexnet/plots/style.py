"""Rendering of matplotlib figures: light and dark themes, PNG, SVG and HTML files, and what the figures share.

A figure is given as a function of a theme, so that an HTML page can hold both themes and show the one that the reader's
system prefers. pyplot is not used: no display, no global state, no backend. Colors are those of Okabe and Ito, which
are distinguishable with color-vision deficiency.
"""

from __future__ import annotations

import base64
import io
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import PercentFormatter

from alexnet.errors import UserError, unknown_name
from alexnet.files import printable, write_bytes
from alexnet.messages.translator import Translator, load_template

SUFFIXES = (".png", ".svg", ".html")
DPI = 150

# Used for glyphs that DejaVu, the font of matplotlib, lacks: class and file names may be in any script.
FALLBACK_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Serif CJK SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei",
    "SimHei", "WenQuanYi Micro Hei", "Arial Unicode MS", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Arabic",
)  # fmt: skip


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
    "light": Theme("light", "#ffffff", "#1a1a1a", "#777777", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")),
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


def render(draw: Draw, theme: Theme, form: str = "svg", translate: Translator | None = None) -> bytes:
    """Return the bytes of a png or svg file; the same figure always gives the same bytes."""
    return render_formats(draw, theme, (form,), translate or Translator())[form]


def render_formats(draw: Draw, theme: Theme, forms: Sequence[str], translate: Translator) -> dict[str, bytes]:
    """Render one figure in several formats; its layout, which takes most of the time, is computed once.

    A PNG is in English where no font has Chinese: a browser substitutes a font in an SVG, but not in a PNG.
    """
    if "png" in forms and translate.lang != "en" and not _has_chinese_font():
        rest = [form for form in forms if form != "png"]
        return {"png": render(draw, theme, "png"), **(render_formats(draw, theme, rest, translate) if rest else {})}
    contents = {}
    with mpl.rc_context(rc_params(theme)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # no installed font has it: the figure shows boxes
        figure = draw(theme, translate)
        for form in forms:
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=DPI, metadata={"Date": None} if form == "svg" else None)
            figure.set_layout_engine("none")
            contents[form] = file.getvalue()
    return contents


def _has_chinese_font() -> bool:
    return bool(set(FALLBACK_FONTS[:8]) & set(font_manager.get_font_names()))


def _render_html(draw: Draw, translate: Translator) -> str:
    with mpl.rc_context(rc_params(THEMES["light"])):
        title = draw(THEMES["light"], translate).get_suptitle()
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(render(draw, THEMES[name], "svg", translate)).decode()
        for name in THEMES
    )
    return load_template("alexnet.plots", "figure.html", translate.lang).render(
        title=title.splitlines()[0] if title else "alexnet show", light=light, dark=dark,
        dark_background=THEMES["dark"].background,
    )  # fmt: skip


def rc_params(theme: Theme) -> Any:
    installed = set(font_manager.get_font_names())
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
    wide = sum(unicodedata.east_asian_width(letter) == "W" for letter in caption)
    letters_per_line = int(width * (6.6 if 2 * wide > len(caption) else 12.2))  # at 11 points
    figure.supxlabel(textwrap.fill(caption, letters_per_line), x=0.012, ha="left")
    return figure


def new_panel(width: float = 5.2, height: float = 3.3) -> tuple[Figure, Axes]:
    """Return a figure with a single plot, readable at the width of a phone."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def shorten(text: str, length: int) -> str:
    """Return `text` on one line of at most `length` letters: cut in the middle, unprintable characters as "?"."""
    text = "".join(c if c.isprintable() else "?" for c in printable(text))
    if len(text) <= length:
        return text
    return text[: length - 1 - length // 3] + "…" + text[len(text) - length // 3 :]


def use_percent(*axes: Axis) -> None:
    for axis in axes:
        axis.set_major_formatter(PercentFormatter(1.0))


def show_image(axes: Axes, image: np.ndarray, **options: Any) -> None:
    """Show an image, (H, W, 3), (H, W, 1) or (H, W), without ticks. Small images are enlarged without smoothing."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2 and "cmap" not in options:
        options |= {"cmap": "gray", "vmin": 0, "vmax": 255}
    axes.imshow(image, **({"interpolation": "nearest" if max(image.shape[:2]) <= 128 else "antialiased"} | options))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
