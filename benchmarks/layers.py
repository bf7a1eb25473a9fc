"""Each layer's forward pass as a share of its roof, and the roofline plot (Williams, Waterman and Patterson 2009).

    python benchmarks/layers.py [--archs torchvision paper …] [--batch 32]

A layer with many operations per byte is at most as fast as a matrix product, one with few at most as fast as memory.
Bytes are the least that must move: input, output and weights, once each. Takes about a minute on two cores and writes
results/layers.json, results/roofline.svg and results/roofline.png.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from common import RESULTS, save

from alexnet.bench.limits import Work, copy_work, matmul_work, measure_rates
from alexnet.device import pick_precision, tune_malloc
from alexnet.models.architectures import architecture
from alexnet.models.model import build
from alexnet.models.spec import AlexNetSpec, Layer
from alexnet.models.summary import summarize

CPU = torch.device("cpu")
STYLES = {  # layer type → legend, color (of Okabe and Ito), marker
    "conv": ("convolution", "#0072B2", "o"),
    "linear": ("fully connected", "#D55E00", "s"),
    "lrn": ("normalization", "#009E73", "^"),
    "maxpool": ("pooling", "#CC79A7", "D"),
    "relu": ("activation", "#666666", "v"),
}
STYLE_OF = {"rnorm": "lrn", "batchnorm": "lrn", "avgpool": "maxpool", "adaptiveavgpool": "maxpool", "pad": "relu",
         "tanh": "relu", "sigmoid": "relu"}  # fmt: skip


def count_operations(row: Layer) -> int:
    """Return the operations of a layer's forward pass on one image.

    2 per multiply-accumulate. Layers without any: per output value, the comparisons or sums of a window; about 14 for
    LRN (5 squares, their sum, scale, power, product).
    """
    if row.macs:
        return 2 * row.macs
    window = row.kernel**2 if row.kind in ("maxpool", "avgpool", "rnorm") else 1
    return math.prod(row.output) * {"lrn": 14, "batchnorm": 2}.get(row.kind, window)


def layer_work(spec: AlexNetSpec, x: torch.Tensor) -> dict[str, tuple[Work, float]]:
    """Return the work, in operations, and operations per byte of each layer of `spec` on the images `x` (N×C×H×W).

    Tensors are channels_last. Layers that do nothing in inference (dropout, flatten) are omitted.
    """
    model = build(spec).eval().to(x.device).to(memory_format=torch.channels_last)
    x = x.contiguous(memory_format=torch.channels_last)
    result = {}
    for row, (name, module) in zip(summarize(spec).rows, model.named_children(), strict=True):
        y = module(x.clone())  # ReLUs are in place
        if row.kind not in ("flatten", "dropout"):
            work = Work(partial(module, x), count_operations(row) * len(x))
            weights = sum(w.numel() for w in module.parameters()) * y.element_size()
            result[name] = work, work.amount / (x.nbytes + y.nbytes + weights)
        x = y
    return result


def measure(archs: Sequence[str], batch: int, precision: str, seconds: float) -> dict[str, Any]:
    """Return the limits of this machine and a row for each layer."""
    chosen = pick_precision(precision, CPU)
    products = {name: work for name in ("fp32", "bf16", "fp16") if (work := matmul_work(name, CPU))}
    rates = measure_rates({"copy": copy_work(CPU), **products}, seconds * 4, CPU)
    limits = {"copy_gb_s": rates["copy"].median / 1e9}
    limits |= {f"matmul_{name}_gflop_s": rates[name].median / 1e9 for name in products}
    tune_malloc()  # as training does
    rows = []
    for spec in map(architecture, archs):
        images = torch.randn(batch, spec.in_channels, spec.image_size, spec.image_size)
        with torch.inference_mode(), chosen.autocast(CPU):
            layers = layer_work(spec, images)
            work = {"limit": products[chosen.name], "copy": copy_work(CPU)}
            work |= {name: of_layer for name, (of_layer, _) in layers.items()}
            rates = measure_rates(work, seconds * len(layers) / 5, CPU)
        taken = {name: of_layer.amount / rates[name].median for name, (of_layer, _) in layers.items()}
        types = {row.name: row.kind for row in summarize(spec).rows}
        for name, (_, intensity) in layers.items():
            roof = min(rates["limit"].median, intensity * rates["copy"].median)
            rows.append({
                "name": name, "type": types[name], "arch": spec.name, "batch_size": batch, "precision": chosen.name,
                "ms": 1000 * taken[name], "operations_per_byte": intensity, "gflop_s": rates[name].median / 1e9,
                "share_of_limit": rates[name].median / roof, "share_of_time": taken[name] / sum(taken.values()),
            })  # fmt: skip
    return {"limits": limits, "layers": rows}


def draw_roofline(document: dict[str, Any], folder: Path) -> list[Path]:
    """Plot the roofs and the document's `layers` as roofline.svg and roofline.png in `folder`."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = document["layers"]
    archs = list(dict.fromkeys(row["arch"] for row in rows))
    size = (5.4 * len(archs), 4.8)
    figure, panels = plt.subplots(1, len(archs), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axes, arch in zip(panels[0], archs, strict=True):
        _draw_panel(axes, document["limits"], [row for row in rows if row["arch"] == arch])
    tops = [top for name in ("fp32", "bf16", "fp16") if (top := document["limits"].get(f"matmul_{name}_gflop_s"))]
    lowest = min([*(row["gflop_s"] for row in rows), *tops])
    panels[0][0].set(ylabel="GFLOP/s", ylim=(lowest / 2.5, max(tops) * 2))
    shown = {_style(row) for row in rows}
    handles = [
        plt.Line2D([], [], color=color, marker=marker, linestyle="", label=label)
        for kind, (label, color, marker) in STYLES.items() if kind in shown
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    paths = [folder / f"roofline.{ending}" for ending in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def _draw_panel(axes: Any, limits: dict[str, float | None], rows: Sequence[dict[str, Any]]) -> None:
    """Plot one model's layers under the roofs of every precision available."""
    copy = limits["copy_gb_s"] or 0.0
    roofs = {name: top for name in ("fp32", "bf16", "fp16") if (top := limits.get(f"matmul_{name}_gflop_s"))}
    low = min(row["operations_per_byte"] for row in rows) / 2
    high = max(*(row["operations_per_byte"] for row in rows), *(top / copy for top in roofs.values())) * 2
    precision = rows[0]["precision"]
    for name, top in roofs.items():
        color, line = ("black", "-") if name == precision else ("#888888", "--")
        axes.plot([top / copy, high], [top, top], line, color=color, linewidth=1.5 if name == precision else 1)
        similar = [other for other, rate in roofs.items() if abs(math.log(rate / top)) < 0.2]  # one label for both
        if top == max(roofs[other] for other in similar):
            text = f"matrix product, {' and '.join(similar)}"
            position = (max(roofs.values()) / copy, top)  # at the knee: convolutions crowd the other end
            axes.annotate(text, position, (2, 4), textcoords="offset points", color=color, fontsize=8)
    knee = max(roofs.values()) / copy
    axes.plot([low, knee], [low * copy, knee * copy], color="black", linewidth=1.5)
    axes.annotate("memory", (knee / 2, knee / 2 * copy), (-8, 4), textcoords="offset points", ha="right", fontsize=8)
    for row in rows:
        _, color, marker = STYLES[_style(row)]
        point = (row["operations_per_byte"], row["gflop_s"])
        axes.plot(*point, color=color, marker=marker, markersize=6, linestyle="", alpha=0.85)
    for names, point in _group_labels([row for row in rows if row["type"] in ("conv", "linear", "lrn")]):
        axes.annotate(names, point, (0, -13), textcoords="offset points", ha="center", fontsize=8)
    axes.set(xscale="log", yscale="log", xlim=(low, high), xlabel="operations per byte moved")
    axes.set_title(f"{rows[0]['arch']}, forward, batch {rows[0]['batch_size']}, {precision}", fontsize=10)
    axes.grid(alpha=0.25, which="major")


def _group_labels(rows: Sequence[dict[str, Any]]) -> list[tuple[str, tuple[float, float]]]:
    """Return labels and their positions; layers whose labels would overlap share one."""
    groups: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=lambda row: row["operations_per_byte"]):
        near = groups and abs(math.log(row["operations_per_byte"] / groups[-1][-1]["operations_per_byte"])) < 0.9
        if near and abs(math.log(row["gflop_s"] / groups[-1][-1]["gflop_s"])) < 0.5:
            groups[-1].append(row)
        else:
            groups.append([row])
    labels = []
    for group in groups:
        x = math.exp(sum(math.log(row["operations_per_byte"]) for row in group) / len(group))
        first, *others = sorted(row["name"] for row in group)
        name = ", ".join([first, *(re.sub(r"^[a-z]+", "", other) for other in others)])  # conv2, 3, 5
        labels.append((name, (x, min(row["gflop_s"] for row in group))))
    return labels


def _style(row: dict[str, Any]) -> str:
    return STYLE_OF.get(row["type"], row["type"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["torchvision", "paper"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    found = measure(args.archs, args.batch, args.precision, args.seconds)
    for row in found["layers"]:
        print(f"{row['arch']:<12} {row['name']:<8} {row['ms']:8.2f} ms {row['gflop_s']:8.1f} GFLOP/s "
              f"{row['share_of_limit']:7.1%} of its roof {row['share_of_time']:6.1%} of the time")  # fmt: skip
    save("layers", found, folder=args.out)
    draw_roofline(found, args.out)


if __name__ == "__main__":
    main()
