"""The models that a server serves: classifiers by name, completely in memory; the first is the default.

A file that is replaced or damaged later changes nothing until the next start. Only a run whose training has not
finished at the start is loaded again when it has a newer checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.checkpoint import MODEL
from alexnet.errors import UserError
from alexnet.inference.load import published_name
from alexnet.inference.predict import Classifier, load
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions, options_for
from alexnet.run_dir import Run, find_run
from alexnet.runtimes.engines import EXACT, LoadedModel
from alexnet.runtimes.manifest import is_exported_model
from alexnet.text import escape


class LiveRun:
    """A run whose training has not finished at the start of the server."""

    def __init__(self, run: Run, checkpoint: str, device: str) -> None:
        self.run, self._checkpoint, self._device = run, checkpoint, device
        self.lock = threading.Lock()
        self.loaded = self.newest()
        """What `newest` returned when it was loaded."""

    def newest(self) -> tuple[str, int] | None:
        """Return what identifies the newest checkpoint and its calibration; None before the end of the first epoch."""
        with contextlib.suppress(OSError, UserError):
            folder = self.run.named_checkpoint(self._checkpoint)
            if folder is not None and self.run.summary():  # written after all else that belongs to an epoch
                return folder.name, (folder / MODEL).stat().st_mtime_ns
        return None

    def load(self) -> Classifier:
        """Load the newest checkpoint."""
        return load(self.run.path, checkpoint=self._checkpoint, device=self._device)


class Models(dict[str, Classifier]):
    """The loaded classifiers by name; the first is the default. Runs that are being trained are also in `live`."""

    def __init__(self, loaded: Mapping[str, Classifier] | None = None) -> None:
        super().__init__(loaded or {})
        self.live: dict[str, LiveRun] = {}

    @property
    def names(self) -> list[str]:
        """The names of all models, those of runs without a checkpoint last."""
        return [*self, *(name for name in self.live if name not in self)]

    def run(self, name: str) -> Run | None:
        """Return the run of the model `name`, which may have no checkpoint yet; None for other models."""
        return self.live[name].run if name in self.live else self[name].ensemble.members[0].run

    def is_outdated(self, name: str) -> bool:
        """Return whether `refresh` would load the model `name`."""
        live = self.live.get(name)
        return live is not None and live.newest() not in (None, live.loaded)

    def refresh(self, name: str) -> None:
        """Load the newest checkpoint of the model `name` if its run has a newer one than is loaded.

        If that fails, what is loaded stays until the next one. Raises `UserError` or `OSError` if nothing is loaded.
        """
        live = self.live[name]
        with live.lock:
            newest = live.newest()
            if newest in (None, live.loaded):
                return
            try:
                self[name] = live.load()
            except (OSError, UserError):
                if name not in self:
                    raise
            live.loaded = newest


def open_models(
    sources: Sequence[str | Path],
    checkpoint: str = "best",
    trust: bool = False,
    engine: str = EXACT,
    device: str = "auto",
    file: FileOptions = NO_OPTIONS,
    log: Callable[[str], object] = lambda _: None,
) -> Models:
    """Load each of `sources` with `predict.load`, named after its run folder or file; duplicates get a suffix -2, -3 …

    `engine` and `device` apply to runs; an exported file has its own engine. `file` describes files of
    weights. `log` receives a sentence per engine. A run without a checkpoint is only in `live` while it is trained.
    Raises `UserError` if one cannot be loaded, or there are none.
    """
    if not sources:
        raise UserError("A server needs at least one model; give a run folder or an exported file.")
    models = Models()
    for source in sources:
        options: dict[str, Any] = {} if is_exported_model(source) else {"engine": engine, "device": device}
        options["file"] = options_for(source, sources, file)
        run = _unfinished_run(source) if engine == EXACT else None
        live = LiveRun(run, checkpoint, device) if run else None
        if run and run.checkpoint_name(checkpoint) is None and run.is_locked():
            classifier, name = None, escape(run.path.resolve().name)
        else:
            classifier = load(source, checkpoint=checkpoint, trust=trust, log=log, **options)
            classifier.trace()
            name = _model_name(source, classifier.ensemble.members[0])
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        name = next(unique for unique in itertools.chain([name], numbered) if unique not in models.names)
        if live:
            models.live[name] = live
        if classifier:
            models[name] = classifier
    return models


def _unfinished_run(source: str | Path) -> Run | None:
    """Return the run that `source` names, unless its training has finished; None for anything else."""
    if published_name(source) or Path(source).is_file():
        return None
    with contextlib.suppress(UserError):
        run = find_run(source)
        if run.is_locked() or not run.summary().get("complete"):
            return run
    return None


def _model_name(source: str | Path, loaded: LoadedModel) -> str:
    path = Path(source)
    if published_name(source):
        return str(source).replace(":", "-").replace("/", "-")
    name = path.stem if path.is_file() else (loaded.run.path if loaded.run else path).resolve().name
    return escape(name)  # shown in the log, in pages and as a metrics label


def warm_up(classifier: Classifier, batch: int) -> None:
    """Run a full batch and a single image, so that no request waits for one-time work.

    An engine other than exact is verified or chosen on these images: training images of the run where it has them.
    """
    preprocess, loaded = classifier.preprocess, classifier.ensemble.members[0]
    shape = (batch, preprocess.channels, preprocess.size, preprocess.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if loaded.network is not None and loaded.engine is not None:
        with contextlib.suppress(UserError):
            from alexnet.inference.load import calibration_images

            images = np.resize(calibration_images(loaded, None), shape)
    if "saliency" in explanations(classifier):  # captum imports matplotlib, which searches fonts and creates its cache
        with contextlib.suppress(ImportError):
            importlib.import_module("captum.attr")
    for inputs in (images, images[:1]):  # the batch first: an engine is chosen for the first images it sees
        classifier.probabilities(torch.from_numpy(np.ascontiguousarray(inputs)))


def explanations(classifier: Classifier) -> list[str]:
    """Return what can be shown besides predictions: a subset of saliency, activations, similar, samples,
    training."""
    if classifier.model is None:  # an exported file
        return []
    from alexnet.models.model import AlexNet

    run = classifier.ensemble.members[0].run
    available = {
        "saliency": importlib.util.find_spec("captum") is not None,
        "activations": isinstance(classifier.model, AlexNet),
        "similar": run is not None and any((run.path / "index").glob("*/index.json")),
        "samples": run is not None,
        "training": run is not None and run.metrics_jsonl.is_file(),
    }
    return [name for name, yes in available.items() if yes]
