"""What computes a network: torch as in training (`exact`), or an engine made for inference alone.

An engine takes uint8 pictures, as `Preprocess.pixels` cuts them, and gives logits; normalisation is inside. The files
that onnxruntime and OpenVINO read are made once (`convert.py`, `quantise.py`) and kept (`stored.py`); opening one
needs no torch, which takes longer to import than the network takes to run.

Engines differ from `exact` in the last digits, those in bfloat16 and 8 bits in the third: how much is measured
when an engine is first opened and told each time (`choose.py`).
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import nn

from alexnet.device import cpu_count
from alexnet.errors import UserError, unknown_name

if TYPE_CHECKING:
    import torch

EXACT, FAST = "exact", "fast"
CHUNK = 32  # pictures computed at once: more gain nothing on a CPU and cost memory


class Engine(Protocol):
    """Something that computes the logits of one network."""

    name: str
    note: str
    """A sentence on how far it is from `exact`; empty for `exact`."""

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 N×C×size×size as `Preprocess.pixels` gives them, N at least 1 → float32 (N, classes)."""


@dataclass(frozen=True)
class Kind:
    """What one of the engines needs."""

    file: str = ""
    """The kind of file that it reads, a key of `stored.FILES`; empty where torch computes."""
    packages: tuple[str, ...] = ()
    """That run it."""
    makers: tuple[str, ...] = ()
    """That also make its file."""
    precision: str = "f32"
    """OpenVINO's word for the format of its sums."""


_ONNX, _OPENVINO = ("onnx", "onnxscript"), ("openvino",)
KINDS = {
    "torch-bf16": Kind(),
    "onnxruntime": Kind("onnx", ("onnxruntime",), _ONNX),
    "openvino": Kind("openvino", _OPENVINO, _ONNX),
    "openvino-bf16": Kind("openvino", _OPENVINO, _ONNX, "bf16"),
    "openvino-int8-fc": Kind("openvino-int8-fc", _OPENVINO, _ONNX),
    "openvino-int8": Kind("openvino-int8", _OPENVINO, (*_ONNX, "nncf")),
    "onnxruntime-int8": Kind("onnx-int8", ("onnxruntime",), _ONNX),
}
CALIBRATED = ("openvino-int8", "onnxruntime-int8")
"""torch-bf16: torch in bfloat16, on any device. openvino-int8-fc: 8-bit weights of the fully connected layers, all
arithmetic in float32. openvino-int8 and onnxruntime-int8: weights and activations of 8 bits, calibrated on pictures,
each by its own tool."""

ENGINES = (EXACT, FAST, *KINDS)


def check_engine(name: str, device: str = "auto", calibrate: str | Path | None = None) -> None:
    """Raise `UserError` unless there is an engine `name`, its packages are installed, it runs on `device`, and
    `calibrate` is nothing, or a folder for an engine that is calibrated."""
    if name not in ENGINES:
        raise unknown_name("engine", name, ENGINES)
    if name in KINDS and (lacking := missing(name)):
        raise not_installed(name, lacking)
    if name in KINDS and KINDS[name].file and device not in ("auto", "cpu"):
        raise UserError(f"--engine {name} computes on the CPU; leave --device {device} out, or use --engine exact.")
    if calibrate and name not in CALIBRATED:
        raise UserError(f"--calibrate is for --engine {' and '.join(CALIBRATED)}, and not for {name}; leave it out.")
    if calibrate and not Path(calibrate).is_dir():
        raise UserError(
            f"--calibrate {calibrate} is not a folder; give one of pictures like those that the network will see."
        )


def missing(name: str, making: bool = False) -> str | None:
    """The first package that engine `name` lacks here to run, or, if `making`, to make its file too."""
    kind = KINDS[name]
    wanted = (*kind.packages, *(kind.makers if making else ()))
    return next((package for package in wanted if not _installed(package)), None)


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ImportError:  # something in this process keeps it from being imported
        return False


def not_installed(name: str, package: str) -> UserError:
    extra = "int8" if package == "nncf" else "fast"
    return UserError(
        f"--engine {name} needs {package}, which is not installed; pip install 'alexnet[{extra}]' adds it."
    )


