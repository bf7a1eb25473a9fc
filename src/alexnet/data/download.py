"""Fetching a file that may take several tries: goes on where it broke off, and counts only if its checksum is right.

Hosts of data sets throttle and drop connections. So what has arrived is kept beside the target as `<name>.part`, and
the next attempt, in this process or in another tomorrow, asks for the rest only.
"""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from torchvision.datasets.utils import check_md5

Progress = Callable[[int, int, str], None]

TIMEOUT = 30  # seconds without a byte before a connection counts as broken
TRIES = 3  # for each address, in one call
_BLOCK = 1 << 18


class DownloadFailed(OSError):
    """None of the addresses gave the file; the message has the last reason for each."""


def fetch(urls: Sequence[str], target: Path, md5: str, progress: Progress | None = None) -> Path:
    """The file at `target`, fetched from the first of `urls` that gives it whole; at once if it is there already.

    `md5` is that of the whole file, in hexadecimal. `progress(done, total, what)` counts bytes; total is 0 where the
    host does not tell. Raises `DownloadFailed`; what has arrived until then stays for the next time.
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
                    break  # the host has spoken; asking again will not change it
                if not isinstance(error, urllib.error.HTTPError):
                    continue
            if part.is_file() and check_md5(part, md5):
                part.replace(target)
                return target
            part.unlink(missing_ok=True)  # whole, and wrong: going on from here would never end well
            reason = "what arrived has another checksum"
        reasons.append(f"{url}: {reason}")
    raise DownloadFailed("; ".join(reasons))


def _download_rest(url: str, part: Path, progress: Progress | None) -> None:
    """Append to `part` what it still lacks; returns when the host says that this was all."""
    have = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        if response.status != 206:  # this host does not do parts: from the beginning
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
