"""One made-up network in every engine that can run here, to time them side by side (`alexnet bench predict`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.models.model import Network
from alexnet.models.spec import AlexNetSpec
from alexnet.models.summary import summarize
from alexnet.runtimes.convert import to_onnx, to_openvino
from alexnet.runtimes.engine_cache import FILES
from alexnet.runtimes.engines import (
    CALIBRATED,
    EXACT,
    KINDS,
    Engine,
    TorchEngine,
    missing,
    open_file,
    openvino_supports,
)
from alexnet.runtimes.quantize import quantize_fc_int8, quantize_onnx_int8, quantize_openvino_int8

CALIBRATED_ON = 8  # noise: 8-bit ranges that suit no photograph, but the same work


@contextmanager
def every_engine(
    model: Network,
    preprocess: EvalTransform,
    device: torch.device,
    note: Callable[[str], None],
    bf16: bool,
    convert: bool,
    calibrate: bool,
) -> Iterator[dict[str, Engine]]:
    """`exact`, torch in bfloat16 if `bf16`, and, to `convert` on a CPU, the others whose packages are installed; those
    of 8-bit activations, which take longest to make, only to `calibrate`.

    Their files live in a temporary folder meanwhile. `note` is told what is left out, and why.
    """
    made: dict[str, Engine] = {EXACT: TorchEngine(EXACT, model, preprocess, device, torch.float32)}
    if bf16:
        made["torch-bf16"] = TorchEngine("torch-bf16", model, preprocess, device, torch.bfloat16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, kind in KINDS.items():
            if not kind.file or not convert or device.type != "cpu":
                continue
            if package := missing(name, making=True):
                note(f"engine {name} left out, since {package} is not installed")
                continue
            if kind.precision == "bf16" and not openvino_supports("bf16"):
                note(f"engine {name} left out, since OpenVINO finds no bfloat16 in this processor")
                continue
            if name in CALIBRATED and not calibrate:
                note(f"engine {name} left out, since making it takes a while; 'alexnet bench predict' tries it too")
                continue
            try:
                made[name] = open_file(name, _file(kind.file, model, preprocess, Path(folder)))
            except UserError as error:
                note(f"engine {name} left out: {error}")
        yield made


def _file(kind: str, model: Network, preprocess: EvalTransform, folder: Path) -> Path:
    """The file of `kind` for `model` in `folder`, made unless it is there."""
    path = folder / kind / FILES[kind]
    if path.exists():
        return path
    path.parent.mkdir()
    if kind == "onnx":
        to_onnx(model, path, preprocess)
        return path
    source = _file("onnx" if kind in ("openvino", "onnx-int8") else "openvino", model, preprocess, folder)
    shape = (CALIBRATED_ON, preprocess.channels, preprocess.size, preprocess.size)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if kind == "openvino":
        to_openvino(source, path)
    elif kind == "openvino-int8-fc":
        quantize_fc_int8(source, path)
    elif kind == "openvino-int8":
        quantize_openvino_int8(source, path, noise)
    else:
        quantize_onnx_int8(source, path, noise)
    return path


def arithmetic(name: str) -> str:
    """In which precision engine `name` multiplies; float32 for 8 bits, which torch has no product to compare with."""
    return "bf16" if name.endswith("bf16") else "fp32"


def weight_bytes(name: str, spec: AlexNetSpec) -> int:
    """Bytes of weights that engine `name` reads for each batch at least."""
    rows = summarize(spec).rows
    fc = sum(row.parameters for row in rows if row.type == "linear")
    others = sum(row.parameters for row in rows) - fc
    each = {"openvino-bf16": (2, 2), "torch-bf16": (2, 2), "openvino-int8-fc": (4, 1)}
    of_others, of_fc = (1, 1) if name in CALIBRATED else each.get(name, (4, 4))
    return of_others * others + of_fc * fc


def precision_of(name: str) -> str:
    """What a row of the bench calls the engine's number format."""
    if name in CALIBRATED:
        return "int8"
    return "int8 weights of fc" if name == "openvino-int8-fc" else arithmetic(name)


def plain(spec: AlexNetSpec) -> EvalTransform:
    """Preprocessing for noise."""
    channels = spec.in_channels
    return EvalTransform(spec.image_size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
