"""Addresses of a server: the one that it listens at, the names of this machine, and the one that other devices reach.

The last one also as a QR code for a terminal.
"""

from __future__ import annotations

import functools
import ipaddress
import os
import socket
from contextlib import suppress
from itertools import zip_longest

from alexnet.errors import UserError

ANY_HOST = ("0.0.0.0", "::")
ROUTED_ADDRESS = ("192.0.2.1", 9)  # reserved for documentation (RFC 5737), so that it is nobody's
BLACK_ON_WHITE = "\x1b[38;5;16;48;5;231m"  # colors that no theme of a terminal changes; scanners need dark on light
RESET = "\x1b[0m"
HALF_BLOCKS = {(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}
"""A character for each pair of modules, the upper and the lower one; 1 is dark."""


def to_url(host: str, port: int) -> str:
    """Return the URL of a server at an address, without a slash at the end."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not listening yet. Raises `UserError` if the address cannot be used."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: not a possible host name
        raise UserError(f"--host {host[:100]} is not an address of this machine ({error}).") from error
    listener = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"Cannot listen at --host {host} --port {port} ({error.strerror or error}); choose another port, such as "
            "--port 0 for a free one, or stop the program that uses it."
        ) from error
    return listener


def host_name(host: str) -> str:
    """Return the name or address in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


@functools.lru_cache(64)  # called for every request, nearly always with the same name
def is_loopback(name: str) -> bool:
    """Return whether a host name is localhost, in 127.0.0.0/8, or ::1."""
    if name.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


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
    rows = [bytes(row) for row in segno.make(text, micro=False).matrix_iter()]  # 0 and 1, with a margin of four modules
    pairs = zip_longest(rows[::2], rows[1::2], fillvalue=bytes(len(rows[0])))
    lines = ("".join(map(HALF_BLOCKS.__getitem__, zip(upper, lower, strict=True))) for upper, lower in pairs)
    return "\n".join(f"{BLACK_ON_WHITE}{line}{RESET}" for line in lines)
