"""Writers of all formats in `FORMATS`: each writes a network to a path, with the manifest in it where the format has a
place for one."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from alexnet.errors import UserError
from alexnet.models.torchvision_models import TorchvisionNetwork
from alexnet.models.weights import to_torchvision
from alexnet.runtimes.convert import (
    LoadImages,
    calibration_input,
    to_convert,
    to_metadata,
    write_onnx,
    write_openvino,
)
from alexnet.runtimes.engines import CHUNK, LoadedModel
from alexnet.runtimes.manifest import FORMATS, KEY, Manifest, write_manifest
from alexnet.runtimes.quantize import quiet

Writer = Callable[[LoadedModel, Manifest, Path, LoadImages], Manifest]
"""Writes a network as its manifest says, and returns the manifest with what the format adds to it."""


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


def write(loaded: LoadedModel, manifest: Manifest, path: Path, load_images: LoadImages) -> Manifest:
    """Write `loaded` to `path` as `manifest` says, and the manifest beside it; return the complete manifest.

    `load_images` returns the images to calibrate int8 activations on.
    """
    with quiet():
        return write_manifest(path, _WRITERS[manifest.kind](loaded, manifest, path, load_images))


# ── one writer per format; those of ONNX and OpenVINO are in `runtimes.convert` ─────────────────────────────────


def _save(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """Save through memory: on a full disk, torch's own writer aborts the process."""
    file = io.BytesIO()
    save(file)
    path.write_bytes(file.getbuffer())


def _torchscript(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    model, example, _dynamic = to_convert(loaded, manifest)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the command line warns that TorchScript is deprecated
        traced = torch.jit.trace(model, example)
    extra_files = {f"{KEY}.json": to_metadata(manifest)}
    _save(path, lambda file: torch.jit.save(traced, file, _extra_files=extra_files))
    return manifest


def _pt2(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    model, example, dynamic = to_convert(loaded, manifest)
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    extra_files = {f"{KEY}.json": to_metadata(manifest)}
    _save(path, lambda file: torch.export.save(program, file, extra_files=extra_files))
    return manifest


def _executorch(loaded: LoadedModel, manifest: Manifest, path: Path, load_images: LoadImages) -> Manifest:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    model, example, _ = to_convert(loaded, manifest)
    example = example.new_zeros(CHUNK, *example.shape[1:])  # memory is planned for the batch size of the example
    dynamic = {0: torch.export.Dim("batch", min=1, max=CHUNK)}
    program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    if manifest.precision == "int8":
        images = torch.from_numpy(calibration_input(loaded, manifest, load_images))
        model = _quantize_pt2e(program.module(), images)
        program = torch.export.export(model, (example,), dynamic_shapes=(dynamic,), strict=False)
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return replace(manifest, about={**manifest.about, "most_at_once": CHUNK})


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


def _torchvision_weights(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    model, half = loaded.model, manifest.precision == "half"
    state = model.network.state_dict() if isinstance(model, TorchvisionNetwork) else to_torchvision(model)
    state = {name: x.half() if half and x.is_floating_point() else x for name, x in state.items()}
    _save(path, lambda file: torch.save(state, file))
    return manifest


def _huggingface(loaded: LoadedModel, manifest: Manifest, path: Path, _: LoadImages) -> Manifest:
    from alexnet.runtimes.hub import HubModel

    preprocess = loaded.preprocess.to_dict()
    model = HubModel(loaded.model.spec.to_dict(), list(loaded.classes), preprocess, manifest.pixels)
    converted, _example, _dynamic = to_convert(loaded, replace(manifest, precision="fp32"))
    model.network.load_state_dict(converted.state_dict())
    (model.half() if manifest.precision == "half" else model).save_pretrained(path)
    return manifest


_WRITERS: dict[str, Writer] = {
    "onnx": write_onnx,
    "openvino": write_openvino,
    "torchscript": _torchscript,
    "pt2": _pt2,
    "executorch": _executorch,
    "torchvision-weights": _torchvision_weights,
    "huggingface": _huggingface,
}
