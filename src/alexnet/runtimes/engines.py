"""Engines, which compute the logits of a trained network: torch as in training (`exact`), or a runtime for inference.

Every engine takes uint8 images as `EvalTransform.eval_array` returns them and normalizes them itself. The files that
onnxruntime and OpenVINO read are converted once and cached (`select.py`); opening one needs no
torch, which takes longer to import than the network takes to run.

Other engines differ from `exact` in the last digits, and in the third digit where they compute in bfloat16 or 8 bits;
`select.py` measures the difference when an engine is first opened.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from alexnet.data.transforms import EvalTransform
from alexnet.device import cpu_count
from alexnet.errors import UserError, unknown_name
from alexnet.runtimes.calibration import Calibration
from alexnet.runtimes.manifest import Manifest, check_installed, first_missing, is_exported_model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from alexnet.models.model import Network
    from alexnet.run_dir import Run

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # else onnxruntime sends statistics and writes an id to the home folder

EXACT, FAST = "exact", "fast"
CHUNK = 32  # images computed at once: more are no faster on a CPU and take more memory


@dataclass(frozen=True)
class LoadedModel:
    """A network in memory, whether of a run, a checkpoint or an exported file, with what its outputs mean."""

    network: Network | None
    """The torch module; None for an exported file."""
    classes: tuple[str, ...]
    preprocess: EvalTransform
    run: Run | None
    checkpoint: Path | None
    model_id: str
    """Identifies network, classes and preprocessing; the name of its folder in the engine cache."""
    engine: Engine | None = None
    """What computes the logits; None where the torch module does."""
    manifest: Manifest | None = None
    """Of an exported file."""
    calibration: Calibration | None = None
    calibration_note: str = ""
    """Where the calibration is from if it is not stored, or why there is none."""

    @property
    def model(self) -> Network:
        """The torch module, which everything but an exported file has."""
        assert self.network is not None, "an exported file has no torch module"
        return self.network

    @property
    def computes(self) -> nn.Module | Engine:
        """What computes the logits."""
        return self.model if self.engine is None else self.engine


class Engine(Protocol):
    """Something that computes the logits of one network."""

    name: str
    note: str
    """A sentence on how much it differs from `exact`; empty for `exact`."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 N×C×size×size as `EvalTransform.eval_array` returns them, N ≥ 1 → float32 (N, classes)."""


@dataclass(frozen=True)
class Kind:
    """What an engine reads, and how it computes."""

    format: str = ""
    """A key of `FORMATS`; empty where torch computes."""
    precision: str = "fp32"
    arithmetic: str = "f32"
    """OpenVINO's name for the dtype that it accumulates in."""


KINDS = {
    "torch-bf16": Kind(),
    "onnxruntime": Kind("onnx"),
    "openvino": Kind("openvino"),
    "openvino-bf16": Kind("openvino", arithmetic="bf16"),
    "openvino-int8-fc": Kind("openvino", "int8-fc"),
    "openvino-int8": Kind("openvino", "int8"),
    "onnxruntime-int8": Kind("onnx", "int8"),
}
CALIBRATED = ("openvino-int8", "onnxruntime-int8")
"""torch-bf16: torch in bfloat16, on any device. openvino-int8-fc: 8-bit weights in the fully connected layers, float32
arithmetic. openvino-int8 and onnxruntime-int8: 8-bit weights and activations, calibrated on images by the
quantizer of that runtime."""

ENGINES = (EXACT, FAST, *KINDS)


def check_engine(
    name: str, device: str = "auto", calibrate: str | Path | None = None, runs: Iterable[str | Path] = ()
) -> None:
    """Raise `UserError` unless there is an engine `name`, its packages are installed, it runs on `device`, and
    `calibrate` is None, or a folder for an engine that is calibrated; and for an exported file among `runs`, which has
    its own engine, on the CPU."""
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    if kind := KINDS.get(name, Kind()).format:
        check_installed(kind, engine=name)
        if device not in ("auto", "cpu"):
            raise UserError(f"--engine {name} runs on the CPU only; omit --device {device}, or use --engine exact.")
    if calibrate and name not in CALIBRATED:
        raise UserError(f"--calibrate applies to --engine {' and '.join(CALIBRATED)}, not to {name}; omit it.")
    if calibrate and not Path(calibrate).is_dir():
        raise UserError(
            f"--calibrate {calibrate} is not a folder; give a folder of images like those the network will see."
        )
    for run in filter(is_exported_model, runs):
        if name != EXACT:
            raise UserError(f"{run} is an exported file and has its own engine; omit --engine {name}.")
        if device not in ("auto", "cpu"):
            raise UserError(f"{run} is an exported file, which runs on the CPU only; omit --device {device}.")


def missing(name: str, converting: bool = False) -> str | None:
    """Return the first package that engine `name` lacks to run or, if `converting`, to write its file."""
    kind = KINDS[name]
    return first_missing(kind.format, converting, kind.precision) if kind.format else None


def openvino_supports(precision: str) -> bool:
    """Whether this processor has f32 or bf16 in hardware, according to OpenVINO."""
    return precision == "f32" or precision.upper() in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def import_openvino() -> Any:
    """Import and return `openvino` without its telemetry, which would send statistics and write an id to the home.

    It is on as soon as `openvino` is imported, and no variable turns it off; without its package, openvino and NNCF use
    stand-ins.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it raises ImportError
    import openvino

    return openvino


@functools.cache
def openvino_core() -> Any:
    """Return the single `openvino.Core` of this process, its CPU plugin loaded.

    Each plugin installs an alternate signal stack and, when unloaded, restores the one it found. If a second plugin
    outlives the first, that stack is freed memory, and the next signal (such as SIGCHLD) crashes the process.
    """
    openvino = import_openvino()
    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core


class TorchEngine:
    """Torch on any device, channels_last: `exact` in float32, as in training, any other in bfloat16."""

    def __init__(self, loaded: LoadedModel, device: torch.device, name: str = EXACT) -> None:
        import torch

        self.name, self.note = name, ""
        self._model = loaded.model.to(device).to(memory_format=torch.channels_last).eval()
        self._preprocess, self._device = loaded.preprocess, device

    def logits(self, images: np.ndarray) -> np.ndarray:
        import torch

        x = self._preprocess.normalize(torch.from_numpy(images).to(self._device))
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self.name != EXACT):
            logits = self._model(x.contiguous(memory_format=torch.channels_last))
        return np.asarray(logits.float().cpu().numpy())


def trace_model(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """Return `network` as TorchScript that shares its weights: one call into C++, so that threads can run it in
    parallel.

    `network` is on the CPU, in evaluation mode, and reads float32 N×C×H×W of `shape` C×H×W. It is returned itself where
    torch cannot trace it, or where the traced network is not bit-exact.
    """
    import torch

    def random_images(count: int) -> torch.Tensor:
        images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))
        return images.contiguous(memory_format=torch.channels_last)

    batches = [random_images(2), random_images(3)]  # compared at another batch size than the traced one, too
    with contextlib.suppress(Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated; what else it warns of, the comparison catches
        traced: nn.Module = torch.jit.trace(network, batches[0], check_trace=False)
        if all(torch.equal(traced(x), network(x)) for x in batches):
            return traced
    return network


def thread_count() -> int:
    """Return how many threads an engine may use: `OMP_NUM_THREADS`, as for torch, or all cores of this process."""
    requested = os.environ.get("OMP_NUM_THREADS", "")
    return int(requested) if requested.isdecimal() and int(requested) else cpu_count()


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, classes) → probabilities, float32."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
