"""Comparison of several runs on one page: accuracies with intervals, curves, cost, and settings that differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from alexnet.errors import UserError
from alexnet.messages.translator import Translator
from alexnet.plots.metrics import accuracy_figure, metric_figure
from alexnet.report.page import Column, Page, Values
from alexnet.report.report import write_report
from alexnet.report.run_data import RunData, read_run_data
from alexnet.run_dir import Run

RunsByName = dict[str, RunData]


def write_pages(runs: Sequence[Run], lang: str = "en", out: Path | None = None) -> list[Path]:
    """Write the report of a run, or the comparison of several; return its path, followed by those of its files.

    Raises `UserError` where `write_report` and `write_comparison` do.
    """
    return write_report(runs[0], lang, out) if len(runs) == 1 else write_comparison(runs, lang, out)


def write_comparison(runs: Sequence[Run], lang: str = "en", out: Path | None = None) -> list[Path]:
    """Write a page that compares `runs` to `out`, by default `comparison.html` in the folder of the first run.

    Return the path of the page, followed by those of its plots and tables. Raises `UserError` for fewer than two runs,
    a repeated run, or a run without a finished epoch.
    """
    if len(runs) < 2 or len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError("A comparison needs at least two different runs; name each of them once.")
    loaded = [read_run_data(run) for run in runs]
    names = [data.name for data in loaded]
    # folders of the same name are identified by their path
    by_name = {data.name if names.count(data.name) == 1 else str(data.run.path): data for data in loaded}
    title = Translator(lang)("compared", n=len(runs))
    page = Page(out or runs[0].path / "comparison.html", title, "compare.html", lang)
    page.add("result", lambda: _result(page, by_name))
    page.add("curves", lambda: _curves(page, by_name))
    page.add("cost", lambda: _cost(page, by_name))
    page.add("differ", lambda: _differ(page, by_name))
    return page.write()


def accuracy_difference(best: RunData, other: RunData) -> tuple[float, float, float] | None:
    """Return by how much `best` is more accurate on the same images, with the 95% confidence interval (low, high).

    The interval is that of paired proportions, determined by the images that exactly one of the two classifies
    correctly. None if the images or classes differ.
    """
    a, b = best.predictions, other.predictions
    if a is None or b is None or best.classes != other.classes or best.split != other.split:
        return None
    rows = {name: i for i, name in enumerate(a.names)}
    if len(rows) != len(b.names) or set(rows) != set(b.names):
        return None
    order = np.array([rows[name] for name in b.names])
    if (a.targets[order] != b.targets).any():
        return None
    differences = (a.predicted == a.targets)[order].astype(int) - (b.predicted == b.targets)
    n, mean = len(differences), float(differences.mean())
    margin = 1.96 * float(differences.std(ddof=1)) / n**0.5 if n > 1 else 1.0
    return mean, mean - margin, mean + margin


def _result(page: Page, runs: RunsByName) -> Values:
    top1 = {name: data.metrics["top1"] if data.metrics else data.summary["best"]["top1"] for name, data in runs.items()}
    best_name = max(runs, key=top1.__getitem__)
    best = runs[best_name]
    rows: list[tuple[Any, ...]] = []
    compared = 0
    for name in sorted(runs, key=top1.__getitem__, reverse=True):
        data = runs[name]
        metrics, val = data.metrics, data.summary["best"]
        split = page.translate.split(data.split if metrics else data.summary["split"])
        low, high = metrics["interval"] if metrics else (None, None)
        top5, loss = (metrics["top5"], metrics["loss"]) if metrics else (val["top5"], val["val_loss"])
        top5 = top5 if data.has_top5 else None
        difference = None if data is best else accuracy_difference(best, data)
        compared += difference is not None
        points = tuple(100 * x for x in difference) if difference else (None, None, None)
        rows.append((name, split, top1[name], low, high, top5, loss, *points))
    columns = [
        Column("run", "long"), Column("split_name", "text"), Column("top1", ".2%"), Column("low", ".2%"),
        Column("high", ".2%"), Column("top5", ".2%"), Column("loss", ".4f"), Column("behind", ".2f"),
        Column("behind_low", ".2f"), Column("behind_high", ".2f"),
    ]  # fmt: skip
    if not any(data.has_top5 for data in runs.values()):
        i = next(i for i, column in enumerate(columns) if column.key == "top5")
        rows, columns = [row[:i] + row[i + 1 :] for row in rows], columns[:i] + columns[i + 1 :]
    intervals = {name: data.metrics["interval"] for name, data in runs.items() if data.metrics}
    if not compared:
        rows, columns = [row[:-3] for row in rows], columns[:-3]
    return {
        "figure": page.plot("accuracy", partial(accuracy_figure, top1, intervals)),
        "accuracies": page.table("accuracies", columns, rows, sortable=True),
        "best": best_name,
        "compared_images": len(best.predictions.names) if compared and best.predictions else 0,
        "all_compared": compared == len(runs) - 1,
    }


def _curves(page: Page, runs: RunsByName) -> Values:
    histories = {name: data.history for name, data in runs.items()}
    splits = sorted({str(data.history[0]["split"]) for data in runs.values()})

    def plot(name: str, train: str, val: str, minutes: bool = False) -> Markup:
        return page.plot(
            f"{name}-by-minutes" if minutes else name,
            partial(metric_figure, histories, name, train, val, minutes=minutes),
        )

    accuracy = ("top1", "train_top1", "top1")
    figures = [plot(*accuracy), plot(*accuracy, minutes=True), plot("loss", "train_loss", "val_loss")]
    return {"figures": figures, "splits": " / ".join(map(page.translate.split, splits))}


def _cost(page: Page, runs: RunsByName) -> Values:
    columns = (
        Column("run", "long"), Column("epochs", ","), Column("time", "text"), Column("seconds", ",.1f"),
        Column("speed", ",.0f"), Column("architecture", "text"), Column("parameter_count", ",d"),
        Column("numeric_precision", "text"), Column("machine", "text"),
    )  # fmt: skip
    rows = [
        (name, _round_epochs(data.passes), page.translate.duration(s["seconds"]), s["seconds"], s["images_per_second"],
         s["arch"], s["parameters"], s["precision"], data.machine)
        for name, data in runs.items()
        for s in (data.summary,)
    ]  # fmt: skip
    return {"costs": page.table("cost", columns, rows, sortable=True)}


def _round_epochs(passes: float) -> float:
    """Return a number of epochs for the table: with two digits if less than one, else with one decimal at most."""
    rounded = float(f"{passes:.2g}") if passes < 1 else round(passes, 1)
    return int(rounded) if rounded.is_integer() else rounded


def _differ(page: Page, runs: RunsByName) -> Values:
    recipes = [data.recipe for data in runs.values()]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    rows = [
        (key, *(json.dumps(recipe[key], ensure_ascii=False) if key in recipe else "" for recipe in recipes))
        for key in keys
        if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)
    ]
    columns = (Column("setting", "text"), *(Column("", "long", name) for name in runs))
    return {"settings": page.table("settings", columns, rows) if rows else None}
