"""Inspection of a single image: file properties, readability, perceptual hash and thumbnail.

A file is read once. Large JPEGs are decoded at a reduced size, down to an eighth: the coded data is
still read to the end, so truncated files are found in a fraction of the time.

This module does not import torch, so the worker processes of `check` start quickly.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from alexnet.data.decode import EXIF_TRANSPOSES, BadImage, exif_orientation, load_upright, open_image, upright_size
from alexnet.data.deep import is_deep
from alexnet.data.value_range import Measured, measure_image, range_of

THUMBNAIL_SIDE = 16
"""Side in pixels of the gray thumbnail that confirms near duplicates."""
_HASH_SIDE = 32  # pixels: input of the perceptual hash, imagehash's default
_MIN_STD = 3.0  # of gray levels 0…255; below it an image is almost a single color
_MIN_SIDE = 8  # pixels
_MAX_ASPECT = 5.0  # long to short side; beyond it a square crop loses most of the image

DEEP = "it has more than 8 bits per channel, scaled to 8"
"""The anomaly of an image of more than 8 bits."""

_EXTENSIONS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "GIF": {".gif"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
}


class ImageInfo(NamedTuple):
    """Properties of an image. If there is a `reason`, only `size` and `digest` are valid."""

    size: int = 0
    """Bytes of the file, or of the pixels if there is no file."""
    digest: bytes = b""
    """16-byte BLAKE2b digest of these bytes; empty if there are none."""
    reason: str | None = None
    """Why the image cannot be read, in a few words."""
    width: int = 0
    height: int = 0
    """Pixels, after EXIF orientation."""
    format: str = ""
    """Pillow's name: JPEG, PNG …"""
    mode: str = ""
    """Pillow's name of the stored color mode: RGB, L, P, CMYK, I;16 …"""
    turned: bool = False
    """Whether EXIF requests rotation or mirroring."""
    anomalies: tuple[str, ...] = ()
    """Unusual properties of a readable image, each in a few words."""
    hash: int = 0
    """64-bit perceptual hash, by imagehash.phash."""
    thumbnail: bytes = b""
    """THUMBNAIL_SIDE×THUMBNAIL_SIDE gray levels, row by row; empty if the image is almost a single color."""
    values: Measured | None = None
    """Of an image of more than 8 bits."""


def inspect_files(paths: Sequence[str]) -> list[ImageInfo]:
    """Inspect each file. Never raises for bad contents."""
    return [_inspect_file(path) for path in paths]


def inspect_arrays(images: np.ndarray) -> list[ImageInfo]:
    """Inspect decoded images, uint8 N×H×W×C with C 1 or 3."""
    return [_inspect_array(pixels) for pixels in images]


def _inspect_file(path: str) -> ImageInfo:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ImageInfo(reason="it is a folder or device, not a file")
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return ImageInfo(reason="there is no such file")
    except OSError as error:
        return ImageInfo(reason=f"the system reports '{error.strerror or error}'")
    if not data:
        return ImageInfo(reason="the file is empty")
    size, digest = len(data), hashlib.blake2b(data, digest_size=16).digest()
    try:
        with open_image(data) as (image, _):
            anomalies = _find_anomalies(image, path)  # first: asking a PNG for its orientation loads the pixels
            values = measure_image(data) if DEEP in anomalies else None
            turned = exif_orientation(image) in EXIF_TRANSPOSES
            width, height = upright_size(image)
            mode, kind = image.mode, image.format or ""
            if kind == "JPEG":
                image.draft("L", (2 * _HASH_SIDE, 2 * _HASH_SIDE))
            gray = load_upright(image, "L", range_of(values) if values else None)
    except BadImage as error:
        return ImageInfo(size, digest, error.reason)
    except MemoryError:
        return ImageInfo(size, digest, "it needs more memory than is available")
    flat, phash, thumbnail = _phash_and_thumbnail(gray)
    return ImageInfo(
        size,
        digest,
        None,
        width,
        height,
        kind,
        mode,
        turned,
        (*anomalies, *flat),
        phash,
        thumbnail,
        values,
    )


def _inspect_array(pixels: np.ndarray) -> ImageInfo:
    data = np.ascontiguousarray(pixels)
    digest = hashlib.blake2b(data.data, digest_size=16).digest()
    image = Image.fromarray(data if data.shape[-1] == 3 else data[..., 0])
    flat, phash, thumbnail = _phash_and_thumbnail(image.convert("L"))
    height, width = data.shape[:2]
    return ImageInfo(data.nbytes, digest, None, width, height, "", image.mode, False, flat, phash, thumbnail)


def _find_anomalies(image: Image.Image, path: str) -> tuple[str, ...]:
    """Return what is unusual about an image, from its header."""
    anomalies = []
    short, long = sorted(image.size)
    kind = image.format or ""
    extension = PurePath(path).suffix.lower()
    if kind in _EXTENSIONS and extension not in _EXTENSIONS[kind]:
        anomalies.append(f"it is {kind}, not {extension or 'without extension'}")
    if getattr(image, "is_animated", False) and kind != "MPO":
        anomalies.append("it is animated; only the first frame is used")
    if is_deep(image):
        anomalies.append(DEEP)
    if image.mode == "CMYK":
        anomalies.append("its colors are CMYK, converted to RGB")
    if short < _MIN_SIDE:
        anomalies.append(f"it is {image.width}×{image.height} pixels")
    elif long > _MAX_ASPECT * short:
        anomalies.append(f"its sides are {long / short:.0f}:1; a square crop loses most of it")
    return tuple(anomalies)


def _phash_and_thumbnail(gray: Image.Image) -> tuple[tuple[str, ...], int, bytes]:
    """Return the anomalies, perceptual hash and thumbnail of an image of mode L."""
    small = gray.resize((_HASH_SIDE, _HASH_SIDE), Image.Resampling.LANCZOS)
    if np.asarray(small).std() < _MIN_STD:
        return ("it is almost a single color",), 0, b""
    bits = imagehash.phash(small).hash
    thumbnail = small.resize((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.BOX).tobytes()
    return (), int.from_bytes(np.packbits(bits).tobytes(), "big"), thumbnail
