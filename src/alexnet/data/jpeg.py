"""Damage in the coded data of a JPEG file: libjpeg, and so Pillow, fills it with gray or noise and says nothing.

With simplejpeg, libjpeg-turbo decodes strictly and its warnings become errors. Without it,
`check_scans` looks at what can be seen without decoding the Huffman codes: markers, zeros, missing
scans, and a gray end of the image. Section and table numbers refer to ITU-T T.81, the standard of
JPEG.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageChops, JpegImagePlugin

# Not 0xFF00, a stuffed byte, nor a restart marker. re finds a literal first byte 9 times as fast as \xff+.
_MARKER = re.compile(rb"\xff\xff*([\x01-\xcf\xd8-\xfe])")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_DHT, _EOI, _SOS, _DRI = 0xC4, 0xD9, 0xDA, 0xDD  # table B.1
_SOF = {*range(0xC0, 0xD0)} - {_DHT, 0xC8, 0xCC}  # frames; not: tables, reserved, arithmetic conditioning
_SEQUENTIAL, _PROGRESSIVE = (0xC0, 0xC1), (0xC2,)  # with Huffman codes
_RESERVED = range(0x01, 0xC0)  # markers that no file contains
_ZEROS = bytes(64)
_FEW_BYTES = 8
"""Fewer surplus bytes are harmless: some cameras' encoders pad their data."""
_DAMAGE = re.compile("bad Huffman code|bad arithmetic code|found marker|Inconsistent progression")
"""libjpeg's warnings that mean wrong pixels, next to the two that are examined below (its jerror.h)."""


class DamagedJpeg(ValueError):
    """The coded data of a JPEG file is damaged or incomplete; the text says how, in a few words."""


def decode_strictly(data: bytes, mode: str, size: tuple[int, int], factor: int) -> np.ndarray | None:
    """Decode a JPEG of `size` (width, height), already divided by `factor` (1, 2, 4 or 8), to uint8 H×W×C.

    `mode` is RGB, L, or CMYK as stored. Returns None without simplejpeg and for errors that say
    nothing about the coded data, so that Pillow decides whether the file is readable. Both packages
    use libjpeg-turbo and yield the same pixels (a test compares them); Pillow makes two more
    copies, a third of its time. Raises `DamagedJpeg`.
    """
    simplejpeg = import_simplejpeg()
    if simplejpeg is None:
        return None
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, "GRAY" if mode == "L" else mode, min_width=size[0], min_height=size[1], min_factor=factor
        )
    except ValueError as error:
        _raise_for_warning(str(error), data)
        return None
    if pixels.shape[1::-1] != size:  # the two packages read another header
        return None
    if _ZEROS in data:
        check_scans(data)
    return pixels


def load_strictly(image: JpegImagePlugin.JpegImageFile) -> Image.Image:
    """Decode the pixels of `image`, possibly reduced by its `draft`, in its mode. Raises `DamagedJpeg`."""
    assert image.fp is not None
    image.fp.seek(0)
    data = image.fp.read()
    factor = (getattr(image, "decoderconfig", ()) or (1,))[0]  # set by draft
    pixels = decode_strictly(data, image.mode, image.size, factor)
    if pixels is None or image.mode not in ("RGB", "L"):  # Pillow knows which CMYK values are inverted
        image.load()
        check_scans(data, image)
        return image
    return Image.fromarray(pixels if image.mode == "RGB" else pixels[..., 0])


@functools.cache
def import_simplejpeg() -> Any:
    """Return the module, or None if it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _raise_for_warning(text: str, data: bytes) -> None:
    """Raise `DamagedJpeg` if `text`, libjpeg's first warning or error, means that pixels are wrong."""
    if "premature end of data" in text:
        raise DamagedJpeg("truncated data before the end marker")
    if _DAMAGE.search(text):
        raise DamagedJpeg(text.removeprefix("Corrupt JPEG data: "))
    surplus = re.search(r"(\d+) extraneous bytes before marker 0x(..)", text)
    if surplus and (count := int(surplus[1])) >= _FEW_BYTES:
        ends = (data[max(s.start, s.end - count) : s.end] for s in _scans(data) if s.next_marker == int(surplus[2], 16))
        if not any(len(end) == count and not end.strip(end[:1]) for end in ends):  # one repeated byte is padding
            raise DamagedJpeg(f"{count} bytes more than the image needs")


# ── without decoding ──────────────────────────────────────────────────────────────────────────────


class _Scan(NamedTuple):
    """A scan (section B.2.3): its coded data is data[start:end]."""

    process: int
    """The marker of the frame: 0xC0 baseline, 0xC2 progressive …"""
    components: dict[int, int]
    """The components of the frame: identifier → sampling factors, in two halves of a byte."""
    size: tuple[int, int]
    members: bytes
    """Identifiers of the scan's components."""
    band: range
    """Indices of the coefficients."""
    shift: int
    """Lowest bits of these coefficients that later scans add."""
    interval: int
    """Units between restart markers; 0 if there are none."""
    start: int
    end: int
    next_marker: int | None
    zeros_possible: bool
    """Whether zero bits can be a row of empty blocks, by the Huffman tables of all components."""


