"""The way from an image file to the network's input, as a list for programs in other languages.

It says what `data.decode.decode_image` and `EvalTransform` do; `docs/onnx_reader.py` follows it in 30 lines.
"""

from __future__ import annotations

from typing import Any

from alexnet.data.transforms import EvalTransform


def describe_steps(preprocess: EvalTransform, pixels: bool) -> list[dict[str, Any]]:
    """Return the steps in their order: each with its name (`step`), its numbers, and a sentence (`text`).

    `pixels`: the file normalizes by itself.
    """
    side, size = preprocess.resize_side, preprocess.size
    return [
        {"step": "frame", "index": 0, "text": "Take the first frame of an animation or of several pages."},
        _depth(preprocess),
        {
            "step": "transparency", "background": [255, 255, 255],
            "text": "Composite over white: (alpha * value + (255 - alpha) * 255) / 255, rounded.",
        },
        {
            "step": "orientation", "exif_tag": 274,
            "text": "Turn the image upright as its EXIF tag Orientation says; none or an invalid one: leave it.",
        },
        _colors(preprocess.channels),
        {
            "step": "resize", "side": side, "keep_aspect_ratio": not preprocess.squash,
            "filter": preprocess.interpolation, "antialias": preprocess.interpolation != "nearest",
            "text": "Resize with Pillow's Image.resize, to 8 bits, " + (
                f"both sides to {side}, whatever the aspect ratio." if preprocess.squash else
                f"the short side to {side}, the long side to int({side} * long / short); the right size stays as it is."
            ),
        },
        {
            "step": "crop", "size": size,
            "text": f"Crop at left = round((width - {size}) / 2), top = round((height - {size}) / 2); halves to even.",
        },
        *([] if pixels else [{
            "step": "normalize", "mean": list(preprocess.mean), "std": list(preprocess.std),
            "text": "(value / 255 - mean) / std for each channel, float32.",
        }]),
        {"step": "layout", "order": "NCHW", "text": "Order the axes as batch, channel, row, column."},
    ]  # fmt: skip


def _depth(preprocess: EvalTransform) -> dict[str, Any]:
    """Describe `data.deep.scale_to_8_bits`."""
    scaling = "round((value - low) * 255 / (high - low)), clipped to 0..255"
    if preprocess.value_range is not None:
        low, high = preprocess.value_range
        text = f"Scale values of more than 8 bits by {scaling}, with low = {low:g} and high = {high:g}."
        return {"step": "depth", "range": [low, high], "text": text}
    text = (
        f"Scale gray values of more than 8 bits by {scaling}: integers from 0..65535, floats from 0..1 or 0..255 if "
        "all of the image lie there, others from its minimum and maximum. Of 16-bit colors take the high byte."
    )
    return {"step": "depth", "range": None, "text": text}


def _colors(channels: int) -> dict[str, Any]:
    if channels == 3:
        text = "Convert to RGB as Pillow does, without color management; gray becomes three equal channels."
        return {"step": "colors", "mode": "RGB", "text": text}
    text = "Convert to gray as Pillow does: (19595 R + 38470 G + 7471 B + 32768) >> 16 (ITU-R 601), uint8."
    return {"step": "colors", "mode": "L", "text": text}
