"""What a file contains that Pillow does not recognize as an image."""

from __future__ import annotations

from typing import BinaryIO

from PIL import TiffImagePlugin


def describe_unreadable(file: BinaryIO) -> str:
    """Return why `file` cannot be read as an image: from the tags of a TIFF, else from its first bytes."""
    return _describe_tiff(file) or _guess_content(file)


def _describe_tiff(file: BinaryIO) -> str | None:
    """Return what a TIFF contains that Pillow cannot read, from its tags; None if it is no TIFF."""
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


def _guess_content(file: BinaryIO) -> str:
    """Guess from the first bytes what a file contains if Pillow does not recognize it as an image."""
    file.seek(0)
    data = file.read(512)
    start = data.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<svg")):
        return "it is not an image but a web page or other markup"
    if data[4:8] == b"ftyp":  # ISO media; the brand follows
        brand = data[8:12]
        if brand in (b"avif", b"avis"):
            return "it is AVIF, which needs Pillow 11.3 or later"
        if brand[:3] in (b"hei", b"hev", b"mif", b"msf"):
            return "it is HEIC, which needs 'pip install pillow-heif'"
    if data[:4] in (b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xe1", b"\x89PNG", b"GIF8", b"RIFF"):
        return "its header is damaged or cut short"
    return "it is not an image of a known format"
