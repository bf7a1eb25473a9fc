"""The run folder: the names in it, how they are written, and how a checkpoint is read back.

    runs/<recipe>-<time>/
      recipe.json  env.json  metrics.jsonl  summary.json  split.csv  bad_files.csv
      checkpoints/<step>/{model.safetensors, model.json, training.pt}, preprocess.safetensors with a mean image
      best  last                      names of checkpoints, in text files
      evaluation/<split>.parquet      path, target, logits
      report.html  report/            the page, and its plots and tables as files

Every file is written beside its place, flushed and renamed into it, so that a reader, or a restart after a crash,
finds either the old file or the new one. Nothing here can run code: weights are safetensors, the rest is JSON,
and `training.pt` goes through torch's restricted loader.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL = ".writing"  # how the hidden names of files end that are not whole yet; a folder's begins so


# ── writing ───────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; on success the file is flushed to disk and renamed into place."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        fsync_file(beside)
        beside.chmod(0o644)
        beside.replace(path)
        fsync_dir(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with atomic_write(path) as beside:
        beside.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON to `path`, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def printable(name: str) -> str:
    """A file name as text that every file and terminal takes: bytes that are no UTF-8 as `\\xe9`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def as_os_error(error: Exception) -> OSError:
    """The system's error behind one of torch or safetensors."""
    if isinstance(error.__context__, OSError):
        return OSError(error.__context__.errno, error.__context__.strerror)
    number = re.search(r"os error (\d+)", str(error))
    if number:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return OSError(errno.EIO, str(error).splitlines()[0])


def fsync_file(path: Path) -> None:
    handle = os.open(path, os.O_RDWR)  # Windows flushes only what it may write
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_dir(path: Path) -> None:
    """Make a rename in the folder `path` outlast a loss of power, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some file systems have no such thing
        pass
    finally:
        os.close(handle)


# ─── The checksum of a file: of a checkpoint's, an exported one's, a shard's. Needs no torch.


def sha256_file(path: Path) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
