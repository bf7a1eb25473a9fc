"""Archives of images, zip and tar, unpacked once into the cache and then read like any folder.

Archives are untrusted: only regular files with an image or table suffix are extracted, paths outside the archive are
rejected, links and devices are skipped, and extraction stops if an archive expands to more than it declares, than
`MAX_GROWTH` times its size, or than the disk can hold.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from alexnet.data.decode import IMAGE_SUFFIXES
from alexnet.device import cache_dir
from alexnet.errors import UserError
from alexnet.files import atomic_folder
from alexnet.progress import Progress

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Lowercase suffixes of supported archives."""

MAX_GROWTH = 100
"""Maximum ratio of the unpacked size to an archive's size: images are already compressed and hardly shrink further."""
_ALWAYS_ALLOWED = 1 << 28  # bytes that any archive may unpack to
_RESERVED = 1 << 30  # bytes that must stay free on the disk
_BLOCK = 1 << 20
_TABLE_SUFFIXES = (".csv", ".parquet")  # tables of labels next to the images


class _Entry(NamedTuple):
    name: str
    size: int
    """Bytes, as the archive declares."""
    open: Callable[[], IO[bytes] | None]


def is_archive(path: Path) -> bool:
    """Whether `path` is a file with an archive's suffix."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES) and path.is_file()


def unpack_if_archive(data: Path, progress: Progress | None = None) -> Path:
    """Return `data`, or, if it is an archive, the folder in the cache that it is unpacked to, now or earlier.

    Descends through top folders that contain only one folder: `pets.zip` may contain `pets/cat/1.jpg`. Raises
    `UserError` for an archive that is damaged, encrypted, unsafe, or too large for the disk.
    """
    if not is_archive(data):
        return data
    state = data.stat()
    key = f"{data.resolve()} {state.st_size} {state.st_mtime_ns}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    target = cache_dir() / "archives" / f"{data.name.split('.')[0][:80]}-{digest}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(target, flush=False) as temporary:
                _unpack(data, temporary, progress)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
            raise UserError(
                f"The archive {data} is damaged or of an unknown kind ({error}); create it again."
            ) from error
        except OSError as error:
            if not target.is_dir():  # otherwise another process was faster
                raise UserError(f"The archive {data} cannot be unpacked into {target.parent} ({error}).") from error
    return _skip_single_folders(target)


def _skip_single_folders(folder: Path) -> Path:
    """Descend while `folder` contains only one folder, which contains folders or a table and so is not a class."""
    while True:
        inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in ("train", "training"):
            return folder
        below = [path for path in inside[0].iterdir() if not path.name.startswith(".")]
        if not below or not any(path.is_dir() or path.suffix in _TABLE_SUFFIXES for path in below):
            return folder
        folder = inside[0]


def _unpack(archive: Path, target: Path, progress: Progress | None) -> None:
    """Extract the images and tables in `archive` to `target`, within the limits of size."""
    free = shutil.disk_usage(target).free - _RESERVED
    allowed = max(_ALWAYS_ALLOWED, MAX_GROWTH * archive.stat().st_size)
    total = 0
    for done, count, entry in _entries(archive):
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise UserError(f"The archive {archive} is unsafe: it would write to {entry.name}; do not use it.")
        total += entry.size
        if total > allowed:
            raise UserError(
                f"The archive {archive} would unpack to more than {allowed / 1e9:.1f} GB, {MAX_GROWTH} times its own "
                "size, which images do not; unpack it yourself if you trust it, and give the folder."
            )
        if total > free:
            raise UserError(
                f"The archive {archive} does not fit on the disk of {target.parent}; free some space, or set "
                "ALEXNET_CACHE to a folder elsewhere."
            )
        output = target.joinpath(*path.parts)
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            source = entry.open()
        except RuntimeError as error:  # what zipfile raises without a password
            raise UserError(f"The archive {archive} is encrypted; unpack it yourself, and give the folder.") from error
        if source is None or output.exists():  # of a name listed twice the first counts
            continue
        with source, open(output, "xb") as file:
            _copy(source, file, entry.size, archive)
        if progress is not None and (done % 64 == 0 or done == count):
            progress(done, count, f"unpacking {archive.name}")


def _copy(source: IO[bytes], file: IO[bytes], size: int, archive: Path) -> None:
    """Copy at most `size` bytes; raise `UserError` if there are more."""
    left = size
    while block := source.read(_BLOCK):
        left -= len(block)
        if left < 0:
            raise UserError(f"The archive {archive} is unsafe: it holds more than it declares; do not use it.")
        file.write(block)


def _entries(archive: Path) -> Iterator[tuple[int, int, _Entry]]:
    """Yield (index from 1, number of entries or 0 if unknown, entry) for each file to extract."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for done, member in enumerate(members, 1):
                name = member.filename.replace("\\", "/")  # some Windows programs write backslashes
                kind = member.external_attr >> 28  # file type of the Unix mode: 8 or 0 is a regular file, 10 a link
                if not member.is_dir() and kind in (0, 8) and _should_extract(name):
                    yield done, len(members), _Entry(name, member.file_size, lambda m=member: file.open(m))  # type: ignore[misc]
    else:
        with tarfile.open(archive) as tar:
            for done, info in enumerate(tar, 1):
                if info.isfile() and _should_extract(info.name):
                    yield done, 0, _Entry(info.name, info.size, lambda i=info: tar.extractfile(i))  # type: ignore[misc]


def _should_extract(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in (*IMAGE_SUFFIXES, *_TABLE_SUFFIXES)
