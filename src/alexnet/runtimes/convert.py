"""Conversion of a network to ONNX and OpenVINO, for exported files and engines alike.

The files take any batch size; their input is called `input` and their output `output`. Where the manifest says
`pixels`, as for every engine, they read the uint8 images that `EvalTransform.eval_array` returns and normalize them
inside the graph, mean image included, so that no user of the file can normalize differently.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.runtimes.engines import LoadedModel, openvino_core
from alexnet.runtimes.manifest import KEY, Manifest
from alexnet.runtimes.quantize import onnx_fc_int8, onnx_int8, openvino_fc_int8, openvino_int8, quiet

INPUT, OUTPUT = "input", "output"

LoadImages = Callable[[], np.ndarray]
"""Returns images to calibrate int8 activations on: uint8 N×C×size×size."""


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


def describe(loaded: LoadedModel, kind: str, pixels: bool = True, precision: str = "fp32") -> Manifest:
    """Return the manifest of a file that `loaded` is to be written to, without checksums."""
    spec = loaded.model.spec
    shape = ["batch", spec.in_channels, spec.image_size, spec.image_size]
    about = {
        "input": {"name": INPUT, "type": "uint8" if pixels else "float32", "shape": shape,
                  "colors": "RGB" if spec.in_channels == 3 else "gray",
                  "values": "0 to 255" if pixels else "(x / 255 - mean) / std"},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", spec.num_classes],
                   "values": "logits; their softmax is the probabilities"},
    }  # fmt: skip
    preprocess = replace(loaded.preprocess, mean_image=None)
    return Manifest(
        kind, spec.name, spec.to_dict(), loaded.classes, preprocess, pixels, precision, loaded.calibration, about
    )


def to_convert(loaded: LoadedModel, manifest: Manifest) -> tuple[nn.Module, Tensor, dict[int, Any]]:
    """Return what exporters take: a module in evaluation mode on the CPU, an example input N×C×size×size, and its
    dynamic dimensions."""
    spec = loaded.model.spec
    model = loaded.model.cpu().to(memory_format=torch.contiguous_format)  # the only one that ExecuTorch takes
    network = HalfPrecision(model) if manifest.precision == "half" else model
    module = WithNormalization(network, loaded.preprocess) if manifest.pixels else network
    example = torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size)  # a batch of 1 would become static
    return module.eval(), example.to(torch.uint8) if manifest.pixels else example, {0: torch.export.Dim.DYNAMIC}


def calibration_input(loaded: LoadedModel, manifest: Manifest, load_images: LoadImages) -> np.ndarray:
    """Return calibration images as the file takes them."""
    scale, shift = loaded.preprocess.channel_scale_and_shift()
    return load_images() if manifest.pixels else load_images() * scale + shift


def to_onnx(loaded: LoadedModel, manifest: Manifest, path: Path) -> None:
    """Write the network as one ONNX file in float32, or in float16 if it is to be half.

    Raises `UserError` where torch's exporter cannot express the network.
    """
    module, example, dynamic = to_convert(loaded, manifest)
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
            f"'{manifest.network}' cannot be converted to ONNX ({reason}); use --engine exact, or the format pt2."
        ) from error


def write_onnx(
    loaded: LoadedModel, manifest: Manifest, path: Path, load_images: LoadImages, source: Path | None = None
) -> Manifest:
    """Write an ONNX file in the precision of `manifest`, which it holds and which is returned with its opset.

    `source` is an ONNX file of the same network and input in float32, if there is one.
    """
    import onnx

    plain = source or path.with_name("plain.onnx")
    if source is None:
        to_onnx(loaded, manifest, plain)
    if manifest.precision == "int8":
        onnx_int8(plain, path, calibration_input(loaded, manifest, load_images))
    model = onnx.load(path if manifest.precision == "int8" else plain)
    if manifest.precision == "int8-fc":
        onnx_fc_int8(model)
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    manifest = replace(manifest, about={**manifest.about, "opset": opset})
    onnx.helper.set_model_props(model, {KEY: to_metadata(manifest)})
    onnx.save(model, path)
    if source is None:
        plain.unlink()
    return manifest


def write_openvino(
    loaded: LoadedModel, manifest: Manifest, path: Path, load_images: LoadImages, source: Path | None = None
) -> Manifest:
    """Do the same for OpenVINO's `path` (.xml) and the .bin beside it; half: float16 weights."""
    import openvino

    plain = source or path.with_name("plain.onnx")
    if source is None:
        to_onnx(loaded, replace(manifest, precision="fp32"), plain)
    model = openvino_core().read_model(plain)
    if manifest.precision == "int8":
        model = openvino_int8(model, calibration_input(loaded, manifest, load_images))
    elif manifest.precision == "int8-fc":
        openvino_fc_int8(model)
    model.set_rt_info(to_metadata(manifest), [KEY])
    openvino.save_model(model, path, compress_to_fp16=manifest.precision == "half")
    if source is None:
        plain.unlink()
    return manifest


def to_metadata(manifest: Manifest) -> str:
    """Return the manifest as JSON, for the file's own metadata."""
    return json.dumps(manifest.to_dict(), ensure_ascii=False)
