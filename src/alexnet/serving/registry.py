"""The models that a server serves: classifiers by name, loaded once and completely in memory; the first is the default.

A file that is replaced or damaged later changes nothing until the next start.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.errors import UserError
from alexnet.inference.load import published_name
from alexnet.inference.predict import Classifier, load
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions, options_for
from alexnet.runtimes.engines import EXACT, LoadedModel
from alexnet.runtimes.manifest import is_exported_model
from alexnet.text import escape

Models = dict[str, Classifier]


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
    weights. `log` receives a sentence per engine. Raises `UserError` if one cannot be loaded, or there are none.
    """
    if not sources:
        raise UserError("A server needs at least one model; give a run folder or an exported file.")
    models: Models = {}
    for source in sources:
        options: dict[str, Any] = {} if is_exported_model(source) else {"engine": engine, "device": device}
        options["file"] = options_for(source, sources, file)
        classifier = load(source, checkpoint=checkpoint, trust=trust, log=log, **options)
        classifier.trace()
        name = _model_name(source, classifier.ensemble.members[0])
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        models[next(unique for unique in itertools.chain([name], numbered) if unique not in models)] = classifier
    return models


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
    """Return what can be shown besides predictions: a subset of saliency, activations, similar, samples."""
    if classifier.model is None:  # an exported file
        return []
    from alexnet.models.model import AlexNet

    run = classifier.ensemble.members[0].run
    available = {
        "saliency": importlib.util.find_spec("captum") is not None,
        "activations": isinstance(classifier.model, AlexNet),
        "similar": run is not None and any((run.path / "index").glob("*/index.json")),
        "samples": run is not None,
    }
    return [name for name, yes in available.items() if yes]
