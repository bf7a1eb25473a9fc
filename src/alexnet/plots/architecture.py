"""The famous diagram, drawn from a specification: boxes in perspective, one row for each tower.

Everything in it is read off `spec.layers`: the sizes, what follows each layer and in which order, and where one tower
reads the other (a layer without groups in a network that has them). Lengths are roots of the true ones, as 224 and 13
pixels, or 3 and 384 channels, would not fit on one page otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.plots.style import Theme, new_figure

LINE = 0.27  # inches between lines of text
SLANT = 0.34  # how far depth goes to the right and up, as a share of height
NAMES = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid", "lrn": "LRN", "rnorm": "spatial norm",
         "batchnorm": "batch norm"}  # fmt: skip


@dataclass(frozen=True)
class _Box:
    """One layer with weights (or the picture) in one tower."""

    layer: Layer | None
    x: float
    y: float  # of the middle of the front
    width: float
    height: float
    depth: float
    flat: bool

    @property
    def right(self) -> float:
        return self.x + self.width + self.depth

    @property
    def entry(self) -> tuple[float, float]:
        """Where what it reads arrives: the middle of its left edge."""
        return self.x, self.y

    @property
    def exit(self) -> tuple[float, float]:
        """The middle of its right face."""
        return self.x + self.width + self.depth / 2, self.y + self.depth / 2


def architecture_figure(spec: AlexNetSpec, theme: Theme, title: str = "") -> Figure:
    """The network of `spec` as boxes: the sides of the maps up and into the page, channels to the right."""
    stack = layers(spec)
    towers = 2 if any(layer.groups == 2 for layer in stack) else 1
    weighted = [layer for layer in stack if layer.kind in ("conv", "linear")]
    lists = _follows(stack)
    most = max(len(lines) for lines in lists.values())
    columns, width = _columns(spec, weighted, towers)
    boxes = [box for column in columns for box in column]
    high = max(box.y + box.height / 2 + box.depth for box in boxes)
    low = min(box.y - box.height / 2 for box in boxes)
    text = (2 + most) * LINE + 0.2
    above, below = high + (text if towers == 2 else 0.1), low - text
    parameters = sum(layer.parameters for layer in stack)
    caption = (
        "Height and depth of a box are the sides of the maps, its width the channels (roots of the true lengths). "
        "Each list tells what follows the layer, in order."
    )
    if towers == 2:
        caption += " Orange: where each tower also reads the other."
    figure = new_figure(width + 0.5, above - below + 1.0,
                        title or f"{spec.name}: {parameters:,} parameters", caption)  # fmt: skip
    axes = figure.subplots()
    axes.set(xlim=(-0.25, width + 0.25), ylim=(below, above), aspect="equal")
    axes.axis("off")
    for before, after in itertools.pairwise(columns):
        _connect(axes, before, after, theme)
    for column in columns:
        for tower, box in enumerate(column):
            _draw(axes, box, _colour(box, tower, len(column), theme), theme)
    _label_picture(axes, columns[0][0], spec)
    for column in columns[1:]:
        for tower, box in enumerate(column):
            assert box.layer is not None
            edge = above if len(column) == 2 and tower == 0 else low - 0.15
            if towers == 2 and len(column) == 1:  # the last layer, between the towers
                edge = box.y - box.height / 2 - 0.12
            _write(axes, box, lists[box.layer.name], len(column), edge)
    return figure


def _follows(stack: Sequence[Layer]) -> dict[str, list[str]]:
    """For each layer with weights, what comes between it and the next one, a line each."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for layer in stack:
        if layer.kind in ("conv", "linear"):
            lines = found[layer.name] = []
        elif layer.kind in NAMES:
            lines.append(NAMES[layer.kind])
        elif layer.kind in ("maxpool", "avgpool"):
            lines.append(f"{layer.kind[:3]} pool {layer.kernel}/{layer.stride}")
        elif layer.kind == "adaptiveavgpool":
            lines.append(f"mean to {layer.output[1]}×{layer.output[2]}")
        elif layer.kind == "dropout":
            lines.append(f"dropout {layer.p:g}")
    return found


