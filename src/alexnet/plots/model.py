"""Figures of the inside of a network: filters, activations, saliency maps and receptive fields."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError, unknown_name
from alexnet.inference.explain import Saliency, Stage
from alexnet.messages.translator import Translator
from alexnet.models.model import AlexNet, Network
from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.plots.style import Theme, new_figure, shorten, show_image, tile_images

MAX_LAYERS = 8  # in one figure of filters; torchvision's networks have hundreds of convolutions
SHOWN_MAPS = 6  # of each stage in the figure of activations


def conv_weights(model: Network) -> dict[str, np.ndarray]:
    """Return the weights of every convolution, float32 (filters, input channels of each, k, k), by layer."""
    from torch import nn

    return {
        name.removeprefix("network."): module.weight.detach().float().cpu().numpy()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def filter_tiles(weights: np.ndarray, theme: Theme) -> np.ndarray:
    """Return one tile per filter, (filters, k, k, 3) of 0…1.

    Filters on the image are shown in color or gray; zero is mid-gray. Other filters are shown by the input channel with
    the largest norm, from blue (negative) through the background (zero) to orange (positive). All filters share one
    scale, which clips the largest 0.5% of the weights.
    """
    channels = weights.shape[1]
    if channels not in (1, 3):
        strongest = np.square(weights).sum((2, 3)).argmax(1)
        weights = weights[np.arange(len(weights)), strongest][:, None]
    scale = float(np.quantile(np.abs(weights), 0.995)) or 1.0
    unit = np.clip(weights / scale, -1, 1).transpose(0, 2, 3, 1)
    if channels in (1, 3):
        return np.repeat(0.5 + unit / 2, 3 // channels, axis=3)
    return theme.diverging(0.5 + unit[..., 0] / 2)[..., :3]


def filters_figure(model: Network, layer: str | None, name: str, theme: Theme, translate: Translator) -> Figure:
    """Draw the filters of `layer`, or of every convolution, as in figure 3 of the paper, with towers separated.

    Raises `UserError` if `layer` is not a convolution, or there are none.
    """
    weights = conv_weights(model)
    if layer is not None and layer not in weights:
        raise unknown_name("convolution", layer, weights, f" in '{model.spec.name}'")
    if not weights:
        raise UserError(f"'{model.spec.name}' has no convolutions, and so no filters to show.")
    names = [layer] if layer else list(weights)[:MAX_LAYERS]
    two_towers = isinstance(model, AlexNet) and max(conv.groups for conv in model.spec.convs) == 2
    blocks = [(conv, b) for conv in names for b in (np.split(weights[conv], 2) if two_towers else [weights[conv]])]
    shapes = []  # rows and columns of each block
    for _, block in blocks:
        columns = (16 if _reads_image(block) else 24) if len(names) == 1 else (24 if block.shape[2] > 8 else 32)
        shapes.append((-(-len(block) // columns), max(columns, min(len(block), 8))))
    width = 11.0
    heights = [0.4 + width * rows / columns for rows, columns in shapes]
    first_reads_image = _reads_image(weights[names[0]])
    notes = ["figure_filters_image_note"] if first_reads_image else []
    if len(names) > 1 or not first_reads_image:
        notes.append("figure_filters_maps_note")
    title = translate("figure_filters", name=name)
    figure = new_figure(width, sum(heights) + 1.1, title, translate.join(map(translate, notes)))
    grid = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    background, muted = np.array(to_rgb(theme.background)), np.array(to_rgb(theme.muted))
    for i, (axes, (conv, block), (_, columns)) in enumerate(zip(grid, blocks, shapes, strict=True)):
        gap = background if _reads_image(block) else 0.4 * muted + 0.6 * background
        tiles = tile_images(filter_tiles(block, theme), columns, gap, background)
        show_image(axes, tiles, interpolation="nearest")
        axes.set_anchor("NW")
        heading = translate("figure_tower", name=conv, number=i % 2 + 1) if two_towers else conv
        n, channels, k, _ = block.shape
        inputs = translate({1: "figure_gray", 3: "figure_rgb"}.get(channels, "figure_maps"), n=channels)
        axes.set_title(translate("figure_filters_layer", name=heading, n=n, k=k, input=inputs))
    return figure


def filter_sheet(weights: np.ndarray, theme: Theme, _: Translator) -> Figure:
    """Draw the filters of one convolution without any text; the gaps are transparent."""
    columns = 12 if len(weights) % 12 == 0 else 16 if len(weights) > 32 else 8
    tiles = filter_tiles(weights, theme)
    opaque = np.concatenate([tiles, np.ones_like(tiles[..., :1])], axis=3)
    grid = tile_images(opaque, columns, gap=0.0, empty=0.0)
    figure = Figure(figsize=(6, 6 * grid.shape[0] / grid.shape[1]))
    show_image(figure.add_axes((0, 0, 1, 1)), grid, interpolation="none", aspect="auto")
    return figure


def _reads_image(weights: np.ndarray) -> bool:
    return weights.shape[1] in (1, 3)


def activations_figure(
    stages: Sequence[Stage], image: np.ndarray, labels: Sequence[tuple[str, float]], name: str, image_name: str,
    theme: Theme, translate: Translator,
) -> Figure:  # fmt: skip
    """Draw the output of each stage for an image, in two columns next to it; `labels` have probabilities."""
    rows = -(-len(stages) // 2)
    title = translate("figure_activations", name=name, image=image_name)
    caption = translate("figure_activations_note", n=SHOWN_MAPS)
    figure = new_figure(12.5, 1.3 + rows * 1.1, title, caption)
    grid = figure.add_gridspec(rows, 3, width_ratios=(0.72, 1, 1))
    left = figure.add_subplot(grid[: max(1, rows - 2), 0])
    show_image(left, image)
    left.set_title(translate("figure_input", height=image.shape[0], width=image.shape[1]))
    left.set_anchor("NW")
    draw_label_bars(figure.add_subplot(grid[max(1, rows - 2) :, 0]), labels[:3], None, theme)
    for i, stage in enumerate(stages):
        axes = figure.add_subplot(grid[i % rows, 1 + i // rows])
        grid_image = _tile_maps(stage.values)
        flat = stage.values.ndim == 1
        show_image(axes, grid_image, cmap="cividis", vmin=0, vmax=max(float(np.nanmax(grid_image)), 1e-12),
                   aspect="auto" if flat else "equal")  # fmt: skip
        axes.set_anchor("NW")
        if flat:
            axes.set_box_aspect(1 / SHOWN_MAPS)
        shape = "×".join(map(str, stage.values.shape))
        axes.set_title(translate("figure_stage", name=stage.name, shape=shape, active=stage.active))
    return figure


def _tile_maps(values: np.ndarray) -> np.ndarray:
    """Arrange the maps with the largest mean side by side, or a vector in rows; gaps are NaN."""
    if values.ndim == 1:
        rows = max(1, min(16, len(values) // 64))
        return tile_images(values[:, None, None, None], -(-len(values) // rows), border=0)
    largest = np.argsort(-values.mean((1, 2)), kind="stable")[:SHOWN_MAPS]
    return tile_images(values[largest][..., None], SHOWN_MAPS, border=max(1, round(values.shape[1] / 16)))


def draw_label_bars(
    axes: Axes, labels: Sequence[tuple[str, float]], true: str | None, theme: Theme, length: int = 22
) -> None:
    """Draw labels with probabilities as bars, the most probable on top; the true label in orange."""
    axes.barh(
        range(len(labels)), [p for _, p in labels], height=0.82, alpha=0.45,
        color=[theme.orange if label == true else theme.blue for label, _ in labels],
    )  # fmt: skip
    for i, (label, p) in enumerate(labels):
        weight = "bold" if label == true else "normal"
        axes.text(0.015, i, shorten(label, length), va="center", weight=weight)
        axes.text(1.0, i, f"{p:.1%}" if p < 0.9995 else "100%", va="center", ha="right", weight=weight)
    axes.set(xlim=(0, 1), ylim=(max(len(labels), 3) - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def saliency_figure(saliency: Saliency, theme: Theme, translate: Translator) -> Figure:
    """Draw the image, and next to it a heat map of what supports or contradicts the label."""
    title = translate("figure_saliency", label=shorten(saliency.label, 40), p=saliency.probability)
    figure = new_figure(10.5, 6.0, title, translate(f"saliency_{saliency.method}"))
    left, right = figure.subplots(1, 2)
    show_image(left, saliency.image)
    side = saliency.image.shape[0]
    left.set_title(translate("figure_network_input", side=side))
    limit = float(np.quantile(np.abs(saliency.heat), 0.995)) or 1.0
    share = np.clip(saliency.heat / limit, -1, 1)
    gray = np.asarray(saliency.image, dtype=float).mean(2, keepdims=True).repeat(3, axis=2) / 255
    faded = 0.35 * gray + 0.65 * (np.array(to_rgb(theme.background)) if theme.name == "light" else 0.0)
    colors = np.where(share[..., None] > 0, np.array(to_rgb(theme.orange)), np.array(to_rgb(theme.blue)))
    strength = 0.9 * np.abs(share)[..., None] ** 0.8
    show_image(right, faded * (1 - strength) + colors * strength)
    right.set_title(saliency.method)
    signed = saliency.heat.min() < 0
    scale = ScalarMappable(Normalize(-limit if signed else 0, limit), None)
    positive = LinearSegmentedColormap.from_list("positive", [theme.background, theme.orange])
    scale.set_cmap(theme.diverging if signed else positive)
    bar = figure.colorbar(scale, ax=right, shrink=0.8, pad=0.02)
    bar.set_label(translate(f"saliency_unit_{saliency.method}"))
    bar.outline.set_visible(False)
    return figure


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
    figure = new_figure(11, 1.4 + rows * 3.05, title, translate("figure_fields_note"))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    dimmed = 0.3 * pixels + 0.7 * np.array(to_rgb(theme.background))
    fields = [receptive_field(stack, layer.name, layer.output[1] // 2) for layer in shown]
    outside = max(0, *(-first for first, _ in fields), *(last + 1 - side for _, last in fields))
    margin = min(side / 4, outside) + side / 100
    for axes, layer, (first, last) in zip(grid, shown, fields, strict=False):
        units = layer.output[1]
        inside = slice(max(0, first), min(side, last + 1))
        highlighted = dimmed.copy()
        highlighted[inside, inside] = pixels[inside, inside]
        show_image(axes, highlighted)
        left, right = max(first - 0.5, -0.9 * margin), min(last + 0.5, side - 1 + 0.9 * margin)
        truncated = (left, right) != (first - 0.5, last + 0.5)
        axes.add_patch(
            Rectangle((left, left), right - left, right - left, fill=False, edgecolor=theme.orange, lw=2,
                      ls="--" if truncated else "-")
        )  # fmt: skip
        axes.set(xlim=(-margin, side - 1 + margin), ylim=(side - 1 + margin, -margin))
        axes.set_title(translate("figure_field", name=layer.name, n=last - first + 1))
        if units > 1:
            step = receptive_field(stack, layer.name, 1)[0] - receptive_field(stack, layer.name, 0)[0]
            axes.set_xlabel(translate("figure_units_apart", n=units, step=step))
        else:
            axes.set_xlabel(translate("figure_units", n=units))
    return figure
