"""Archives of images, zip and tar, unpacked once into the cache and then read like any folder.

Archives are untrusted: only regular files that are images (image_names.py), have a table's suffix
or hold labels (layouts.py) are extracted; other files, links and devices are listed as ignored;
paths outside the archive are rejected; and extraction stops if an archive expands to more than it
declares, than `MAX_GROWTH` times its size, or than the disk can hold.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from alexnet.data.image_names import HEAD, has_image_suffix, is_hidden, starts_like_image
from alexnet.data.layouts import LABEL_FILES
from alexnet.device import cache_dir
from alexnet.errors import UserError
from alexnet.files import atomic_folder
from alexnet.progress import Progress
from alexnet.text import decode

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Lowercase suffixes of supported archives."""

MAX_GROWTH = 100
"""Maximum ratio of the unpacked size to an archive's size: images are already compressed and hardly shrink further."""
_ALWAYS_ALLOWED = 1 << 28  # bytes that any archive may unpack to
_RESERVED = 1 << 30  # bytes that must stay free on the disk
_BLOCK = 1 << 20
_TABLE_SUFFIXES = (".csv", ".parquet", ".jsonl")  # tables of labels next to the images
_IGNORED = ".ignored.txt"  # in the unpacked folder: the names of the files that were not extracted, one a line


class _Entry(NamedTuple):
    name: str
    size: int
    """Bytes, as the archive declares."""
    open: Callable[[], IO[bytes] | None] | None
    """Open it for reading; None for a link or a device."""


def unpack_if_archive(data: Path, progress: Progress | None = None, encoding: str | None = None) -> Path:
    """Return `data`, or, if it is an archive, the folder in the cache that it is unpacked to, now or earlier.

    Names in a zip that does not say that they are UTF-8 are decoded as in `text.decode`, by `encoding` if given.

    Descends through top folders that contain only one folder: `pets.zip` may contain
    `pets/cat/1.jpg`. Raises `UserError` for an archive that is damaged, encrypted, unsafe, or too
    large for the disk.
    """
    if not (data.name.lower().endswith(ARCHIVE_SUFFIXES) and data.is_file()):
        return data
    state = data.stat()
    key = f"with labels: {data.resolve()} {state.st_size} {state.st_mtime_ns} {encoding}"
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    target = cache_dir() / "archives" / f"{data.name.split('.')[0][:80]}-{digest}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(target, flush=False) as temporary:
                _unpack(data, temporary, progress, encoding)
        except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
            raise UserError(
                f"The archive {data} is damaged or of an unknown kind ({error}); create it again."
            ) from error
        except OSError as error:
            if not target.is_dir():  # otherwise another process was faster
                raise UserError(f"The archive {data} cannot be unpacked into {target.parent} ({error}).") from error
    return _skip_single_folders(target)


def ignored_in_archive(folder: Path) -> list[str]:
    """Return the files that were not extracted to `folder` or the folder around it; none if it is of no archive."""
    home = cache_dir() / "archives"
    if not folder.is_relative_to(home) or folder == home:
        return []
    listed = home / folder.relative_to(home).parts[0] / _IGNORED
    return listed.read_text("utf-8", "surrogateescape").splitlines() if listed.is_file() else []


def _skip_single_folders(folder: Path) -> Path:
    """Descend while `folder` contains only one folder, which contains folders or a table and so is not a class."""
    while True:
        inside = [path for path in folder.iterdir() if not is_hidden(path.name)]
        if len(inside) != 1 or not inside[0].is_dir() or inside[0].name.lower() in ("train", "training"):
            return folder
        below = [path for path in inside[0].iterdir() if not is_hidden(path.name)]
        if not below or not any(path.is_dir() or path.suffix in _TABLE_SUFFIXES for path in below):
            return folder
        folder = inside[0]


