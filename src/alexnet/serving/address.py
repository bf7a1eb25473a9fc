"""The address of a server for other devices of its network, and a QR code of it for a terminal."""

from __future__ import annotations

import socket
from contextlib import suppress
from itertools import zip_longest

from alexnet.serving.middleware import is_loopback

ANY_HOST = ("0.0.0.0", "::")
ROUTED_ADDRESS = ("192.0.2.1", 9)  # reserved for documentation (RFC 5737), so that it is nobody's
BLACK_ON_WHITE = "\x1b[38;5;16;48;5;231m"  # colors that no theme of a terminal changes; scanners need dark on light
RESET = "\x1b[0m"
HALF_BLOCKS = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
"""A character for each pair of modules, the upper and the lower one; 1 is dark."""


def network_host(host: str) -> str | None:
    """Return the address at which other devices reach a server that listens at `host`; None if they cannot.

    For 0.0.0.0 and :: it is this machine's address on the interface of the default route. Nothing is sent to find it.
    """
    if host not in ANY_HOST:
        return None if is_loopback(host) else host
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(ROUTED_ADDRESS)  # of UDP: only chooses the interface
        found = str(probe.getsockname()[0])
        return None if is_loopback(found) else found
    return None  # no network


def qr_code(text: str) -> str | None:
    """Return the QR code of `text` as lines for a terminal, dark or light; None without the package segno."""
    try:
        import segno
    except ImportError:
        return None
    rows = list(segno.make(text, micro=False).matrix_iter())  # 0 and 1, with a margin of four modules
    pairs = zip_longest(rows[::2], rows[1::2], fillvalue=bytes(len(rows[0])))
    lines = ("".join(map(HALF_BLOCKS.__getitem__, zip(upper, lower, strict=True))) for upper, lower in pairs)
    return "\n".join(f"{BLACK_ON_WHITE}{line}{RESET}" for line in lines)
