"""Writing a network in each of the formats: what `FORMATS` lists, one function a format.

Each function gets a `Job` and the path to write, puts the description into the file where the format has a place for
it, and returns what else is to be told of the file.
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
class Job:
    """A network to be written."""

    opened: LoadedModel
    kind: str
    pixels: bool
    """Whether the file is to take uint8 pixels and normalise by itself."""
    precision: str
    calibration: dict[str, Any] | None
    pictures: Callable[[], np.ndarray]
    """Pictures for 8-bit activations to see their ranges on: uint8 N×C×size×size."""

    @property
    def preprocess(self) -> EvalTransform | None:
        """What goes into the graph."""
        return self.opened.preprocess if self.pixels else None

    @property
    def half(self) -> bool:
        return self.precision == "half"

    def seen(self) -> np.ndarray:
        """`pictures` as the network takes them."""
        scale, shift = self.opened.preprocess.factors()
        return self.pictures() if self.pixels else self.pictures() * scale + shift

    def describe(self, **about: Any) -> Manifest:
        """What is said of the file."""
        spec = self.opened.model.spec
        shape = ["batch", spec.in_channels, spec.image_size, spec.image_size]
        return Manifest(
            kind=self.kind,
            network=spec.name,
            spec=spec.to_dict(),
            classes=self.opened.classes,
            preprocess=replace(self.opened.preprocess, mean_image=None),
            pixels=self.pixels,
            precision=self.precision,
            calibration=self.calibration,
            about={
                "input": {"name": INPUT, "type": "uint8" if self.pixels else "float32", "shape": shape,
                          "colours": "RGB" if spec.in_channels == 3 else "grey",
                          "values": "0 to 255" if self.pixels else "(x / 255 - mean) / std"},
                "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", spec.num_classes],
                           "values": "logits; their softmax is the probabilities"},
                **about,
            },
        )  # fmt: skip

    def told(self, **about: Any) -> str:
        """The same as text, for the file's own metadata."""
        return json.dumps(self.describe(**about).to_dict(), ensure_ascii=False)


def check_fits(opened: LoadedModel, kind: str, pixels: bool, precision: str) -> None:
    """Raise `UserError` unless the network can be written as `kind` in this way."""
    form, spec = FORMATS[kind], opened.model.spec
    if precision not in form.precisions:
        able = ", ".join(name for name, other in FORMATS.items() if precision in other.precisions)
        raise UserError(f"The format {kind} has no {precision}; leave it out, or export to {able}.")
    if pixels and not form.graph and kind != "huggingface":
        raise UserError(f"The format {kind} holds weights alone and cannot normalise; leave --with-preprocessing out.")
    if opened.preprocess.mean_image is not None and not pixels:
        if kind == "torchvision-weights":
            raise UserError(f"This network subtracts a mean image, which the format {kind} cannot hold; use another.")
        raise UserError("This network subtracts a mean image, which only the file can hold; add --with-preprocessing.")
    if kind == "torchvision-weights":
        if not isinstance(opened.model, TorchvisionNetwork):
            to_torchvision(opened.model)
        elif spec.in_channels != 3:
            raise UserError(f"'{spec.name}' of {spec.in_channels} channel is not torchvision's own network of 3.")


def write(job: Job, path: Path) -> Manifest:
    """Write the network of `job` to `path`; the description of what was written, without checksums."""
    with quiet():
        return job.describe(**_WRITERS[job.kind](job, path))


# ── one writer a format ───────────────────────────────────────────────────────────────────────────────────────


