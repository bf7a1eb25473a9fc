"""Which web pages may ask: a browser sends what any page wants to wherever it wants, in the name of its user.

Two ways of strange pages are closed. One gives its own name the address of this machine (DNS rebinding), and is then
taken by the browser for ours: it may read all that is answered. So a server for this machine alone, without a token,
answers only under this machine's own names. The other sends a picture blindly and cannot read the answer, but takes the
network's time. So a POST must come from our own page, from one that `--cors` names, or from what is not a browser.
"""

from __future__ import annotations

import functools
import ipaddress
from typing import Any

from alexnet.deploy.bodies import Refused
from alexnet.deploy.limits import Settings

HERE = "localhost"


class Pages:
    """What is asked of each request's headers."""

    def __init__(self, settings: Settings) -> None:
        self._sites = settings.cors
        self._here_alone = settings.token is None and is_here(settings.host)

    def check(self, scope: Any) -> Refused | None:
        """Why a request is not answered, if it is not."""
        found = dict(scope["headers"])  # names are in lower case, as ASGI has them
        host = found.get(b"host", b"").decode("latin-1").strip()
        if self._here_alone and host and not is_here(name_of(host)):
            return Refused(
                421,
                f"This server is for its own machine and is not called {host[:100]}; ask {HERE} at its port, or start "
                "it with a token or another --host.",
            )
        if scope["method"] != "POST" or self._may_send(found, host):
            return None
        return Refused(
            403, "Pages of other web sites may not ask; start the server with --cors and the address of yours."
        )

    def _may_send(self, found: dict[bytes, bytes], host: str) -> bool:
        site = found.get(b"sec-fetch-site", b"").lower()  # browsers tell it where the address is https or this machine
        if site in (b"same-origin", b"none"):
            return True
        if b"origin" not in found:
            return site != b"cross-site"
        origin = found[b"origin"].decode("latin-1").strip()
        own = bool(host) and origin.lower().partition("://")[2] == host.lower()
        return own or origin in self._sites or "*" in self._sites


def name_of(host: str) -> str:
    """The name or the address in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


@functools.lru_cache(64)  # it is asked for each request, and nearly always the same
def is_here(name: str) -> bool:
    """Whether a name can only be this machine's: localhost, 127.0.0.0/8, ::1."""
    if name.lower().rstrip(".") == HERE:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
