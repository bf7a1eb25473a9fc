"""Conversion of a network to ONNX and OpenVINO, for exported files and engines alike, also in 8-bit integers.

The files take any batch size; their input is called `input` and their output `output`. Where the manifest says
`pixels`, as for every engine, they read the uint8 images that `EvalTransform.eval_array` returns and normalize them
inside the graph, mean image included, so that no user of the file can normalize differently.

A single image through an AlexNet is limited by memory: fc6 to fc8 hold most of the weights and use each once. In 8
bits, with a scale for each output (int8-fc), they are a quarter to read; arithmetic stays float32. For many images the
arithmetic of the convolutions dominates, so activations need 8 bits too (int8), and the range of each must be measured
on images, which is calibration (NNCF's post-training quantization).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.runtimes.engines import LoadedModel, import_openvino, openvino_core
from alexnet.runtimes.image_steps import describe_steps
from alexnet.runtimes.manifest import KEY, Manifest

INPUT, OUTPUT = "input", "output"

EXPORTED_OPSET = 18  # the lowest that torch's exporter writes; `_lower_opset` finds the one that is needed
OLDEST_ONNXRUNTIME = {17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18", 22: "1.21", 23: "1.23"}
"""Opset → the oldest onnxruntime that reads it, as tried with each release. Lower opsets are read by 1.12, too, the
oldest release for the Python versions of this package."""

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
        "image": describe_steps(loaded.preprocess, pixels),
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


def to_onnx(loaded: LoadedModel, manifest: Manifest, path: Path, opset: int = EXPORTED_OPSET) -> Path:
    """Write the network to `path` as one ONNX file, in float32, or in float16 if it is to be half; return `path`.

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
                opset_version=opset,
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
    return path


def write_onnx(
    loaded: LoadedModel,
    manifest: Manifest,
    path: Path,
    load_images: LoadImages,
    source: Path | None = None,
    opset: int | None = None,
) -> Manifest:
    """Write an ONNX file in the precision of `manifest`, which it holds and which is returned with its opset.

    `source` is an ONNX file of the same network and input in float32, if there is one; `opset` is the lowest that the
    network needs unless it is given. Raises `UserError` for one that is too low.
    """
    import onnx

    plain = source or to_onnx(loaded, manifest, path.with_name("plain.onnx"), max(opset or 0, EXPORTED_OPSET))
    if manifest.precision == "int8":
        _onnx_int8(plain, path, calibration_input(loaded, manifest, load_images))
    model = onnx.load(path if manifest.precision == "int8" else plain)
    if manifest.precision == "int8-fc":
        _onnx_fc_int8(model)
    manifest = replace(manifest, about={**manifest.about, **_lower_opset(model, opset, manifest.precision)})
    onnx.helper.set_model_props(model, {KEY: manifest.to_json()})
    onnx.save(model, path)
    if source is None:
        plain.unlink()
    return manifest


def _lower_opset(model: Any, opset: int | None, precision: str) -> dict[str, Any]:
    """Set the opset of an `onnx.ModelProto` to `opset`, or to the lowest with the same operators, and
    its IR version to the lowest for that opset; return them for the manifest. Raises `UserError` for one too low."""
    import onnx

    default = next(o for o in model.opset_import if o.domain in ("", "ai.onnx"))
    nodes = [n for graph in (model.graph, *model.functions) for n in graph.node if n.domain in ("", "ai.onnx")]
    needed = max(onnx.defs.get_schema(n.op_type, default.version).since_version for n in nodes)
    if opset is not None and opset < needed:
        raise UserError(f"This network needs opset {needed} in ONNX; use --opset {needed}, or omit it.")
    default.version = opset or needed
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)
    tried = 20 if precision == "half" else 17  # onnxruntime 1.14 crashes with float16, 1.17 does not
    oldest = OLDEST_ONNXRUNTIME[max(default.version, tried)]
    return {"opset": default.version, "ir_version": model.ir_version, "oldest_onnxruntime": oldest}


