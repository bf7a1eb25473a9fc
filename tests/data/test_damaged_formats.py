"""Damaged files of other formats than JPEG (test_jpeg.py) are named by every reader; `check` once hid damaged PNGs."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, features

from alexnet.data.decode import BadImage, check_image, decode_crop, decode_image
from alexnet.data.quality.inspect import inspect_files

PIXELS = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)


def encode(format: str, pixels: np.ndarray = PIXELS, **options) -> bytes:
    if format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow cannot write AVIF")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, **options)
    return file.getvalue()


def find_reasons(data: bytes, path) -> list[str | None]:
    """Return the reason that each reader of files gives, or None."""
    path.write_bytes(data)
    reasons = [check_image(data), inspect_files([str(path)])[0].reason]
    for read in (decode_image, lambda source: decode_crop(source, 16)):
        try:
            read(path)
            reasons.append(None)
        except BadImage as error:
            reasons.append(error.reason)
    return reasons


def flip_bit(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


def zero_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(512) + data[middle + 512 :]


def change_checksum(data: bytes) -> bytes:
    return data[:-14] + b"no" + data[-12:]  # before the end chunk, of 12 bytes


def halve_pixels(data: bytes) -> bytes:
    """Keep the first half of the compressed pixels, in a valid chunk before the end chunk."""
    start = data.index(b"IDAT")
    chunk = data[start : (start + len(data)) // 2]
    length, checksum = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    return data[: start - 4] + length + chunk + checksum + data[-12:]


@pytest.mark.parametrize(
    "damage", [flip_bit, zero_middle, change_checksum, halve_pixels, lambda data: data[:-12], lambda data: data[:-6]]
)
@pytest.mark.parametrize("kind", ["deflated", "stored", "gray 16-bit"])
def test_damaged_pngs_are_named_by_every_reader(kind, damage, tmp_path):
    pixels = PIXELS[..., 0].astype(np.uint16) * 257 if kind == "gray 16-bit" else PIXELS
    data = encode("PNG", pixels, compress_level=0 if kind == "stored" else 6)
    assert find_reasons(data, tmp_path / "a.png") == [None] * 4
    reasons = find_reasons(damage(data), tmp_path / "a.png")
    assert len(set(reasons)) == 1, reasons
    assert "damaged" in reasons[0] or "cut short" in reasons[0]


def test_good_pngs_raise_no_alarm(tmp_path):
    frames = [Image.fromarray(PIXELS[:, ::-1])]
    broken_text = b"\0\0\0\x04tEXta\0bcnone"  # behind the pixels, with a false checksum
    data = encode("PNG")
    versions = [data + b"junk", data[:-12] + broken_text + data[-12:]]
    versions += [encode("PNG", save_all=True, append_images=frames, default_image=default) for default in (False, True)]
    for version in versions:
        assert find_reasons(version, tmp_path / "a.png") == [None] * 4


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF", "TIFF", "AVIF", "BMP", "PPM", "JPEG2000", "TGA"])
def test_files_that_are_cut_are_named_by_every_reader(format, tmp_path):
    data = encode(format)
    for share in (0.1, 0.5, 0.9):
        reasons = find_reasons(data[: int(share * len(data))], tmp_path / f"a.{format.lower()}")
        assert None not in reasons
        assert len(set(reasons)) == 1
        assert "needs" not in reasons[0]  # another Pillow or plugin
