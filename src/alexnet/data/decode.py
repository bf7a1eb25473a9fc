"""The image decoder: any supported file becomes upright 8-bit RGB or gray.

Evaluation, serving and export use `decode_image`, training uses `decode_crop`. They differ only in
how a JPEG's pixels are read, so they agree on EXIF orientation, transparency, CMYK and 16-bit
files. Needs Pillow but not torch; with simplejpeg, JPEGs decode faster to the same pixels, and more
kinds of damage are found (see jpeg.py).

Only raster formats are tried: Pillow would pass an EPS file to Ghostscript, which executes it, and
`alexnet serve` reads untrusted images.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin

from alexnet.data.deep import (
    CLIPPED,
    UNMEASURED,
    RangeUnknown,
    UnsupportedLayout,
    ValueRange,
    has_8_bit_reader,
    is_deep,
    load_values,
    scale_to_8_bits,
)
from alexnet.data.jpeg import decode_strictly, load_strictly
from alexnet.data.png import check_chunks
from alexnet.device import cpu_count
from alexnet.errors import UserError
from alexnet.progress import Progress

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_PIXELS = 178_956_970
"""Largest width × height that is decoded: Pillow's own limit (twice its `MAX_IMAGE_PIXELS`)."""

NEEDS_HEIF = "it is HEIC, which needs pillow-heif; install it with: pip install pillow-heif"
"""The reason why HEIC cannot be read without that package; with it, `open_image` reads HEIC."""

_FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000", "TGA", "AVIF", "HEIF")

_CHUNK = 16  # files per task of a thread: enough for little overhead, few enough to use all cores for some photographs
_AHEAD = 64  # files of each thread that are begun before their results are needed

_ORIENTATION_TAG = 0x0112  # EXIF 2.32, section 4.6.4
EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation → the transpose that makes the image upright; 1 needs none."""

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels; right and bottom are exclusive."""


class BadImage(UserError):
    """An image that cannot be read: a short `reason`, and its `source` (a path, or "the image")."""

    def __init__(self, reason: str, source: str = "the image") -> None:
        super().__init__(reason, source)  # both in args, so that the error survives pickling
        self.reason = reason
        self.source = source

    def __str__(self) -> str:
        return f"Cannot read {self.source}: {self.reason}; replace or remove it."


class TooManyPixels(BadImage):
    """An image whose header declares more pixels than the limit."""


