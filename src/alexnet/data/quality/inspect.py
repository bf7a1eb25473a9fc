"""What a look at one picture tells: what the file is, whether it can be read, and two small portraits of its content.

A file is read once. A JPEG is decoded at an eighth of its size where that leaves enough: its coded data must still be
gone through to the end, so that a file that is cut short is found all the same, in a fraction of the time.

No torch here, so that the worker processes of `check`, which start anew, start at once.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Sequence
from pathlib import PurePath
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image

from alexnet.data.decode import EXIF_TRANSPOSES, BadImage, convert_mode, describe_error, exif_orientation, open_image

PORTRAIT = 16
"""Side in pixels of the grey portrait by which two pictures are compared."""
_HASHED = 32  # side of what the perceptual hash is computed from: imagehash's own choice
_FLAT = 3.0  # standard deviation, in levels of 255, below which a picture is almost one colour
_TINY = 8  # pixels: a shorter side tells nothing
_LONG = 5.0  # times longer than wide (or the other way): a square cut loses most of it

_ENDINGS = {
    "JPEG": {".jpg", ".jpeg", ".jpe", ".jfif"},
    "MPO": {".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"},
    "PNG": {".png"},
    "GIF": {".gif"},
    "WEBP": {".webp"},
    "BMP": {".bmp"},
    "TIFF": {".tif", ".tiff"},
}


class ImageInfo(NamedTuple):
    """What was seen of one picture. After a `reason` only `size` and `digest` mean anything."""

    size: int = 0
    """Bytes of the file, or of the pixels where there is none."""
    digest: bytes = b""
    """BLAKE2b of these bytes, 16 bytes long; empty where there is no file."""
    reason: str | None = None
    """Why it cannot be read, in a few words."""
    width: int = 0
    height: int = 0
    """Pixels, the right way up."""
    format: str = ""
    """Pillow's name: JPEG, PNG …"""
    mode: str = ""
    """Pillow's name of the colours as they are stored: RGB, L, P, CMYK, I;16 …"""
    turned: bool = False
    """Whether EXIF says to turn or mirror it."""
    oddities: tuple[str, ...] = ()
    """What is unusual about a picture that can be read, each in a few words."""
    hash: int = 0
    """The perceptual hash of imagehash.phash, 64 bits."""
    portrait: bytes = b""
    """PORTRAIT×PORTRAIT grey levels, row by row; empty where the picture is almost one colour."""


def inspect_files(paths: Sequence[str]) -> list[ImageInfo]:
    """A look at each file. Never raises for what is in it."""
    return [_look_at_file(path) for path in paths]


def inspect_arrays(images: np.ndarray) -> list[ImageInfo]:
    """The same for decoded pictures, uint8 N×H×W×C with C 1 or 3."""
    return [_look_at_array(pixels) for pixels in images]


def _look_at_file(path: str) -> ImageInfo:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ImageInfo(reason="it is a folder or device, not a file")
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return ImageInfo(reason="there is no such file")
    except OSError as error:
        return ImageInfo(reason=f"the system says '{error.strerror or error}'")
    if not data:
        return ImageInfo(reason="the file is empty")
    size, digest = len(data), hashlib.blake2b(data, digest_size=16).digest()
    try:
        with open_image(io.BytesIO(data), path) as image:
            turned = exif_orientation(image)
            width, height = image.size[::-1] if turned >= 5 else image.size
            oddities = _odd(image, path)
            mode, kind = image.mode, image.format or ""
            if kind == "JPEG":
                image.draft("L", (2 * _HASHED, 2 * _HASHED))
            image.load()
            grey = convert_mode(image, "L")
    except BadImage as error:
        return ImageInfo(size, digest, error.reason)
    except Exception as error:  # decoders raise whatever they meet, as in `decode`
        return ImageInfo(size, digest, describe_error(error))
    if turned in EXIF_TRANSPOSES:
        grey = grey.transpose(EXIF_TRANSPOSES[turned])
    seen, hashed, portrait = _portray(grey)
    return ImageInfo(
        size, digest, None, width, height, kind, mode, turned in EXIF_TRANSPOSES, (*oddities, *seen), hashed, portrait
    )


def _look_at_array(pixels: np.ndarray) -> ImageInfo:
    data = np.ascontiguousarray(pixels)
    digest = hashlib.blake2b(data.data, digest_size=16).digest()
    image = Image.fromarray(data if data.shape[-1] == 3 else data[..., 0])
    seen, hashed, portrait = _portray(image.convert("L"))
    height, width = data.shape[:2]
    return ImageInfo(data.nbytes, digest, None, width, height, "", image.mode, False, seen, hashed, portrait)


def _odd(image: Image.Image, path: str) -> tuple[str, ...]:
    """What the header tells that its owner should know."""
    found = []
    short, long = sorted(image.size)
    kind = image.format or ""
    ending = PurePath(path).suffix.lower()
    if kind in _ENDINGS and ending not in _ENDINGS[kind]:
        found.append(f"its name ends in {ending or 'nothing'} and it is {kind}")
    if getattr(image, "is_animated", False) and kind != "MPO":
        found.append("it is animated, and only its first frame is used")
    if image.mode.startswith(("I", "F")) or ";16" in str(getattr(image, "tile", "")):
        found.append("it has more than 8 bits a colour, which are scaled to 8")
    if image.mode == "CMYK":
        found.append("its colours are those of print (CMYK), and are converted to RGB")
    if short < _TINY:
        found.append(f"it is {image.width}×{image.height} pixels")
    elif long > _LONG * short:
        found.append(f"it is {long / short:.0f} times as long as wide, and a square cut loses most of it")
    return tuple(found)


def _portray(grey: Image.Image) -> tuple[tuple[str, ...], int, bytes]:
    """Of a picture in mode L: what is odd, the perceptual hash, and the portrait."""
    small = grey.resize((_HASHED, _HASHED), Image.Resampling.LANCZOS)
    if np.asarray(small).std() < _FLAT:
        return ("it is almost one colour",), 0, b""
    bits = imagehash.phash(small).hash
    portrait = small.resize((PORTRAIT, PORTRAIT), Image.Resampling.BOX).tobytes()
    return (), int.from_bytes(np.packbits(bits).tobytes(), "big"), portrait
