"""The contents of a run folder, read once for its report: no dataset and no network.

Only the finished epochs are required; every other part may be missing or damaged.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from alexnet.checkpoint import MODEL
from alexnet.data.dataset import read_split
from alexnet.errors import UserError
from alexnet.files import read_json
from alexnet.inference.evaluate import compute_metrics, has_top5
from alexnet.plots.metrics import Confidence, Confusion
from alexnet.plots.model import Predictions
from alexnet.run_dir import Run
from alexnet.runtimes.calibration import correct_at, find_calibration

T = TypeVar("T")

Document = dict[str, Any]
"""A JSON document of a run folder."""


@dataclass(frozen=True)
class RunData:
    """A run with at least one finished epoch."""

    run: Run
    history: list[Document]
    """The lines of metrics.jsonl, one per epoch."""
    summary: Document
    recipe: Document
    env: Document
    model: Document
    """model.json of the best checkpoint; empty if it is missing."""
    split: str
    """The split that is reported: test if there is one, else val."""
    predictions: Predictions | None
    """On that split; None if it was not evaluated or the file is damaged."""

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, self.model.get("classes", ())))

    @property
    def has_top5(self) -> bool:
        return has_top5(len(self.classes) or int(self.summary.get("classes", 1)))

    @property
    def machine(self) -> str:
        return str(self.env.get("gpu") or self.env.get("cpu") or self.summary.get("device", "?"))

    @cached_property
    def metrics(self) -> Document | None:
        if self.predictions is None:
            return None
        return compute_metrics(self.predictions.logits, self.predictions.targets, self.classes)

    @property
    def majority(self) -> float:
        """Accuracy of always predicting the most common class; of guessing, if the run was not evaluated."""
        if self.metrics is None:
            return 1 / max(1, self.summary.get("classes", 1))
        return float(max(c["n"] for c in self.metrics["per_class"]) / self.metrics["n"])

    @cached_property
    def confusion(self) -> Confusion | None:
        if self.predictions is None:
            return None
        return Confusion.from_predictions(self.predictions.targets, self.predictions.predicted, self.classes)

    @cached_property
    def confidence(self) -> Confidence | None:
        """The confidence of `predictions`, None without them; a damaged calibration counts as none."""
        if self.predictions is None:
            return None
        try:
            calibration, note = find_calibration(self.run.named_checkpoint("best"), self.run)
        except UserError as error:
            calibration, note = None, str(error)
        logits = self.predictions.logits
        calibrated = calibration.confidence(logits) if calibration else None
        correct = correct_at(logits, self.predictions.targets, 1)
        return Confidence(correct, self.predictions.confidence, calibrated, calibration, note)

    @property
    def passes(self) -> float:
        """How often training has seen each image: the number of epochs, of which the last may be incomplete."""
        steps_per_epoch = self.summary.get("steps_per_epoch")  # earlier versions: unknown
        return self.summary["steps"] / steps_per_epoch if steps_per_epoch else float(len(self.history))

    @cached_property
    def split_counts(self) -> dict[str, int]:
        """Images by split, as split.csv lists them; empty if the data came with its own splits."""
        if not self.run.split_csv.is_file():
            return {}
        return dict(Counter(split for _, split in read_split(self.run.split_csv)))

    @property
    def class_images(self) -> dict[str, int]:
        """Training images of each class; empty for a run of an earlier version."""
        counts = self.summary.get("class_images", [])
        return dict(zip(self.classes, counts, strict=True)) if len(counts) == len(self.classes) else {}

    @property
    def training_images(self) -> int | None:
        """Number of training images: for a run of an earlier version by split.csv, else estimated from the steps per
        epoch; None if unknown."""
        if self.class_images:
            return sum(self.class_images.values())
        if self.split_counts:
            return self.split_counts.get("train")
        steps, epochs, batch_size = self.summary.get("steps"), self.summary.get("epochs"), self.recipe.get("batch_size")
        if not steps or not epochs or not batch_size or self.recipe.get("limit_steps"):
            return None
        return int(steps / epochs * batch_size)

    @cached_property
    def bad_files(self) -> list[list[str]]:
        """Path and reason of each unreadable image."""
        try:
            with (self.run.path / "bad_files.csv").open(
                newline="", encoding="utf-8-sig", errors="surrogateescape"
            ) as file:
                return list(csv.reader(file))[1:]
        except (OSError, csv.Error):
            return []

    @property
    def training_warnings(self) -> list[Document]:
        """What training wrote to alarms.json: epoch, kind and text of each warning that no later epoch disproved."""
        return [alarm for alarm in _read(self.run.path / "alarms.json", list[Document]) if not alarm.get("withdrawn")]

    @property
    def data_warnings(self) -> list[str]:
        """The warnings of `alexnet check`, if the run folder has its check.json."""
        return list(_read(self.run.path / "check.json", Document).get("warnings", ()))


def read_run_data(run: Run) -> RunData:
    """Read a run folder. Raises `UserError` if no epoch has finished."""
    history, summary = run.metrics(), run.summary()
    if not history or not summary:
        raise UserError(f"The run {run.path} has not finished an epoch yet, so there is nothing to report.")
    try:
        best = run.named_checkpoint("best")
    except UserError:
        best = None
    model = _read(best / MODEL, Document) if best else {}
    split = "test" if "test" in summary else str(summary["split"])
    return RunData(
        run, history, summary, _read(run.recipe_json, Document), _read(run.path / "env.json", Document), model, split,
        _read_predictions(run, split, len(model.get("classes", ()))),
    )  # fmt: skip


def _read_predictions(run: Run, split: str, classes: int) -> Predictions | None:
    try:
        stored = run.read_evaluation(split)
    except Exception:  # pyarrow raises many exception types for damaged files
        return None
    if stored is None or not len(stored[1]) or stored[2].shape[1] != classes:
        return None
    return Predictions(*stored)


def _read(path: Path, kind: type[T]) -> T:
    """Return a JSON file as the type `kind`; an empty one if the file is missing or damaged."""
    try:
        return read_json(path, kind)
    except (OSError, UserError):
        return kind()
