"""Networks of 8-bit integers: the weights of the fully connected layers alone, or all weights and activations.

One picture through an AlexNet is little arithmetic and much reading: fc6 to fc8 hold most of the weights and use each
once. Stored in 8 bits, with a scale for each output, they are a quarter to read; all sums stay float32. With more
pictures the convolutions' arithmetic counts: then activations need 8 bits too, and for these the range of each must
be seen on pictures, which is what calibration is (NNCF's post-training quantisation).
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.runtimes.engines import openvino_core

CALIBRATION = 300  # pictures: NNCF's default `subset_size`


def quantize_fc_int8(source: Path, path: Path, told: str | None = None) -> None:
    """Write OpenVINO's network `source` as `path` with the weights of its fully connected layers in 8 bits: symmetric,
    one scale for each output; and with what is `told` of it in its own metadata."""
    import openvino
    from openvino import opset13 as ops

    model = openvino_core().read_model(source)
    for node in model.get_ordered_ops():
        weights = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weights is None or weights.get_type_name() != "Constant":
            continue
        values = np.asarray(weights.data)
        integers, scale = _rounded(values, 1 if node.get_attributes()["transpose_b"] else 0)
        # a product with a constant 8-bit factor is what OpenVINO knows as weights to decompress while it multiplies
        product = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(product.output(0))
    if told is not None:
        model.set_rt_info(told, ["alexnet"])
    openvino.save_model(model, path, compress_to_fp16=False)


def quantize_onnx_fc_int8(source: Path, path: Path) -> None:
    """`fc_to_int8` for the ONNX file `source`, in operations that every engine of ONNX knows."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(source)
    constants = {x.name: x for x in model.graph.initializer}
    for node in [n for n in model.graph.node if n.op_type in ("Gemm", "MatMul") and n.input[1] in constants]:
        name = node.input[1]
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        summed = 1 if transposed else 0
        integers, scale = _rounded(numpy_helper.to_array(constants[name]), summed)
        parts = {f"{name}_int8": integers, f"{name}_scale": scale.ravel().astype(np.float32)}
        model.graph.initializer.remove(constants.pop(name))
        model.graph.initializer.extend(numpy_helper.from_array(x, part) for part, x in parts.items())
        model.graph.node.insert(0, helper.make_node("DequantizeLinear", list(parts), [name], axis=1 - summed))
    onnx.save(model, path)


def _rounded(weights: np.ndarray, summed: int) -> tuple[np.ndarray, np.ndarray]:
    """`weights` as int8 and what these are to be multiplied by, one number for each output; `summed` is the axis that
    products are summed over."""
    scale = np.maximum(np.abs(weights).max(axis=summed, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return np.rint(weights / scale).astype(np.int8), scale


def quantize_openvino_int8(source: Path, path: Path, pictures: np.ndarray, told: str | None = None) -> None:
    """Write OpenVINO's network `source` as `path` with weights and activations in 8 bits, their ranges taken from
    `pictures`, N×C×size×size as the network takes them, and with what is `told` of it in its own metadata.

    A range is that of all pictures together. NNCF's own choice, the mean of the pictures' ranges, cuts off what is
    largest: probabilities of a network for CIFAR-10 were then up to .53 off, and are .07 off so (1,000 pictures).
    """
    import openvino

    with _quiet():
        import nncf
        from nncf.quantization import range_estimator as ranges

        lowest = ranges.StatisticsCollectorParameters(ranges.StatisticsType.MIN, ranges.AggregatorType.MIN)
        highest = ranges.StatisticsCollectorParameters(ranges.StatisticsType.MAX, ranges.AggregatorType.MAX)
        model = openvino_core().read_model(source)
        model = nncf.quantize(
            model,
            nncf.Dataset([picture[None] for picture in pictures]),
            subset_size=len(pictures),
            preset=nncf.QuantizationPreset.MIXED,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                activations_range_estimator_params=ranges.RangeEstimatorParameters(lowest, highest)
            ),
        )
    if told is not None:
        model.set_rt_info(told, ["alexnet"])
    openvino.save_model(model, path, compress_to_fp16=False)


def quantize_onnx_int8(source: Path, path: Path, pictures: np.ndarray) -> None:
    """`to_int8` for the ONNX file `source`, by onnxruntime: one range for each tensor, its extremes on `pictures`.

    Weights get 7 of the 8 bits: without VNNI, processors add pairs of products in 16 bits, which then overflow (with 8
    bits, a network for CIFAR-10 fell from 79.8 % to 71.7 %).
    """
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        rows = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.rows, None)
            return None if picture is None else {"input": picture[None]}

    kinds = ["Conv", "Gemm", "MatMul", "Relu", "MaxPool"]
    with _quiet():
        quantization.quantize_static(
            source, path, Reader(), op_types_to_quantize=kinds, per_channel=True, reduce_range=True
        )


def _evenly(items: list[Any]) -> list[Any]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(CALIBRATION, len(items))).round().astype(int)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers report progress, and what they would rather be given, on stdout and in the log."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
