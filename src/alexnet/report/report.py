"""`report.html` of a run: one self-contained file made from its folder.

Each function `_…` computes the values of one section, whose HTML is the macro of that name in templates/report.html.
Sections are independent: one that fails states why, and the others are still shown. Only the images of the examples are
read from the dataset, once, and cached in the run folder.
"""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from rich.cells import cell_len

from alexnet.checkpoint import load_checkpoint
from alexnet.notebook.display import image_url
from alexnet.plots.metrics import (
    Confidence,
    Confusion,
    confusion_figure,
    coverage_figure,
    metric_figure,
    reliability_figure,
)
from alexnet.plots.model import conv_weights, filter_sheet, find_examples
from alexnet.plots.style import is_wide, shorten
from alexnet.report.page import Column, Page, Table, Values, load_thumbnails
from alexnet.report.recommendations import MIN_CALIBRATION_IMAGES, recommend
from alexnet.report.run_data import RunData, read_run_data
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import ece

MAX_EXAMPLES = 12  # of mistakes, and of correct predictions
MAX_BAD_FILES = 200
MAX_PAIRS = 12
MAX_ELEMENTS = 30  # classes up to which each cell of the confusion matrix is an element with its count
THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
SHEET_WIDTH = 1200  # maximum width of the augmented batch, in pixels

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
    data = read_run_data(run)
    page = Page(out or run.path / "report.html", data.name, "report.html", lang)
    page.add("result", lambda: _result(data))
    page.add("next", lambda: _next(page, data))
    page.add("alarms", lambda: {"alarms": data.training_warnings} if data.training_warnings else None)
    page.add("warnings", lambda: _warnings(page, data))
    page.add("curves", lambda: _curves(page, data))
    page.add("confusion", lambda: _confusion(page, data.confusion))
    page.add("classes", lambda: _classes(page, data))
    for which in ("mistakes", "least_confident_correct"):
        page.add(which, partial(_examples, page, data, which), macro="examples")
    page.add("calibration", lambda: _calibration(page, data, data.confidence))
    page.add("filters", lambda: _filters(page, data))
    page.add("augmented", lambda: _augmented(data))
    page.add("split", lambda: _split(page, data))
    page.add("made", lambda: _made(page, data))
    return page.write()


def _result(data: RunData) -> Values:
    return {
        "summary": data.summary, "split": data.split, "metrics": data.metrics, "majority": data.majority,
        "has_top5": data.has_top5, "passes": data.passes, "machine": data.machine, "run": data.run.path,
        "quoted_run": shlex.quote(str(data.run.path)),
    }  # fmt: skip


def _next(page: Page, data: RunData) -> Values:
    found = recommend(data)
    for one in found:
        if "split" in one.values:
            one.values["split"] = page.translate.split(one.values["split"])
    return {"recommendations": found}


def _warnings(page: Page, data: RunData) -> Values | None:
    warnings, bad_files = data.data_warnings, data.bad_files
    if not warnings and not bad_files:
        return None
    columns = (Column("file", "file"), Column("reason", "long"))
    rows = [(name, page.translate.sentence(reason)) for name, reason in bad_files[:MAX_BAD_FILES]]
    table = page.table("bad_files", columns, rows) if rows else None
    return {"warnings": warnings, "bad_files": table, "count": len(bad_files)}


def _curves(page: Page, data: RunData) -> Values:
    runs = {data.name: data.history}
    figures = [
        page.plot(name, partial(metric_figure, runs, name, train, val))
        for name, train, val in (
            ("loss", "train_loss", "val_loss"), ("top1", "train_top1", "top1"), ("rate", None, "lr"),
            ("speed", None, "images_per_second"),
        )
    ]  # fmt: skip
    shown = [column for column in EPOCH_COLUMNS if column[0] != "top5" or data.has_top5]
    columns = [Column(heading, form) for heading, _, form in shown]
    rows = [[epoch.get(key) for _, key, _ in shown] for epoch in data.history]
    return {"figures": figures, "epochs": page.table("epochs", columns, rows), "split": data.history[0]["split"]}


