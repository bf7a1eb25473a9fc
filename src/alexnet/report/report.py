"""`report.html` of a run: one self-contained file made from its folder.

Sections are independent: one that fails states why, and the others are still shown. Only the images of the examples are
read from the dataset, once, and cached in the run folder.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from alexnet.checkpoint import load_checkpoint
from alexnet.messages.translator import Translator
from alexnet.plots.calibration import Confidence
from alexnet.plots.confusion import Confusion
from alexnet.plots.curves import metric_figure
from alexnet.plots.model import conv_weights, filter_tiles
from alexnet.plots.predictions import Example, find_examples
from alexnet.plots.style import Theme, show_image, tile_images
from alexnet.report.calibration import calibration_html, measure_confidence
from alexnet.report.confusion import classes_html, confusion_html
from alexnet.report.html import Column, Page, escape_text
from alexnet.report.provenance import augmented_html, machine_name, run_details_html, split_html
from alexnet.report.recommendations import recommend
from alexnet.report.run_data import RunData, read_run_data
from alexnet.report.thumbnails import load_thumbnails
from alexnet.run_dir import Run

MAX_EXAMPLES = 12  # of mistakes, and of correct predictions
MAX_BAD_FILES = 200

EPOCH_COLUMNS = (
    ("epoch", "epoch", ""), ("train_loss", "train_loss", ".4f"), ("train_top1", "train_top1", ".1%"),
    ("loss", "val_loss", ".4f"), ("top1", "top1", ".1%"), ("top5", "top5", ".1%"), ("rate", "lr", ".2g"),
    ("speed", "images_per_second", ",.0f"), ("seconds", "seconds", ".1f"),
)  # fmt: skip
"""Text key of the heading, key in metrics.jsonl, format."""


def write_report(run: Run, lang: str = "en", out: Path | None = None) -> list[Path]:
    """Write the report of a run in the language `lang` (en or zh) to `out`, by default `report.html` in its folder.

    Plots and tables are written to the folder of the same name next to it. Return the path of the report, then theirs.
    Raises `UserError` if no epoch has finished.
    """
    translate = Translator(lang)
    data = read_run_data(run)
    page = Page(out or run.path / "report.html", data.name, translate)
    confusion = confidence = None
    if data.predictions:
        targets, predicted = data.predictions.targets, data.predictions.predicted
        confusion = Confusion.from_predictions(targets, predicted, data.classes)
        confidence = measure_confidence(data, data.predictions)
    page.add("result", lambda: _result_html(page, data))
    page.add("next", lambda: _recommendations_html(page, data, confusion, confidence))
    page.add("alarms", lambda: _training_warnings_html(page, data))
    page.add("warnings", lambda: _data_warnings_html(page, data))
    page.add("curves", lambda: _curves_html(page, data))
    if confusion and confidence:
        page.add("confusion", lambda: confusion_html(page, confusion))
        page.add("classes", lambda: classes_html(page, data, confusion))
        page.add("mistakes", lambda: _examples_html(page, data, "mistakes"))
        page.add("least_confident_correct", lambda: _examples_html(page, data, "least_confident_correct"))
        page.add("calibration", lambda: calibration_html(page, data, confidence))
    page.add("filters", lambda: _filters_html(page, data))
    page.add("augmented", lambda: augmented_html(page, data))
    page.add("split", lambda: split_html(page, data))
    page.add("made", lambda: run_details_html(page, data))
    return page.write()


def _result_html(page: Page, data: RunData) -> str:
    """Return the accuracy with its confidence interval and baselines."""
    summary, metrics, translate = data.summary, data.metrics, page.translate
    training = page.paragraph(
        "epochs_done", best=summary["best"]["epoch"], epochs=summary["epochs"],
        split=translate.split(summary["split"]), time=translate.duration(summary["seconds"]),
        device=machine_name(data),
    )  # fmt: skip
    if not summary.get("complete", True):
        training += page.paragraph("unfinished", run=shlex.quote(str(data.run.path)))
    if metrics is None:
        split = escape_text(translate.split(summary["split"]))
        missing = page.paragraph("no_evaluation", "quiet", split=translate.split(data.split), run=data.run.path)
        return f'<p class="headline">{summary["best"]["top1"]:.1%}</p><p>{split}</p>{missing}{training}'
    low, high = metrics["interval"]
    counts = [c["n"] for c in metrics["per_class"]]
    majority = max(counts) / metrics["n"]
    bar = (
        f'<div class="scale" role="img" aria-label="{metrics["top1"]:.1%}">'
        f'<div class="reached" style="width:{metrics["top1"]:.2%}"></div>'
        f'<div class="range" style="left:{low:.2%};width:{high - low:.2%}"></div>'
        f'<div class="guess" style="left:{majority:.2%}"></div></div>'
    )
    interval = page.paragraph(
        "interval", low=low, high=high, top5=metrics["top5"], classes=len(counts), majority=majority,
        chance=1 / len(counts),
    )  # fmt: skip
    digits = 2 if metrics["n"] >= 1000 else 1  # more would be noise
    return (
        f'<p class="headline">{metrics["top1"]:.{digits}%}</p>'
        f"{page.paragraph('correct', n=metrics['n'], split=translate.split(data.split))}{bar}{interval}{training}"
        f"{page.paragraph('scale', 'quiet')}"
    )


def _recommendations_html(page: Page, data: RunData, confusion: Confusion | None, confidence: Confidence | None) -> str:
    items = ""
    for found in recommend(data, confusion, confidence):
        values = found.values
        if "split" in values:
            values = values | {"split": page.translate.split(values["split"])}
        command = f"<pre>{escape_text(found.command)}</pre>" if found.command else ""
        items += f"<li{' class=warn' if found.warns else ''}>{page.text('advice_' + found.key, **values)}{command}</li>"
    return f'<ul class="advice">{items}</ul>'


def _training_warnings_html(page: Page, data: RunData) -> str:
    """Return the warnings that training wrote to alarms.json: {epoch, kind, text} each."""
    alarms = data.read_json("alarms.json") or []
    items = "".join(f"<li class=warn>{page.text('at_epoch', n=a['epoch'], text=a['text'])}</li>" for a in alarms)
    return f'<ul class="advice">{items}</ul>' if items else ""


def _data_warnings_html(page: Page, data: RunData) -> str:
    """Return the warnings of `alexnet check`, if the run folder has them, and the unreadable files."""
    check = data.read_json("check.json") or {}
    body = "".join(f"<p>{escape_text(warning)}</p>" for warning in check.get("warnings", ()))
    if data.bad_files:
        columns = (Column("file", "long"), Column("reason", "long"))
        body += page.paragraph("skipped_files", n=len(data.bad_files))
        body += page.table("bad_files", columns, data.bad_files[:MAX_BAD_FILES])
    return body


def _curves_html(page: Page, data: RunData) -> str:
    runs = {data.name: data.history}

    def plot(name: str, train: str | None, val: str) -> str:
        return page.plot(
            name, lambda theme, translate: metric_figure(runs, train, val, theme, translate, translate(name))
        )

    plots = plot("loss", "train_loss", "val_loss") + plot("top1", "train_top1", "top1")
    plots += plot("rate", None, "lr") + plot("speed", None, "images_per_second")
    table = page.table(
        "epochs", [Column(heading, form) for heading, _, form in EPOCH_COLUMNS],
        [[epoch.get(key) for _, key, _ in EPOCH_COLUMNS] for epoch in data.history],
    )  # fmt: skip
    note = page.paragraph("curves_note", split=page.translate.split(data.history[0]["split"]))
    return f'{note}<div class="plots">{plots}</div>{page.details("every_epoch", table)}'


def _examples_html(page: Page, data: RunData, which: str) -> str:
    """Return `mistakes` or `least_confident_correct` as images with captions, and write them as a table."""
    assert data.predictions is not None
    found = data.predictions
    mistakes, correct = find_examples(found.names, found.targets, found.logits, data.classes, MAX_EXAMPLES)
    examples = mistakes if which == "mistakes" else correct
    if not examples:
        return page.paragraph("no_mistakes") if which == "mistakes" else ""
    columns = (Column("file", "long"), Column("true", "text"), Column("predicted", "text"), Column("confidence", ".1%"))
    page.table(which, columns, [(e.name, e.true, e.predicted, e.confidence) for e in examples])
    folder = data.run.path / "report" / "images"
    thumbnails = load_thumbnails(data.run, [example.name for example in examples], folder)
    missing = page.paragraph("images_missing", "quiet", why=thumbnails.error) if thumbnails.error else ""
    body = "".join(
        f"<figure>{thumbnails.html(example.name)}{_caption_html(page, example)}</figure>" for example in examples
    )
    return f'{page.paragraph(which + "_note")}{missing}<div class="examples">{body}</div>'


def _caption_html(page: Page, example: Example) -> str:
    key = "correct_prediction" if example.predicted == example.true else "wrong_prediction"
    caption = page.text(key, predicted=example.predicted, p=example.confidence, true=example.true)
    return f"<figcaption><b>{caption}</b><br>{escape_text(example.name)}</figcaption>"


def _filters_html(page: Page, data: RunData) -> str:
    """Return the filters of the first convolution on the image, as in figure 3 of the paper."""
    best = data.run.named_checkpoint("best")
    if best is None:
        return ""
    by_layer = conv_weights(load_checkpoint(best).model)
    name = next((name for name, weights in by_layer.items() if weights.shape[1] in (1, 3)), None)
    if name is None:
        return page.paragraph("no_filters")
    weights = by_layer[name]
    n, channels, k, _ = weights.shape
    figure = page.plot("filters", lambda theme, _: _filters_figure(weights, theme))
    note = page.paragraph("filters_note", name=name, n=n, k=k, channels=channels)
    return f'{note}<div class="plots full">{figure}</div>'


def _filters_figure(weights: np.ndarray, theme: Theme) -> Figure:
    columns = 12 if len(weights) % 12 == 0 else 16 if len(weights) > 32 else 8
    filters = filter_tiles(weights, theme)
    grid = tile_images(filters, columns, np.zeros(3), theme.background)
    alpha = tile_images(np.ones_like(filters), columns, np.zeros(3), "black")[..., :1]  # gaps show the page's color
    grid = np.concatenate([grid, alpha], axis=2)
    figure = Figure(figsize=(6, 6 * grid.shape[0] / grid.shape[1]))
    show_image(figure.add_axes((0, 0, 1, 1)), grid, interpolation="none", aspect="auto")
    return figure