def decode_image(
    source: str | Path | bytes | np.ndarray | Image.Image,
    channels: int = 3,
    *,
    value_range: ValueRange | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Image.Image:
    """Decode `source` to an image of mode RGB (`channels` 3) or L (1).

    `source` is a path, the bytes of a file, a PIL image, or pixels, uint8 H×W×C. Applies EXIF
    orientation and drops the metadata. Transparent pixels are composited over white, an animation
    yields its first frame, and values of more than 8 bits are scaled from `value_range` to 0…255
    (see `scale_to_8_bits`). Gray is Pillow's ITU-R 601 luma.

    Raises `BadImage` if `source` is not a complete image of a raster format, and its subclass
    `TooManyPixels`, before decoding, for a file of more than `max_pixels`.
    """
    if channels not in (1, 3):
        raise UserError(f"Images can be read with 1 channel (gray) or 3 (RGB), not {channels}; choose one of them.")
    mode = "RGB" if channels == 3 else "L"
    if isinstance(source, np.ndarray):
        source = Image.fromarray(source if source.shape[2] == 3 else source[..., 0])
    if isinstance(source, Image.Image):
        with _decoder_errors("the image"):
            return load_upright(source, mode, value_range)
    with open_image(source, max_pixels) as (image, _):
        return load_upright(image, mode, value_range)


def decode_crop(
    source: str | Path | bytes | np.ndarray,
    size: int,
    channels: int = 3,
    *,
    box: Callable[[int, int], Box] | None = None,
    value_range: ValueRange | None = None,
) -> np.ndarray:
    """Decode `source`, or a box of it, for resizing to `size` in training: uint8 H×W×`channels`.

    `box(width, height)` receives the size that `decode_image` would return. A JPEG is decoded at
    the smallest of full, half, quarter and eighth scale at which the box is still at least twice
    `size` pixels wide and high, which saves most of the work on a camera's photo; at full scale the
    pixels equal those of `decode_image`. Raises `BadImage`.
    """
    mode = "RGB" if channels == 3 else "L"
    if isinstance(source, np.ndarray):
        if source.shape[2] != channels:
            source = np.array(decode_image(source, channels)).reshape(*source.shape[:2], channels)
        left, top, right, bottom = box(source.shape[1], source.shape[0]) if box else (0, 0, None, None)
        return source[top:bottom, left:right]
    with open_image(source) as (image, file):
        if image.format != "JPEG":
            upright = load_upright(image, mode, value_range)
            edges = box(*upright.size) if box else (0, 0, *upright.size)
            if edges != (0, 0, *upright.size):
                upright = upright.crop(edges)
            return np.array(upright).reshape(upright.height, upright.width, channels)
        stored, orientation = image.size, exif_orientation(image)
        width, height = upright_size(image)
        left, top, right, bottom = box(width, height) if box else (0, 0, width, height)
        factor = 1
        if image.mode in ("RGB", "L"):
            while factor < 8 and min(right - left, bottom - top) >= 4 * factor * size:
                factor *= 2
        left, top, right, bottom = (round(edge / factor) for edge in (left, top, right, bottom))
        if image.mode in (mode, "L") and orientation not in EXIF_TRANSPOSES:
            file.seek(0)
            reduced = (-(-stored[0] // factor), -(-stored[1] // factor))
            pixels = decode_strictly(file.read(), mode, reduced, factor)
            if pixels is not None:
                return pixels[top:bottom, left:right]
        if factor > 1:
            image.draft(None, (stored[0] // factor, stored[1] // factor))
        upright = load_upright(image, mode)
        if upright.size != (right - left, bottom - top):
            upright = upright.crop((left, top, right, bottom))
        return np.array(upright).reshape(upright.height, upright.width, channels)


def check_image(
    source: str | Path | bytes | np.ndarray, full: bool = True, value_range: ValueRange | None = None
) -> str | None:
    """Return a short reason why the image `source` cannot be read, or None if it can.

    Without `full` only the header and, for JPEG and PNG, the end marker are read, which detects
    empty, truncated and mislabeled files but not damage in the middle. Raises `RangeUnknown` as
    `load_upright` does.
    """
    try:
        if full or isinstance(source, np.ndarray):
            decode_image(source, value_range=value_range)
            return None
        with open_image(source) as (image, file):
            if value_range == UNMEASURED and is_deep(image):
                raise RangeUnknown
            marker = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}.get(image.format or "")
            # Cameras append padding and previews, so the marker may be anywhere near the end.
            file.seek(max(0, file.seek(0, io.SEEK_END) - 65536))
            return "it is cut short" if marker and marker not in file.read() else None
    except BadImage as error:
        return error.reason


def image_size(source: str | Path | bytes | np.ndarray) -> tuple[int, int]:
    """Return the width and height in pixels of the decoded image, from the header alone. Raises `BadImage`."""
    if isinstance(source, np.ndarray):
        return source.shape[1], source.shape[0]
    with open_image(source) as (image, _):
        return upright_size(image)


# ── opening files ─────────────────────────────────────────────────────────────────────────────────


@contextmanager
def open_image(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Open an image file, or the bytes of one, without decoding pixels, and yield the image and the open file.

    Raises `BadImage`, also for what the decoder raises within the `with`.
    """
    name = str(source) if isinstance(source, (str, Path)) else "the image"
    with _decoder_errors(name), _open_file(source, name) as file, _read_header(file, name, max_pixels) as image:
        yield image, file


@contextmanager
def _decoder_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (BadImage, RangeUnknown, MemoryError):
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ...
        raise BadImage(_describe_error(error), name) from error


def _open_file(source: str | Path | bytes, name: str) -> BinaryIO:
    """Open `source` for reading; raise `BadImage` if it is missing or empty."""
    try:
        file: BinaryIO = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise BadImage("there is no such file", name) from None
    except IsADirectoryError:
        raise BadImage("it is a folder", name) from None
    except OSError as error:
        raise BadImage(f"it cannot be opened ({error.strerror or error})", name) from error
    if file.seek(0, io.SEEK_END) == 0:
        file.close()
        raise BadImage("the file is empty", name)
    file.seek(0)
    return file


def _read_header(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    """Open an image file of at most `max_pixels`; `name` is for errors. Raises `BadImage`."""
    limit = min(max_pixels, MAX_PIXELS)
    too_many = f"it has more than {limit:,} pixels, the limit"
    try:
        image = Image.open(file, formats=_readable_formats())
    except Image.DecompressionBombError as error:
        raise TooManyPixels(too_many, name) from error
    except Exception as error:
        reason = _describe_error(error) if "MAX_TEXT" in str(error) else _describe_unreadable(file)
        raise BadImage(reason, name) from error
    if image.width * image.height > limit:  # a caller may have lifted Pillow's own limit
        image.close()
        raise TooManyPixels(too_many, name)
    return image


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Return the formats of `_FORMATS` that this Pillow can read; HEIC needs pillow-heif."""
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]

        pillow_heif.register_heif_opener()
    except ImportError:
        pass
    Image.init()
    # Metadata of more than 1 MiB, such as Photoshop's history, is not an attack; the limit of all texts, 64 MiB, stays.
    PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)
    # 16-bit gray with white as 0 is known in little-endian files only.
    TiffImagePlugin.OPEN_INFO.setdefault((b"MM", 0, (1,), 1, (16,), ()), ("I;16B", "I;16B"))
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # its errors are raised, too; stderr is for progress
    _silence_libtiff()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _silence_libtiff() -> None:
    """Let libtiff print nothing on stderr, in this process: Pillow raises its errors, too."""
    with contextlib.suppress(AttributeError, OSError):  # where Pillow does not share the functions of its libtiff
        libtiff = ctypes.CDLL(Image.core.__file__)  # which also finds what that is linked with
        for set_handler in (libtiff.TIFFSetErrorHandler, libtiff.TIFFSetWarningHandler):
            set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
            set_handler(None)


def _describe_error(error: Exception) -> str:
    """Return a decoder's error as a short reason."""
    if isinstance(error, UnsupportedLayout):
        return str(error)
    text = str(error).lower()
    if "max_text" in text:  # the name of Pillow's limit
        return "it has more than 64 MiB of metadata; save it without"
    if isinstance(error, (EOFError, IndexError, struct.error)) or "truncated" in text or "not enough" in text:
        return "it is cut short"
    return f"its data is damaged ({error})" if text else "its data is damaged"


def _describe_tiff(file: BinaryIO) -> str | None:
    """Return why Pillow cannot read a TIFF, from its tags; None if it is no TIFF."""
    file.seek(0)
    header = file.read(8)
    if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    try:
        if b"+" in header[:4]:  # BigTIFF
            header += file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        bands = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, len(bits))
        kind = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}.get(
            tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], ""
        )
        width, height = tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH]
    except Exception:  # as damage may be anything
        return "its header is damaged or cut short"
    return (
        f"it is a TIFF of {width}×{height} pixels with {bands} band{'s' * (bands != 1)} of {kind}{max(bits)}-bit "
        "values, which cannot be read; convert it to RGB or gray"
    )


