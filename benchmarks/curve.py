"""Accuracy against training time, several trainings in one plot: accuracy-against-time.json, .svg and .png.

    python benchmarks/curve.py "cifar10-fast=runs/fast" "tutorial=benchmarks/results/cifar10-plain.json" [--out DIR]

Each NAME=PATH is a run folder (or its metrics.jsonl), or a JSON document of benchmarks/tutorials.py. Several paths with
the same name are seeds and share a color. Time counts from the start of training and includes validation, but not
reading the data.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from common import RESULTS, save
from matplotlib import pyplot as plt
from matplotlib.ticker import LogLocator, PercentFormatter

# Okabe and Ito's colors, distinguishable for the color-blind, and different line styles
STYLES = [("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#CC79A7", ":"), ("#000000", (0, (5, 1, 1, 1)))]
Point = dict[str, float]


def read(path: Path) -> list[Point]:
    """Return (epoch, seconds since the start, top1) per epoch. Exit if the file holds no such data."""
    path = path / "metrics.jsonl" if path.is_dir() else path
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            spent, points = 0.0, []
            for row in map(json.loads, text.splitlines()):
                spent += row["seconds"]  # each epoch's own
                points.append({"epoch": row["epoch"], "seconds": spent, "top1": row["top1"]})
            return points
        found: Any = json.loads(text)
        rows = found if isinstance(found, list) else found["results"]["curve"]
        return [
            {"epoch": row["epoch"], "seconds": row["seconds"], "top1": row.get("top1", row.get("accuracy"))}
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path} holds no accuracies against seconds ({error!r}); give a run folder or tutorials.py's JSON.")


def draw(curves: dict[str, list[list[Point]]], folder: Path, lines: tuple[float, ...] = (0.78,)) -> list[Path]:
    """Plot a line per run and a color per name, mark the accuracies `lines`, and return the files."""
    figure, axes = plt.subplots(figsize=(7.2, 4.4), layout="constrained")
    for (name, runs), (color, style) in zip(curves.items(), STYLES * len(curves), strict=False):
        for i, points in enumerate(runs):
            x, y = [p["seconds"] for p in points], [p["top1"] for p in points]
            label = None if i else f"{name} ({len(runs)} seeds)" if len(runs) > 1 else name
            axes.plot(x, y, linestyle=style, color=color, label=label, marker="o", markersize=3, linewidth=1.4)
    for line in lines:
        axes.axhline(line, color="#888888", linewidth=0.8)
        axes.annotate(f"{line:.0%}", (0.01, line), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    axes.set(xscale="log", xlabel="seconds of training, validation included", ylabel="top-1 on the validated split")
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="lower right", frameon=False)
    paths = [folder / f"accuracy-against-time.{form}" for form in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return paths


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("curves", nargs="+", metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    curves: dict[str, list[list[Point]]] = {}
    for given in args.curves:
        name, equals, path = given.partition("=")
        if not equals:
            sys.exit(f"'{given}' is not NAME=PATH; write for example cifar10-fast=runs/fast.")
        curves.setdefault(name, []).append(read(Path(path)))
    args.out.mkdir(parents=True, exist_ok=True)
    for path in draw(curves, args.out):
        print(path)
    save("accuracy-against-time", {"curves": curves}, folder=args.out)


if __name__ == "__main__":
    main()
