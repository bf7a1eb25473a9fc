"""The page of a run: `report.html`, one self-contained file made of what the run folder holds.

Every section stands on its own: what cannot be drawn says so, and the rest is there. Only the pictures of mistakes are
looked up in the data set, once, and then kept in the run folder.
"""

from __future__ import annotations

import base64
import shlex
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from alexnet.checkpoint import load_checkpoint
from alexnet.inference.calibration import ece
from alexnet.messages.texts import Translator
from alexnet.plots.calibration import Confidence, _coverage_figure, _reliability_figure
from alexnet.plots.confusion import NUMBERED, Confusion, _pixels, colours, confusion_figure
from alexnet.plots.curves import curve_figure
from alexnet.plots.model import conv_weights, filter_tiles
from alexnet.plots.predictions import Example, find_examples
from alexnet.plots.style import Theme, clean, show, tiles
from alexnet.report.html import Column, Page, data_json, text
from alexnet.report.provenance import augmented_html, machine, made_html, split_html
from alexnet.report.recommendations import recommend
from alexnet.report.run_data import Answers, RunData, read_run_data
from alexnet.report.thumbnails import thumbnails
from alexnet.run_dir import Run

CASES = 12  # mistakes, and successes, that are shown
PAIRS = 12
LISTED = 200  # files that could not be read

EPOCHS = (
    ("epoch", "epoch", ""), ("train_loss", "train_loss", ".4f"), ("train_top1", "train_top1", ".1%"),
    ("loss", "val_loss", ".4f"), ("top1", "top1", ".1%"), ("top5", "top5", ".1%"), ("rate", "lr", ".2g"),
    ("speed", "images_per_second", ",.0f"), ("seconds", "seconds", ".1f"),
)  # fmt: skip


def write_report(run: Run, lang: str = "en", out: Path | None = None) -> list[Path]:
    """Write the page of a run, `report.html` in its folder unless `out` says another place, in the language `lang`
    (en or zh), and its plots and tables into the folder of the same name beside it. Returns the page's path and theirs.

    Raises `UserError` before the first epoch.
    """
    words = Translator(lang)
    facts = read_run_data(run)
    page = Page(out or run.path / "report.html", facts.name, words)
    answers = facts.answers
    confusion = Confusion.of(answers.targets, answers.said, facts.classes) if answers else None
    confidence = Confidence.of(facts, answers) if answers else None
    page.add("result", lambda: _headline(facts, words))
    page.add("next", lambda: _next(facts, confusion, confidence, words))
    page.add("alarms", lambda: _alarms(facts, words))
    page.add("warnings", lambda: _warnings(page, facts))
    page.add("curves", lambda: _curves(page, facts))
    if answers and confusion and confidence:
        page.add("confusion", lambda: _confusion(page, confusion))
        page.add("classes", lambda: _classes(page, facts, confusion))
        page.add("mistakes", lambda: _cases(page, facts, answers, "mistakes"))
        page.add("lucky", lambda: _cases(page, facts, answers, "lucky"))
        page.add("calibration", lambda: confidence_html(page, confidence, facts.split))
    page.add("filters", lambda: _filters(page, facts))
    page.add("augmented", lambda: augmented_html(facts, words))
    page.add("split", lambda: split_html(page, facts))
    page.add("made", lambda: made_html(facts, words))
    return page.write()


# ── the result ────────────────────────────────────────────────────────────────────────────────────────────────────


