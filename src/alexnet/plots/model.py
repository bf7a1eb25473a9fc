"""Drawings of what is inside a network: its filters, its activations, the pixels that an answer hangs on, and how much
of a picture one unit sees."""

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
from alexnet.models.model import AlexNet, Network
from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.plots.style import Theme, clean, new_figure, show, tiles

# ── filters ───────────────────────────────────────────────────────────────────────────────────────────────────────


def conv_weights(model: Network) -> dict[str, np.ndarray]:
    """The weights of every convolution, float32 (filters, channels that each reads, k, k), by layer."""
    from torch import nn

    return {
        name.removeprefix("network."): module.weight.detach().float().cpu().numpy()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }


def filter_tiles(weights: np.ndarray, theme: Theme) -> np.ndarray:
    """One tile a filter, (filters, k, k, 3) in 0…1: in colour or grey where the layer reads the picture, else the
    filter's strongest slice (one input channel) from blue (negative) to orange.

    One scale for the whole layer: 0 is mid-grey (or the page's colour), and the ends are where all but the largest
    half per cent of the weights lie.
    """
    reads = weights.shape[1]
    if reads not in (1, 3):
        strongest = np.square(weights).sum((2, 3)).argmax(1)
        weights = weights[np.arange(len(weights)), strongest][:, None]
    scale = float(np.quantile(np.abs(weights), 0.995)) or 1.0
    unit = np.clip(weights / scale, -1, 1).transpose(0, 2, 3, 1)
    if reads in (1, 3):
        return np.repeat(0.5 + unit / 2, 3 // reads, axis=3)
    return theme.signed(0.5 + unit[..., 0] / 2)[..., :3]


def filters_figure(model: Network, layer: str | None, theme: Theme, title: str = "") -> Figure:
    """The filters of `layer`, or of every convolution, as the paper's figure 3: the towers apart where there are two.

    Raises `UserError` for a layer that is no convolution.
    """
    weights = conv_weights(model)
    if layer is not None and layer not in weights:
        raise unknown_name("convolution", layer, weights, f" in '{model.spec.name}'")
    if not weights:
        raise UserError(f"'{model.spec.name}' has no convolutions, and so no filters to show.")
    names = [layer] if layer else list(weights)[:8]  # deep networks have hundreds
    two = isinstance(model, AlexNet) and max(conv.groups for conv in model.spec.convs) == 2
    blocks = [(name, half) for name in names for half in (np.split(weights[name], 2) if two else [weights[name]])]
    shapes = []
    for _, block in blocks:
        wide = (16 if block.shape[1] in (1, 3) else 24) if len(names) == 1 else (24 if block.shape[2] > 8 else 32)
        shapes.append((-(-len(block) // wide), max(wide, min(len(block), 8))))
    width = 11.0
    heights = [0.4 + width * rows / wide for rows, wide in shapes]
    reads_picture = weights[names[0]].shape[1] in (1, 3)
    caption = "One tile is one filter; grey is zero." if reads_picture else ""
    if len(names) > 1 or not reads_picture:
        caption += (
            " Of filters that read maps and not the picture, the slice of the map that they read most strongly: orange "
            "adds, blue subtracts."
        )
    figure = new_figure(width, sum(heights) + 1.1, title or f"Filters of {model.spec.name}", caption.strip())
    grid = figure.subplots(len(blocks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for i, (axes, (name, block), (_, wide)) in enumerate(zip(grid, blocks, shapes, strict=True)):
        quiet = 0.4 * np.array(to_rgb(theme.faint)) + 0.6 * np.array(to_rgb(theme.paper))
        gap = np.array(to_rgb(theme.paper)) if block.shape[1] in (1, 3) else quiet
        show(axes, tiles(filter_tiles(block, theme), wide, gap, theme.paper), interpolation="nearest")
        axes.set_anchor("NW")
        tower = f", tower {i % 2 + 1}" if two else ""
        k = block.shape[2]
        axes.set_title(f"{name}{tower}: {len(block)} filters of {k}×{k}, each reading {_read(block.shape[1])}")
    return figure


def _read(channels: int) -> str:
    return {1: "grey", 3: "red, green and blue"}.get(channels, f"{channels} maps")


# ── activations ───────────────────────────────────────────────────────────────────────────────────────────────────

MAPS = 6  # of each stage that are shown: those with the largest mean


def activations_figure(
    stages: Sequence[Stage], image: np.ndarray, said: Sequence[tuple[str, float]], theme: Theme, title: str = ""
) -> Figure:
    """What each stage makes of a picture, in two columns beside it; `said` are labels with probabilities."""
    rows = -(-len(stages) // 2)
    caption = (
        f"Of each stage the {MAPS} maps with the largest mean, from dark (nothing) to bright (the stage's largest); of "
        "fully connected layers all units in rows. “Active” is the share of values above zero."
    )
    figure = new_figure(12.5, 1.3 + rows * 1.1, title or "Activations", caption)
    grid = figure.add_gridspec(rows, 3, width_ratios=(0.72, 1, 1))
    left = figure.add_subplot(grid[: max(1, rows - 2), 0])
    show(left, image)
    left.set_title(f"input: {image.shape[0]}×{image.shape[1]}")
    left.set_anchor("NW")
    answer = figure.add_subplot(grid[max(1, rows - 2) :, 0])
    bars(answer, said[:3], None, theme)
    for i, stage in enumerate(stages):
        axes = figure.add_subplot(grid[i % rows, 1 + i // rows])
        sheet = _sheet(stage.values)
        flat = stage.values.ndim == 1
        show(axes, sheet, cmap="cividis", vmin=0, vmax=max(float(np.nanmax(sheet)), 1e-12),
             aspect="auto" if flat else "equal")  # fmt: skip
        axes.set_anchor("NW")
        if flat:
            axes.set_box_aspect(1 / MAPS)
        shape = "×".join(map(str, stage.values.shape))
        axes.set_title(f"{stage.name}: {shape}, {stage.active:.0%} active")
    return figure


def _sheet(values: np.ndarray) -> np.ndarray:
    """The strongest maps side by side, or a vector broken into rows, with NaN where there is nothing."""
    if values.ndim == 1:
        rows = max(1, min(16, len(values) // 64))
        wide = -(-len(values) // rows)
        sheet = np.full(rows * wide, np.nan, np.float32)
        sheet[: len(values)] = values
        return sheet.reshape(rows, wide)
    order = np.argsort(-values.mean((1, 2)), kind="stable")[:MAPS]
    side = values.shape[1]
    gap = max(1, round(side / 16))
    sheet = np.full((side, MAPS * (side + gap) - gap), np.nan, np.float32)
    for i, channel in enumerate(order):
        sheet[:, i * (side + gap) : i * (side + gap) + side] = values[channel]
    return sheet


def bars(axes: Axes, said: Sequence[tuple[str, float]], true: str | None, theme: Theme, letters: int = 22) -> None:
    """Labels with probabilities as bars, the likeliest above; the true label in the second colour."""
    axes.barh(
        range(len(said)), [p for _, p in said], height=0.82, alpha=0.45,
        color=[theme.orange if label == true else theme.blue for label, _ in said],
    )  # fmt: skip
    for i, (label, p) in enumerate(said):
        weight = "bold" if label == true else "normal"
        axes.text(0.015, i, clean(label, letters), va="center", weight=weight)
        axes.text(1.0, i, f"{p:.1%}" if p < 0.9995 else "100 %", va="center", ha="right", weight=weight)
    axes.set(xlim=(0, 1), ylim=(max(len(said), 3) - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


# ── saliency ──────────────────────────────────────────────────────────────────────────────────────────────────────

SAID = {
    "grad-cam": "Where the maps of the last convolution speak for the label (Grad-CAM); the finest detail that it can "
    "tell is one value of those maps.",
    "occlusion": "How far the label's logit falls when a grey square hides the place (occlusion): orange places speak "
    "for the label, blue ones against it.",
    "integrated-gradients": "Each pixel's share of the label's logit on the way from an empty picture (integrated "
    "gradients): orange speaks for the label, blue against it.",
}

UNITS = {"grad-cam": "weighted sum of the maps", "occlusion": "fall of the logit",
         "integrated-gradients": "share of the logit"}  # fmt: skip


def saliency_figure(found: Saliency, theme: Theme, title: str = "") -> Figure:
    """The picture, and over it in colour what speaks for the label and what against it."""
    heading = title or f"What speaks for “{clean(found.label, 40)}” ({found.probability:.1%})"
    figure = new_figure(10.5, 6.0, heading, SAID[found.method])
    left, right = figure.subplots(1, 2)
    show(left, found.image)
    side = found.image.shape[0]
    left.set_title(f"what the network sees: {side}×{side} pixels")
    limit = float(np.quantile(np.abs(found.heat), 0.995)) or 1.0
    share = np.clip(found.heat / limit, -1, 1)
    grey = np.asarray(found.image, dtype=float).mean(2, keepdims=True).repeat(3, axis=2) / 255
    back = 0.35 * grey + 0.65 * (np.array(to_rgb(theme.paper)) if theme.name == "light" else 0.0)
    colours = np.where(share[..., None] > 0, np.array(to_rgb(theme.orange)), np.array(to_rgb(theme.blue)))
    strength = np.abs(share)[..., None] ** 0.8
    show(right, back * (1 - 0.9 * strength) + colours * 0.9 * strength)
    right.set_title(found.method)
    scale = ScalarMappable(Normalize(-limit if found.heat.min() < 0 else 0, limit), None)
    scale.set_cmap(theme.signed if found.heat.min() < 0 else _half(theme))
    bar = figure.colorbar(scale, ax=right, shrink=0.8, pad=0.02)
    bar.set_label(UNITS[found.method])
    bar.outline.set_visible(False)
    return figure


def _half(theme: Theme) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list("positive", [theme.paper, theme.orange])


# ── receptive fields ──────────────────────────────────────────────────────────────────────────────────────────────


def seen(stack: Sequence[Layer], name: str, unit: int) -> tuple[int, int]:
    """The first and the last pixel, along one side, that output `unit` of layer `name` depends on.

    Numbers below 0 or beyond the picture are zeros of padding. `name` is a layer with maps.
    """
    here = [layer.name for layer in stack].index(name)
    first = last = unit
    for layer in reversed(stack[: here + 1]):
        if layer.kind == "adaptiveavgpool":  # bins of torch's: start ⌊i·in/out⌋, end ⌈(i+1)·in/out⌉
            into, out = layer.input[1], layer.output[1]
            first, last = first * into // out, -(-(last + 1) * into // out) - 1
        elif layer.kind == "rnorm" and layer.norm is not None:
            first, last = first - layer.norm.size // 2, last + (layer.norm.size - 1) // 2
        elif layer.kernel:
            first = first * layer.stride - layer.padding
            last = last * layer.stride - layer.padding + layer.kernel - 1
    return first, last


def receptive_field_figure(spec: AlexNetSpec, image: Image.Image, theme: Theme, title: str = "") -> Figure:
    """For each convolution and pool: the part of the picture that its middle unit sees, the rest dimmed."""
    stack = layers(spec)
    shown = [layer for layer in stack if layer.kind in ("conv", "maxpool", "avgpool")]
    side = spec.image_size
    pixels = np.asarray(EvalTransform(side).eval_tensor(image).permute(1, 2, 0), dtype=float) / 255
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    caption = (
        "Bright is what one unit in the middle of the layer sees. Beyond the picture there is nothing but zeros; a "
        "dashed frame reaches further than is drawn. Below: the layer's units, and how far apart neighbours look."
    )
    figure = new_figure(11, 1.4 + rows * 3.05, title or f"What one unit of {spec.name} sees", caption)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(shown) :]:
        axes.set_visible(False)
    paper = np.array(to_rgb(theme.paper))
    ends = [seen(stack, layer.name, layer.output[1] // 2) for layer in shown]
    margin = min(side / 4, max(0, *(-first for first, _ in ends), *(last + 1 - side for _, last in ends))) + side / 100
    for axes, layer in zip(grid, shown, strict=False):
        units = layer.output[1]
        first, last = seen(stack, layer.name, units // 2)
        step = seen(stack, layer.name, 1)[0] - seen(stack, layer.name, 0)[0] if units > 1 else 0
        dim = 0.3 * pixels + 0.7 * paper
        inside = slice(max(0, first), min(side, last + 1))
        dim[inside, inside] = pixels[inside, inside]
        show(axes, dim)
        field = last - first + 1
        left, right = max(first - 0.5, -0.9 * margin), min(last + 0.5, side - 1 + 0.9 * margin)
        cut = (left, right) != (first - 0.5, last + 0.5)
        axes.add_patch(
            Rectangle((left, left), right - left, right - left, fill=False, edgecolor=theme.orange, lw=2,
                      ls="--" if cut else "-")
        )  # fmt: skip
        axes.set(xlim=(-margin, side - 1 + margin), ylim=(side - 1 + margin, -margin))
        axes.set_title(f"{layer.name}: {field}×{field} pixels")
        axes.set_xlabel(f"{units}×{units} units" + (f", {step} pixels apart" if units > 1 else ""))
    return figure
