"""The one decoder: whatever a picture file holds becomes 8-bit RGB or grey, the right way up.

Evaluation, serving and export read pictures through `decode`, training through `decode_part`, which shares all but
the reading of a JPEG's pixels: so they cannot disagree about EXIF orientation, transparency, CMYK or 16-bit files. It
needs Pillow only, no torch; with simplejpeg a training picture comes sooner, and is the same.

Notable: only plain raster formats are tried. Pillow alone would hand an EPS file to Ghostscript, which is a
program that strangers could write, and pictures may come from strangers (`alexnet serve`).
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from alexnet.errors import UserError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
    | {".jp2", ".tga", ".heic", ".heif", ".avif"}
)
"""File name endings, in lower case, by which a folder's pictures are told from its other files. HEIC and AVIF
are among them although a reader may be missing: a picture that cannot be read should be listed, not overlooked."""

MAX_PIXELS = 178_956_970
"""Largest width × height that is decoded: where Pillow itself stops (twice its `MAX_IMAGE_PIXELS`)."""

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")

# EXIF tag 0x0112 → what puts the picture upright (EXIF 2.32, section 4.6.4).
_ORIENTATION_TAG = 0x0112
EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Box = tuple[int, int, int, int]
"""Part of a picture, in pixels: left, top, right, bottom, the last two being the first that are outside."""


class BadImage(UserError):
    """A picture that cannot be read: `reason` in a few words, `where` it is."""

    def __init__(self, reason: str, source: str = "the image") -> None:
        super().__init__(reason, source)  # both in args, so that the error survives pickling
        self.reason = reason
        self.where = source

    def __str__(self) -> str:
        return f"Cannot read {self.where}: {self.reason}; replace or remove it."


class TooManyPixels(BadImage):
    """A picture that is larger than is decoded; its header says so."""


def decode_image(
    source: str | Path | bytes | np.ndarray | Image.Image, channels: int = 3, *, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The picture in `source`, in mode RGB (`channels` 3) or L (1): a path, the bytes of a file, one already opened, or
    pixels, uint8 H×W×C.

    EXIF orientation is applied and the file's metadata dropped. Transparent pixels are laid over white, an
    animation gives its first frame, and values of more than 8 bits are scaled to 0…255 (see `_to_8_bits`).
    Grey is ITU-R 601 luma, as Pillow computes it.

    Raises `BadImage` for anything that is not a whole picture of a raster format, and `TooManyPixels`, which is one,
    for a file of more than `max_pixels`, before any of them is decoded.
    """
    if channels not in (1, 3):
        raise UserError(f"Images can be read with 1 channel (grey) or 3 (RGB), not {channels}; choose one of them.")
    where = _source_name(source)
    mode = "RGB" if channels == 3 else "L"
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source if source.shape[2] == 3 else source[..., 0])
    try:
        if isinstance(source, Image.Image):
            return convert_mode(_apply_orientation(source), mode)
        with _open_file(source, where) as file, open_image(file, where, max_pixels) as image:
            image.load()
            return convert_mode(_apply_orientation(image), mode)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever they meet: OSError, SyntaxError, struct.error, ...
        raise BadImage(describe_error(error), where) from error