def write_openvino(
    loaded: LoadedModel, manifest: Manifest, path: Path, load_images: LoadImages, source: Path | None = None
) -> Manifest:
    """Do the same for OpenVINO's `path` (.xml) and the .bin beside it; half: float16 weights."""
    openvino = import_openvino()
    plain = source or to_onnx(loaded, replace(manifest, precision="fp32"), path.with_name("plain.onnx"))
    model = openvino_core().read_model(plain)
    if manifest.precision == "int8":
        model = _openvino_int8(model, calibration_input(loaded, manifest, load_images))
    elif manifest.precision == "int8-fc":
        _openvino_fc_int8(model)
    model.set_rt_info(manifest.to_json(), [KEY])
    openvino.save_model(model, path, compress_to_fp16=manifest.precision == "half")
    if source is None:
        plain.unlink()
    return manifest


# ── 8-bit integers ────────────────────────────────────────────────────────────────────────────────


def _openvino_fc_int8(model: Any) -> None:
    """Change an `openvino.Model` to 8-bit weights in its fully connected layers: symmetric, one scale per output."""
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        weights = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weights is None or weights.get_type_name() != "Constant":
            continue
        values = np.asarray(weights.data)
        integers, scale = round_weights(values, 1 if node.get_attributes()["transpose_b"] else 0)
        # OpenVINO recognizes a product with a constant 8-bit factor as weights to decompress while it multiplies
        product = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(product.output(0))


def _onnx_fc_int8(model: Any) -> None:
    """Do the same to an `onnx.ModelProto`, in operators that every ONNX runtime has."""
    from onnx import helper, numpy_helper

    constants = {x.name: x for x in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type in ("Gemm", "MatMul") and n.input[1] in constants]:
        name = node.input[1]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 1 if transposed else 0
        integers, scale = round_weights(numpy_helper.to_array(constants[name]), axis)
        tensors = {f"{name}_int8": integers, f"{name}_scale": scale.ravel().astype(np.float32)}
        model.graph.initializer.remove(constants.pop(name))
        model.graph.initializer.extend(numpy_helper.from_array(x, key) for key, x in tensors.items())
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", list(tensors), [name], axis=1 - axis))


def round_weights(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `weights` as int8 and the scale of each output; products are summed over `axis`."""
    scale = np.maximum(np.abs(weights).max(axis=axis, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.rint(weights / scale).astype(np.int8), scale


def _openvino_int8(model: Any, images: np.ndarray) -> Any:
    """Return an `openvino.Model` with 8-bit weights and activations, their ranges measured on `images` (N×C×size×size,
    as the network takes them).

    Ranges span all images. NNCF's default, the mean of the ranges of single images, clips the largest activations: the
    probabilities of a CIFAR-10 network then differed by up to .53, and differ by .07 this way (1,000 images).
    """
    with quiet():
        import_openvino()  # before nncf, whose telemetry is the same
        import nncf
        from nncf.quantization import range_estimator as ranges

        lowest = ranges.StatisticsCollectorParameters(ranges.StatisticsType.MIN, ranges.AggregatorType.MIN)
        highest = ranges.StatisticsCollectorParameters(ranges.StatisticsType.MAX, ranges.AggregatorType.MAX)
        return nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in images]),
            subset_size=len(images),
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges.RangeEstimatorParameters(lowest, highest)
            ),
        )


def _onnx_int8(source: Path, path: Path, images: np.ndarray) -> None:
    """Do the same from the ONNX file `source` to `path` with onnxruntime: one range per tensor, its extremes on
    `images`.

    Weights get 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which would overflow (with 8
    bits, a CIFAR-10 network fell from 79.8 % to 71.7 %).
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rows = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rows, None)
            return None if image is None else {INPUT: image[None]}

    operators = ["Conv", "Gemm", "MatMul", "Relu", "MaxPool"]
    with quiet():
        quantization.quantize_static(
            source, path, Reader(), op_types_to_quantize=operators, per_channel=True, reduce_range=True
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence exporters and quantizers, which report progress, advice and their own deprecations."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
