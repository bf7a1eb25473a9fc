"""Figures of a specification: the architecture diagram, and receptive fields.

The diagram is that of figure 2 of the paper, for any network: boxes in perspective, one row per tower. Sizes, the
operations after each layer, and connections between the towers (layers without groups in a network that has groups)
come from `spec.layers`. Lengths are roots of the true ones, so that 224 and 13 pixels, or 3 and 384 channels, fit into
one figure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from PIL import Image

from alexnet.data.transforms import EvalTransform
from alexnet.messages.translator import Translator
from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.plots.style import Theme, new_figure, show_image

LINE_HEIGHT = 0.27  # of text, in inches
SLANT = 0.34  # offset of the back face to the right and up, as a share of the height
OPERATIONS = (
    "relu", "tanh", "sigmoid", "lrn", "rnorm", "batchnorm", "maxpool", "avgpool", "adaptiveavgpool", "dropout",
)  # fmt: skip
"""Kinds of layers that are listed below the layer with weights before them."""


@dataclass(frozen=True)
class _Box:
    """One layer with weights, or the image, in one tower. Lengths are in inches."""

    layer: Layer | None
    """None for the image."""
    x: float
    """Left edge."""
    y: float
    """Center of the front face."""
    width: float
    height: float
    depth: float

    @property
    def right(self) -> float:
        return self.x + self.width + self.depth

    @property
    def input_point(self) -> tuple[float, float]:
        """Where connections end: the middle of the left edge."""
        return self.x, self.y

    @property
    def output_point(self) -> tuple[float, float]:
        """Where connections start: the center of the right face."""
        return self.x + self.width + self.depth / 2, self.y + self.depth / 2


def architecture_figure(spec: AlexNetSpec, theme: Theme, translate: Translator) -> Figure:
    """Draw the network of `spec`: height and depth of a box are the sides of the maps, its width the channels."""
    stack = layers(spec)
    towers = 2 if any(layer.groups == 2 for layer in stack) else 1
    operations = _operations_after(stack, translate)
    columns, width = _place_boxes(spec, [layer for layer in stack if layer.kind in ("conv", "linear")], towers)
    boxes = [box for column in columns for box in column]
    high = max(box.y + box.height / 2 + box.depth for box in boxes)
    low = min(box.y - box.height / 2 for box in boxes)
    text_height = (1 + max(map(len, operations.values()))) * LINE_HEIGHT + 0.2
    top, bottom = high + (text_height if towers == 2 else 0.1), low - text_height
    title = translate("figure_architecture", name=spec.name, n=sum(layer.parameters for layer in stack))
    notes = ["figure_architecture_note", *(["figure_towers_note"] if towers == 2 else [])]
    figure = new_figure(width + 0.5, top - bottom + 1.0, title, translate.join(map(translate, notes)))
    axes = figure.subplots()
    axes.set(xlim=(-0.25, width + 0.25), ylim=(bottom, top), aspect="equal")
    axes.axis("off")
    for before, after in itertools.pairwise(columns):
        _draw_connections(axes, before, after, theme)
    for column in columns:
        for tower, box in enumerate(column):
            gray = box.layer is None or (len(column) == 1 and box.layer.kind == "linear")
            _draw_box(axes, box, theme.muted if gray else theme.series[(0, 2)[tower]], theme)
    image, size = columns[0][0], f"{spec.image_size}×{spec.image_size}×{spec.in_channels}"
    _label_box(axes, image, translate("figure_image"), [size], image.y - image.height / 2 - 0.12)
    for column in columns[1:]:
        for tower, box in enumerate(column):
            assert box.layer is not None
            text_top = top if len(column) == 2 and tower == 0 else low - 0.15
            if towers == 2 and len(column) == 1:  # the last layer, between the towers
                text_top = box.y - box.height / 2 - 0.12
            size = "×".join(map(str, (*box.layer.output[1:], box.layer.output[0] // len(column))))
            _label_box(axes, box, box.layer.name, [size, *operations[box.layer.name]], text_top)
    return figure


def _operations_after(stack: Sequence[Layer], translate: Translator) -> dict[str, list[str]]:
    """Return the lines below each layer with weights: its kernel, and the operations before the next one."""
    operations: dict[str, list[str]] = {}
    current: list[str] = []
    for layer in stack:
        if layer.kind in ("conv", "linear"):
            current = operations[layer.name] = []
            if layer.kind == "conv" and layer.stride > 1:
                current.append(translate("figure_kernel_stride", layer=layer))
            elif layer.kind == "conv":
                current.append(f"{layer.kernel}×{layer.kernel}")
        elif layer.kind in OPERATIONS:
            current.append(translate(f"operation_{layer.kind}", layer=layer))
    return operations


def _place_boxes(spec: AlexNetSpec, weighted: Sequence[Layer], towers: int) -> tuple[list[list[_Box]], float]:
    """Return the boxes from left to right, one or two in each column, and the total width."""
    side = 2.9 * (spec.image_size / 224) ** 0.25
    image = _Box(None, 0.0, -side * SLANT / 2, 0.08, side, SLANT * side)
    columns, x = [[image]], image.right + 0.55
    for i, layer in enumerate(weighted):
        n = 1 if i == len(weighted) - 1 else towers
        if layer.kind == "conv":
            height = 2.9 * (layer.output[1] / 224) ** 0.48
            width, depth = 0.035 * (layer.output[0] / n) ** 0.58, SLANT * height
        else:
            height = 0.3 + 0.033 * (layer.output[0] / n) ** 0.5
            width, depth = 0.16, 0.16
        offset = 1.55 if n == 2 else 0.0
        centers = [offset - depth / 2, -offset - depth / 2] if n == 2 else [-depth / 2]
        columns.append([_Box(layer, x, y, width, height, depth) for y in centers])
        x += max(width + depth + 0.5, 1.5)
    return columns, max(x - 0.2, columns[-1][0].right + 0.5)


def _draw_connections(axes: Axes, before: Sequence[_Box], after: Sequence[_Box], theme: Theme) -> None:
    """Draw the inputs of the boxes `after`: windows of convolutions, and lines, in orange between the towers."""
    layer = after[0].layer
    assert layer is not None
    crossing = len(before) == len(after) == 2 and (layer.kind == "linear" or layer.groups == 1)
    for i, source in enumerate(before):
        for j, target in enumerate(after):
            same = i == j or len(before) != len(after)
            if not same and not crossing:
                continue
            color = theme.muted if same else theme.orange
            style: dict[str, Any] = {"color": color, "lw": 1.0 if same else 1.6, "zorder": 7 if same else 3}
            starts = [source.output_point] if layer.kind == "linear" or not same else _window(source, layer)[1:3]
            for start in starts:
                axes.plot(*zip(start, target.input_point, strict=True), ls="-" if same else (0, (4, 2)), **style)
    if layer.kind == "conv":
        style = {"facecolor": theme.orange, "edgecolor": theme.foreground, "lw": 0.8, "alpha": 0.85, "zorder": 6}
        for source in before:
            axes.add_patch(Polygon(_window(source, layer), **style))


def _window(box: _Box, layer: Layer) -> list[tuple[float, float]]:
    """Return the corners of a convolution's window on the right face of its input `box`, from the lower left."""
    share = min(1.0, max(0.16, layer.kernel / layer.input[1]))
    x, y = box.output_point
    height, depth = share * box.height / 2, share * box.depth / 2
    return [
        (x - depth, y - depth - height), (x + depth, y + depth - height),
        (x + depth, y + depth + height), (x - depth, y - depth + height),
    ]  # fmt: skip


