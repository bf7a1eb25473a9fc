"""Pictures on file: two themes, three formats, and text that fits.

A drawing is a function from a theme to a matplotlib figure, so that an HTML page can hold it in both themes and show
the one that the reader's system prefers. Figures are made without pyplot: no display, no global state, no backend.
Colours are Okabe and Ito's, which the colour-blind can tell apart.
"""

from __future__ import annotations

import base64
import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from alexnet.errors import UserError, unknown_name
from alexnet.files import atomic_write, printable

SUFFIXES = (".png", ".svg", ".html")
DPI = 150

# Where DejaVu, which comes with matplotlib, has no glyph: class and file names may be in any script.
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Serif CJK SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei",
    "SimHei", "WenQuanYi Micro Hei", "Arial Unicode MS", "Noto Sans", "Noto Sans Devanagari", "Noto Sans Arabic",
)  # fmt: skip


@dataclass(frozen=True)
class Theme:
    """The colours of a page."""

    name: str
    paper: str
    ink: str
    faint: str
    """Grid lines, frames, what is said quietly."""
    series: tuple[str, ...]
    """Told apart by the colour-blind too, the first two best."""

    @property
    def blue(self) -> str:
        return self.series[0]

    @property
    def orange(self) -> str:
        return self.series[1]

    @property
    def signed(self) -> LinearSegmentedColormap:
        """From blue (negative) over the page's colour (nothing) to orange (positive)."""
        return LinearSegmentedColormap.from_list("signed", [self.blue, self.paper, self.orange])


THEMES = {
    "light": Theme("light", "#ffffff", "#1a1a1a", "#777777", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8a6d00")),
    "dark": Theme("dark", "#161a1d", "#eeeeee", "#9a9a9a", ("#56b4e9", "#e69f00", "#2fcf9f", "#e39ac6", "#f0e442")),
}

Draw = Callable[[Theme], Figure]


def theme_named(name: str) -> Theme:
    """The theme called `name`. Raises `UserError`."""
    if name not in THEMES:
        raise unknown_name("theme", name, THEMES)
    return THEMES[name]


def check_out(out: Path) -> Path:
    """`out` if pictures can be written under that name. Raises `UserError` for another suffix than ours."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"Pictures are written as {', '.join(SUFFIXES)}, and {out} is none of these; change its ending."
        )
    if out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file in it.")
    return out


def save(draw: Draw, out: Path, theme: str = "light", dpi: int = DPI) -> Path:
    """Draw into the file `out`, whole or not at all: .png and .svg in `theme`, .html in both.

    Text in SVG stays text. Raises `UserError` as `check_out` and `theme_named` do.
    """
    check_out(out)
    chosen, form = theme_named(theme), out.suffix.lower()[1:]
    content = _page(draw).encode() if form == "html" else rendered(draw, chosen, form, dpi)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as beside:
        beside.write_bytes(content)
    return out


def rendered(draw: Draw, theme: Theme, form: str = "svg", dpi: int = DPI) -> bytes:
    """The file's bytes, of a png or svg; the same for the same drawing."""
    return rendered_as(draw, theme, (form,), dpi)[0]


def rendered_as(draw: Draw, theme: Theme, forms: Sequence[str], dpi: int = DPI) -> list[bytes]:
    """One drawing in several forms; laid out once, which takes most of the time."""
    found = []
    with mpl.rc_context(_style(theme)), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a script that no font here has: boxes show as much
        figure = draw(theme)
        for form in forms:
            file = io.BytesIO()
            figure.savefig(file, format=form, dpi=dpi, metadata={"Date": None} if form == "svg" else None)
            figure.set_layout_engine("none")
            found.append(file.getvalue())
    return found


def _page(draw: Draw) -> str:
    with mpl.rc_context(_style(THEMES["light"])):
        title = draw(THEMES["light"]).get_suptitle()
    light, dark = (
        "data:image/svg+xml;base64," + base64.b64encode(rendered(draw, THEMES[name])).decode() for name in THEMES
    )
    style = (
        ":root { color-scheme: light dark; } body { margin: 0; padding: 1rem; } "
        f"@media (prefers-color-scheme: dark) {{ body {{ background: {THEMES['dark'].paper}; }} }} "
        "img { display: block; width: 100%; min-width: 40rem; max-width: 90rem; margin: 0 auto; }"
    )
    name = escape(title.splitlines()[0] if title else "alexnet show", quote=True)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title>'
        f"<style>{style}</style></head><body><picture>"
        f'<source media="(prefers-color-scheme: dark)" srcset="{dark}"><img alt="{name}" src="{light}">'
        "</picture></body></html>\n"
    )


def _style(theme: Theme) -> Any:
    here = set(font_manager.get_font_names())
    return {
        "font.family": ["DejaVu Sans", *(name for name in FALLBACKS if name in here)],
        "font.size": 12, "axes.titlesize": 12, "axes.labelsize": 12, "figure.titlesize": 16, "figure.labelsize": 11,
        "xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11,
        "figure.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 5,
        "figure.facecolor": theme.paper, "savefig.facecolor": theme.paper, "axes.facecolor": theme.paper,
        "text.color": theme.ink, "axes.labelcolor": theme.ink, "axes.titlecolor": theme.ink,
        "axes.edgecolor": theme.faint, "xtick.color": theme.ink, "ytick.color": theme.ink, "grid.color": theme.faint,
        "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False,
        "legend.frameon": False, "axes.prop_cycle": cycler(color=theme.series),
        "svg.fonttype": "none", "svg.hashsalt": "alexnet", "text.parse_math": False,
    }  # fmt: skip


# ── what drawings share ───────────────────────────────────────────────────────────────────────────────────────────


def new_figure(width: float, height: float, title: str, caption: str) -> Figure:
    """A figure of so many inches with a title above and, below, what one sees; to be filled with axes."""
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.06))
    letters = int(width * 12.2)  # of 11 points side by side
    figure.suptitle(clean(title, int(width * 8)), x=0.012, ha="left")
    figure.supxlabel(textwrap.fill(caption, letters), x=0.012, ha="left")
    return figure


def clean(text: str, most: int) -> str:
    """`text` on one line of at most so many letters: shortened in the middle, unprintable characters as "?"."""
    text = "".join(c if c.isprintable() else "?" for c in printable(text))
    if len(text) <= most:
        return text
    return text[: most - 1 - most // 3] + "…" + text[len(text) - most // 3 :]


def show(axes: Axes, image: np.ndarray, **how: Any) -> None:
    """A picture, (H, W, 3), (H, W, 1) or (H, W), without ticks. Small ones are enlarged with their pixels visible."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    if image.ndim == 2 and "cmap" not in how:
        how |= {"cmap": "gray", "vmin": 0, "vmax": 255}
    axes.imshow(image, **({"interpolation": "nearest" if max(image.shape[:2]) <= 128 else "antialiased"} | how))
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def tiles(images: np.ndarray, columns: int, gap: np.ndarray, paper: str) -> np.ndarray:
    """Colours (n, k, k, 3) of 0…1 in rows of `columns`, framed by one pixel of `gap`: (H, W, 3)."""
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    sheet = np.empty((rows * (height + 1) + 1, columns * (width + 1) + 1, 3))
    sheet[:] = to_rgb(paper)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height + 2, left : left + width + 2] = gap
        sheet[top + 1 : top + height + 1, left + 1 : left + width + 1] = image
    return sheet
