"""From a network to the files of other engines: ONNX and, from that, OpenVINO.

The files take any number of pictures at once; their input is called `input` and their output `output`. With a
`Preprocess` they read the uint8 pixels that `Preprocess.pixels` gives and normalise by themselves, mean image
included, so that nobody who uses them can do that differently.
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


class FromPixels(nn.Module):
    """`model` with its normalisation in front: uint8 N×C×size×size → float32 logits (N, classes)."""

    def __init__(self, model: nn.Module, preprocess: EvalTransform) -> None:
        super().__init__()
        self.model = model
        scale, shift = preprocess.constants(preprocess.size)
        self.scale, self.shift = (nn.Buffer(x.clone(memory_format=torch.contiguous_format)) for x in (scale, shift))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.float() * self.scale + self.shift)
        return logits


class InHalf(nn.Module):
    """`model` with weights and sums in float16, between float32 at both ends."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.half())
        return logits.float()


def to_convert(
    model: Network, preprocess: EvalTransform | None = None, half: bool = False
) -> tuple[nn.Module, Tensor, dict[int, Any]]:
    """What exporters take: a module in evaluation mode on the CPU, an example of its input, and which of its sizes
    vary. With `preprocess` the input is uint8 pixels, else float32 images as preprocessed: N×C×size×size."""
    spec = model.spec
    model = model.cpu().to(memory_format=torch.contiguous_format)  # ExecuTorch takes no other
    computing = InHalf(model) if half else model
    whole = computing if preprocess is None else FromPixels(computing, preprocess)
    example = torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size)  # a batch of 1 would be taken as fixed
    return whole.eval(), example if preprocess is None else example.to(torch.uint8), {0: torch.export.Dim.DYNAMIC}


def to_onnx(model: Network, path: Path, preprocess: EvalTransform | None = None, half: bool = False) -> None:
    """Write `model` as one ONNX file, which computes in float16 if `half`.

    With `preprocess` its input is uint8 pixels, else float32 images as preprocessed: N×C×size×size. The output is
    float32 logits (N, classes). Raises `UserError` where torch's exporter cannot express the network.
    """
    whole, example, varying = to_convert(model, preprocess, half)
    try:
        with quiet():
            torch.onnx.export(
                whole,
                (example,),
                path,
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(varying,),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"'{model.spec.name}' cannot be made into ONNX ({reason}); use --engine exact, or the format pt2."
        ) from error


def to_openvino(onnx: Path, path: Path, half: bool = False, told: str | None = None) -> None:
    """Write the network of an ONNX file as OpenVINO's `path` (.xml) and the .bin beside it, its weights in float16 if
    `half`, with what is `told` of it in its own metadata."""
    import openvino

    model = openvino_core().read_model(onnx)
    if told is not None:
        model.set_rt_info(told, ["alexnet"])
    openvino.save_model(model, path, compress_to_fp16=half)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The exporter reports its progress and its own deprecations, which are nobody's business here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