def _headline(facts: RunData, words: Translator) -> str:
    summary, figures = facts.summary, facts.figures
    split = summary["split"]
    done = words(
        "epochs_done", best=summary["best"]["epoch"], epochs=summary["epochs"], split=split,
        time=words.duration(summary["seconds"]), device=machine(facts),
    )  # fmt: skip
    body = f"<p>{text(done)}</p>"
    if not summary.get("complete", True):
        body += f"<p>{text(words('unfinished', run=shlex.quote(str(facts.run.path))))}</p>"
    if figures is None:
        top1 = summary["best"]["top1"]
        missing = words("no_evaluation", split=facts.split, run=facts.run.path)
        return f'<p class="headline">{top1:.1%}</p><p>{text(split)}</p><p class="quiet">{text(missing)}</p>{body}'
    low, high = figures["interval"]
    counts = [c["n"] for c in figures["per_class"]]
    commonest = max(counts) / figures["n"]
    said = words(
        "range",
        low=low,
        high=high,
        top5=figures["top5"],
        classes=len(counts),
        commonest=commonest,
        lots=1 / len(counts),
    )
    scale = (
        f'<div class="scale" role="img" aria-label="{figures["top1"]:.1%}">'
        f'<div class="reached" style="width:{figures["top1"]:.2%}"></div>'
        f'<div class="range" style="left:{low:.2%};width:{high - low:.2%}"></div>'
        f'<div class="guess" style="left:{commonest:.2%}"></div></div>'
    )
    digits = 2 if figures["n"] >= 1000 else 1  # more would be noise
    return (
        f'<p class="headline">{figures["top1"]:.{digits}%}</p>'
        f"<p>{text(words('right', n=figures['n'], split=facts.split))}</p>{scale}<p>{text(said)}</p>{body}"
        f'<p class="quiet">{text(words("scale"))}</p>'
    )


def _next(facts: RunData, confusion: Confusion | None, confidence: Confidence | None, words: Translator) -> str:
    items = [
        f"<li{' class=warn' if advice.warns else ''}>{text(words('advice_' + advice.key, **advice.values))}"
        + (f"<pre>{text(advice.command)}</pre>" if advice.command else "")
        + "</li>"
        for advice in recommend(facts, confusion, confidence)
    ]
    return f'<ul class="advice">{"".join(items)}</ul>'


def _alarms(facts: RunData, words: Translator) -> str:
    """What training said of itself: {epoch, kind, text} each."""
    alarms = facts.stored("alarms.json") or []
    said = (words("at_epoch", n=alarm["epoch"], said=alarm["text"]) for alarm in alarms)
    items = (f"<li class=warn>{text(sentence)}</li>" for sentence in said)
    return f'<ul class="advice">{"".join(items)}</ul>' if alarms else ""


def _warnings(page: Page, facts: RunData) -> str:
    """Of `alexnet check` where the run folder keeps them, and the files that were left out."""
    check = facts.stored("check.json") or {}
    body = "".join(f"<p>{text(warning)}</p>" for warning in check.get("warnings", ()))
    if facts.bad_files:
        columns = (Column("picture", "long"), Column("why", "long"))
        body += f"<p>{text(page.words('left_out', n=len(facts.bad_files)))}</p>"
        body += page.table("bad_files", columns, facts.bad_files[:LISTED])
    return body


# ── how it learned ────────────────────────────────────────────────────────────────────────────────────────────────


def _curves(page: Page, facts: RunData) -> str:
    runs = {facts.name: facts.rows}

    def plot(name: str, train: str | None, val: str) -> str:
        return page.plot(name, lambda theme, words: curve_figure(runs, train, val, theme, words, words(name)))

    plots = plot("loss", "train_loss", "val_loss") + plot("top1", "train_top1", "top1")
    plots += plot("rate", None, "lr") + plot("speed", None, "images_per_second")
    words = page.words
    table = page.table(
        "epochs", [Column(head, form) for head, _, form in EPOCHS],
        [[row.get(key) for _, key, _ in EPOCHS] for row in facts.rows],
    )  # fmt: skip
    return (
        f'<p>{text(words("curves_said", split=facts.rows[0]["split"]))}</p><div class="plots">{plots}</div>'
        f"<details><summary>{text(words('every_epoch'))}</summary>{table}</details>"
    )


# ── what it says ──────────────────────────────────────────────────────────────────────────────────────────────────


