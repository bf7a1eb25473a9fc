"""Who wrote an exported file that can run code: a signature that only this user on this machine can make.

A checksum beside a file says nothing of who wrote it, since whoever makes the file makes the checksum too. A signature
is HMAC-SHA256 with a key that is drawn at the first export and kept in `cache_dir()/export.key`, for its user alone.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from alexnet.device import cache_dir

SIZE = 32  # bytes of the key, as many as SHA-256 gives


def key_path() -> Path:
    """Where the key is kept."""
    return cache_dir() / "export.key"


def sign(kind: str, sums: Mapping[str, str]) -> str:
    """The signature of the files with these checksums as an export of this kind; empty where no key can be kept."""
    key = _key() or _new_key()
    return _signature(key, kind, sums) if key else ""


def is_signed(signature: str, kind: str, sums: Mapping[str, str]) -> bool:
    """Whether `sign` gave this signature for these files here."""
    key = _key()
    return key is not None and hmac.compare_digest(_signature(key, kind, sums).encode(), signature.encode())


def _signature(key: bytes, kind: str, sums: Mapping[str, str]) -> str:
    return hmac.digest(key, json.dumps([kind, sorted(sums.items())]).encode(), "sha256").hex()


def _key() -> bytes | None:
    """The key, unless it is not there, damaged, or another could have put it there or read it."""
    try:
        with key_path().open("rb") as file:
            found, key = os.fstat(file.fileno()), file.read(SIZE + 1)
    except OSError:
        return None
    private = os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o077)
    return key if private and len(key) == SIZE else None


def _new_key() -> bytes | None:
    """A key, put in its place whole; the one that is there by now, if another process was faster."""
    try:
        key_path().parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(prefix=".export.key.", dir=key_path().parent)  # of mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(SIZE))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(beside, key_path())  # which, unlike a rename, replaces nothing
        finally:
            os.unlink(beside)
    except OSError:
        return None
    return _key()