def _columns(spec: AlexNetSpec, weighted: Sequence[Layer], towers: int) -> tuple[list[list[_Box]], float]:
    """The boxes from left to right, one or two in each column, and the width of all."""
    side = 2.9 * (spec.image_size / 224) ** 0.25
    picture = _Box(None, 0.0, -side * SLANT / 2, 0.08, side, SLANT * side, False)
    columns, x = [[picture]], picture.right + 0.55
    for i, layer in enumerate(weighted):
        n = 1 if i == len(weighted) - 1 else towers
        if layer.kind == "conv":
            height = 2.9 * (layer.output[1] / 224) ** 0.48
            width, depth = 0.035 * (layer.output[0] / n) ** 0.58, SLANT * height
        else:
            height = 0.3 + 0.033 * (layer.output[0] / n) ** 0.5
            width, depth = 0.16, 0.16
        offset = 1.55 if n == 2 else 0.0
        middles = [offset - depth / 2, -offset - depth / 2] if n == 2 else [-depth / 2]
        column = [_Box(layer, x, y, width, height, depth, layer.kind == "linear") for y in middles]
        columns.append(column)
        x += max(width + depth + 0.5, 1.5)
    return columns, max(x - 0.2, columns[-1][0].right + 0.5)


def _connect(axes: Axes, before: Sequence[_Box], after: Sequence[_Box], theme: Theme) -> None:
    """What reads what: kernels for convolutions, and lines; between the towers in orange."""
    layer = after[0].layer
    assert layer is not None
    crossing = len(before) == len(after) == 2 and (layer.kind == "linear" or layer.groups == 1)
    for i, source in enumerate(before):
        for j, target in enumerate(after):
            same = i == j or len(before) != len(after)
            if not same and not crossing:
                continue
            colour = theme.faint if same else theme.orange
            look: dict[str, Any] = {"color": colour, "lw": 1.0 if same else 1.6, "zorder": 7 if same else 3}
            starts = [source.exit] if layer.kind == "linear" or not same else _window(source, layer)[1:3]
            for start in starts:
                axes.plot(*zip(start, target.entry, strict=True), ls="-" if same else (0, (4, 2)), **look)
    if layer.kind == "conv":
        for source in before:
            corners = _window(source, layer)
            axes.add_patch(Polygon(corners, facecolor=theme.orange, edgecolor=theme.ink, lw=0.8, alpha=0.85, zorder=6))


def _window(box: _Box, layer: Layer) -> list[tuple[float, float]]:
    """The corners of the window of the next convolution on the right face of the box that it slides over, from the
    lower left one around."""
    share = min(1.0, max(0.16, layer.kernel / layer.input[1]))
    x, y = box.exit
    height, depth = share * box.height / 2, share * box.depth / 2
    return [
        (x - depth, y - depth - height), (x + depth, y + depth - height),
        (x + depth, y + depth + height), (x - depth, y - depth + height),
    ]  # fmt: skip


def _colour(box: _Box, tower: int, towers: int, theme: Theme) -> str:
    if box.layer is None or (towers == 1 and box.flat):
        return theme.faint
    return theme.series[(0, 2)[tower]]


def _draw(axes: Axes, box: _Box, colour: str, theme: Theme) -> None:
    left, right, low, high = box.x, box.x + box.width, box.y - box.height / 2, box.y + box.height / 2
    d = box.depth
    faces = (
        ([(left, low), (right, low), (right, high), (left, high)], 0.55),
        ([(left, high), (right, high), (right + d, high + d), (left + d, high + d)], 0.25),
        ([(right, low), (right + d, low + d), (right + d, high + d), (right, high)], 0.4),
    )
    base, paper = to_rgb(colour), to_rgb(theme.paper)
    for corners, strength in faces:
        mixed = tuple(strength * a + (1 - strength) * b for a, b in zip(base, paper, strict=True))
        axes.add_patch(Polygon(corners, facecolor=mixed, edgecolor=theme.ink, lw=0.9, zorder=5))


def _label_picture(axes: Axes, box: _Box, spec: AlexNetSpec) -> None:
    top = box.y - box.height / 2 - 0.12
    axes.text(box.x, top, "image", weight="bold", size=13, va="top")
    axes.text(box.x, top - LINE, f"{spec.image_size}×{spec.image_size}×{spec.in_channels}", size=12, va="top")


def _write(axes: Axes, box: _Box, follows: Sequence[str], towers: int, top: float) -> None:
    """Name, size and what follows, below `top`."""
    layer = box.layer
    assert layer is not None
    size = "×".join(map(str, (*layer.output[1:], layer.output[0] // towers)))
    x = box.x
    axes.text(x, top, layer.name, weight="bold", size=13, va="top")
    axes.text(x, top - LINE, size, size=12, va="top")
    what = [f"{layer.kernel}×{layer.kernel}" + (f", stride {layer.stride}" if layer.stride > 1 else "")]
    lines = [*(what if layer.kind == "conv" else []), *follows]
    for i, line in enumerate(lines):
        axes.text(x, top - (2 + i) * LINE, line, size=11, va="top")
