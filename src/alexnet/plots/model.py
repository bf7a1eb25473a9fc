"""Figures of a trained network: filters, activations and saliency maps; predictions, similar images and mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from alexnet.data.transforms import tile_images
from alexnet.errors import UserError, unknown_name
from alexnet.inference.explain import Saliency, Stage
from alexnet.inference.neighbors import Neighbor
from alexnet.messages.translator import Translator
from alexnet.models.model import AlexNet, Network
from alexnet.plots.style import Theme, new_figure, shorten, show_image

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


def lrn_figure(denominators: dict[str, np.ndarray], name: str, theme: Theme, translate: Translator) -> Figure:
    """Draw how often each LRN of the network `name` multiplies by which factor, 1 / `denominators`, by layer."""
    height = 1.6 + 2.2 * len(denominators)
    figure = new_figure(9, height, translate("figure_lrn", name=name), translate("figure_lrn_note"))
    rows = figure.subplots(len(denominators), 1, squeeze=False)[:, 0]
    for axes, (layer, values) in zip(rows, denominators.items(), strict=True):
        deviation = float(values.std(dtype=np.float64) / values.mean(dtype=np.float64))
        axes.hist(1 / values.ravel(), bins=100, range=(0, float(1 / values.min())), color=theme.blue)
        axes.axvline(float(1 / values.min()), color=theme.orange, ls="--")
        axes.set(yscale="log", yticks=[])
        axes.set_title(translate("figure_lrn_layer", name=layer, deviation=deviation))
        axes.set_xlabel(translate("figure_lrn_factor"))
    return figure


def check_filters(model: Network, layer: str | None) -> None:
    """Raise `UserError` if `layer` is not a convolution, or there are none."""
    weights = conv_weights(model)
    if layer is not None and layer not in weights:
        raise unknown_name("convolution", layer, weights, f" in '{model.spec.name}'")
    if not weights:
        raise UserError(f"'{model.spec.name}' has no convolutions, and so no filters to show.")


def filters_figure(model: Network, layer: str | None, name: str, theme: Theme, translate: Translator) -> Figure:
    """Draw the filters of `layer`, or of every convolution, as in figure 3 of the paper, with towers separated."""
    weights = conv_weights(model)
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
    for edge in range(1, saliency.cells or 1):
        for draw_line in (right.axhline, right.axvline):
            draw_line(edge * side / saliency.cells - 0.5, color=theme.background, lw=0.8)
    right.set_title(translate(f"saliency_name_{saliency.method}"))
    signed = saliency.heat.min() < 0
    scale = ScalarMappable(Normalize(-limit if signed else 0, limit), None)
    positive = LinearSegmentedColormap.from_list("positive", [theme.background, theme.orange])
    scale.set_cmap(theme.diverging if signed else positive)
    bar = figure.colorbar(scale, ax=right, shrink=0.8, pad=0.02)
    ticks = {0.0: translate("saliency_neutral"), limit: translate("saliency_supports")}
    ticks |= {-limit: translate("saliency_contradicts")} if signed else {}
    if saliency.method != "grad-cam":  # whose sums have no unit
        ticks = {value: f"{word}\n{value:+.2g}".replace("-", "−") if value else word for value, word in ticks.items()}
        bar.set_label(translate(f"saliency_unit_{saliency.method}"))
    bar.set_ticks([*ticks], labels=[*ticks.values()])
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    return figure


# ── predictions ───────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ImagePrediction:
    """An image, its file name, predicted labels with probabilities, and the true label if it is known."""

    image: Image.Image
    name: str
    labels: Sequence[tuple[str, float]]
    true: str | None = None


def top5_figure(predictions: Sequence[ImagePrediction], name: str, theme: Theme, translate: Translator) -> Figure:
    """Draw each image above bars for its labels, the true label in orange, as in figure 4 (left) of the paper."""
    columns = min(4, len(predictions))
    rows = -(-len(predictions) // columns)
    title, notes = translate("figure_top", name=name), [translate("figure_top_note")]
    if known := [p for p in predictions if p.true is not None]:
        top1 = sum(p.labels[0][0] == p.true for p in known)
        top_k = sum(p.true in [label for label, _ in p.labels] for p in known)
        k = len(known[0].labels)
        notes.append(translate("figure_top_known", top1=top1, n=len(known), k=k, top_k=top_k))
    figure = new_figure(max(6.5, 3.1 * columns), 1.2 + rows * 4.2, title, translate.join(notes))
    grid = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2.3, 1.35] * rows)
    for i in range(rows * columns):
        upper, lower = grid[i // columns * 2, i % columns], grid[i // columns * 2 + 1, i % columns]
        if i >= len(predictions):
            upper.set_visible(False)
            lower.set_visible(False)
            continue
        prediction = predictions[i]
        show_image(upper, center_square(prediction.image))
        upper.set_title(shorten(prediction.true or prediction.name, 26),
                        weight="bold" if prediction.true is not None else "normal", loc="center")  # fmt: skip
        draw_label_bars(lower, prediction.labels, prediction.true, theme)
    return figure


def center_square(image: Image.Image, side: int = 320) -> np.ndarray:
    """Return the central square of an image, uint8 RGB, reduced to at most `side` pixels."""
    side = min(side, *image.size)
    return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side)))


def similar_figure(
    queries: Sequence[ImagePrediction], neighbors: Sequence[Sequence[tuple[Neighbor, Image.Image]]], layer: str,
    name: str, theme: Theme, translate: Translator,
) -> Figure:  # fmt: skip
    """Draw a row per query: the image, then its nearest training images, as in figure 4 (right) of the paper."""
    columns = 1 + max(map(len, neighbors))
    title, caption = translate("figure_similar", name=name), translate("figure_similar_note", layer=layer)
    figure = new_figure(max(7.0, 1.95 * columns), 1.1 + 2.45 * len(queries), title, caption)
    grid = figure.subplots(len(queries), columns, squeeze=False)
    for row, query, nearest in zip(grid, queries, neighbors, strict=True):
        show_image(row[0], center_square(query.image))
        label, p = query.labels[0]
        row[0].set_title(shorten(query.name, 17), loc="center")
        row[0].set_xlabel(f"{shorten(label, 13)} {p:.0%}")
        row[0].spines[:].set(visible=True, color=theme.orange, linewidth=3)
        for axes, (neighbor, image) in zip(row[1:], nearest, strict=False):
            show_image(axes, center_square(image))
            axes.set_title(shorten(neighbor.label, 17), loc="center")
            axes.set_xlabel(f"{neighbor.distance:.3g}")
        for axes in row[1 + len(nearest) :]:
            axes.set_visible(False)
    return figure


@dataclass(frozen=True)
class Predictions:
    """The logits of every image of a split."""

    names: Sequence[str]
    targets: np.ndarray
    """int64 (n,)."""
    logits: np.ndarray
    """float32 (n, classes)."""

    @property
    def predicted(self) -> np.ndarray:
        """Index of the most probable class, int64 (n,)."""
        return np.asarray(self.logits.argmax(1))

    @cached_property
    def confidence(self) -> np.ndarray:
        """Probability of the predicted class, float64 (n,)."""
        return np.asarray(1 / np.exp(self.logits - self.logits.max(1, keepdims=True)).sum(1, dtype=np.float64))


@dataclass(frozen=True)
class Example:
    """An evaluated image and its prediction."""

    name: str
    true: str
    predicted: str
    confidence: float


def find_examples(found: Predictions, classes: Sequence[str], count: int) -> tuple[list[Example], list[Example]]:
    """Return the `count` most confident mistakes and the `count` least confident correct predictions."""
    targets, predicted, confidence = found.targets, found.predicted, found.confidence
    wrong = np.flatnonzero(predicted != targets)
    correct = np.flatnonzero(predicted == targets)

    def examples(rows: np.ndarray) -> list[Example]:
        return [Example(found.names[i], classes[targets[i]], classes[predicted[i]], float(confidence[i])) for i in rows]

    return (
        examples(wrong[np.argsort(-confidence[wrong], kind="stable")][:count]),
        examples(correct[np.argsort(confidence[correct], kind="stable")][:count]),
    )


def mistakes_figure(
    mistakes: Sequence[tuple[Example, Image.Image]], least_confident_correct: Sequence[tuple[Example, Image.Image]],
    name: str, split: str, n: int, accuracy: float, theme: Theme, translate: Translator,
) -> Figure:  # fmt: skip
    """Draw two rows of images with file name, prediction and true class; a row without images is its heading.

    The title says that the network `name` has this `accuracy` on the `n` images of `split`.
    """
    split_name = translate.split(split)
    title = translate("figure_mistakes", name=name, accuracy=accuracy, n=n, split=split_name)
    columns = max(len(mistakes), len(least_confident_correct), 3)
    rows = (
        (mistakes, "mistakes" if mistakes else "no_mistakes"),
        (least_confident_correct, "least_confident_correct" if least_confident_correct else "figure_none_correct"),
    )
    heights = [2.9 if examples else 0.4 for examples, _ in rows]
    figure = new_figure(2.1 * columns, 1.1 + sum(heights), title, translate("figure_mistakes_note"))
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)[:, 0]
    for part, (examples, heading) in zip(parts, rows, strict=True):
        heading = translate(heading, n=n, split=split_name)
        part.suptitle(heading, x=0.012, ha="left", size=13, weight="normal", color=theme.orange)
        if not examples:
            continue
        row = part.subplots(1, columns, squeeze=False)[0]
        for axes in row[len(examples) :]:
            axes.set_visible(False)
        for axes, (example, image) in zip(row, examples, strict=False):
            show_image(axes, center_square(image))
            wrong = example.predicted != example.true
            true = translate("figure_true", label=shorten(example.true, 14))
            verdict = true if wrong else translate("figure_correct")
            axes.set_xlabel(f"{shorten(example.predicted, 13)} {example.confidence:.0%}\n{verdict}")
            file = "/".join(PurePosixPath(example.name).parts[-2:])
            axes.set_title(shorten(file, 26), loc="center", size=10, color=theme.muted)
    return figure
