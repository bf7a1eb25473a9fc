"""Images of more than 8 bits per channel: their values, and the range of values that becomes 0…255.

A 16-bit file does not say how many of its bits are used: cameras of 10, 12 or 14 bits write their
values unchanged. So one range is measured for a data set (`value_range.py`); every reader of its
images uses it.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, TiffImagePlugin

ValueRange = tuple[float, float]
"""The values that become 0 and 255; others are interpolated, and those beyond are clipped."""

UNMEASURED: ValueRange = (0.0, 0.0)
"""The range of a data set that is not measured yet: reading a deep image with it raises `RangeUnknown`."""

CLIPPED = "values beyond the range"
"""Key in the `info` of a decoded image: whether values were clipped."""

_WHITE_IS_ZERO, _SEPARATE_PLANES, _UNSIGNED, _SIGNED = 0, 2, 1, 2  # values of tags, TIFF 6.0, section 8


class RangeUnknown(Exception):
    """A deep image was met before the range of its data set is known."""


class UnsupportedLayout(ValueError):
    """A deep image that cannot be read; the message is the reason."""


class DeepValues(NamedTuple):
    """The pixels of a deep image."""

    values: np.ndarray
    """H×W, or H×W×3 in RGB: uint16, int32, uint32 or float32."""
    kind: str
    """16-bit unsigned, 32-bit float, …"""
    alpha: np.ndarray | None = None
    """uint8 H×W."""
    white_is_zero: bool = False


def is_deep(image: Image.Image) -> bool:
    """Whether an opened image, whose pixels are not loaded yet, has more than 8 bits per channel, or signed ones."""
    if image.mode.startswith(("I", "F")) or _has_signed_bytes(image):
        return True
    if image.mode not in ("RGB", "RGBA") or image.format not in ("PNG", "TIFF", "PPM"):
        return False
    if image.format == "PPM":
        return _largest_ppm_value(image) > 255
    if _has_separate_planes(image):
        return True
    raw_mode = _raw_mode(image)
    return ";16" in raw_mode and "RGBa" not in raw_mode  # of colors that are multiplied by alpha only 8 bits are read


def _has_signed_bytes(image: Image.Image) -> bool:
    """Whether a TIFF stores values from -128 to 127, which Pillow reads as unsigned ones."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return image.mode in ("L", "P") and tags.get(TiffImagePlugin.SAMPLEFORMAT, (_UNSIGNED,))[0] == _SIGNED


def has_8_bit_reader(image: Image.Image) -> bool:
    """Whether Pillow itself can scale a deep image to 8 bits, from 0…65535."""
    return image.mode in ("RGB", "RGBA") and not _has_separate_planes(image)


def _has_separate_planes(image: Image.Image) -> bool:
    """Whether a TIFF stores values of more than 8 bits plane by plane, which Pillow reads wrongly."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) != _SEPARATE_PLANES:
        return False
    compressed, bands = tags.get(TiffImagePlugin.COMPRESSION, 1) != 1, tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    return max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) > 8 and not (compressed and bands == 1)


def load_values(image: Image.Image) -> DeepValues:
    """Load a deep image. Raises `ValueError` for values that are not finite, and `UnsupportedLayout`."""
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    white_is_zero = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == _WHITE_IS_ZERO
    if _has_separate_planes(image):
        raise UnsupportedLayout(
            "it stores its bands of more than 8 bits in separate planes, which cannot be read; interleave them"
        )
    if _has_signed_bytes(image):
        raise UnsupportedLayout("its 8-bit values are signed, which cannot be read; add 128 to make them unsigned")
    if image.mode in ("RGB", "RGBA"):
        values, alpha = _load_colors(image)
        return DeepValues(values, "16-bit unsigned", alpha)
    whole, sample_format = image.mode.startswith("I"), tags.get(TiffImagePlugin.SAMPLEFORMAT, (_UNSIGNED,))[0]
    bits = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (16 if whole else 32,)))
    image.load()
    values = np.asarray(image)
    kind = "float" if not whole else "unsigned" if sample_format == _UNSIGNED else "signed"
    if not np.isfinite(values).all():
        raise ValueError("it contains values that are not finite")
    if kind == "unsigned" and bits == 32:
        values = values.view(np.uint32)  # Pillow has int32 only
    return DeepValues(values, f"{bits}-bit {kind}", None, white_is_zero)


def _load_colors(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Load a 16-bit color image: RGB, uint16 H×W×3, and alpha, uint8 H×W.

    Pillow has 8-bit colors only and keeps the high bytes; the low bytes are those that it keeps if
    it is told the other byte order. Gray with alpha, which has four bytes per pixel, is read as
    four channels.
    """
    if image.format == "PPM":
        return _load_ppm(image), None
    raw_mode = _raw_mode(image)
    assert image.fp is not None  # type: ignore[attr-defined]
    image.fp.seek(0)  # type: ignore[attr-defined]
    low = Image.open(image.fp, formats=[image.format or ""])  # type: ignore[attr-defined]
    if raw_mode == "LA;16B":
        _set_raw_mode(low, "RGBA")
        high_byte, low_byte, alpha, _ = np.moveaxis(np.asarray(low), -1, 0)
        image.load()
        gray = high_byte.astype(np.uint16) << 8 | low_byte
        return np.repeat(gray[..., None], 3, axis=-1), alpha
    order = raw_mode[-1] if raw_mode[-1] in "BL" else {"little": "L", "big": "B"}[sys.byteorder]
    _set_raw_mode(low, raw_mode[:-1] + {"B": "L", "L": "B"}[order])
    low_bytes = np.asarray(low)
    image.load()
    high_bytes = np.asarray(image)
    values = high_bytes[..., :3].astype(np.uint16) << 8 | low_bytes[..., :3]
    return values, high_bytes[..., 3] if image.mode == "RGBA" else None


