"""Writers of all formats in `FORMATS`, one function per format.

Each function writes the network of an `ExportJob` to a path, embeds the manifest if the format has a place for it,
and returns format-specific manifest entries.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.models.torchvision_models import TorchvisionNetwork
from alexnet.models.weights import to_torchvision
from alexnet.runtimes.calibration import Calibration
from alexnet.runtimes.convert import INPUT, OUTPUT, quiet, to_convert, to_onnx, to_openvino
from alexnet.runtimes.engines import CHUNK, LoadedModel
from alexnet.runtimes.manifest import FORMATS, KEY, Manifest
from alexnet.runtimes.quantize import (
    quantize_fc_int8,
    quantize_onnx_fc_int8,
    quantize_onnx_int8,
    quantize_openvino_int8,
)


@dataclass(frozen=True)
class ExportJob:
    """A model and the options of its file."""

    loaded: LoadedModel
    kind: str
    pixels: bool
    """Whether the file takes uint8 pixels and normalizes them itself."""
    precision: str
    calibration: Calibration | None
    load_images: Callable[[], np.ndarray]
    """Returns images to calibrate int8 activations on: uint8 N×C×size×size."""

    @property
    def preprocess(self) -> EvalTransform | None:
        """The normalization that becomes part of the graph."""
        return self.loaded.preprocess if self.pixels else None

    @property
    def half(self) -> bool:
        return self.precision == "half"

    def calibration_input(self) -> np.ndarray:
        """Return the calibration images as the file takes them."""
        scale, shift = self.loaded.preprocess.channel_scale_and_shift()
        return self.load_images() if self.pixels else self.load_images() * scale + shift

    def manifest(self, **about: Any) -> Manifest:
        """Return the manifest, without checksums."""
        spec = self.loaded.model.spec
        shape = ["batch", spec.in_channels, spec.image_size, spec.image_size]
        return Manifest(
            kind=self.kind,
            network=spec.name,
            spec=spec.to_dict(),
            classes=self.loaded.classes,
            preprocess=replace(self.loaded.preprocess, mean_image=None),
            pixels=self.pixels,
            precision=self.precision,
            calibration=self.calibration,
            about={
                "input": {"name": INPUT, "type": "uint8" if self.pixels else "float32", "shape": shape,
                          "colors": "RGB" if spec.in_channels == 3 else "gray",
                          "values": "0 to 255" if self.pixels else "(x / 255 - mean) / std"},
                "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", spec.num_classes],
                           "values": "logits; their softmax is the probabilities"},
                **about,
            },
        )  # fmt: skip

    def metadata(self, **about: Any) -> str:
        """Return the manifest as JSON, for the file's own metadata."""
        return json.dumps(self.manifest(**about).to_dict(), ensure_ascii=False)


def check_supported(loaded: LoadedModel, kind: str, pixels: bool, precision: str) -> None:
    """Raise `UserError` unless the model can be written as `kind` with these options."""
    file_format, spec = FORMATS[kind], loaded.model.spec
    if precision not in file_format.precisions:
        supporting = ", ".join(name for name, other in FORMATS.items() if precision in other.precisions)
        raise UserError(f"The format {kind} does not support {precision}; omit it, or export to {supporting}.")
    if pixels and not file_format.graph and kind != "huggingface":
        raise UserError(f"The format {kind} holds only weights and cannot normalize; omit --with-preprocessing.")
    if loaded.preprocess.mean_image is not None and not pixels:
        if kind == "torchvision-weights":
            raise UserError(f"This model subtracts a mean image, which the format {kind} cannot hold; use another.")
        raise UserError("This model subtracts a mean image, which only the file can hold; add --with-preprocessing.")
    if kind == "torchvision-weights":
        if not isinstance(loaded.model, TorchvisionNetwork):
            to_torchvision(loaded.model)
        elif spec.in_channels != 3:
            raise UserError(f"'{spec.name}' with {spec.in_channels} channel has no counterpart in torchvision.")


def write(job: ExportJob, path: Path) -> Manifest:
    """Write the model of `job` to `path`, and return its manifest without checksums."""
    with quiet():
        return job.manifest(**_WRITERS[job.kind](job, path))


# ── one writer per format ─────────────────────────────────────────────────────────────────────────


