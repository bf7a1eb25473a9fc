"""Signatures of exported files that can run code: proof that this user exported them on this machine.

A checksum beside a file does not authenticate it, since whoever makes the file can make the checksum. The signature is
HMAC-SHA256 with a key that the first export generates and keeps in `cache_dir()/export.key`, readable by its user only.
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

SIZE = 32  # bytes of the key, the digest size of SHA-256


def key_path() -> Path:
    """Return where the key is kept."""
    return cache_dir() / "export.key"


def sign(kind: str, sums: Mapping[str, str]) -> str:
    """Return the signature of an export of `kind` with these checksums, or "" where no key can be kept."""
    key = _read_key() or _create_key()
    return _signature(key, kind, sums) if key else ""


def is_signed(signature: str, kind: str, sums: Mapping[str, str]) -> bool:
    """Whether `sign` returns this signature here."""
    key = _read_key()
    return key is not None and hmac.compare_digest(_signature(key, kind, sums).encode(), signature.encode())


def _signature(key: bytes, kind: str, sums: Mapping[str, str]) -> str:
    return hmac.digest(key, json.dumps([kind, sorted(sums.items())]).encode(), "sha256").hex()


def _read_key() -> bytes | None:
    """Return the key, or None if it is missing, damaged, or accessible to another user."""
    try:
        with key_path().open("rb") as file:
            status, key = os.fstat(file.fileno()), file.read(SIZE + 1)
    except OSError:
        return None
    private = os.name != "posix" or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
    return key if private and len(key) == SIZE else None


def _create_key() -> bytes | None:
    """Create the key atomically, and return it, or the one of another process that was faster."""
    try:
        key_path().parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".export.key.", dir=key_path().parent)  # with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(SIZE))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, key_path())  # unlike a rename, it replaces nothing
        finally:
            os.unlink(name)
    except OSError:
        return None
    return _read_key()
