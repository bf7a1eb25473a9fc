"""The figures of how-it-works.md: `python docs/figures.py` writes them to docs/img.

All bars, curves and crops are computed by the package, so the figures agree with the tables and the tests. This needs
only the package and its dependencies (the photograph ships with scikit-learn), takes a few seconds on a CPU, and is
deterministic. Fonts, colors and axes are those of the package's own figures, smaller, on white also in dark pages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from sklearn.datasets import load_sample_image
from torch.nn import functional as F

from alexnet.data.augment import IMAGENET_PCA
from alexnet.data.transforms import EvalTransform
from alexnet.inference.crops import TEN_CROP, crop_views
from alexnet.models.architectures import ARCHITECTURES, CODE_LRN, PAPER_LRN
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.spec import Layer, layers
from alexnet.models.summary import summarize
from alexnet.plots.style import THEMES, rc_params
from alexnet.training.optim import schedule_at
from alexnet.training.recipes import named_recipe

STYLE, DARK = THEMES["light"], THEMES["dark"]
BLUE, RED, GREEN, PINK, _ = STYLE.series
SKY, ORANGE, *_, YELLOW = DARK.series
BLACK, GRAY = STYLE.foreground, STYLE.muted
SIZES = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "text.parse_math": True,
}  # fmt: skip

# Principal components of ImageNet's training pixels: stds on the scale of 0 to 255, directions in RGB (columns).
PCA_STDS = np.array(IMAGENET_PCA.std)
PCA_DIRECTIONS = np.reshape(IMAGENET_PCA.vectors, (3, 3)).T

LAST_EPOCH, NOISE_OFF = 91, 67  # of run 145


def _rates_of_run_145() -> dict[str, dict[int, float]]:
    """Return, per parameter group, the learning rate by the epoch (from 1) at which it starts."""
    recipe = named_recipe("imagenet-2012")
    rates: dict[str, dict[int, float]] = {"weights": {}, "weights of conv1": {}, "biases": {}}
    for epoch in range(1, LAST_EPOCH + 1):
        schedule = schedule_at(recipe, epoch - 1, steps_per_epoch=1)
        current = (schedule.lr, schedule.rate("conv1", "weights"), schedule.rate("conv2", "biases"))
        for starts, rate in zip(rates.values(), current, strict=True):
            if not starts or list(starts.values())[-1] != rate:
                starts[epoch] = rate
    return rates


RATES = _rates_of_run_145()


def weighted_rows() -> list[Layer]:
    """Return the summaries of the eight layers with weights in `paper`."""
    return [row for row in summarize(ARCHITECTURES["paper"]).rows if row.parameters]


def photograph() -> torch.Tensor:
    """Return a photograph as the 2012 code stored it: uint8 3×256×256, short side resized, center cropped."""
    return EvalTransform(size=224, resize=256).training_square(load_sample_image("china.jpg").copy())


def draw_image(axes: Axes, image: torch.Tensor | np.ndarray) -> None:
    """Draw a C×H×W image without ticks or frame."""
    axes.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


# ── figures ───────────────────────────────────────────────────────────────────────────────────────────────────


def parameters_and_macs() -> Figure:
    """Parameters and multiply-accumulates of each layer, as bars."""
    rows = weighted_rows()
    figure, pair = plt.subplots(1, 2, figsize=(8, 3.2), sharey=True)
    sides = (("parameters", BLUE, "parameters"), ("macs", ORANGE, "multiply-accumulates"))
    for axes, (field, color, title) in zip(pair, sides, strict=True):
        counts = [getattr(row, field) for row in rows]
        total = sum(counts)
        axes.barh([row.name for row in rows], [n / 1e6 for n in counts], color=color)
        for i, n in enumerate(counts):
            axes.text((n + 0.02 * max(counts)) / 1e6, i, f"{n / 1e6:,.2f} M  {n / total:.1%}", va="center", fontsize=9)
        axes.set(title=f"{title}: {total / 1e6:,.1f} M", xlabel="million", xlim=(0, max(counts) / 1e6 * 1.6))
    pair[0].invert_yaxis()
    return figure


def maps() -> Figure:
    """Feature maps as blocks: height for pixels, width for channels."""
    stack = layers(ARCHITECTURES["paper"])
    shapes = [("image", (3, 224, 224))] + [
        (layer.name, layer.output) for layer in stack if layer.kind in ("conv", "maxpool", "linear")
    ]
    figure, axes = plt.subplots(figsize=(9, 3.1))
    x = 0.0
    for name, shape in shapes:
        side = shape[1] if len(shape) == 3 else 4
        depth = max(3, shape[0] / 12) if len(shape) == 3 else 4
        height = side if len(shape) == 3 else shape[0] / 30
        color = {"i": GRAY, "c": BLUE, "p": SKY, "f": ORANGE}[name[0]]
        axes.add_patch(Rectangle((x, -height / 2), depth, height, facecolor=color, edgecolor="white"))
        size = "×".join(map(str, shape)) if len(shape) == 1 else f"{shape[0]} ×\n{shape[1]}×{shape[2]}"
        axes.text(x + depth / 2, 118, name, ha="center", va="bottom", fontsize=9)
        axes.text(x + depth / 2, -118, size, ha="center", va="top", fontsize=8)
        x += max(depth, 14) + 15
    axes.set(xlim=(-12, x), ylim=(-150, 140))
    axes.axis("off")
    return figure


FOLD = -184  # shift of the right end, since the pixels in the middle are left out


def conv1_edge() -> Figure:
    """Padding of conv1 in five implementations, and the windows at both ends."""
    ways = (
        ("2012 code: 224, 3 zeros on the right", 224, 0, 3),
        ("torchvision: 224, 2 zeros on both sides", 224, 2, 2),
        ("tutorial 001 (text): 224, 1 zero left, 2 right", 224, 1, 2),
        ("Caffe: 227, no zeros", 227, 0, 0),
        ("tutorial 004: 224, no zeros", 224, 0, 0),
    )
    figure, axes = plt.subplots(figsize=(8.4, 3.7))
    for i, (title, side, left, right) in enumerate(ways):
        windows = (left + side + right - 11) // 4 + 1
        y = -i * 1.9
        for shift, start, width, color in (
            (0, -left, left, YELLOW), (0, 0, 16, SKY), (FOLD, 204, side - 204, SKY), (FOLD, side, right, YELLOW),
        ):  # fmt: skip
            for pixel in range(start, start + width):
                axes.add_patch(Rectangle((pixel + shift, y), 1, 0.6, facecolor=color, edgecolor="white", lw=0.5))
        for n, shift in ((0, 0), (1, 0), (windows - 2, FOLD), (windows - 1, FOLD)):
            start = 4 * n - left + shift
            line = y + 0.68 + 0.13 * (n % 2)
            axes.plot([start, start + 11], [line, line], color=(RED, BLACK)[n % 2], lw=2, solid_capstyle="butt")
        end = left + side + right - (4 * (windows - 1) + 11)
        unread = f", {end} column never read" if end else ""
        axes.text(18, y + 0.3, "…", ha="center", va="center")
        axes.text(50, y + 0.3, f"{title}\n{windows} windows{unread}", va="center", fontsize=9)
    axes.set(xlim=(-3, 78), ylim=(-7.8, 1.1))
    axes.axis("off")
    return figure


def activations() -> Figure:
    """ReLU, tanh and sigmoid, and their gradients."""
    x = torch.linspace(-5, 5, 401, requires_grad=True)
    figure, (values, slopes) = plt.subplots(1, 2, figsize=(8, 3))
    kinds = (("ReLU", torch.relu, BLUE, "-"), ("tanh", torch.tanh, ORANGE, "--"), ("sigmoid", torch.sigmoid, RED, ":"))
    for name, function, color, style in kinds:
        y = function(x)
        (slope,) = torch.autograd.grad(y.sum(), x)
        values.plot(x.detach(), y.detach(), style, color=color, lw=2, label=name)
        slopes.plot(x.detach(), slope, style, color=color, lw=2, label=name)
    values.set(title="value", xlabel="input", ylim=(-1.4, 3.2))
    slopes.set(title="gradient", xlabel="input", ylim=(-0.05, 1.15))
    for axes in (values, slopes):
        axes.grid()
    values.legend(frameon=False, loc="upper left")
    return figure


def lrn() -> Figure:
    """LRN of a single active channel, and of ten adjacent channels."""
    figure, (curve, bars) = plt.subplots(1, 2, figsize=(8.4, 3.2), width_ratios=(1, 1.25))
    alone = torch.arange(0, 801.0)[:, None, None]
    kinds = (("2012 code (alpha 1e-4)", CODE_LRN, BLUE, "-"), ("as printed (alpha 5e-4)", PAPER_LRN, RED, "--"))
    for name, c, color, style in kinds:
        after = LocalResponseNorm(c.size, c.alpha, c.beta, c.k)(alone).flatten()
        curve.plot(alone.flatten(), after, style, color=color, lw=2, label=name)
        top = int(after.argmax())
        curve.plot(top, after[top], "o", color=color)
        curve.annotate(f"{top} → {after[top]:.0f}", (top, after[top]), xytext=(0, 6), textcoords="offset points",
                       ha="center", fontsize=9)  # fmt: skip
    curve.set(title="a single active channel", xlabel="input", ylabel="output", ylim=(0, 150))
    curve.legend(frameon=False, fontsize=9, loc="lower right")
    before = LRN_EXAMPLE
    after = LocalResponseNorm(CODE_LRN.size, CODE_LRN.alpha, CODE_LRN.beta, CODE_LRN.k)(before[None, :, None])
    positions = np.arange(len(before))
    bars.bar(positions - 0.2, before, 0.4, color=SKY, label="before LRN")
    bars.bar(positions + 0.2, after.flatten(), 0.4, color=BLUE, label="after LRN (2012 code)")
    bars.set(title="ten channels at one pixel", xlabel="channel", xticks=positions, ylim=(0, 330))
    bars.legend(frameon=False, fontsize=9)
    return figure


LRN_EXAMPLE = torch.tensor([100.0, 100, 100, 300, 100, 100, 100, 100, 100, 100])


def pooling() -> Figure:
    """The same row of values pooled with overlapping windows (3, stride 2) and without overlap (2, stride 2)."""
    values = POOL_EXAMPLE
    figure, pair = plt.subplots(1, 2, figsize=(8.4, 2.2))
    kinds = ((3, 2, "overlapping: window 3, stride 2"), (2, 2, "no overlap: window 2, stride 2"))
    for axes, (kernel, stride, title) in zip(pair, kinds, strict=True):
        out = F.max_pool1d(values[None], kernel, stride)[0]
        for i, v in enumerate(values):
            axes.add_patch(Rectangle((i, 0), 1, 1, facecolor=SKY, edgecolor="white"))
            axes.text(i + 0.5, 0.5, f"{v:.0f}", ha="center", va="center")
        for n, v in enumerate(out):
            left, line = n * stride, 1.25 + 0.25 * (n % 2)
            axes.plot([left + 0.05, left + kernel - 0.05], [line, line], color=(RED, BLACK)[n % 2], lw=3)
            middle = left + kernel / 2
            axes.plot([middle, middle], [line, 2.2], color=GRAY, lw=0.8, zorder=0)
            axes.add_patch(Rectangle((middle - 0.5, 2.2), 1, 1, facecolor=ORANGE, edgecolor="white"))
            axes.text(middle, 2.7, f"{v:.0f}", ha="center", va="center")
        axes.set(title=title, xlim=(-0.1, len(values) + 0.1), ylim=(-0.1, 3.4), aspect="equal")
        axes.axis("off")
    return figure


POOL_EXAMPLE = torch.tensor([1.0, 2, 9, 3, 1, 0, 4, 2, 7])


def towers() -> Figure:
    """Input channels that each filter reads: two blocks if the layer has two towers."""
    convs = [layer for layer in layers(ARCHITECTURES["paper"]) if layer.kind == "conv"][1:]
    figure, row = plt.subplots(1, len(convs), figsize=(8.4, 2.9))
    for axes, layer in zip(row, convs, strict=True):
        ins, outs, groups = layer.input[0], layer.output[0], layer.groups
        for g in range(groups):
            corner = (g * outs / groups, g * ins / groups)
            axes.add_patch(Rectangle(corner, outs / groups, ins / groups, facecolor=(BLUE, ORANGE)[g]))
        if groups == 1:
            axes.patches[0].set_facecolor(GREEN)
        axes.set(xlim=(0, outs), ylim=(ins, 0), xticks=[0, outs // 2, outs], yticks=[0, ins // 2, ins])
        axes.set_title(f"{layer.name}\n{layer.parameters:,}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("filter", fontsize=9)
    row[0].set_ylabel("input channel", fontsize=9)
    return figure


def receptive_fields() -> Figure:
    """Receptive fields of a value in the center of each layer."""
    names = ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")
    rows = [row for row in summarize(ARCHITECTURES["paper"]).rows if row.name in names]
    figure, axes = plt.subplots(figsize=(4.4, 4.4))
    draw_image(axes, photograph()[:, 16:240, 16:240])
    for row, color in zip(rows, (BLUE, ORANGE, RED, PINK, SKY, "white"), strict=True):
        side = row.receptive_field
        corner = 112 - side / 2
        axes.add_patch(Rectangle((corner, corner), side, side, fill=False, edgecolor=color, lw=2))
        label, y = f"{row.name}: {side}", 120 if side == 11 else corner + 1
        box = {"facecolor": "black", "alpha": 0.75, "pad": 1, "lw": 0}
        axes.text(112, y, label, color="white", fontsize=8, ha="center", va="top", bbox=box)
    return figure


def ten_crop() -> Figure:
    """The ten views of an image, and the positions of the crops."""
    square = photograph()
    figure = plt.figure(figsize=(8.4, 2.7))
    grid = figure.add_gridspec(2, 8, width_ratios=(1, 1, 0.1, 1, 1, 1, 1, 1))
    full = figure.add_subplot(grid[:, :2])
    draw_image(full, square)
    for (top, left), color in zip(TEN_CROP.positions, (ORANGE, SKY, "white", YELLOW, PINK), strict=True):
        corner = (left * 32 - 0.5, top * 32 - 0.5)
        full.add_patch(Rectangle(corner, 224, 224, fill=False, edgecolor=color, lw=2))
    full.set_title("256×256, five crops of 224×224", fontsize=9)
    names = ("top left", "top right", "center", "bottom left", "bottom right")
    for i, view in enumerate(crop_views(square[None], TEN_CROP, 224)):
        axes = figure.add_subplot(grid[i % 2, 3 + i // 2])
        draw_image(axes, view[0])
        axes.set_title("mirrored" if i % 2 else names[i // 2], fontsize=9, pad=3)
    return figure


def pca_noise() -> Figure:
    """One image with four draws of the color noise: as strong as in 2012, and five times stronger."""
    square = photograph().numpy()[:, 16:240, 16:240].astype(float)
    draws = (np.zeros(3), *np.random.default_rng(2012).standard_normal((4, 3)))
    figure, grid = plt.subplots(2, len(draws), figsize=(8.4, 3.9))
    for strength, row in zip((0.1, 0.5), grid, strict=True):
        for axes, draw in zip(row, draws, strict=True):
            shift = PCA_DIRECTIONS @ (strength * draw * PCA_STDS)
            draw_image(axes, np.clip(square + shift[:, None, None], 0, 255).astype(np.uint8))
            axes.set_title(" ".join(f"{s:+.0f}" for s in shift) if draw.any() else "original", fontsize=9)
        row[0].set_ylabel(f"strength {strength}", fontsize=9)
    return figure


def learning_rate() -> Figure:
    """The manual learning-rate schedule of run 145."""
    figure, axes = plt.subplots(figsize=(8, 3))
    styles = {"weights": (BLUE, "-", 2.5), "weights of conv1": (ORANGE, "--", 2.5), "biases": (GREEN, ":", 2)}
    for name, (color, style, width) in styles.items():
        starts = [*RATES[name], LAST_EPOCH]
        rates = [rate or np.nan for rate in RATES[name].values()]
        axes.step(starts, [*rates, rates[-1]], style, where="post", color=color, lw=width, label=name)
    axes.axvline(NOISE_OFF, color=GRAY, lw=1)
    axes.text(NOISE_OFF - 0.7, 1.5e-3, "color noise off", rotation=90, fontsize=9, ha="right", va="center")
    axes.text(72.4, 8e-6, "conv1 frozen", fontsize=9, va="top", color="#8a5f00")
    axes.plot(72, 1e-5, "s", color=ORANGE)
    axes.set(xlabel="epoch", ylabel="learning rate", yscale="log", ylim=(4e-6, 6e-2), xlim=(0, 93))
    axes.set_xticks([1, 25, 51, 67, 72, 79, 91])
    axes.grid()
    axes.legend(frameon=True, fontsize=9, loc="lower left")
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "parameters-and-macs.svg": parameters_and_macs,
    "maps.svg": maps,
    "conv1-edge.svg": conv1_edge,
    "activations.svg": activations,
    "lrn.svg": lrn,
    "pooling.svg": pooling,
    "towers.svg": towers,
    "learning-rate.svg": learning_rate,
    "receptive-fields.png": receptive_fields,
    "ten-crop.png": ten_crop,
    "pca-noise.png": pca_noise,
}


def save_figures(folder: Path, figures: Mapping[str, Callable[[], Figure]] = FIGURES) -> None:
    """Write the figures to `folder`: charts as SVG, photographs as PNG with 256 colors."""
    folder.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update({**rc_params(STYLE), **SIZES})
    for name, function in figures.items():
        figure = function()
        figure.tight_layout()
        if name.endswith(".svg"):
            figure.savefig(folder / name, metadata={"Date": None}, facecolor="white")
        else:
            memory = BytesIO()
            figure.savefig(memory, dpi=100, facecolor="white")
            Image.open(memory).convert("RGB").quantize(256).save(folder / name, optimize=True)
        plt.close(figure)


if __name__ == "__main__":
    save_figures(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "img")
