"""Networks in 8-bit integers: the weights of the fully connected layers alone, or all weights and activations.

A single image through an AlexNet is limited by memory: fc6 to fc8 hold most of the weights and use each once. In 8
bits, with a scale for each output, they are a quarter to read; arithmetic stays float32. For many images the arithmetic
of the convolutions dominates, so activations need 8 bits too, and the range of each must be measured on images, which
is calibration (NNCF's post-training quantization).
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def openvino_fc_int8(model: Any) -> None:
    """Change an `openvino.Model` to 8-bit weights in its fully connected layers: symmetric, one scale per output."""
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        weights = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weights is None or weights.get_type_name() != "Constant":
            continue
        values = np.asarray(weights.data)
        integers, scale = _round_weights(values, 1 if node.get_attributes()["transpose_b"] else 0)
        # OpenVINO recognizes a product with a constant 8-bit factor as weights to decompress while it multiplies
        product = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(product.output(0))


def onnx_fc_int8(model: Any) -> None:
    """Do the same to an `onnx.ModelProto`, in operators that every ONNX runtime has."""
    from onnx import helper, numpy_helper

    constants = {x.name: x for x in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type in ("Gemm", "MatMul") and n.input[1] in constants]:
        name = node.input[1]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        axis = 1 if transposed else 0
        integers, scale = _round_weights(numpy_helper.to_array(constants[name]), axis)
        tensors = {f"{name}_int8": integers, f"{name}_scale": scale.ravel().astype(np.float32)}
        model.graph.initializer.remove(constants.pop(name))
        model.graph.initializer.extend(numpy_helper.from_array(x, key) for key, x in tensors.items())
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", list(tensors), [name], axis=1 - axis))


def _round_weights(weights: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `weights` as int8 and the scale of each output; products are summed over `axis`."""
    scale = np.maximum(np.abs(weights).max(axis=axis, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.rint(weights / scale).astype(np.int8), scale


def openvino_int8(model: Any, images: np.ndarray) -> Any:
    """Return an `openvino.Model` with 8-bit weights and activations, their ranges measured on `images` (N×C×size×size,
    as the network takes them).

    Ranges span all images. NNCF's default, the mean of the ranges of single images, clips the largest activations: the
    probabilities of a CIFAR-10 network then differed by up to .53, and differ by .07 this way (1,000 images).
    """
    with quiet():
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


def onnx_int8(source: Path, path: Path, images: np.ndarray) -> None:
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
            return None if image is None else {"input": image[None]}

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
