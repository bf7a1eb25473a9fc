"""Opening an exported file, each format by its own runtime: ONNX and OpenVINO without torch, the others with it.

What opens them is an engine like those of `engines.py`: uint8 pictures as `Preprocess.pixels` cuts them, in, logits
out. A file that does not normalise by itself is given normalised pictures.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.runtimes import engines
from alexnet.runtimes.calibration import Calibration
from alexnet.runtimes.manifest import (
    FORMATS,
    KEY,
    Manifest,
    check_installed,
    kind_of,
    manifest_path,
    read_manifest,
)

if TYPE_CHECKING:
    import torch

Run = Callable[[np.ndarray], np.ndarray]
"""uint8 or float32 N×C×size×size → float32 (N, classes)."""


@dataclass(frozen=True)
class Exported:
    """An exported network, ready for use; what `formats.Opened` is for a run."""

    path: Path
    description: Manifest
    engine: engines.Engine

    run = None
    checkpoint = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.description.classes

    @property
    def preprocess(self) -> EvalTransform:
        return self.description.preprocess

    def calibration(self) -> tuple[Calibration | None, str]:
        """What tells the unsure answers, or None with the reason, as `calibration.find` gives it for a run."""
        told = self.description.calibration
        if told is None:
            return None, f"{self.path} has no threshold for 'unsure': it was exported from a network without one."
        try:
            return Calibration.from_dict(dict(told)), ""
        except (TypeError, ValueError) as error:
            raise UserError(f"{manifest_path(self.path)} is damaged (calibration: {error}).") from error


class FileEngine(engines.Chunked):
    """What the runtime of a format computes, from uint8 pictures to logits."""

    def __init__(self, path: Path, description: Manifest, run: Run) -> None:
        scale, shift = description.preprocess.factors()

        def logits(images: np.ndarray) -> np.ndarray:
            return np.asarray(run(images if description.pixels else images * scale + shift), np.float32)

        super().__init__(f"{description.kind} ({path.name})", logits)


def open_exported(name: str | Path, trust: bool = False) -> Exported:
    """The exported file or folder `name`. `trust` opens one that nothing vouches for.

    Raises `UserError` where that is missing, damaged or swapped, needs a package that is not here, or could run code
    and was not exported by this user on this machine.
    """
    path = Path(name)
    description = read_manifest(path, trust)
    kind = kind_of(path)
    check_installed(kind)
    try:
        run, told = _OPENERS[kind](path, description)
    except UserError:
        raise
    except Exception as error:  # each runtime complains in its own way of a file that it cannot read
        raise UserError(
            f"{path} cannot be opened as {kind} ({_first_line(error)}); export the network again."
        ) from error
    if description is None:
        if told is None:
            raise UserError(
                f"{path} says nothing of its classes and preprocessing, and {manifest_path(path).name} is not "
                "beside it; export the network with alexnet."
            )
        description = Manifest.from_dict(_json(told, path), str(path))
    exported = Exported(path, description, FileEngine(path, description, run))
    _check_answers(exported)
    return exported


def _check_answers(exported: Exported) -> None:
    """Raise `UserError` unless the network takes pictures as described and answers with a number for each class."""
    described, preprocess = manifest_path(exported.path), exported.preprocess
    black = np.zeros((1, preprocess.channels, preprocess.size, preprocess.size), np.uint8)
    try:
        shape = exported.engine.logits(black).shape
    except Exception as error:  # as above
        raise UserError(
            f"{exported.path} cannot compute a picture as {described} describes it ({_first_line(error)}); export the "
            "network again."
        ) from error
    if shape != (1, len(exported.classes)):
        raise UserError(
            f"{exported.path} does not answer with a number for each of the {len(exported.classes)} classes in "
            f"{described}; export the network again."
        )


def check_exported(path: Path, engine: str, device: str) -> None:
    """Raise `UserError` where an exported file is to be computed by another engine, or elsewhere than on the CPU."""
    if engine != engines.EXACT:
        raise UserError(f"{path} is an exported file and brings its own engine; leave --engine {engine} out.")
    if device not in ("auto", "cpu"):
        raise UserError(f"{path} is an exported file, which computes on the CPU; leave --device {device} out.")


def _json(text: str | bytes, path: Path) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"What {path} says of itself is damaged ({error}); export the network again.") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}".rstrip(": .")


# ── one opener a format: what computes, and the file's own description ────────────────────────────────────────

Opener = Callable[[Path, "Manifest | None"], tuple[Run, "str | bytes | None"]]


def _onnx(path: Path, _: Manifest | None) -> tuple[Run, str | None]:
    engine = engines.OnnxRuntime("onnx", path)
    return engine.logits, engine.metadata.get(KEY)


def _openvino(path: Path, _: Manifest | None) -> tuple[Run, str | None]:
    model = engines.openvino_core().read_model(path)
    told = model.get_rt_info([KEY]).value if model.has_rt_info([KEY]) else None
    return engines.OpenVino("openvino", path, "f32").logits, told


def _torchscript(path: Path, _: Manifest | None) -> tuple[Run, str | bytes | None]:
    import warnings

    import torch

    told = {f"{KEY}.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated was said when it was exported
        module = torch.jit.load(path, map_location="cpu", _extra_files=told)
    return _by_torch(module), told[f"{KEY}.json"] or None


def _pt2(path: Path, _: Manifest | None) -> tuple[Run, str | bytes | None]:
    import torch

    told = {f"{KEY}.json": ""}
    program = torch.export.load(path, extra_files=told)
    return _by_torch(program.module()), told[f"{KEY}.json"] or None


def _executorch(path: Path, _: Manifest | None) -> tuple[Run, None]:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")

    def run(images: np.ndarray) -> np.ndarray:
        found: torch.Tensor = method.execute([torch.from_numpy(np.ascontiguousarray(images))])[0]
        return found.numpy().copy()  # the next run writes over it

    return run, None


def _torchvision_weights(path: Path, description: Manifest | None) -> tuple[Run, None]:
    import torch

    if description is None:
        raise UserError(
            f"{path} holds weights alone and {manifest_path(path).name}, which describes them, is not beside it; "
            "load it in Python with alexnet.load_weights(alexnet.create_model(…), path)."
        )
    from torchvision.models import alexnet

    from alexnet.models.model import build, spec_from_dict
    from alexnet.models.torchvision_models import TorchvisionNetwork

    spec = spec_from_dict(description.spec)
    own = build(spec)
    network = own.network if isinstance(own, TorchvisionNetwork) else alexnet(num_classes=spec.num_classes)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return _by_torch(network.eval()), None


def _huggingface(path: Path, description: Manifest | None) -> tuple[Run, str | None]:
    from alexnet.runtimes.hub import HubModel

    with contextlib.redirect_stdout(io.StringIO()):  # where it reports that the folder is one
        model = HubModel.from_pretrained(path)
    return _by_torch(model), None if description else json.dumps(model.describe().to_dict())


def _by_torch(module: torch.nn.Module) -> Run:
    import torch

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            found: torch.Tensor = module(torch.from_numpy(np.ascontiguousarray(images)))
        return found.float().numpy()

    return run


_OPENERS: dict[str, Opener] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torchscript": _torchscript,
    "pt2": _pt2,
    "executorch": _executorch,
    "torchvision-weights": _torchvision_weights,
    "huggingface": _huggingface,
}
assert _OPENERS.keys() == FORMATS.keys()
