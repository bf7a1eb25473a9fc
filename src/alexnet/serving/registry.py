"""The networks that a server answers with: opened once, wholly in memory, by name.

A file that is swapped or damaged later changes nothing until the next start. What looks inside a network (hooks,
gradients) gets a twin of it with the same weights, so that it cannot meddle with answers computed at the same time.
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
    from alexnet.runtimes.exported import ExportedModel


@dataclass(frozen=True)
class ServedModel:
    """One network that answers requests."""

    name: str
    classifier: Classifier
    opened: LoadedModel | None
    """For looking inside, with weights shared with the classifier; None of an exported file."""
    run: Run | None
    source: str
    """What it was opened from, as it was told."""
    architecture: str
    engine: str
    """What computes it: an engine as `--engine` names it, or the format of an exported file."""
    precision: str | None
    """What it keeps its numbers in; None where the engine's name says so, or it is chosen at the first pictures."""
    shared: bool = False
    """Whether several threads may ask the classifier at once."""


class ModelRegistry(Mapping[str, ServedModel]):
    """Networks by name, in the order in which they were given."""

    def __init__(self, served: Sequence[ServedModel]) -> None:
        if not served:
            raise UserError("A server needs at least one network; give a run folder or an exported file.")
        self._served = {one.name: one for one in served}
        self.default = served[0].name
        """The name of the first, which answers where none is asked for."""

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
    say: Callable[[str], object] = lambda _: None,
) -> ModelRegistry:
    """Open each of `names`, as `predict.load` does, and call it by its run folder's or file's name; a second network of
    the same name gets -2.

    `engine` and `device` are for runs; an exported file brings its own engine. Raises `UserError` where one cannot be
    opened.
    """
    from alexnet.runtimes.manifest import is_exported_model

    found: list[ServedModel] = []
    taken: set[str] = set()
    for source in names:
        exported = is_exported_model(source)
        classifier = load(
            source,
            checkpoint=checkpoint,
            device="auto" if exported else device,
            engine=EXACT if exported else engine,
            trust=trust,
            log=say,
        )
        member: Any = classifier.ensemble.members[0]
        name = _free(_name(source, member, exported), taken)
        taken.add(name)
        found.append(
            _file(name, classifier, member, source) if exported else _run(name, classifier, member, source, engine)
        )
    return ModelRegistry(found)


def warm_up(served: ServedModel, batch: int) -> None:
    """Let a network compute one picture and a full batch, so that no request waits for what is made at first use.

    An engine other than exact is compared with it, or chosen, on these pictures: those of the run, where they are.
    """
    pictures = np.random.default_rng(0).integers(0, 256, (batch, *_shape(served)), np.uint8)
    if served.opened is not None and served.engine != EXACT:
        with contextlib.suppress(UserError):
            from alexnet.inference.evaluate import calibration_images

            pictures = np.resize(calibration_images(served.opened, None), pictures.shape)
    if "saliency" in looks_of(served):  # captum brings matplotlib, which looks for fonts and makes folders for itself
        with contextlib.suppress(ImportError):
            importlib.import_module("captum.attr")
    for some in (pictures, pictures[:1]):  # the batch first: an engine is chosen for what it sees first
        served.classifier.probabilities(torch.from_numpy(np.ascontiguousarray(some)))


def _shape(served: ServedModel) -> tuple[int, int, int]:
    preprocess = served.classifier.preprocess
    return preprocess.channels, preprocess.size, preprocess.size


def looks_of(served: ServedModel) -> list[str]:
    """What can be shown of a network besides its answers: saliency, activations, similar, samples."""
    if served.opened is None:
        return []
    from alexnet.models.model import AlexNet

    run = served.run
    can = {
        "saliency": importlib.util.find_spec("captum") is not None,
        "activations": isinstance(served.opened.model, AlexNet),
        "similar": run is not None and any((run.path / "index").glob("*/index.json")),
        "samples": run is not None,
    }
    return [name for name, there in can.items() if there]


def _file(name: str, classifier: Classifier, file: ExportedModel, source: str | Path) -> ServedModel:
    told = file.manifest
    return ServedModel(name, classifier, None, None, str(source), told.network, told.kind, told.precision)


def _run(name: str, classifier: Classifier, opened: LoadedModel, source: str | Path, engine: str) -> ServedModel:
    twin = dataclasses.replace(opened, model=_twin(opened.model))
    precision = "fp32" if engine in (EXACT, "onnxruntime", "openvino") else None
    architecture, shared = opened.model.spec.name, classifier.trace()
    return ServedModel(name, classifier, twin, opened.run, str(source), architecture, engine, precision, shared)


def _twin(model: Any) -> Any:
    """A network of its own modules, whose parameters and buffers are those of `model`: no copy in memory."""
    network: nn.Module = model
    shared = {id(x): x for x in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(model, shared)


def _name(source: str | Path, member: Any, exported: bool) -> str:
    path = Path(source)
    if str(source).startswith("torchvision:"):
        return str(source).replace(":", "-").replace("/", "-")
    if exported:
        return printable(path.resolve().name if path.is_dir() else path.stem)
    return printable(member.run.path.resolve().name if member.run else path.resolve().name)


def _free(name: str, taken: set[str]) -> str:
    """`name`, or with the first number behind it that makes it another than those `taken`."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