def _largest_ppm_value(image: Image.Image) -> int:
    """Return the value that an opened binary PPM declares as white; 0 for another file or loaded pixels."""
    for codec, *_, arguments in getattr(image, "tile", ()):
        return int(arguments[1]) if codec == "ppm" else 0
    return 0


def _load_ppm(image: Image.Image) -> np.ndarray:
    """Load a binary PPM of 16-bit colors, scaled from its own white to 65535, as Pillow scales gray: uint16 H×W×3."""
    white, (width, height) = _largest_ppm_value(image), image.size
    image.fp.seek(image.tile[0][2])  # type: ignore[attr-defined]
    data = image.fp.read(6 * width * height)  # type: ignore[attr-defined]
    image.load()  # reports a file that is cut short
    values = np.frombuffer(data, ">u2").reshape(height, width, 3)
    return np.rint(values * (65535 / white)).clip(0, 65535).astype(np.uint16)


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name of how the pixels of an opened image are stored, such as RGB;16B."""
    for *_, arguments in getattr(image, "tile", ()):
        return str(arguments if isinstance(arguments, str) else arguments[0])
    return ""


def _set_raw_mode(image: Image.Image, raw_mode: str) -> None:
    def changed(tile: Any) -> Any:
        *_, arguments = tile
        arguments = raw_mode if isinstance(arguments, str) else (raw_mode, *arguments[1:])
        return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)

    image.tile = [changed(tile) for tile in image.tile]  # type: ignore[attr-defined]


def scale_to_8_bits(deep: DeepValues, value_range: ValueRange | None) -> tuple[Image.Image, bool]:
    """Return an image of mode L, RGB or RGBA, scaled from `value_range`, and whether values beyond it were clipped.

    Without a range (as networks that were trained on 8-bit images have none): integers that fit are
    scaled from 0…65535, floats from 0…1 or 0…255 if all values lie there, and others from their own
    minimum and maximum.
    """
    values = deep.values
    smallest, largest = float(values.min()), float(values.max())
    low, high = value_range or _usual_range(values.dtype.kind == "f", smallest, largest)
    scaled = np.clip((values.astype(np.float64) - low) * (255 / max(high - low, 1e-12)), 0, 255)
    pixels = np.rint(scaled).astype(np.uint8)
    if deep.white_is_zero:
        pixels = 255 - pixels
    if deep.alpha is not None:
        pixels = np.dstack([pixels, deep.alpha])
    return Image.fromarray(pixels), smallest < low or largest > high


def _usual_range(is_float: bool, smallest: float, largest: float) -> ValueRange:
    if is_float and smallest >= 0 and largest <= 255:
        return 0.0, 1.0 if largest <= 1 else 255.0
    if not is_float and smallest >= 0 and largest <= 65535:
        return 0.0, 65535.0
    return smallest, largest
