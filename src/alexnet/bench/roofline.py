"""The roofline picture (Williams, Waterman and Patterson 2009): which layers arithmetic bounds, and which the memory.

A layer that does many operations for each byte it moves can at most run as fast as a matrix product; one that does few,
at most as fast as the memory delivers. Bytes are the least that must move: input, output and weights, once each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from alexnet.bench.peaks import Work
from alexnet.files import atomic_write
from alexnet.models.model import build
from alexnet.models.spec import AlexNetSpec
from alexnet.models.summary import Row, summarize

KINDS = {  # types of layer → what the legend says, colour (Okabe and Ito's), marker
    "conv": ("convolution", "#0072B2", "o"),
    "linear": ("fully connected", "#D55E00", "s"),
    "lrn": ("normalisation", "#009E73", "^"),
    "maxpool": ("pooling", "#CC79A7", "D"),
    "relu": ("activation", "#666666", "v"),
}
ALIKE = {"rnorm": "lrn", "batchnorm": "lrn", "avgpool": "maxpool", "adaptiveavgpool": "maxpool", "pad": "relu",
         "tanh": "relu", "sigmoid": "relu"}  # fmt: skip


@dataclass(frozen=True)
class LayerWork:
    """One layer's forward pass on a batch; `work` counts operations."""

    type: str
    work: Work
    operations_per_byte: float


def operations(row: Row) -> int:
    """Arithmetic of one layer's forward pass on one image: 2 a multiply-accumulate; of the others, for each output
    value, a window's comparisons or sums, and about 14 for LRN: a window of 5 squares, the scale, the power, the
    product."""
    if row.macs:
        return 2 * row.macs
    window = row.kernel**2 if row.type in ("maxpool", "avgpool", "rnorm") else 1
    return math.prod(row.output) * {"lrn": 14, "batchnorm": 2}.get(row.type, window)


def layer_work(spec: AlexNetSpec, x: torch.Tensor) -> dict[str, LayerWork]:
    """Each layer of a fresh network of `spec` on what reaches it from the images `x` (float N×C×H×W, channels_last
    from here on). What does nothing when predicting is left out: dropout, flatten."""
    model = build(spec).eval().to(x.device).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    found = {}
    for row, (name, module) in zip(summarize(spec).rows, model.named_children(), strict=True):
        y = module(x.clone())  # ReLUs work in place
        if row.type not in ("flatten", "dropout"):
            work = Work(partial(module, x), operations(row) * len(x))
            weights = sum(w.numel() for w in module.parameters()) * y.element_size()
            found[name] = LayerWork(row.type, work, work.amount / (x.nbytes + y.nbytes + weights))
        x = y
    return found


def draw(document: dict[str, Any], folder: Path) -> list[Path]:
    """The roof and a dot for each of the document's `layers`, as roofline.svg and roofline.png in `folder`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = document["layers"]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    size = (5.4 * len(archs), 4.8)
    figure, panels = plt.subplots(1, len(archs), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, arch in zip(panels[0], archs, strict=True):
        _panel(axes, document["limits"], [row for row in rows if row["arch"] == arch])
    tops = [top for name in ("fp32", "bf16", "fp16") if (top := document["limits"][f"matmul_{name}_gflop_s"])]
    lowest = min([*(row["gflop_s"] for row in rows), *tops])
    panels[0][0].set(ylabel="GFLOP/s", ylim=(lowest / 2.5, max(tops) * 2))
    shown = {_kind(row) for row in rows}
    handles = [
        plt.Line2D([], [], color=colour, marker=marker, linestyle="", label=label)
        for kind, (label, colour, marker) in KINDS.items() if kind in shown
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    paths = [folder / f"roofline.{ending}" for ending in ("svg", "png")]
    for path in paths:
        form = path.suffix[1:]
        with atomic_write(path) as beside:
            figure.savefig(beside, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    plt.close(figure)
    return paths


def _panel(axes: Any, limits: dict[str, float | None], rows: Sequence[dict[str, Any]]) -> None:
    """One network under the roofs of every precision that this machine has."""
    copy = limits["copy_gb_s"] or 0.0
    roofs = {name: top for name in ("fp32", "bf16", "fp16") if (top := limits[f"matmul_{name}_gflop_s"])}
    low = min(row["operations_per_byte"] for row in rows) / 2
    high = max(*(row["operations_per_byte"] for row in rows), *(top / copy for top in roofs.values())) * 2
    ours = rows[0]["precision"]
    for name, top in roofs.items():
        colour, line = ("black", "-") if name == ours else ("#888888", "--")
        axes.plot([top / copy, high], [top, top], line, color=colour, linewidth=1.5 if name == ours else 1)
        alike = [other for other, rate in roofs.items() if abs(math.log(rate / top)) < 0.2]  # one label for a pair
        if top == max(roofs[other] for other in alike):
            text = f"matrix product, {' and '.join(alike)}"
            place = (max(roofs.values()) / copy, top)  # at the knee: convolutions crowd the other end
            axes.annotate(text, place, (2, 4), textcoords="offset points", color=colour, fontsize=8)
    knee = max(roofs.values()) / copy
    axes.plot([low, knee], [low * copy, knee * copy], color="black", linewidth=1.5)
    axes.annotate("memory", (knee / 2, knee / 2 * copy), (-8, 4), textcoords="offset points", ha="right", fontsize=8)
    for row in rows:
        _, colour, marker = KINDS[_kind(row)]
        point = (row["operations_per_byte"], row["gflop_s"])
        axes.plot(*point, color=colour, marker=marker, markersize=6, linestyle="", alpha=0.85)
    for names, point in _labels([row for row in rows if row["type"] in ("conv", "linear", "lrn")]):
        axes.annotate(names, point, (0, -13), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations for each byte moved")
    axes.set_title(f"{rows[0]['arch']}, forward, batch {rows[0]['batch_size']}, {ours}", fontsize=10)
    axes.grid(alpha=0.25, which="major")


def _labels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, tuple[float, float]]]:
    """The names of dots and where they go: neighbours that would be written over each other share a line."""
    groups: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=lambda row: row["operations_per_byte"]):
        near = groups and abs(math.log(row["operations_per_byte"] / groups[-1][-1]["operations_per_byte"])) < 0.9
        if near and abs(math.log(row["gflop_s"] / groups[-1][-1]["gflop_s"])) < 0.5:
            groups[-1].append(row)
        else:
            groups.append([row])
    found = []
    for group in groups:
        x = math.exp(sum(math.log(row["operations_per_byte"]) for row in group) / len(group))
        first, *others = sorted(row["name"] for row in group)
        name = ", ".join([first, *(re.sub(r"^[a-z]+", "", other) for other in others)])  # conv2, 3, 5
        found.append((name, (x, min(row["gflop_s"] for row in group))))
    return found


def _kind(row: dict[str, Any]) -> str:
    return ALIKE.get(row["type"], row["type"])
