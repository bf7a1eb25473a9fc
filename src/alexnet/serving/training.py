"""What the page shows of a run's training, read from its folder: state, epochs, alarms and the most confident mistakes.

The mistakes are those of the best epoch so far, whose outputs on the validation images training stores; so nothing is
computed again.
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
from fastapi import Depends, FastAPI, Query
from PIL import Image
from starlette.concurrency import run_in_threadpool

from alexnet.checkpoint import read_model_json
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.errors import UserError
from alexnet.files import convert, read_json
from alexnet.inference.load import load_run_dataset
from alexnet.inference.neighbors import find_image_file, load_run_images
from alexnet.messages.translator import LANGUAGES, Translator
from alexnet.run_dir import Run
from alexnet.runtimes.engines import softmax
from alexnet.serving.access import authorize, model_name
from alexnet.serving.explain import NotAvailable, thumbnail
from alexnet.serving.registry import Models
from alexnet.serving.routes import error_schemas
from alexnet.text import clean_label

NUM_MISTAKES = 12

State = Literal["training", "stopped", "finished"]
T = TypeVar("T")


# ── schemas ───────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Epoch:
    """A finished epoch; accuracies are fractions of 1."""

    epoch: int
    train_loss: float
    val_loss: float
    train_top1: float
    top1: float


@dataclass
class Alarm:
    """A warning of the training that no later epoch has disproved."""

    epoch: int
    kind: str
    text: str
    texts: dict[str, str]
    """By language: en and zh."""


@dataclass
class Training:
    """How far a run is. It has stopped if no process trains it and epochs are left."""

    model: str
    state: State
    epochs: int
    """How many it is planned to have; the last one may be incomplete."""
    step: int
    """Optimizer steps done; of a stopped run, those that its last checkpoint has."""
    steps: int | None
    """How many are planned, and how many an epoch has; None before the first one."""
    steps_per_epoch: int | None
    time_budget: str | None
    """As given, such as 15m: `steps` is then an estimate that follows the speed of training."""
    split: str
    """The split on which it is validated: val or test."""
    best: int | None
    """The best epoch so far, whose network is served by default."""
    history: list[Epoch]
    alarms: list[Alarm]


@dataclass
class Mistake:
    """A validation image whose most probable label, with the probability `p`, is not the true one."""

    label: str
    """The true one."""
    predicted: str
    p: float
    image: str | None
    """As a data URI; None if the dataset has been moved."""


@dataclass
class Mistakes:
    """The most confident ones of `wrong` mistakes among `images` validation images, by the network of `epoch`."""

    epoch: int
    images: int
    wrong: int
    mistakes: list[Mistake]


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


class TrainedRun:
    """The training of a served run. The methods raise `NotAvailable` if its files are damaged."""

    def __init__(self, name: str, run: Run) -> None:
        self.name, self.run = name, run
        self._lock = threading.Lock()
        self._found: tuple[int, Mistakes] | None = None
        self._part: ImageArrays | ImageFiles | None = None
        """The validation images, once loaded from a dataset that is not made of image files."""

    def training(self) -> Training:
        """Return the state of the training."""
        locked = self.run.is_locked()  # first: what the training writes last is then complete
        summary, path = self.run.summary(), self.run.path / "alarms.json"
        alarms = read_json(path, list[dict[str, Any]]) if path.is_file() else []
        alarms = [alarm for alarm in alarms if not alarm.get("withdrawn")]
        state: State = "training" if locked else "finished" if summary.get("complete") else "stopped"
        recipe, rows = read_json(self.run.recipe_json, dict[str, Any]), self.run.metrics()
        return Training(
            self.name, state, int(recipe["epochs"]), *self._steps(state, recipe, rows, summary),
            recipe.get("time_budget"), str(recipe["validate_on"]),
            summary["best"]["epoch"] if summary else None,
            _convert(rows, Epoch, self.run.metrics_jsonl),
            _convert([{**alarm, "texts": _translate(alarm["text"])} for alarm in alarms], Alarm, path),
        )  # fmt: skip

    def _steps(
        self, state: State, recipe: dict[str, Any], rows: list[dict[str, Any]], summary: dict[str, Any]
    ) -> tuple[int, int | None, int | None]:
        """Return the number of steps done, planned and in an epoch; None where the run does not say yet."""
        path = self.run.progress_json
        progress = read_json(path, dict[str, int]) if path.is_file() else {}
        step = int(rows[-1]["step"]) if rows else 0
        if state == "training":
            step = max(step, progress.get("step", 0))
        elif state == "stopped" and (last := self.run.checkpoint_name("last")):
            step = int(last.rstrip("a"))
        per_epoch = progress.get("steps_per_epoch") or summary.get("steps_per_epoch")
        if state == "finished" or per_epoch is None:
            return step, step or None, per_epoch
        planned = min(recipe.get("limit_steps") or math.inf, recipe["epochs"] * per_epoch)
        return step, int(progress.get("steps", planned)), per_epoch

    def mistakes(self) -> Mistakes:
        """Return the most confident mistakes of the best epoch so far, none before the end of the first one."""
        with self._lock:
            summary = self.run.summary()
            if not summary:
                return Mistakes(0, 0, 0, [])
            written = (self.run.path / "evaluation" / f"{summary['split']}.parquet").stat().st_mtime_ns
            if self._found is None or self._found[0] != written:
                self._found = written, self._find_mistakes(summary["split"], summary["best"]["epoch"])
            return self._found[1]

    def _find_mistakes(self, split: str, epoch: int) -> Mistakes:
        stored, best = self.run.read_evaluation(split), self.run.named_checkpoint("best")
        assert stored is not None, "its file was just there"
        assert best is not None, "it was evaluated"
        names, targets, logits = stored
        classes = [clean_label(label) for label in read_model_json(best)["classes"]]
        p = softmax(logits)
        predicted, confidence = p.argmax(1), p.max(1)
        wrong = np.flatnonzero(predicted != targets)
        rows = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_MISTAKES]
        images = self._load([names[row] for row in rows], split)
        mistakes = [
            Mistake(
                classes[targets[row]],
                classes[predicted[row]],
                float(confidence[row]),
                thumbnail(image) if image else None,
            )
            for row, image in zip(rows, images, strict=True)
        ]
        return Mistakes(epoch, len(targets), len(wrong), mistakes)

    def _load(self, names: list[str], split: str) -> Sequence[Image.Image | None]:
        """Return images of the dataset by their names; None for each if it has been moved."""
        try:
            if self._part is None and None in [find_image_file(self.run, name) for name in names]:
                self._part = load_run_dataset(self.run, None).splits[split]
            return load_run_images(self.run, names, self._part)
        except (OSError, ValueError, LookupError, TypeError):
            return [None] * len(names)


def _translate(text: str) -> dict[str, str]:
    return {lang: Translator(lang).sentence(text) for lang in LANGUAGES}


def _convert(rows: list[dict[str, Any]], kind: type[T], where: Path) -> list[T]:
    """Return the fields of a dataclass from each of `rows`, which have more. Raises `UserError`."""
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    return convert([{name: row[name] for name in names} for row in rows], list[kind], str(where))  # type: ignore[valid-type]


def add_training_routes(app: FastAPI) -> None:
    """Add /v1/training and /v1/mistakes."""
    models: Models = app.state.models
    runs: dict[str, TrainedRun] = {}
    query = Query(None, json_schema_extra={"enum": models.names})
    options: Any = {"dependencies": [Depends(authorize)], "responses": error_schemas(401, 404)}

    async def read(model: str | None, function: Callable[[TrainedRun], T]) -> T:
        name = model_name(models, model)
        run = models.run(name)
        if run is None:
            raise NotAvailable(f"{name} is not a run, so nothing is known of its training.")
        served = runs.setdefault(name, TrainedRun(name, run))
        try:
            return await run_in_threadpool(function, served)
        except (OSError, UserError, LookupError, TypeError, ValueError) as error:
            raise NotAvailable(f"The training of {name} cannot be shown: {error}") from error

    @app.get("/v1/training", **options)
    async def training(model: str | None = query) -> Training:
        """Say how far the training of a run is: its epochs and alarms."""
        return await read(model, TrainedRun.training)

    @app.get("/v1/mistakes", **options)
    async def mistakes(model: str | None = query) -> Mistakes:
        """Show the most confident mistakes on the validation images, after the best epoch so far."""
        return await read(model, TrainedRun.mistakes)