def _onnx(job: Job, path: Path) -> dict[str, Any]:
    import onnx

    plain = path.with_name("plain.onnx")
    to_onnx(job.opened.model, plain, job.preprocess, job.half)
    if job.precision == "int8":
        quantize_onnx_int8(plain, path, job.seen())
    elif job.precision == "int8-fc":
        quantize_onnx_fc_int8(plain, path)
    else:
        plain.replace(path)
    plain.unlink(missing_ok=True)
    model = onnx.load(path)
    about = {"opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))}
    onnx.helper.set_model_props(model, {KEY: job.told(**about)})
    onnx.save(model, path)
    return about


def _openvino(job: Job, path: Path) -> dict[str, Any]:
    source, plain = path.with_name("plain.onnx"), path.with_name("plain.xml")
    to_onnx(job.opened.model, source, job.preprocess)
    if job.precision in ("fp32", "half"):
        to_openvino(source, path, job.half, job.told())
    else:
        to_openvino(source, plain)
        if job.precision == "int8":
            quantize_openvino_int8(plain, path, job.seen(), job.told())
        else:
            quantize_fc_int8(plain, path, job.told())
    for scratch in (source, plain, plain.with_suffix(".bin")):
        scratch.unlink(missing_ok=True)
    return {}


def _save(path: Path, save: Callable[[io.BytesIO], object]) -> None:
    """By way of memory: where the disk is full, torch's own writer takes the whole process down."""
    file = io.BytesIO()
    save(file)
    path.write_bytes(file.getbuffer())


def _torchscript(job: Job, path: Path) -> dict[str, Any]:
    whole, example, _ = to_convert(job.opened.model, job.preprocess, job.half)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the command line says that TorchScript is deprecated
        traced = torch.jit.trace(whole, example)
    _save(path, lambda file: torch.jit.save(traced, file, _extra_files={f"{KEY}.json": job.told()}))
    return {}


def _pt2(job: Job, path: Path) -> dict[str, Any]:
    whole, example, varying = to_convert(job.opened.model, job.preprocess, job.half)
    program = torch.export.export(whole, (example,), dynamic_shapes=(varying,))
    _save(path, lambda file: torch.export.save(program, file, extra_files={f"{KEY}.json": job.told()}))
    return {}


def _executorch(job: Job, path: Path) -> dict[str, Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    whole, example, _ = to_convert(job.opened.model, job.preprocess, job.half)
    example = example.new_zeros(CHUNK, *example.shape[1:])  # memory is planned for as many pictures as the example has
    varying = {0: torch.export.Dim("batch", min=1, max=CHUNK)}
    program = torch.export.export(whole, (example,), dynamic_shapes=(varying,))
    if job.precision == "int8":
        whole = _by_pt2e(program.module(), torch.from_numpy(job.seen()))
        program = torch.export.export(whole, (example,), dynamic_shapes=(varying,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)
    return {"most_at_once": CHUNK}


def _by_pt2e(graph: torch.fx.GraphModule, pictures: torch.Tensor) -> torch.nn.Module:
    """`graph` with weights and activations of 8 bits, the ranges of these taken from `pictures`."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnnpack
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    settings = xnnpack.get_symmetric_quantization_config(is_per_channel=True)
    observed = prepare_pt2e(graph, xnnpack.XNNPACKQuantizer().set_global(settings))
    with torch.no_grad():
        for chunk in pictures.split(CHUNK):
            observed(chunk)
    quantised: torch.nn.Module = convert_pt2e(observed)
    return quantised


def _torchvision_weights(job: Job, path: Path) -> dict[str, Any]:
    model = job.opened.model
    state = model.network.state_dict() if isinstance(model, TorchvisionNetwork) else to_torchvision(model)
    state = {name: x.half() if job.half and x.is_floating_point() else x for name, x in state.items()}
    _save(path, lambda file: torch.save(state, file))
    return {}


def _huggingface(job: Job, path: Path) -> dict[str, Any]:
    from alexnet.runtimes.hub import HubModel

    opened = job.opened
    model = HubModel(opened.model.spec.to_dict(), list(opened.classes), opened.preprocess.to_dict(), job.pixels)
    whole, _, _ = to_convert(opened.model, job.preprocess)
    model.network.load_state_dict(whole.state_dict())
    (copy.deepcopy(model).half() if job.half else model).save_pretrained(path)
    return {}


_WRITERS: dict[str, Callable[[Job, Path], dict[str, Any]]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "torchscript": _torchscript,
    "pt2": _pt2,
    "executorch": _executorch,
    "torchvision-weights": _torchvision_weights,
    "huggingface": _huggingface,
}