def check_scans(data: bytes, image: Image.Image | None = None) -> None:
    """Raise `DamagedJpeg` for damage that is visible without decoding the Huffman codes.

    `image` is what Pillow decoded from `data` at any scale; without it, a gray end is not looked
    for. A file whose markers cannot be followed passes: whether it is readable is up to the
    decoder.
    """
    shifts: dict[tuple[int, int], int] = {}
    scan = None
    for scan in _scans(data):
        if scan.process not in (*_SEQUENTIAL, *_PROGRESSIVE):
            return
        sequential = scan.process in _SEQUENTIAL
        if sequential and not scan.zeros_possible:
            _check_zeros(data, scan)
        if scan.next_marker in _RESERVED:
            raise DamagedJpeg(f"a stray marker 0x{scan.next_marker:02x}")
        _check_restarts(data, scan)
        band, shift = (range(1), 0) if sequential else (scan.band, scan.shift)
        shifts |= {(member, k): shift for member in scan.members for k in band}
    if scan is None:
        return
    if {member for member, _ in shifts} != set(scan.components) or any(shifts.values()):
        raise DamagedJpeg("truncated data: scans are missing")
    if image is not None and scan.process in _SEQUENTIAL and len(scan.members) == len(scan.components):
        _check_end(data, scan, image)


def _scans(data: bytes) -> Iterator[_Scan]:
    """Yield the scans of the first image in `data`."""
    frame: tuple[int, dict[int, int], tuple[int, int]] | None = None
    empty_blocks: dict[int, bool] = {}  # table → whether its code of zeros is the end of a block
    interval = 0
    match = _MARKER.match(data, 2)
    while match is not None and match[1][0] != _EOI:
        marker, start = match[1][0], match.end()
        stop = start + int.from_bytes(data[start : start + 2], "big")
        body = data[start + 2 : stop]
        if stop < start + 2 or len(body) != stop - start - 2:
            return
        match = _MARKER.search(data, stop)
        if marker in _SOF and len(body) >= 6 + 3 * body[5]:
            ids = {body[i]: body[i + 1] for i in range(6, 6 + 3 * body[5], 3)}
            frame = (marker, ids, (int.from_bytes(body[3:5], "big"), int.from_bytes(body[1:3], "big")))
        elif marker == _DHT:
            empty_blocks |= dict(_empty_block_codes(body))
        elif marker == _DRI:
            interval = int.from_bytes(body[:2], "big")
        elif marker == _SOS and frame is not None and len(body) == 4 + 2 * body[0]:
            members, (first, last, shift) = body[1:-3:2], body[-3:]
            tables = {0x10 | choice & 15 for choice in body[2:-3:2]}
            yield _Scan(
                *frame, members, range(first, last + 1), shift & 15, interval, stop,
                match.start() if match else len(data), match[1][0] if match else None,
                all(empty_blocks.get(table, True) for table in tables),
            )  # fmt: skip


def _empty_block_codes(body: bytes) -> Iterator[tuple[int, bool]]:
    """Yield (class and number, whether the code of zeros is the symbol 0) of each Huffman table (section B.2.4.2)."""
    while len(body) > 17:
        yield body[0], body[17] == 0
        body = body[17 + sum(body[1:17]) :]


def _check_restarts(data: bytes, scan: _Scan) -> None:
    """Raise `DamagedJpeg` unless the restart markers are numbered 0…7 again and again, and as many as the image needs.

    One more, before the end, is harmless.
    """
    found = [number[0] & 7 for number in _RESTART.findall(data, scan.start, scan.end)]
    if not scan.interval and not found:
        return
    wrong = found != [i % 8 for i in range(len(found))] or not scan.interval
    if not wrong and len(scan.members) == len(scan.components):
        sampling = scan.components.values() if len(scan.members) > 1 else [0x11]
        across = -(-scan.size[0] // (8 * max(factors >> 4 for factors in sampling)))
        down = -(-scan.size[1] // (8 * max(factors & 15 for factors in sampling)))
        wrong = not 0 <= len(found) + 1 - -(-across * down // scan.interval) <= 1
    if wrong:
        raise DamagedJpeg("restart markers are missing or out of order")


def _check_zeros(data: bytes, scan: _Scan) -> None:
    """Raise `DamagedJpeg` for zeros in the scan, or at its end unless they are padding, without which the image is the
    same."""
    content = data[scan.start : scan.end].rstrip(b"\0")
    damaged = _ZEROS in content
    if scan.end - scan.start - len(content) >= len(_ZEROS):
        last = scan.start + len(content) + 1  # a zero that may be a part of the last code
        damaged = damaged or _is_changed(data, data[:last] + data[scan.end :])
    if damaged:
        raise DamagedJpeg("a part of it is zeros")


def _check_end(data: bytes, scan: _Scan, image: Image.Image) -> None:
    """Raise `DamagedJpeg` if the end of the image is gray because its data is missing.

    More data then changes the image, which it does not if the gray was photographed.
    """
    corner = np.asarray(image.getpixel((image.width - 1, image.height - 1)))
    if not np.isin(corner, (127, 128)).all():  # 127: Pillow inverts CMYK
        return
    if _is_changed(data, data[: scan.end] + bytes(range(64)) + data[scan.end :]):
        raise DamagedJpeg("truncated data before the end marker")


def _is_changed(data: bytes, edited: bytes) -> bool:
    """Whether the image in `edited` differs from that in `data`, in gray at an eighth of the size."""
    return ImageChops.difference(*map(_decode_small, (data, edited))).getbbox() is not None


def _decode_small(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=["JPEG", "MPO"])
    image.draft("L", (1, 1))
    image.load()
    return image
