"""From a network to the files of other engines: ONNX and, from that, OpenVINO.

The files take any number of pictures at once; their input is called `input` and their output `output`. With a
`Preprocess` they read the uint8 pixels that `Preprocess.pixels` gives and normalise by themselves, mean image
included, so that nobody who uses them can do that differently.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from alexnet.data.preprocess import Preprocess
from alexnet.errors import UserError
from alexnet.inference.engines import openvino_core
from alexnet.networks.model import Network

INPUT, OUTPUT = "input", "output"


class FromPixels(nn.Module):
    """`model` with its normalisation in front: uint8 N×C×size×size → float32 logits (N, classes)."""

    def __init__(self, model: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.model = model
        scale, shift = preprocess.constants(preprocess.size)
        self.scale, self.shift = nn.Buffer(scale), nn.Buffer(shift)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.float() * self.scale + self.shift)
        return logits


def to_onnx(model: Network, path: Path, preprocess: Preprocess | None = None) -> None:
    """Write `model`, on the CPU and in evaluation mode, as one ONNX file.

    With `preprocess` its input is uint8 pixels, else float32 images as preprocessed: N×C×size×size. The output is
    float32 logits (N, classes). Raises `UserError` where torch's exporter cannot express the network.
    """
    spec = model.spec
    whole = model if preprocess is None else FromPixels(model, preprocess)
    example = torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size)  # a batch of 1 would be taken as fixed
    try:
        with _quiet():
            torch.onnx.export(
                whole.eval(),
                (example if preprocess is None else example.to(torch.uint8),),
                path,
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"'{spec.name}' cannot be made into ONNX ({reason}); use --engine exact.") from error


def to_openvino(onnx: Path, path: Path) -> None:
    """Write the network of an ONNX file as OpenVINO's `path` (.xml) and the .bin beside it, in float32."""
    import openvino

    openvino.save_model(openvino_core().read_model(onnx), path, compress_to_fp16=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
