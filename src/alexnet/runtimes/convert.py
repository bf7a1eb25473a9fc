"""Conversion of a network to ONNX and, from that, to OpenVINO.

The files take any batch size; their input is called `input` and their output `output`. With an `EvalTransform` they
read the uint8 images that `EvalTransform.eval_array` returns and normalize them inside the graph, mean image included,
so that no user of the file can normalize differently.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.models.model import Network
from alexnet.runtimes.engines import openvino_core

INPUT, OUTPUT = "input", "output"


class WithNormalization(nn.Module):
    """`model` preceded by its normalization: uint8 N×C×size×size → float32 logits (N, classes)."""

    def __init__(self, model: nn.Module, preprocess: EvalTransform) -> None:
        super().__init__()
        self.model = model
        scale, shift = preprocess.scale_and_shift(preprocess.size)
        self.scale, self.shift = (nn.Buffer(x.clone(memory_format=torch.contiguous_format)) for x in (scale, shift))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.float() * self.scale + self.shift)
        return logits


class HalfPrecision(nn.Module):
    """`model` with weights and arithmetic in float16, and float32 input and output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.half())
        return logits.float()


def to_convert(
    model: Network, preprocess: EvalTransform | None = None, half: bool = False
) -> tuple[nn.Module, Tensor, dict[int, Any]]:
    """Return what exporters take: a module in evaluation mode on the CPU, an example input N×C×size×size, and its
    dynamic dimensions. With `preprocess` the input is uint8 pixels, else normalized float32."""
    spec = model.spec
    model = model.cpu().to(memory_format=torch.contiguous_format)  # the only one that ExecuTorch takes
    network = HalfPrecision(model) if half else model
    module = network if preprocess is None else WithNormalization(network, preprocess)
    example = torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size)  # a batch of 1 would become static
    return module.eval(), example if preprocess is None else example.to(torch.uint8), {0: torch.export.Dim.DYNAMIC}


def to_onnx(model: Network, path: Path, preprocess: EvalTransform | None = None, half: bool = False) -> None:
    """Write `model` as one ONNX file, which computes in float16 if `half`.

    With `preprocess` its input is uint8 pixels, else normalized float32: N×C×size×size. The output is float32 logits
    (N, classes). Raises `UserError` where torch's exporter cannot express the network.
    """
    module, example, dynamic = to_convert(model, preprocess, half)
    try:
        with quiet():
            torch.onnx.export(
                module,
                (example,),
                path,
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(dynamic,),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{model.spec.name}' cannot be converted to ONNX ({reason}); use --engine exact, or the format pt2."
        ) from error


def to_openvino(onnx: Path, path: Path, half: bool = False, metadata: str | None = None) -> None:
    """Convert an ONNX file to OpenVINO's `path` (.xml) and the .bin beside it, with float16 weights if `half`, and
    `metadata` in the file."""
    import openvino

    model = openvino_core().read_model(onnx)
    if metadata is not None:
        model.set_rt_info(metadata, ["alexnet"])
    openvino.save_model(model, path, compress_to_fp16=half)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter's progress and its own deprecation warnings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