def _draw_box(axes: Axes, box: _Box, color: str, theme: Theme) -> None:
    left, right, low, high = box.x, box.x + box.width, box.y - box.height / 2, box.y + box.height / 2
    d = box.depth
    faces = (
        ([(left, low), (right, low), (right, high), (left, high)], 0.55),
        ([(left, high), (right, high), (right + d, high + d), (left + d, high + d)], 0.25),
        ([(right, low), (right + d, low + d), (right + d, high + d), (right, high)], 0.4),
    )
    base, background = to_rgb(color), to_rgb(theme.background)
    for corners, strength in faces:
        mixed = tuple(strength * a + (1 - strength) * b for a, b in zip(base, background, strict=True))
        axes.add_patch(Polygon(corners, facecolor=mixed, edgecolor=theme.foreground, lw=0.9, zorder=5))


def _label_box(axes: Axes, box: _Box, name: str, lines: Sequence[str], top: float) -> None:
    """Write the name of a box, its size, and other lines below `top`."""
    axes.text(box.x, top, name, weight="bold", size=13, va="top")
    for i, line in enumerate(lines, 1):
        axes.text(box.x, top - i * LINE_HEIGHT, line, size=12 if i == 1 else 11, va="top")


# ── receptive fields ──────────────────────────────────────────────────────────────────────────────


