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

KEY_SIZE = 32  # bytes of the key, the digest size of SHA-256


def key_path() -> Path:
    """Return the path of the key."""
    return cache_dir() / "export.key"


def sign(kind: str, checksums: Mapping[str, str]) -> str:
    """Return the signature of an export of `kind` with these checksums, or "" if no key can be stored."""
    key = _read_key() or _create_key()
    return _compute_hmac(key, kind, checksums) if key else ""


def is_signed(signature: str, kind: str, checksums: Mapping[str, str]) -> bool:
    """Return whether `sign` returns `signature` on this machine."""
    key = _read_key()
    return key is not None and hmac.compare_digest(_compute_hmac(key, kind, checksums).encode(), signature.encode())


def _compute_hmac(key: bytes, kind: str, checksums: Mapping[str, str]) -> str:
    return hmac.digest(key, json.dumps([kind, sorted(checksums.items())]).encode(), "sha256").hex()


def _read_key() -> bytes | None:
    """Return the key, or None if it is missing, damaged, or accessible to another user."""
    try:
        with key_path().open("rb") as file:
            status, key = os.fstat(file.fileno()), file.read(KEY_SIZE + 1)
    except OSError:
        return None
    private = os.name != "posix" or (status.st_uid == os.getuid() and not status.st_mode & 0o077)
    return key if private and len(key) == KEY_SIZE else None


def _create_key() -> bytes | None:
    """Create the key atomically, and return it, or the key of a process that created it first."""
    try:
        key_path().parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".export.key.", dir=key_path().parent)  # with mode 0600
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(KEY_SIZE))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(name, key_path())  # unlike a rename, never replaces a file
        finally:
            os.unlink(name)
    except OSError:
        return None
    return _read_key()
