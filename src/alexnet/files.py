"""Atomic and durable file writes, typed reading of JSON, checksums, printable file names, and missing files.

A file is written beside its target, flushed to disk and renamed over it, so that a reader, or a
restart after a crash, finds either the old file or the new one.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from alexnet.errors import UserError, unknown_name

T = TypeVar("T")

PARTIAL = ".writing"  # suffix of unfinished files and prefix of unfinished folders; both are hidden


def check_image_exists(path: str | Path) -> None:
    """Raise `UserError` if there is no image, or folder of images, at `path`."""
    if not os.path.exists(path):
        raise UserError(f"Cannot read {path}: there is no such file; check its path.")


def check_data_exists(data: Path | None) -> None:
    """Raise `UserError` if there is no folder or archive of a dataset at `data`; None is not checked."""
    if data is not None and not os.path.exists(data):
        raise UserError(f"There is no folder or archive {data}; check its path.")


def check_labels_exist(labels: Path | None) -> None:
    """Raise `UserError` if there is no table of labels at `labels`; None is not checked."""
    if labels is not None and not os.path.isfile(labels):
        raise UserError(f"There is no label file {labels}; check the path given as --labels.")


@contextmanager
def atomic_write(path: Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success, flush it to disk and rename it to `path`.

    Without `flush`, for a file that can be made again, it may be lost in a power failure.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if flush:
            fsync_file(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
        if flush:
            fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success, flush its files to disk and rename it to `path`.

    Without `flush`, for a folder that can be made again, it may be incomplete after a power failure.
    """
    temporary = Path(tempfile.mkdtemp(prefix=f"{PARTIAL}-", dir=path.parent))
    try:
        temporary.chmod(0o755)
        yield temporary
        if flush:
            for file in temporary.iterdir():
                fsync_file(file)
            fsync_dir(temporary)
        temporary.rename(path)
        if flush:
            fsync_dir(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_text(path: Path, text: str, flush: bool = True) -> None:
    """Write `text` to `path` as UTF-8, as in `atomic_write`."""
    with atomic_write(path, flush) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def encode_csv(rows: Iterable[Iterable[object]]) -> bytes:
    """Return `rows` as CSV in UTF-8: with a byte order mark, which Excel needs, unless all is ASCII."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    encoding = "ascii" if text.getvalue().isascii() else "utf-8-sig"
    return text.getvalue().encode(encoding, "surrogateescape")


def write_json(path: Path, value: Any, flush: bool = True) -> None:
    """Write `value` to `path` as indented JSON, as in `atomic_write`."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n", flush)


def read_json(path: Path, kind: type[T], where: str = "") -> T:
    """Return the JSON file `path` as the type `kind`, as in `convert`. Raises `OSError` or `UserError`."""
    where = where or str(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{where} is damaged or not JSON ({error}).") from error
    return convert(value, kind, where)


def convert(value: object, kind: type[T], where: str) -> T:
    """Return `value`, as `json` parses it, as the type `kind`: a dataclass, a TypedDict, `dict[str, float]`, …

    Types are strict, but a whole number may stand for a float, a list for a tuple and a string for
    a path. Unknown keys of a dataclass are errors; those of a TypedDict are ignored. Raises
    `UserError`, which starts with `where`.
    """
    try:
        converted = msgspec.convert(value, kind, dec_hook=_convert_path)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, UserError):  # from a dataclass's own checks
            raise error.__cause__ from None
        raise UserError(_describe(str(error), value, where)) from error
    _check_keys(value, converted, re.sub("^The ", "the ", where))
    return converted


_KINDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "Path": "a path",
}
"""msgspec's name of a type → what a user calls it."""


def _describe(reason: str, value: object, where: str) -> str:
    """Return msgspec's `reason` for rejecting `value` as one sentence: which value, where in it, and what is expected.

    `reason` is such as "Expected `int | null`, got `str` - at `$.rates[0]`".
    """
    reason, _, path = reason.replace("`", "").partition(" - at ")
    at = f" at {path.removeprefix('$').removeprefix('.')}" if path not in ("", "$") else ""
    if missing := re.fullmatch("Object missing required field (.+)", reason):
        return f"{where} lacks the field {missing[1]}{at}."
    kinds = re.sub(r"\b(int|float|str|bool|array|object|Path)\b", lambda name: _KINDS[name[0]], reason)
    kinds = kinds.replace(" | ", " or ").replace(">= ", "at least ")
    for key, index in re.findall(r"\.([^.\[]+)|\[([^]]+)\]", path):
        if isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, Sequence) and index.isdecimal():
            value = value[int(index)]
        else:  # `[...]` is any value of an object
            return f"{where} has a wrong value{at}: {kinds[:1].lower()}{kinds[1:]}."
    shown = repr(value) if isinstance(value, str) else json.dumps(value, default=str)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    expected = kinds.split(", got ")[0] if kinds.startswith("Expected ") else kinds  # such as "Invalid enum value 'c'"
    return f"{where} cannot be {shown}{at}: {expected[:1].lower()}{expected[1:]}."


def _convert_path(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    raise ValueError(f"Expected {kind.__name__}, got {type(value).__name__}")


def _check_keys(value: object, converted: object, where: str) -> None:
    """Raise `UserError` for a key of `value` that is no field of the dataclass it was converted to."""
    if isinstance(value, dict) and dataclasses.is_dataclass(converted):
        names = [field.name for field in dataclasses.fields(converted)]
        for key, entry in value.items():
            if key not in names:
                raise unknown_name("key", str(key), names, f" in {where}")
            _check_keys(entry, getattr(converted, key), where)
    elif isinstance(value, Sequence) and not isinstance(value, str) and isinstance(converted, Sequence):
        for entry, result in zip(value, converted, strict=False):
            _check_keys(entry, result, where)


def fsync_file(path: Path) -> None:
    """Flush the file `path` to disk."""
    handle = os.open(path, os.O_RDWR)  # Windows flushes only files opened for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_dir(path: Path) -> None:
    """Flush the folder `path` to disk, where the system can, so that a rename in it survives a power failure."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems do not support it
        pass
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file `path` in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def printable(name: str) -> str:
    """Return a file name as valid UTF-8 text: bytes that are not UTF-8 become `\\xe9`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
