"""Which files are images, and which are hidden: one rule for folders, archives and every command.

A file is an image if its name has the suffix of one, or else if it starts like one: downloads are
called `00`, `x.jpg?w=640` or `x.jpg_large`. Needs neither torch nor Pillow's decoders.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from alexnet.files import printable

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
    | {".jp2", ".tga", ".heic", ".heif", ".avif"}
)
"""Lowercase suffixes of image files, including HEIC and AVIF although their readers may be missing:
an unreadable image is reported rather than overlooked."""

HEAD = 32
"""Bytes at the start of a file that `starts_like_image` looks at."""

_RAW_SUFFIXES = (".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".pef", ".srw")
"""Cameras' raw files, which start like TIFF but hold no finished picture; the JPEG is often beside them."""
_SYSTEM_NAMES = {"__macosx", "$recycle.bin", "#recycle", "system volume information", "lost+found"}
_SYSTEM_NAMES |= {"thumbs.db", "desktop.ini"}
_STARTS = (
    b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+",
    b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51",
)  # fmt: skip
"""JPEG, PNG, GIF, TIFF and BigTIFF, JPEG 2000."""
_OTHER_STARTS = re.compile(
    rb"RIFF....WEBP|BM....\0\0\0\0|P[4-6]\s+(#|\d+\s+\d)|....ftyp(avi[fs]|hei[cxs]|hev[cx]|mif1|msf1)", re.DOTALL
)


def is_hidden(name: str) -> bool:
    """Whether a file or folder is passed over: hidden, a trash, thumbnails (@eaDir), or another system's own."""
    return name.startswith((".", "@")) or name.lower() in _SYSTEM_NAMES


def has_image_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def starts_like_image(name: str, head: bytes) -> bool:
    """Whether a file without an image's suffix is one, by its first `HEAD` bytes."""
    if name.lower().endswith(_RAW_SUFFIXES):
        return False
    return head.startswith(_STARTS) or _OTHER_STARTS.match(head) is not None


def is_image(path: str) -> bool:
    """Whether the regular file at `path` is an image; only one without an image's suffix is opened."""
    if has_image_suffix(path):
        return True
    try:
        with open(path, "rb", buffering=0) as file:
            return starts_like_image(path, file.read(HEAD))
    except OSError:
        return False


def describe_ignored(names: Sequence[str]) -> str:
    """Return a sentence about files that are passed over, none of them hidden."""
    files = "1 file" if len(names) == 1 else f"{len(names):,} files"
    shown = ", ".join(map(printable, names[:3])) + (", ..." if len(names) > 3 else "")
    return f"Ignored {files} that no image's suffix or first bytes show to be an image: {shown}."
