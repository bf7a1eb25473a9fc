"""What a run folder tells, read once for its page: no data set, no network, and no part that must be there but the
finished epochs."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.checkpoint import MODEL
from alexnet.data.split import read_split
from alexnet.errors import UserError
from alexnet.inference.metrics import compute_metrics
from alexnet.run_dir import Run


@dataclass(frozen=True)
class Answers:
    """What the network said of each picture of a split."""

    names: Sequence[str]
    targets: np.ndarray
    """int64 (n,)."""
    logits: np.ndarray
    """float32 (n, classes)."""

    @property
    def said(self) -> np.ndarray:
        return np.asarray(self.logits.argmax(1))

    @cached_property
    def sure(self) -> np.ndarray:
        """Probability of what was said, float64 (n,)."""
        return np.asarray(1 / np.exp(self.logits - self.logits.max(1, keepdims=True)).sum(1, dtype=np.float64))


@dataclass(frozen=True)
class RunData:
    """A run with at least one finished epoch."""

    run: Run
    rows: list[dict[str, Any]]
    """Of metrics.jsonl."""
    summary: dict[str, Any]
    recipe: dict[str, Any]
    env: dict[str, Any]
    model: dict[str, Any]
    """Of the best checkpoint's model.json; empty if that is gone."""
    split: str
    """The one that is reported: test where there is one."""
    answers: Answers | None
    """On that split; None if it was not evaluated or the file is damaged."""

    @property
    def name(self) -> str:
        return self.run.path.resolve().name

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(map(str, self.model.get("classes", ())))

    @cached_property
    def figures(self) -> dict[str, Any] | None:
        """Of `metrics.measure`; None without answers."""
        if self.answers is None:
            return None
        return compute_metrics(self.answers.logits, self.answers.targets, self.classes)

    @cached_property
    def split_counts(self) -> dict[str, int]:
        """Pictures in each part, as split.csv lists them; empty if the data came divided."""
        if not self.run.split_csv.is_file():
            return {}
        return dict(Counter(part for _, part in read_split(self.run.split_csv)))

    @property
    def training_pictures(self) -> int | None:
        """How many, where the run tells: exactly by split.csv, else from the steps of an epoch."""
        if self.split_counts:
            return self.split_counts.get("train")
        steps, epochs, batch = (self.summary.get("steps"), self.summary.get("epochs"), self.recipe.get("batch_size"))
        if not steps or not epochs or not batch or self.recipe.get("limit_steps"):
            return None
        return int(steps / epochs * batch)

    @cached_property
    def bad_files(self) -> list[list[str]]:
        """File and reason of each picture that was left out."""
        return _rows(self.run.path / "bad_files.csv")

    def stored(self, name: str) -> Any:
        """What the JSON file `name` of the run folder holds; None if it is not there or damaged."""
        return _json(self.run.path / name)


def read_run_data(run: Run) -> RunData:
    """Raises `UserError` before the first epoch has ended."""
    rows, summary = run.metrics(), run.summary()
    if not rows or not summary:
        raise UserError(f"The run {run.path} has not finished an epoch yet, so there is nothing to report.")
    recipe = _json(run.recipe_json) or {}
    try:
        best = run.named_checkpoint("best")
    except UserError:
        best = None
    model = (_json(best / MODEL) if best else None) or {}
    split = "test" if "test" in summary else str(summary["split"])
    return RunData(
        run, rows, summary, recipe, _json(run.path / "env.json") or {}, model, split, _answers(run, split, model)
    )


def _answers(run: Run, split: str, model: dict[str, Any]) -> Answers | None:
    try:
        found = run.read_evaluation(split)
    except Exception:  # pyarrow has a class of its own for each kind of damage
        return None
    if found is None or not len(found[1]) or found[2].shape[1] != len(model.get("classes", ())):
        return None
    return Answers(*found)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _rows(path: Path) -> list[list[str]]:
    """The rows of a CSV file after its header."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return list(csv.reader(file))[1:]
    except (OSError, csv.Error):
        return []
