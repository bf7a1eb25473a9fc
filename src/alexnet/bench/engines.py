"""An untrained model in every inference engine that runs here, for `alexnet bench predict`."""

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

CALIBRATION_IMAGES = 8  # of noise: the 8-bit ranges are meaningless, the work is the same


@contextmanager
def open_engines(
    model: Network,
    preprocess: EvalTransform,
    device: torch.device,
    note: Callable[[str], None],
    bf16: bool,
    convert: bool,
    calibrate: bool,
) -> Iterator[dict[str, Engine]]:
    """Yield engines for `model` by name; their files live in a temporary folder meanwhile.

    Always `exact`; with `bf16`, torch in bfloat16; with `convert` on a CPU, all others whose packages are installed;
    those with 8-bit activations, the slowest to build, only with `calibrate`. `note` receives what is skipped and why.
    """
    engines: dict[str, Engine] = {EXACT: TorchEngine(EXACT, model, preprocess, device, torch.float32)}
    if bf16:
        engines["torch-bf16"] = TorchEngine("torch-bf16", model, preprocess, device, torch.bfloat16)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for name, kind in KINDS.items():
            if not kind.file or not convert or device.type != "cpu":
                continue
            if package := missing(name, converting=True):
                note(f"engine {name} skipped: {package} is not installed")
                continue
            if kind.precision == "bf16" and not openvino_supports("bf16"):
                note(f"engine {name} skipped: OpenVINO finds no bfloat16 support in this CPU")
                continue
            if name in CALIBRATED and not calibrate:
                note(f"engine {name} skipped: building it takes a while; 'alexnet bench predict' includes it")
                continue
            try:
                engines[name] = open_file(name, _convert(kind.file, model, preprocess, Path(folder)))
            except UserError as error:
                note(f"engine {name} skipped: {error}")
        yield engines


def _convert(kind: str, model: Network, preprocess: EvalTransform, folder: Path) -> Path:
    """Return the file of `kind` for `model` in `folder`, created unless it exists."""
    path = folder / kind / FILES[kind]
    if path.exists():
        return path
    path.parent.mkdir()
    if kind == "onnx":
        to_onnx(model, path, preprocess)
        return path
    source = _convert("onnx" if kind in ("openvino", "onnx-int8") else "openvino", model, preprocess, folder)
    shape = (CALIBRATION_IMAGES, preprocess.channels, preprocess.size, preprocess.size)
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


def matmul_precision(name: str) -> str:
    """Return the precision of the matmul limit of engine `name`; fp32 for int8, which torch cannot multiply."""
    return "bf16" if name.endswith("bf16") else "fp32"


def weight_bytes(name: str, spec: AlexNetSpec) -> int:
    """Return the least number of weight bytes that engine `name` reads per batch."""
    rows = summarize(spec).rows
    fc = sum(row.parameters for row in rows if row.type == "linear")
    others = sum(row.parameters for row in rows) - fc
    widths = {"openvino-bf16": (2, 2), "torch-bf16": (2, 2), "openvino-int8-fc": (4, 1)}
    bytes_other, bytes_fc = (1, 1) if name in CALIBRATED else widths.get(name, (4, 4))
    return bytes_other * others + bytes_fc * fc


def engine_precision(name: str) -> str:
    """Return the number format of engine `name` as shown in a row."""
    if name in CALIBRATED:
        return "int8"
    return "int8 weights of fc" if name == "openvino-int8-fc" else matmul_precision(name)


def noise_transform(spec: AlexNetSpec) -> EvalTransform:
    """Return a preprocessing for random images."""
    channels = spec.in_channels
    return EvalTransform(spec.image_size, channels=channels, mean=(0.5,) * channels, std=(0.25,) * channels)
