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

from alexnet.data.images import BadImage, decode
from alexnet.data.samples import Arrays, Files
from alexnet.errors import UserError
from alexnet.inference.engines import openvino_core
from alexnet.inference.evaluate import evaluation_batches, own_data
from alexnet.inference.formats import Opened
from alexnet.inference.predict import find_images

CALIBRATION = 300  # pictures: NNCF's default `subset_size`


def fc_to_int8(source: Path, path: Path) -> None:
    """Write OpenVINO's network `source` as `path` with the weights of its fully connected layers in 8 bits: symmetric,
    one scale for each output."""
    import openvino
    from openvino import opset13 as ops

    model = openvino_core().read_model(source)
    for node in model.get_ordered_ops():
        weights = node.input_value(1).get_node() if node.get_type_name() == "MatMul" else None
        if weights is None or weights.get_type_name() != "Constant":
            continue
        values = np.asarray(weights.data)
        inputs = 1 if node.get_attributes()["transpose_b"] else 0  # the axis that is summed over
        scale = np.maximum(np.abs(values).max(axis=inputs, keepdims=True) / 127, np.finfo(np.float32).tiny)
        integers = np.rint(values / scale).astype(np.int8)
        # a product with a constant 8-bit factor is what OpenVINO knows as weights to decompress while it multiplies
        product = ops.multiply(ops.convert(ops.constant(integers), "f32"), ops.constant(scale.astype(np.float32)))
        node.input(1).replace_source_output(product.output(0))
    openvino.save_model(model, path, compress_to_fp16=False)


def to_int8(source: Path, path: Path, pictures: np.ndarray, told: str | None = None) -> None:
    """Write OpenVINO's network `source` as `path` with weights and activations in 8 bits, their ranges taken from
    `pictures`, N×C×size×size as the network takes them, and with what is `told` of it in its own metadata."""
    import openvino

    with _quiet():
        import nncf

        model = openvino_core().read_model(source)
        dataset = nncf.Dataset([picture[None] for picture in pictures])
        model = nncf.quantize(model, dataset, subset_size=len(pictures), preset=nncf.QuantizationPreset.MIXED)
    if told is not None:
        model.set_rt_info(told, ["alexnet"])
    openvino.save_model(model, path, compress_to_fp16=False)


def onnx_to_int8(source: Path, path: Path, pictures: np.ndarray) -> None:
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


def calibration_pictures(opened: Opened, folder: Path | None, flag: str = "--calibrate") -> np.ndarray:
    """Up to 300 pictures to calibrate `opened` on, evenly from `folder`, else from those that it was trained on: uint8
    N×C×size×size. Raises `UserError` where there are none."""
    if folder is not None:
        found = []
        for path in _evenly(find_images([folder])):
            with contextlib.suppress(BadImage):
                found.append(opened.preprocess.pixels(decode(path, opened.preprocess.channels)))
        if not found:
            raise UserError(f"None of the pictures in {folder} can be read; give others with {flag}.")
        return np.stack(found)
    if opened.run is None:
        raise UserError(
            "An engine of 8-bit activations needs pictures to see their ranges, and this network comes without any; "
            f"give {flag} with a folder of pictures like those that it will see."
        )
    part: Arrays | Files = own_data(opened.run, None).splits["train"]
    part = part.take(np.array(_evenly(list(range(len(part))))))
    return np.concatenate([b.images.cpu().numpy() for b in evaluation_batches(part, opened.preprocess).batches(0)])


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