def version(name: str) -> str:
    """Of the package that runs engine `name`."""
    return metadata.version((*KINDS[name].packages, "torch")[0]) if name in KINDS else ""


def open_file(name: str, path: Path) -> Engine:
    """Engine `name` on a file that it reads. Raises `UserError` where this processor cannot, and whatever the engine's
    package raises for a file that it cannot read."""
    if KINDS[name].packages == ("onnxruntime",):
        return OnnxRuntime(name, path)
    return OpenVino(name, path, KINDS[name].precision)


class Chunked:
    """An engine that computes at most `CHUNK` pictures at once."""

    def __init__(self, name: str, run: Callable[[np.ndarray], np.ndarray]) -> None:
        self.name, self.note, self._run = name, "", run

    def logits(self, images: np.ndarray) -> np.ndarray:
        found = [self._run(images[i : i + CHUNK]) for i in range(0, len(images), CHUNK)]
        return found[0] if len(found) == 1 else np.concatenate(found)


class OnnxRuntime(Chunked):
    """onnxruntime, float32, on the CPU."""

    def __init__(self, name: str, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3  # errors
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        super().__init__(name, lambda images: session.run(["output"], {"input": images})[0])
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map


class OpenVino(Chunked):
    """OpenVINO on the CPU, with sums in float32 or bfloat16."""

    def __init__(self, name: str, path: Path, precision: str) -> None:
        if not openvino_computes(precision):
            raise UserError(f"--engine {name} needs a processor that computes {precision}; use --engine openvino.")
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # all cores on one batch: we wait for each
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads(),
        }
        core = openvino_core()
        request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
        super().__init__(name, lambda images: request.infer({"input": images})["output"])


def openvino_computes(precision: str) -> bool:
    """Whether this processor has f32 or bf16 in hardware, as far as OpenVINO knows."""
    return precision == "f32" or precision.upper() in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def openvino_core() -> Any:
    """The one `openvino.Core` of this process, its CPU plugin loaded.

    Each plugin sets the stack for signals and restores, when it goes, the one it found. If a second one outlives the
    first, that is memory that was given back, and the next signal (of a child process that ended, say) a crash.
    """
    import openvino

    core = openvino.Core()
    core.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
    return core


class Torch:
    """Torch on any device, channels_last; the precision of training is `exact`."""

    def __init__(self, name: str, model: torch.nn.Module, preprocess: Any, device: torch.device, dtype: Any) -> None:
        self.name, self.note = name, ""
        self._model, self._preprocess, self._device, self._dtype = model, preprocess, device, dtype

    def logits(self, images: np.ndarray) -> np.ndarray:
        import torch

        x = self._preprocess.normalise(torch.from_numpy(images).to(self._device))
        enabled = self._dtype != torch.float32
        with torch.no_grad(), torch.autocast(self._device.type, dtype=self._dtype, enabled=enabled):
            found = self._model(x.contiguous(memory_format=torch.channels_last))
        return np.asarray(found.float().cpu().numpy())


def threads() -> int:
    """Cores that an engine may use: all that this process has, or `OMP_NUM_THREADS`, as torch does."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else cpu_count()


def softmax(logits: np.ndarray) -> np.ndarray:
    """(N, classes) → probabilities, float32."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# ─── A network of torch's as one call into C++, for threads that share Python with it.


def trace_model(network: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """`network`, an evaluating one on the CPU that reads float32 N×C×H×W of `shape` C×H×W, as TorchScript that shares
    its weights; itself where torch cannot trace it, or what was traced says other than it, to the bit.
    """
    few, many = (_pictures(count, shape) for count in (2, 3))  # of another number than it is traced with, too
    with contextlib.suppress(Exception), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated, and exact; and what it warns of is compared
        found: nn.Module = torch.jit.trace(network, few, check_trace=False)
        if all(torch.equal(found(x), network(x)) for x in (few, many)):
            return found
    return network


def _pictures(count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, *shape, generator=generator).contiguous(memory_format=torch.channels_last)
