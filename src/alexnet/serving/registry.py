"""The models that a server serves, by name: loaded once, completely in memory.

A file that is replaced or damaged later changes nothing until the next start. Saliency and activations use a copy of
the network's modules that shares its weights, so that hooks and gradients cannot affect concurrent predictions.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from alexnet.errors import UserError
from alexnet.files import printable
from alexnet.inference.predict import Classifier, load
from alexnet.run_dir import Run
from alexnet.runtimes.engines import EXACT

if TYPE_CHECKING:
    from torch import nn

    from alexnet.runtimes.engines import LoadedModel


@dataclass(frozen=True)
class ServedModel:
    """One model that answers requests."""

    name: str
    classifier: Classifier
    shared_copy: LoadedModel | None
    """Copy for hooks and gradients that shares the classifier's weights; None for an exported file."""
    run: Run | None
    source: str
    """What the user gave."""
    architecture: str
    engine: str
    """An engine as in `--engine`, or the format of an exported file."""
    precision: str | None
    """Number format of the weights; None if the engine implies it, or chooses it at the first images."""
    thread_safe: bool = False
    """Whether several threads may use the classifier at the same time."""


class ModelRegistry(Mapping[str, ServedModel]):
    """Models by name, in the order given. Raises `UserError` if there are none."""

    def __init__(self, served: Sequence[ServedModel]) -> None:
        if not served:
            raise UserError("A server needs at least one model; give a run folder or an exported file.")
        self._served = {model.name: model for model in served}
        self.default = served[0].name
        """Name of the first model, used by requests that name none."""

    def __getitem__(self, name: str) -> ServedModel:
        return self._served[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)


def open_models(
    names: Sequence[str | Path],
    checkpoint: str = "best",
    trust: bool = False,
    engine: str = EXACT,
    device: str = "auto",
    log: Callable[[str], object] = lambda _: None,
) -> ModelRegistry:
    """Load each of `names` with `predict.load`, named after its run folder or file; duplicates get a suffix -2, -3 …

    `engine` and `device` apply to runs; an exported file has its own engine. `log` receives a sentence per engine.
    Raises `UserError` if one cannot be loaded.
    """
    from alexnet.runtimes.manifest import is_exported_model

    served: list[ServedModel] = []
    for source in names:
        exported = is_exported_model(source)
        classifier = load(
            source,
            checkpoint=checkpoint,
            device="auto" if exported else device,
            engine=EXACT if exported else engine,
            trust=trust,
            log=log,
        )
        member = classifier.ensemble.members[0]
        name = _unique(_model_name(source, member, exported), {model.name for model in served})
        served.append(_serve(name, classifier, member, str(source), engine))
    return ModelRegistry(served)


def _serve(name: str, classifier: Classifier, loaded: LoadedModel, source: str, engine: str) -> ServedModel:
    if manifest := loaded.manifest:
        return ServedModel(name, classifier, None, None, source, manifest.network, manifest.kind, manifest.precision)
    shared_copy = dataclasses.replace(loaded, network=_share_weights(loaded.model))
    precision = "fp32" if engine in (EXACT, "onnxruntime", "openvino") else None
    architecture, thread_safe = loaded.model.spec.name, classifier.trace()
    return ServedModel(name, classifier, shared_copy, loaded.run, source, architecture, engine, precision, thread_safe)


def _share_weights(model: Any) -> Any:
    """Return a copy of the modules of `model` with the same parameter and buffer tensors."""
    network: nn.Module = model
    tensors = {id(x): x for x in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(model, tensors)


def _model_name(source: str | Path, member: LoadedModel, exported: bool) -> str:
    path = Path(source)
    if str(source).startswith("torchvision:"):
        return str(source).replace(":", "-").replace("/", "-")
    if exported:
        return printable(path.resolve().name if path.is_dir() else path.stem)
    return printable(member.run.path.resolve().name if member.run else path.resolve().name)


def _unique(name: str, taken: set[str]) -> str:
    """Return `name`, with the lowest suffix from -2 on if it is taken."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique


def warm_up(served: ServedModel, batch: int) -> None:
    """Run a full batch and a single image, so that no request waits for one-time work.

    An engine other than exact is verified or chosen on these images: training images of the run where it has them.
    """
    preprocess = served.classifier.preprocess
    shape = (batch, preprocess.channels, preprocess.size, preprocess.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    if served.shared_copy is not None and served.engine != EXACT:
        with contextlib.suppress(UserError):
            from alexnet.inference.evaluate import calibration_images

            images = np.resize(calibration_images(served.shared_copy, None), shape)
    if "saliency" in explanations(served):  # captum imports matplotlib, which searches fonts and creates its cache
        with contextlib.suppress(ImportError):
            importlib.import_module("captum.attr")
    for inputs in (images, images[:1]):  # the batch first: an engine is chosen for the first images it sees
        served.classifier.probabilities(torch.from_numpy(np.ascontiguousarray(inputs)))


def explanations(served: ServedModel) -> list[str]:
    """Return what can be shown besides predictions: a subset of saliency, activations, similar, samples."""
    if served.shared_copy is None:
        return []
    from alexnet.models.model import AlexNet

    run = served.run
    available = {
        "saliency": importlib.util.find_spec("captum") is not None,
        "activations": isinstance(served.shared_copy.model, AlexNet),
        "similar": run is not None and any((run.path / "index").glob("*/index.json")),
        "samples": run is not None,
    }
    return [name for name, yes in available.items() if yes]