def receptive_field(stack: Sequence[Layer], name: str, unit: int) -> tuple[int, int]:
    """Return the first and last pixel, along one side, that output `unit` of the layer `name` depends on.

    Values below 0 or beyond the image are in the padding. `name` must be a layer with maps.
    """
    index = [layer.name for layer in stack].index(name)
    first = last = unit
    for layer in reversed(stack[: index + 1]):
        if layer.kind == "adaptiveavgpool":  # torch's bins: start ⌊i·in/out⌋, end ⌈(i+1)·in/out⌉
            inputs, outputs = layer.input[1], layer.output[1]
            first, last = first * inputs // outputs, -(-(last + 1) * inputs // outputs) - 1
        elif layer.kind == "rnorm" and layer.norm is not None:
            first, last = first - layer.norm.size // 2, last + (layer.norm.size - 1) // 2
        elif layer.kernel:
            first = first * layer.stride - layer.padding
            last = last * layer.stride - layer.padding + layer.kernel - 1
    return first, last


def receptive_field_figure(spec: AlexNetSpec, image: Image.Image, theme: Theme, translate: Translator) -> Figure:
    """Draw the receptive field of the middle unit of each convolution and pool, with the rest of the image dimmed."""
    stack = layers(spec)
    shown = [layer for layer in stack if layer.kind in ("conv", "maxpool", "avgpool")]
    side = spec.image_size
    pixels = np.asarray(EvalTransform(side).eval_tensor(image).permute(1, 2, 0), dtype=float) / 255
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    title = translate("figure_fields", name=spec.name)
    dimmed = 0.3 * pixels + 0.7 * np.array(to_rgb(theme.background))
    fields = [receptive_field(stack, layer.name, layer.output[1] // 2) for layer in shown]
    outside = max(0, *(-first for first, _ in fields), *(last + 1 - side for _, last in fields))
    margin = min(side / 4, outside) + side / 100
    low, high = -0.9 * margin, side - 1 + 0.9 * margin
    is_cut = [first - 0.5 < low or last + 0.5 > high for first, last in fields]
    notes = ["figure_fields_note"]
    notes += ["figure_fields_padding"] if outside else []
    notes += ["figure_fields_dashed"] if any(is_cut) else []
    figure = new_figure(11, 1.4 + rows * 3.05, title, translate.join(map(translate, notes)))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    for axes, layer, (first, last), cut in zip(grid, shown, fields, is_cut, strict=False):
        units = layer.output[1]
        inside = slice(max(0, first), min(side, last + 1))
        highlighted = dimmed.copy()
        highlighted[inside, inside] = pixels[inside, inside]
        show_image(axes, highlighted)
        left, right = max(first - 0.5, low), min(last + 0.5, high)
        axes.add_patch(
            Rectangle((left, left), right - left, right - left, fill=False, edgecolor=theme.orange, lw=2,
                      ls="--" if cut else "-")
        )  # fmt: skip
        axes.set(xlim=(-margin, side - 1 + margin), ylim=(side - 1 + margin, -margin))
        axes.set_title(translate("figure_field", name=layer.name, n=last - first + 1))
        if units > 1:
            step = receptive_field(stack, layer.name, 1)[0] - receptive_field(stack, layer.name, 0)[0]
            axes.set_xlabel(translate("figure_units_apart", n=units, step=step))
        else:
            axes.set_xlabel(translate("figure_units", n=units))
    return figure
