"""Resumable downloads, verified by checksum.

Hosts of datasets throttle and drop connections, so a partial file is kept next to the target as `<name>.part`, and the
next attempt, in this process or a later one, requests only the rest.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.utils import check_md5

from alexnet.progress import Progress

TIMEOUT = 30  # seconds without a byte before a connection is considered broken
TRIES = 3  # per URL and call
_BLOCK = 1 << 18


class DownloadFailed(OSError):
    """No URL provided the file; the message gives the last reason for each."""


def fetch(urls: Sequence[str], target: Path, md5: str, progress: Progress | None = None) -> Path:
    """Download `target` from the first of `urls` that provides it, unless it already exists; return `target`.

    `md5` is the hexadecimal checksum of the file. `progress(done, total, what)` counts bytes; total is 0 if the host
    does not give it. Raises `DownloadFailed`; the partial file stays for the next call.
    """
    if target.is_file() and check_md5(target, md5):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    reasons = []
    for url in urls:
        reason = ""
        for _ in range(TRIES):
            try:
                _download_rest(url, part, progress)
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
                if isinstance(error, urllib.error.HTTPError) and error.code != 416:
                    break  # a definite answer, which a retry will not change
                if not isinstance(error, urllib.error.HTTPError):
                    continue
            if part.is_file() and check_md5(part, md5):
                part.replace(target)
                return target
            part.unlink(missing_ok=True)  # complete but wrong: resuming would not help
            reason = "the downloaded file has another checksum"
        reasons.append(f"{url}: {reason}")
    raise DownloadFailed("; ".join(reasons))


def _download_rest(url: str, part: Path, progress: Progress | None) -> None:
    """Append the missing bytes to `part`. Raises `OSError` if the connection breaks."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # the host does not support ranges: start over
            have = 0
        length = int(response.headers.get("Content-Length") or 0)
        total = have + length if length else 0
        with part.open("ab" if have else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                if progress is not None:
                    progress(have, total, f"downloading {part.stem}")
    if total and have < total:
        raise ConnectionError(f"the connection broke after {have:,} of {total:,} bytes")