def _confusion(page: Page, found: Confusion) -> str:
    words = page.words
    page.plot("confusion", lambda theme, words: confusion_figure(found, theme, words), inline=False)
    columns = (Column("true", "text"), Column("said", "text"), Column("times", ",d"), Column("share", ".1%"))
    pairs = found.pairs(PAIRS)
    table = f"<div><h3>{text(words('pairs'))}</h3>{page.table('confusions', columns, pairs)}</div>" if pairs else ""
    return f"<p>{text(words('confusion_said'))}</p><div class='beside'>{confusion_html(found, words)}{table}</div>"


def _classes(page: Page, facts: RunData, found: Confusion) -> str:
    assert facts.figures is not None, "there are answers"
    mostly = found.mostly()
    columns = (
        Column("class", "text"), Column("images", ",d"), Column("precision", ".1%"), Column("recall", ".1%"),
        Column("f1", ".3f"), Column("", "bar"), Column("mostly", "text"), Column("times", ",d"),
    )  # fmt: skip
    rows = [
        (c["label"], c["n"], c["precision"], c["recall"], c["f1"], c["f1"], *mostly.get(c["label"], ("", None)))
        for c in sorted(facts.figures["per_class"], key=lambda c: c["f1"])
    ]
    return f"<p>{text(page.words('classes_said'))}</p>{page.table('classes', columns, rows, sortable=True)}"


def _cases(page: Page, facts: RunData, answers: Answers, which: str) -> str:
    """The surest mistakes or the least sure successes: pictures where they can be had, and names."""
    words = page.words
    mistakes, lucky = find_examples(answers.names, answers.targets, answers.logits, facts.classes, CASES)
    cases = mistakes if which == "mistakes" else lucky
    if not cases:
        return f"<p>{text(words('no_mistakes'))}</p>" if which == "mistakes" else ""
    page.table(
        which, (Column("picture", "long"), Column("true", "text"), Column("said", "text"), Column("sure", ".1%")),
        [(case.name, case.true, case.said, case.p) for case in cases],
    )  # fmt: skip
    small = thumbnails(facts.run, [case.name for case in cases], facts.run.path / "report" / "pictures")
    gone = f'<p class="quiet">{text(words("pictures_gone", why=small.why))}</p>' if small.why else ""
    body = "".join(f"<figure>{small.html(case.name)}{_caption(case, words)}</figure>" for case in cases)
    return f'<p>{text(words(which + "_said"))}</p>{gone}<div class="pictures">{body}</div>'


def _caption(case: Example, words: Translator) -> str:
    said = words("is" if case.said == case.true else "is_not", said=case.said, p=case.p, true=case.true)
    return f"<figcaption><b>{text(said)}</b><br>{text(case.name)}</figcaption>"


# ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _filters(page: Page, facts: RunData) -> str:
    """The filters that read the picture, figure 3 of the paper."""
    best = facts.run.named_checkpoint("best")
    if best is None:
        return ""
    weights = conv_weights(load_checkpoint(best).model)
    name = next((name for name, own in weights.items() if own.shape[1] in (1, 3)), None)
    if name is None:
        return f"<p>{text(page.words('no_filters'))}</p>"
    own = weights[name]
    said = page.words("filters_said", name=name, n=len(own), k=own.shape[2], channels=own.shape[1])
    figure = page.plot("filters", lambda theme, _: _filters_figure(own, theme))
    return f'<p>{text(said)}</p><div class="plots full">{figure}</div>'


