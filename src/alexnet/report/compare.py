"""Several runs side by side on one page: accuracies with intervals, curves in one plot, what differs, what it cost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from alexnet.errors import UserError
from alexnet.messages.texts import Translator
from alexnet.plots.curves import curve_figure, panel
from alexnet.plots.style import Theme, clean
from alexnet.report.html import Column, Page, text
from alexnet.report.provenance import machine
from alexnet.report.run_data import RunData, read_run_data
from alexnet.run_dir import Run

Named = dict[str, RunData]


def write_comparison(runs: Sequence[Run], lang: str = "en", out: Path | None = None) -> list[Path]:
    """Write a page that compares `runs`: `comparison.html` in the first one's folder unless `out` says another place.

    Returns the page's path and those of its plots and tables. Raises `UserError` for fewer than two runs, the same run
    twice, and a run without a finished epoch.
    """
    words = Translator(lang)
    if len(runs) < 2 or len({run.path.resolve() for run in runs}) < len(runs):
        raise UserError("A comparison needs at least two different runs; name each of them once.")
    found = [read_run_data(run) for run in runs]
    names = [facts.name for facts in found]
    known = {
        facts.name if names.count(facts.name) == 1 else str(facts.run.path): facts for facts in found
    }  # where folders share a name, their whole path
    page = Page(out or runs[0].path / "comparison.html", words("compared", n=len(runs)), words)
    page.add("result", lambda: _accuracies(page, known))
    page.add("curves", lambda: _curves(page, known))
    page.add("cost", lambda: _cost(page, known))
    page.add("differ", lambda: _settings(page, known))
    return page.write()


# ── accuracy ──────────────────────────────────────────────────────────────────────────────────────────────────────


def behind(best: RunData, other: RunData) -> tuple[float, float, float] | None:
    """By how much `best` is more accurate on the same pictures, with its 95 % interval; None if they are not the same.

    The interval is that of paired proportions: what counts is the pictures on which exactly one of the two is right.
    """
    a, b = best.answers, other.answers
    if a is None or b is None or best.classes != other.classes or best.split != other.split:
        return None
    places = {name: i for i, name in enumerate(a.names)}
    if len(places) != len(b.names) or set(places) != set(b.names):
        return None
    order = np.array([places[name] for name in b.names])
    if (a.targets[order] != b.targets).any():
        return None
    right = (a.said == a.targets)[order].astype(int) - (b.said == b.targets)
    mean = float(right.mean())
    off = 1.96 * float(right.std(ddof=1)) / len(right) ** 0.5 if len(right) > 1 else 1.0
    return mean, mean - off, mean + off


def _accuracies(page: Page, known: Named) -> str:
    words = page.words
    best_name = max(known, key=lambda name: _top1(known[name]))
    best = known[best_name]
    rows: list[tuple[Any, ...]] = []
    compared = 0
    for name, facts in sorted(known.items(), key=lambda item: -_top1(item[1])):
        low, high = facts.figures["interval"] if facts.figures else (None, None)
        pair = None if facts is best else behind(best, facts)
        compared += pair is not None
        points = tuple(100 * x for x in pair) if pair else (None, None, None)
        top5 = facts.figures["top5"] if facts.figures else facts.summary["best"]["top5"]
        loss = facts.figures["loss"] if facts.figures else facts.summary["best"]["val_loss"]
        rows.append(
            (
                name,
                facts.split if facts.figures else facts.summary["split"],
                _top1(facts),
                low,
                high,
                top5,
                loss,
                *points,
            )
        )
    heads = [("runs", "long"), ("part", "text"), ("top1", ".2%"), ("low", ".2%"), ("high", ".2%"), ("top5", ".2%"),
             ("loss", ".4f"), ("behind", ".2f"), ("behind_low", ".2f"), ("behind_high", ".2f")]  # fmt: skip
    if not compared:
        rows, heads = [row[:-3] for row in rows], heads[:-3]
    said = ""
    if compared:
        assert best.answers is not None
        said += f"<p>{text(words('behind_said', best=best_name, n=len(best.answers.names)))}</p>"
    if compared < len(known) - 1:
        said += f"<p>{text(words('other_pictures'))}</p>"
    plot = page.plot("accuracy", lambda theme, words: _intervals(known, theme, words))
    return (
        f'<p>{text(words("compare_said"))}</p><div class="plots">{plot}</div>'
        + page.table("accuracies", [Column(key, form) for key, form in heads], rows, sortable=True) + said
    )  # fmt: skip


def _top1(facts: RunData) -> float:
    return float(facts.figures["top1"] if facts.figures else facts.summary["best"]["top1"])


def _intervals(known: Named, theme: Theme, words: Translator) -> Figure:
    figure, axes = panel(5.2, 1.2 + 0.42 * len(known))
    for i, facts in enumerate(known.values()):
        colour = theme.series[i % len(theme.series)]
        if facts.figures:
            axes.plot(facts.figures["interval"], (i, i), color=colour, lw=3, solid_capstyle="butt")
        axes.plot(_top1(facts), i, "o", color=colour, ms=9)
    axes.set_yticks(range(len(known)), [clean(name, 22) for name in known])
    axes.set_ylim(len(known) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(words("top1"))
    axes.grid(axis="x")
    return figure


# ── the rest ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _curves(page: Page, known: Named) -> str:
    runs = {name: facts.rows for name, facts in known.items()}
    splits = sorted({str(facts.rows[0]["split"]) for facts in known.values()})

    def plot(name: str, train: str, val: str, minutes: bool = False) -> str:
        return page.plot(
            f"{name}-by-minutes" if minutes else name,
            lambda theme, words: curve_figure(runs, train, val, theme, words, words(name), minutes),
        )

    plots = plot("top1", "train_top1", "top1") + plot("top1", "train_top1", "top1", minutes=True)
    plots += plot("loss", "train_loss", "val_loss")
    return f'<p>{text(page.words("curves_said", split=" / ".join(splits)))}</p><div class="plots">{plots}</div>'


def _cost(page: Page, known: Named) -> str:
    columns = (
        Column("runs", "long"), Column("epochs", ",d"), Column("time", "text"), Column("seconds", ",.1f"),
        Column("speed", ",.0f"), Column("architecture", "text"), Column("weights", ",d"), Column("numbers", "text"),
        Column("machine", "text"),
    )  # fmt: skip
    rows = [
        (name, s["epochs"], page.words.duration(s["seconds"]), s["seconds"], s["images_per_second"], s["arch"],
         s["parameters"], s["precision"], machine(facts))
        for name, facts in known.items()
        for s in (facts.summary,)
    ]  # fmt: skip
    return page.table("cost", columns, rows, sortable=True)


def _settings(page: Page, known: Named) -> str:
    """Of recipe.json, what is not the same in all runs."""
    recipes = [facts.recipe for facts in known.values()]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    rows = [
        (key, *(json.dumps(recipe[key], ensure_ascii=False) if key in recipe else "" for recipe in recipes))
        for key in keys
        if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)
    ]
    if not rows:
        return f"<p>{text(page.words('same_settings'))}</p>"
    columns = (Column("setting", "text"), *(Column("", "long", name) for name in known))
    return page.table("settings", columns, rows)