def _unpack(archive: Path, target: Path, progress: Progress | None, encoding: str | None) -> None:
    """Extract the images and tables in `archive` to `target`, within the limits of size, and list the other files."""
    free = shutil.disk_usage(target).free - _RESERVED
    allowed = max(_ALWAYS_ALLOWED, MAX_GROWTH * archive.stat().st_size)
    total, ignored = 0, list[str]()
    for done, count, entry in _entries(archive, progress, encoding):
        path = PurePosixPath(entry.name)
        if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
            raise UserError(f"The archive {archive} is unsafe: it would write to {entry.name}; do not use it.")
        try:
            source = entry.open() if entry.open else None
        except RuntimeError as error:  # what zipfile raises without a password
            raise UserError(f"The archive {archive} is encrypted; unpack it yourself, and give the folder.") from error
        if source is None:
            ignored.append(f"{entry.name} (a link or device)")
            continue
        with source:
            head = source.read(HEAD)
            known = has_image_suffix(path.name) or path.suffix.lower() in _TABLE_SUFFIXES or path.name in LABEL_FILES
            if not known and not starts_like_image(entry.name, head):
                ignored.append(entry.name)
                continue
            total += entry.size
            if total > allowed:
                raise UserError(
                    f"The archive {archive} would unpack to more than {allowed / 1e9:.1f} GB, {MAX_GROWTH} times its "
                    "own size, which images do not; unpack it yourself if you trust it, and give the folder."
                )
            if total > free:
                raise UserError(
                    f"The archive {archive} does not fit on the disk of {target.parent}; free some space, or set "
                    "ALEXNET_CACHE to a folder elsewhere."
                )
            output = target.joinpath(*path.parts)
            output.parent.mkdir(parents=True, exist_ok=True)
            if output.exists():  # of a name listed twice the first counts
                ignored.append(f"{entry.name} (a second one)")
                continue
            with open(output, "xb") as file:
                file.write(head)
                _copy(source, file, entry.size - len(head), archive)
        if progress is not None and (done % 64 == 0 or done == count):
            progress(done, count, f"unpacking {archive.name}")
    if ignored:
        lines = (name.replace("\n", " ") for name in ignored)
        (target / _IGNORED).write_text("\n".join(lines), "utf-8", "surrogateescape")


def _copy(source: IO[bytes], file: IO[bytes], size: int, archive: Path) -> None:
    """Copy at most `size` bytes; raise `UserError` if there are more."""
    left = size
    while block := source.read(_BLOCK):
        left -= len(block)
        if left < 0:
            raise UserError(f"The archive {archive} is unsafe: it holds more than it declares; do not use it.")
        file.write(block)


def _entries(archive: Path, progress: Progress | None, encoding: str | None) -> Iterator[tuple[int, int, _Entry]]:
    """Yield (index from 1, number of entries or 0 if unknown, entry) for each that is neither hidden nor a folder."""
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            names = _decode_names(archive, [m for m in members if not _is_hidden(m.filename)], progress, encoding)
            for done, member in enumerate(members, 1):
                name = names.get(member.filename, member.filename).replace("\\", "/")  # as some Windows programs write
                kind = member.external_attr >> 28  # file type of the Unix mode: 8 or 0 is a regular file, 10 a link
                if not member.is_dir() and not _is_hidden(name):
                    reader = partial(file.open, member) if kind in (0, 8) else None
                    yield done, len(members), _Entry(name, member.file_size, reader)
    else:
        with tarfile.open(archive) as tar:
            for done, info in enumerate(tar, 1):
                if not info.isdir() and not _is_hidden(info.name):
                    source = partial(tar.extractfile, info) if info.isfile() else None
                    yield done, 0, _Entry(info.name, info.size, source)


def _decode_names(
    archive: Path, members: list[zipfile.ZipInfo], progress: Progress | None, encoding: str | None
) -> dict[str, str]:
    """Return zipfile's name → name, for names without the flag for UTF-8, which zipfile decodes as
    cp437 (code page of DOS; APPNOTE 4.4.4). macOS writes UTF-8 without the flag, and Windows the
    encoding of its language."""
    foreign = [m.filename for m in members if not m.flag_bits & 0x800 and not m.filename.isascii()]
    if not foreign:
        return {}
    raw = [name.encode("cp437") for name in foreign]
    try:
        return dict(zip(foreign, [name.decode() for name in raw], strict=True))
    except UnicodeDecodeError:
        decoded, found = decode(raw, f"A name among {len(raw)} files in {archive}", encoding, also=("cp437",))
    if progress is not None:
        progress.log(f"Read the names in {archive} as {found}.")
    return dict(zip(foreign, decoded, strict=True))


def _is_hidden(name: str) -> bool:
    return any(is_hidden(part) and part not in (".", "..") for part in PurePosixPath(name).parts)
