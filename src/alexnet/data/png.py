"""Damage in a PNG file that Pillow does not report: it ignores the checksums of the image data and a missing end."""

from __future__ import annotations

import struct
import zlib

from PIL import PngImagePlugin


def check_chunks(image: PngImagePlugin.PngImageFile) -> None:
    """Verify the checksums of the image data of an opened PNG, and its end. Loaded pixels are skipped.

    Chunks of metadata may be damaged. Raises `ValueError`, and `EOFError` or `struct.error` if the file is cut short.
    """
    if not image.tile:
        return
    file = image.fp
    assert file is not None
    position = file.tell()
    file.seek(image.tile[0][2] - 8)  # the start of the first chunk of image data
    kind = b""
    while kind != b"IEND":  # PNG specification, section 5.3: length, type, data, checksum of type and data
        length, kind = struct.unpack(">I4s", file.read(8))
        data, checksum = file.read(length), file.read(4)
        if kind != b"IEND" and len(checksum) < 4:
            raise EOFError
        if kind == b"IDAT" and zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum, "big"):
            raise ValueError("a checksum differs")
    file.seek(position)