def _confusion(page: Page, confusion: Confusion | None) -> Values | None:
    """Return the matrix and the most frequent confusions; write the figure.

    Cells are elements up to `MAX_ELEMENTS` classes, else an image with one pixel per cell.
    """
    if confusion is None:
        return None
    page.plot("confusion", partial(confusion_figure, confusion))
    columns = (Column("true", "text"), Column("predicted", "text"), Column("count", ",d"), Column("share", ".1%"))
    pairs = confusion.most_frequent(MAX_PAIRS)
    counts, n = confusion.counts, len(confusion.labels)
    names = [shorten(label, 40) for label in confusion.labels]
    cells = zip(*(a.ravel().tolist() for a in (counts, confusion.strengths, confusion.diagonal)), strict=True)
    return {
        "names": names,
        "flat": max(map(cell_len, names)) <= 3,
        "upright": [name for name in names if is_wide(name)],
        "cell_px": 34 if n <= 12 else 26 if n <= MAX_ELEMENTS else 14 if n <= 60 else max(2, 640 // n),
        "digits": len(str(counts.max())),
        "cells": list(cells) if n <= MAX_ELEMENTS else [],
        "pixels": None if n <= MAX_ELEMENTS else image_url(_draw_cells(confusion), "PNG", optimize=True),
        "matrix": {
            "names": names,
            "text": page.translate("cell"),
            "cells": [{int(j): int(row[j]) for j in np.flatnonzero(row)} for row in counts],
        },
        "pairs": page.table("confusions", columns, pairs) if pairs else None,
    }


def _draw_cells(confusion: Confusion) -> Image.Image:
    """Draw one pixel per cell, transparent where the count is 0, in colors that suit both themes."""
    rgba = np.empty((*confusion.counts.shape, 4), np.uint8)
    rgba[..., :3] = np.where(confusion.diagonal[..., None], (43, 140, 204), (226, 110, 20))
    rgba[..., 3] = np.round(255 * confusion.strengths)
    return Image.fromarray(rgba)


def _classes(page: Page, data: RunData) -> Values | None:
    if data.metrics is None or data.confusion is None:
        return None
    mistaken_for = data.confusion.mistaken_for()
    columns = (
        Column("class", "text"), Column("images", ",d"), Column("precision", ".1%"), Column("recall", ".1%"),
        Column("f1", ".3f"), Column("", "bar"), Column("mistaken_for", "text"), Column("count", ",d"),
    )  # fmt: skip
    rows = [
        (c["label"], c["n"], c["precision"], c["recall"], c["f1"], c["f1"], *mistaken_for.get(c["label"], ("", None)))
        for c in sorted(data.metrics["per_class"], key=lambda c: c["f1"])
    ]
    return {"results": page.table("classes", columns, rows, sortable=True)}


def _examples(page: Page, data: RunData, which: str) -> Values | None:
    """Return `mistakes` or `least_confident_correct` with their images, and write them as a table."""
    found, confidence = data.predictions, data.confidence
    if found is None:
        return None
    if confidence is not None and confidence.calibration is not None:  # the confidence that `predict` shows
        found = replace(found, logits=found.logits / confidence.calibration.temperature)
    mistakes, correct = find_examples(found, data.classes, MAX_EXAMPLES)
    examples = mistakes if which == "mistakes" else correct
    if not examples and which != "mistakes":
        return None
    if not examples:
        note = page.translate("no_mistakes", n=len(found.targets), split=page.translate.split(data.split))
        return {"note": note, "examples": [], "images_missing": ""}
    columns = (Column("file", "file"), Column("true", "text"), Column("predicted", "text"), Column("confidence", ".1%"))
    page.table(which, columns, [(e.name, e.true, e.predicted, e.confidence) for e in examples])
    urls, error = load_thumbnails(data.run, [e.name for e in examples], data.run.path / "report" / "images")
    return {
        "note": page.translate(f"{which}_note"), "examples": [(e, urls.get(e.name)) for e in examples],
        "images_missing": error,
    }  # fmt: skip


def _calibration(page: Page, data: RunData, confidence: Confidence | None) -> Values | None:
    """Return the calibration errors in sentences, two plots, and the table of thresholds."""
    if confidence is None:
        return None
    translate, calibration, correct = page.translate, confidence.calibration, confidence.correct
    mean, error = confidence.uncalibrated.mean(), ece(confidence.uncalibrated, correct)
    sentences = [translate("ece", mean=mean, top1=correct.mean(), ece=error)]
    if len(correct) < MIN_CALIBRATION_IMAGES:
        sentences.append(translate("few_for_ece", n=len(correct)))
    if calibration is None:
        sentences.append(translate("not_calibrated", why=confidence.note))
    else:
        fitted_on, split = translate.split(calibration.split), translate.split(data.split)
        accepted = ~calibration.is_unsure(confidence.reported)
        error = ece(confidence.reported, correct)
        sentences += [
            translate("temperature", t=calibration.temperature, ece=error, split=fitted_on),
            translate("threshold", threshold=calibration.threshold),
        ]
        if accepted.any():
            accuracy = correct[accepted].mean()
            sentences.append(translate("accepted", accuracy=accuracy, share=accepted.mean(), split=split))
        else:
            sentences.append(translate("none_accepted", split=split))
        if not accepted.all():
            sentences.append(translate("rejected", accuracy=correct[~accepted].mean()))
        if confidence.note:
            sentences.append(translate("fitted_now", split=fitted_on))
    figures = [
        page.plot("calibration", partial(reliability_figure, confidence)),
        page.plot("coverage", partial(coverage_figure, confidence)),
    ]
    return {"sentences": sentences, "figures": figures, "thresholds": _thresholds(page, confidence)}


def _thresholds(page: Page, confidence: Confidence) -> Table:
    thresholds = {*THRESHOLDS, *([confidence.calibration.threshold] if confidence.calibration else [])}
    rows = []
    for threshold in sorted(thresholds):
        accepted = confidence.reported >= threshold
        rows.append((threshold, accepted.mean(), confidence.correct[accepted].mean() if accepted.any() else None))
    columns = (Column("confidence", ".1%"), Column("accepted_share", ".1%"), Column("accepted_accuracy", ".1%"))
    return page.table("thresholds", columns, rows)


def _filters(page: Page, data: RunData) -> Values | None:
    """Return the filters of the first convolution on the image, as in figure 3 of the paper."""
    best = data.run.named_checkpoint("best")
    if best is None:
        return None
    by_layer = conv_weights(load_checkpoint(best).model)
    name = next((name for name, weights in by_layer.items() if weights.shape[1] in (1, 3)), None)
    if name is None:
        return {"name": None, "weights": None, "figure": None}
    weights = by_layer[name]
    figure = page.plot("filters", partial(filter_sheet, weights))
    return {"name": name, "weights": weights.shape, "figure": figure}


def _augmented(data: RunData) -> Values | None:
    """Return the augmented batch that training saved; None if there is none."""
    path = data.run.path / "augmented.png"
    if not path.is_file():
        return None
    image = Image.open(path).convert("RGB")
    if image.width > SHEET_WIDTH:
        image = ImageOps.contain(image, (SHEET_WIDTH, 4 * SHEET_WIDTH))
    return {"url": image_url(image, quality=85)}


def _split(page: Page, data: RunData) -> Values:
    counts = ({data.split: data.metrics["n"]} if data.metrics else {}) | data.split_counts
    rows = [(page.translate.split(name), counts[name]) for name in ("train", "val", "test") if name in counts]
    columns = (Column("split_name", "text"), Column("images", ",d"))
    return {
        "source": data.recipe.get("data") or data.recipe.get("dataset", ""),
        "seed": data.recipe.get("seed", 0) if data.split_counts else None,
        "training_images": data.training_images,
        "counts": page.table("split", columns, rows) if rows else None,
    }


def _made(page: Page, data: RunData) -> Values:
    translate, summary, env = page.translate, data.summary, data.env
    preprocess: dict[str, Any] = data.model.get("preprocess", {})
    memory = [epoch["memory"] for epoch in data.history if epoch.get("memory")]
    versions = [f"{name} {version}" for name, version in env.get("versions", {}).items() if version]
    details = {
        "architecture": f"{summary['arch']}, {translate('parameters', n=summary['parameters'])}",
        "input": "{}×{}×{}".format(preprocess.get("channels", "?"), *[preprocess.get("size", "?")] * 2),
        "time": translate(
            "time_value" if data.passes >= 1 else "time_value_partial", time=translate.duration(summary["seconds"]),
            epochs=summary["epochs"], speed=summary["images_per_second"], steps=summary.get("steps"),
            all=summary.get("steps_per_epoch"),
        ),
        "numeric_precision": translate("on_device", precision=summary["precision"], device=summary["device"]),
        "memory": f"{max(memory) / 2**30:.1f} GiB" if memory else "",
        "machine": translate("cores", machine=data.machine, cores=env.get("cores", "?")),
        "system": env.get("platform"), "versions": ", ".join(versions), "revision": env.get("git"),
    }  # fmt: skip
    again = f"alexnet train {shlex.quote(str(data.run.recipe_json))}"
    return {
        "details": details,
        "commands": {"command": env.get("command"), "again": again},
        "recipe": json.dumps(data.recipe, indent=2, ensure_ascii=False),
    }