def _describe_unreadable(file: BinaryIO) -> str:
    """Return why Pillow does not recognize `file` as an image: from its tags or its first bytes."""
    if reason := _describe_tiff(file):
        return reason
    file.seek(0)
    data, damaged = file.read(512), "its header is damaged or cut short"
    start = data.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")):
        return "it is not an image but a web page or other markup"
    if data[4:8] == b"ftyp":  # ISO media; the brand follows
        brand = data[8:12]
        if brand in (b"avif", b"avis"):
            return damaged if "AVIF" in Image.OPEN else "it is AVIF, which needs Pillow 11.3 or later"
        if brand[:3] in (b"hei", b"hev", b"mif", b"msf"):
            return damaged if "HEIF" in Image.OPEN else NEEDS_HEIF
    if data[:4] in (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\x89PNG", b"GIF8", b"RIFF"):
        return damaged
    return "it is not an image of a known format"


# ── orientation, mode and bit depth ───────────────────────────────────────────────────────────────


def exif_orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1…8, or 1 (upright) if there is none or an invalid one.

    Of a TIFF, ask before its pixels are loaded: Pillow then makes it upright and removes the tag. A PNG is loaded, as
    its EXIF may follow the pixels; raises what the decoder raises.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        check_chunks(image)
        image.load()  # outside of the try, which would hide damaged pixels
    try:
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # malformed EXIF is common and does not affect the pixels
        return 1
    return orientation if orientation in EXIF_TRANSPOSES else 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and height in pixels that an opened image, whose pixels are not loaded yet, has when upright."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer Pillow has exchanged the two numbers already
        width, height = (image.tag_v2[tag] for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH))
    return (height, width) if exif_orientation(image) >= 5 else (width, height)