def _filters_figure(weights: np.ndarray, theme: Theme) -> Figure:
    columns = 12 if len(weights) % 12 == 0 else 16 if len(weights) > 32 else 8
    filters = filter_tiles(weights, theme)
    sheet = tiles(filters, columns, np.zeros(3), theme.paper)
    there = tiles(np.ones_like(filters), columns, np.zeros(3), "black")[..., :1]
    sheet = np.concatenate([sheet, there], axis=2)  # between the filters the page shows, whatever its colour
    figure = Figure(figsize=(6, 6 * sheet.shape[0] / sheet.shape[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    show(axes, sheet, interpolation="none", aspect="auto")
    return figure


def confidence_html(page: Page, found: Confidence, split: str) -> str:
    """Two plots, what they say in words, and a table of thresholds."""
    words, calibration = page.words, found.calibration
    said = [words("ece", mean=found.plain.mean(), top1=found.right.mean(), ece=ece(found.plain, found.right))]
    if calibration is not None:
        answered = ~calibration.is_unsure(found.best)
        said.append(
            words("corrected", t=calibration.temperature, ece=ece(found.best, found.right), split=calibration.split)
        )
        said.append(words("threshold", threshold=calibration.threshold, share=answered.mean(), split=split))
        if answered.any():
            said.append(words("answered", right=found.right[answered].mean()))
        if not answered.all():
            said.append(words("unanswered", right=found.right[~answered].mean()))
    plots = page.plot("calibration", lambda theme, words: _reliability_figure(found, theme, words))
    plots += page.plot("coverage", lambda theme, words: _coverage_figure(found, theme, words))
    if calibration is None:
        said.append(words("not_calibrated", why=found.note))
    elif found.note:
        said.append(words("fitted_now", split=calibration.split))
    more = f"<details><summary>{text(words('thresholds'))}</summary>{_table(page, found)}</details>"
    return f'<p>{text(words.join(said))}</p><div class="plots">{plots}</div>{more}'


def _table(page: Page, found: Confidence) -> str:
    """What some thresholds give."""
    at = [0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99]
    if found.calibration is not None:
        at = sorted({*at, found.calibration.threshold})
    rows = []
    for threshold in at:
        answered = found.best >= threshold
        rows.append((threshold, answered.mean(), found.right[answered].mean() if answered.any() else None))
    columns = (Column("sure", ".1%"), Column("answered_share", ".1%"), Column("answered_right", ".1%"))
    return page.table("thresholds", columns, rows)


def confusion_html(found: Confusion, words: Translator) -> str:
    """The matrix as a part of a page: headings that stay in sight, a slider for its size, and a line that reads the
    cell under the pointer. Cells are elements up to 30 classes, else one picture with a pixel each."""
    n = len(found.labels)
    names = [text(clean(label, 40)) for label in found.labels]
    spans = "".join(f'<span title="{name}">{name}</span>' for name in names)
    cell = 34 if n <= 12 else 26 if n <= NUMBERED else 14 if n <= 60 else max(2, 640 // n)
    data = {
        "names": [clean(label, 40) for label in found.labels],
        "said": words("cell"),
        "cells": [{int(j): int(row[j]) for j in np.flatnonzero(row)} for row in found.counts],
    }
    return (
        f'<div><div class="zoom"><label>{text(words("zoom"))} <input type="range" min="2" max="48" value="{cell}" '
        f'data-of="confusion-data"></label><output class="quiet">{text(words("point"))}</output></div>'
        f'<div class="matrix{" tiny" if cell < 11 else ""}" data-of="confusion-data" style="--n:{n};--cell:{cell}px">'
        f'<div class="corner">{text(words("true_said"))}</div><div class="said">{spans}</div>'
        f'<div class="true">{spans}</div><div class="cells">{_cells(found)}</div></div>'
        + data_json("confusion-data", data)
        + "</div>"
    )


def _cells(found: Confusion) -> str:
    strength, own = colours(found)
    if len(found.labels) > NUMBERED:
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(_pixels(strength, own)).decode()}">'
    parts = []
    for i, row in enumerate(found.counts):
        for j, count in enumerate(row):
            kind = ' class="own"' if i == j else ""
            parts.append(f'<b{kind} style="--s:{strength[i, j]:.2f}">{count}</b>' if count else "<b></b>")
    return "".join(parts)