def _onnx(job: ExportJob, path: Path) -> dict[str, Any]:
    import onnx

    plain = path.with_name("plain.onnx")
    to_onnx(job.loaded.model, plain, job.preprocess, job.half)
    if job.precision == "int8":
        quantize_onnx_int8(plain, path, job.calibration_input())
    elif job.precision == "int8-fc":
        quantize_onnx_fc_int8(plain, path)
    else:
        plain.replace(path)
    plain.unlink(missing_ok=True)
    model = onnx.load(path)
    about = {"opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))}
    onnx.helper.set_model_props(model, {KEY: job.metadata(**about)})
    onnx.save(model, path)
    return about


def _openvino(job: ExportJob, path: Path) -> dict[str, Any]:
    source, plain = path.with_name("plain.onnx"), path.with_name("plain.xml")
    to_onnx(job.loaded.model, source, job.preprocess)
    if job.precision in ("fp32", "half"):
        to_openvino(source, path, job.half, job.metadata())
    else:
        to_openvino(source, plain)
        if job.precision == "int8":
            quantize_openvino_int8(plain, path, job.calibration_input(), job.metadata())
        else:
            quantize_fc_int8(plain, path, job.metadata())
    for scratch in (source, plain, plain.with_suffix(".bin")):
        scratch.unlink(missing_ok=True)
    return {}


def _save(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Save through memory: on a full disk, torch's own writer aborts the process."""
    file = io.BytesIO()
    save(file)
    path.write_bytes(file.getbuffer())


def _torchscript(job: ExportJob, path: Path) -> dict[str, Any]:
    model, example, _ = to_convert(job.loaded.model, job.preprocess, job.half)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the command line warns that TorchScript is deprecated
        traced = torch.jit.trace(model, example)
    _save(path, lambda file: torch.jit.save(traced, file, _extra_files={f"{KEY}.json": job.metadata()}))
    return {}


def _pt2(job: ExportJob, path: Path) -> dict[str, Any]:
    model, example, dynamic = to_convert(job.loaded.model, job.preprocess, job.half)
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    _save(path, lambda file: torch.export.save(program, file, extra_files={f"{KEY}.json": job.metadata()}))
    return {}


def _executorch(job: ExportJob, path: Path) -> dict[str, Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model, example, _ = to_convert(job.loaded.model, job.preprocess, job.half)
    example = example.new_zeros(CHUNK, *example.shape[1:])  # memory is planned for the batch size of the example
    dynamic = {0: torch.export.Dim("batch", min=1, max=CHUNK)}
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    if job.precision == "int8":
        model = _quantize_pt2e(program.module(), torch.from_numpy(job.calibration_input()))
        program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return {"most_at_once": CHUNK}


def _quantize_pt2e(graph: torch.fx.GraphModule, images: torch.Tensor) -> torch.nn.Module:
    """Return `graph` with int8 weights and activations, the activation ranges calibrated on `images`."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    config = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    observed = prepare_pt2e(graph, xnnpack.XNNPACKQuantizer().set_global(config))
    with torch.no_grad():
        for chunk in images.split(CHUNK):
            observed(chunk)
    quantized: torch.nn.Module = convert_pt2e(observed)
    return quantized


def _torchvision_weights(job: ExportJob, path: Path) -> dict[str, Any]:
    model = job.loaded.model
    state = model.network.state_dict() if isinstance(model, TorchvisionNetwork) else to_torchvision(model)
    state = {name: x.half() if job.half and x.is_floating_point() else x for name, x in state.items()}
    _save(path, lambda file: torch.save(state, file))
    return {}


def _huggingface(job: ExportJob, path: Path) -> dict[str, Any]:
    from alexnet.runtimes.hub import HubModel

    loaded = job.loaded
    model = HubModel(loaded.model.spec.to_dict(), list(loaded.classes), loaded.preprocess.to_dict(), job.pixels)
    converted, _, _ = to_convert(loaded.model, job.preprocess)
    model.network.load_state_dict(converted.state_dict())
    (copy.deepcopy(model).half() if job.half else model).save_pretrained(path)
    return {}


_WRITERS: dict[str, Callable[[ExportJob, Path], dict[str, Any]]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torchscript": _torchscript,
    "pt2": _pt2,
    "executorch": _executorch,
    "torchvision-weights": _torchvision_weights,
    "huggingface": _huggingface,
}