def load_upright(image: Image.Image, mode: str, value_range: ValueRange | None = None) -> Image.Image:
    """Load the pixels of `image` and return them upright, in `mode`, RGB or L (see `decode_image`).

    Of a deep image `info` says under `CLIPPED` whether values were clipped. Raises `RangeUnknown`
    for one if `value_range` is `UNMEASURED`.
    """
    deep, clipped = image, None
    if isinstance(image, PngImagePlugin.PngImageFile):
        check_chunks(image)
    if is_deep(image) and not (value_range is None and has_8_bit_reader(image)):
        if value_range == UNMEASURED:
            raise RangeUnknown
        deep, clipped = scale_to_8_bits(load_values(image), value_range)
    if isinstance(image, JpegImagePlugin.JpegImageFile) and image.tile:
        deep = load_strictly(image)
    else:
        image.load()
    transpose = EXIF_TRANSPOSES.get(exif_orientation(image))
    if deep.has_transparency_data:
        deep = Image.alpha_composite(Image.new("RGBA", deep.size, "white"), deep.convert("RGBA"))
    upright = deep if deep.mode == mode else deep.convert(mode)
    upright = upright if transpose is None else upright.transpose(transpose)
    upright.info.clear()  # metadata that could be applied again
    if clipped is not None:
        upright.info[CLIPPED] = clipped
    return upright


# ── many images ───────────────────────────────────────────────────────────────────────────────────


def map_in_threads(
    work: Callable[[Item], Result], items: Iterable[Item], progress: Progress | None = None, what: str = ""
) -> Iterator[Result]:
    """Yield work(item) for each item, in order, on one thread per core (decoders run outside the GIL).

    Only some hundred items are worked on before their results are asked for, so these never fill memory. `progress`
    is told how many are done if `items` have a length.
    """

    def work_on(chunk: list[Item]) -> list[Result]:
        return [work(item) for item in chunk]

    for done, result in enumerate(map_chunks_in_threads(work_on, items, _CHUNK, cpu_count()), start=1):
        yield result
        if progress is not None and isinstance(items, Sized) and (done % _CHUNK == 0 or done == len(items)):
            progress(done, len(items), what)


def map_chunks_in_threads(
    work: Callable[[list[Item]], Sequence[Result]], items: Iterable[Item], size: int, threads: int
) -> Iterator[Result]:
    """Yield the results of work(chunk) for each chunk of `size` items, in order, on `threads` threads."""
    pool, remaining = ThreadPoolExecutor(threads), iter(items)
    tasks = (pool.submit(work, chunk) for chunk in iter(lambda: list(islice(remaining, size)), []))
    try:
        waiting = deque(islice(tasks, max(2, _AHEAD // size) * threads))
        while waiting:
            results = waiting.popleft().result()
            waiting.extend(islice(tasks, 1))
            yield from results
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for thousands of files