def decode_crop(
    source: str | Path | bytes | np.ndarray,
    size: int,
    channels: int = 3,
    *,
    box: Callable[[int, int], Box] | None = None,
) -> np.ndarray:
    """What `decode` gives, or the part of it in a box, to be resized to `size` for training: uint8 H×W×`channels`.

    `box` is asked with the width and height that `decode` would return. A JPEG is decoded at the smallest of full,
    half, quarter and eighth size that leaves the part at least twice `size` pixels wide and high, which spares most of
    the work for a camera's picture; at full size the pixels are those of `decode`. Raises `BadImage` as `decode` does.
    """
    where, mode = _source_name(source), "RGB" if channels == 3 else "L"
    if isinstance(source, np.ndarray):
        if source.shape[2] != channels:
            source = np.array(decode_image(source, channels)).reshape(*source.shape[:2], channels)
        left, top, right, bottom = box(source.shape[1], source.shape[0]) if box else (0, 0, None, None)
        return source[top:bottom, left:right]
    try:
        with _open_file(source, where) as file, open_image(file, where) as image:
            stored, turned = image.size, exif_orientation(image)
            width, height = stored[::-1] if turned >= 5 else stored
            left, top, right, bottom = box(width, height) if box else (0, 0, width, height)
            factor = 1
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                while factor < 8 and min(right - left, bottom - top) >= 4 * factor * size:
                    factor *= 2
            left, top, right, bottom = (round(place / factor) for place in (left, top, right, bottom))
            if image.format == "JPEG" and image.mode in (mode, "L") and turned not in EXIF_TRANSPOSES:
                pixels = _decode_simplejpeg(file, mode, stored, factor)
                if pixels is not None:
                    return pixels[top:bottom, left:right]
            if factor > 1:
                image.draft(None, (stored[0] // factor, stored[1] // factor))
            image.load()
            picture = convert_mode(_apply_orientation(image), mode)
            if picture.size != (right - left, bottom - top):
                picture = picture.crop((left, top, right, bottom))
            return np.array(picture).reshape(picture.height, picture.width, channels)
    except (BadImage, MemoryError):
        raise
    except Exception as error:  # as in `decode`
        raise BadImage(describe_error(error), where) from error


def check_image(path: str | Path, *, full: bool = True) -> str | None:
    """Why the picture at `path` cannot be read, in a few words, or None where it can.

    `full` decodes it; otherwise only the header is read and, for JPEG and PNG, the end marker looked for,
    which finds empty, cut-off and mislabelled files but not damage in the middle.
    """
    try:
        if full:
            decode_image(path)
            return None
        with _open_file(path, str(path)) as file, open_image(file, str(path)) as image:
            marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(image.format or "")
            # Cameras append padding and previews, so the marker may stand anywhere near the end.
            file.seek(max(0, file.seek(0, io.SEEK_END) - 65536))
            return "it is cut short" if marker and marker not in file.read() else None
    except BadImage as error:
        return error.reason


def image_size(source: str | Path | bytes | np.ndarray) -> tuple[int, int]:
    """Width and height in pixels that `decode` will return, from the header alone. Raises `BadImage`."""
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    where = _source_name(source)
    with _open_file(source, where) as file, open_image(file, where) as image:
        width, height = image.size
        return (height, width) if exif_orientation(image) >= 5 else (width, height)


# ── opening ───────────────────────────────────────────────────────────────────────────────────────────────────


def _source_name(source: str | Path | bytes | np.ndarray | Image.Image) -> str:
    return str(source) if isinstance(source, (str, Path)) else "the image"


def _open_file(source: str | Path | bytes, where: str) -> BinaryIO:
    """`source` opened for reading, not empty."""
    try:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise BadImage("there is no such file", where) from None
    except IsADirectoryError:
        raise BadImage("it is a folder", where) from None
    except OSError as error:
        raise BadImage(f"the system says '{error.strerror or error}'", where) from error
    if file.seek(0, io.SEEK_END) == 0:
        file.close()
        raise BadImage("the file is empty", where)
    file.seek(0)
    return file


def open_image(file: BinaryIO, where: str, most: int = MAX_PIXELS) -> Image.Image:
    """The picture with its header read and its pixels not yet decoded."""
    too_many = f"it has more than {min(most, MAX_PIXELS):,} pixels, the most that is decoded"
    try:
        image = Image.open(file, formats=_readable_formats())
    except Image.DecompressionBombError as error:
        raise TooManyPixels(too_many, where) from error
    except Exception as error:
        file.seek(0)
        raise BadImage(_guess_content(file.read(512)), where) from error
    if image.width * image.height > min(most, MAX_PIXELS):  # a caller may have lifted Pillow's own limit
        image.close()
        raise TooManyPixels(too_many, where)
    return image


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those of our formats that this Pillow can read, with HEIC where pillow-heif is installed."""
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _guess_content(data: bytes) -> str:
    """A guess from the first bytes at what a file is that Pillow does not take for a picture."""
    start = data.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")):
        return "it is not an image but a web page or other markup"
    if data[4:8] == b"ftyp":  # ISO media: the brand says which
        brand = data[8:12]
        if brand in (b"avif", b"avis"):
            return "it is AVIF, which needs Pillow 11.3 or later"
        if brand[:3] in (b"hei", b"hev", b"mif", b"msf"):
            return "it is HEIC, which needs 'pip install pillow-heif'"
    if data[:4] in (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\x89PNG", b"GIF8", b"RIFF"):
        return "its header is damaged or cut short"
    return "it is not an image of a known format"


def describe_error(error: Exception) -> str:
    """A decoder's complaint in a few words."""
    text = str(error).lower()
    if isinstance(error, (EOFError, IndexError, struct.error)) or "truncated" in text or "not enough" in text:
        return "it is cut short"
    return f"its data is damaged ({error})" if text else "its data is damaged"


def _decode_simplejpeg(file: BinaryIO, mode: str, size: tuple[int, int], factor: int) -> np.ndarray | None:
    """All pixels of a JPEG of `size` at 1/`factor` of it, uint8 H×W×C. None without simplejpeg, and for a file of
    which it has any complaint: Pillow then decides whether it can be read.

    Both packages hold the same library, libjpeg-turbo, and give the same pixels (a test compares them); Pillow's go
    through two more copies, a third of its time.
    """
    simplejpeg = _import_simplejpeg()
    if simplejpeg is None:
        return None
    file.seek(0)
    least = {"min_width": -(-size[0] // factor), "min_height": -(-size[1] // factor), "min_factor": factor}
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(file.read(), "RGB" if mode == "RGB" else "GRAY", **least)
    except ValueError:
        return None
    return pixels


@functools.cache
def _import_simplejpeg() -> Any:
    """The module, or None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


# ── to what the network reads ─────────────────────────────────────────────────────────────────────────────────


def exif_orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # malformed EXIF is common and no reason to refuse the pixels
        return 1


def _apply_orientation(image: Image.Image) -> Image.Image:
    method = EXIF_TRANSPOSES.get(exif_orientation(image))
    return image if method is None else image.transpose(method)


def convert_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` in `mode`, RGB or L, with nothing attached that could be applied a second time."""
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, rgba)
    if image.mode != mode:
        image = image.convert(mode)
    image.info.clear()
    return image


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 or 32 bits or floating point, as L.

    The scale is the format's where it has one: 0…65535 for 16-bit files, and for floats 0…1 or 0…255 if all
    values lie there. Where the file says nothing (32-bit integers, other floats) its own range is stretched.
    """
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds values that are not numbers")
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I") and low >= 0 and high <= 65535:  # older Pillow reads 16-bit PNG as mode I
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    scaled = (values - low) * (255 / max(high - low, 1e-12))
    return Image.fromarray(np.rint(scaled).astype(np.uint8))
