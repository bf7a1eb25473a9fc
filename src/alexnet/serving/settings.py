"""Settings of `alexnet serve`, validated."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from alexnet.data.decode import MAX_PIXELS
from alexnet.errors import UserError

MAX_BODIES = 8  # request bodies of the maximum size that may be in memory at once, including partly received ones

ORIGIN = re.compile(r"\*|null|file://|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+]|((?![/?#@:A-Z])[!-~])+)(:[1-9][0-9]{0,4})?")
DEFAULT_PORT = re.compile(r"(http://.+):80|(https://.+):443")

RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535), "max_batch": (1, 4096), "max_delay_ms": (0, 60_000), "queue": (1, 1_000_000),
    "max_bytes": (1, 1 << 32), "max_pixels": (1, MAX_PIXELS), "max_images": (1, 10_000), "timeout": (0.1, 3600),
    "drain": (0, 3600),
}  # fmt: skip
"""Smallest and largest value of each number; values outside are most likely typos."""


@dataclass(frozen=True)
class Settings:
    """Settings of a server. Raises `UserError` for invalid values."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 picks a free port."""
    token: str | None = field(default=None, repr=False)
    """Bearer token that requests must carry; None accepts all requests."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may send requests, as browsers send them: https://example.org, capacitor://localhost (the
    web view of an app), null (a page without an origin, such as a local file), or * for any."""
    root_path: str = ""
    """Path under which a reverse proxy serves this server, such as /alexnet, whether or not the proxy strips it."""
    max_batch: int = 32
    """Maximum images per batch."""
    max_delay_ms: float = 5.0
    """Maximum time in milliseconds that an image waits for a fuller batch while the model is free."""
    queue: int = 512
    """Maximum images in flight (each ten-crop view counts); further requests get 503."""
    max_bytes: int = 32 << 20
    """Maximum size of a request body."""
    max_pixels: int = 50_000_000
    """Maximum width × height of an image."""
    max_images: int = 32
    """Maximum images per request."""
    timeout: float = 30.0
    """Seconds a client may take to send the request head, to send the body, and to receive the response; also how long
    a request may wait for its predictions."""
    lang: str | None = None
    """Language in which the page starts, en or zh; None is the browser's."""
    drain: float = 1.0
    """Seconds after SIGTERM during which requests are still accepted while /readyz returns 503."""

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:  # written this way to reject NaN too
                bound = f"at least {low}" if value < low else f"at most {high:,}"
                raise UserError(f"--{name.replace('_', '-')} must be {bound}, not {value}.")
        if self.queue < 10 * self.max_images:
            raise UserError(
                f"--queue {self.queue} cannot hold a ten-crop request of {self.max_images} images; use at least "
                f"{10 * self.max_images}, or a smaller --max-images."
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UserError("The token must be printable ASCII; generate one with: openssl rand -hex 32")
        if self.token is not None and self.token != self.token.strip():
            raise UserError("The token starts or ends with whitespace, which HTTP strips; remove it.")
        for origin in self.cors:
            if not ORIGIN.fullmatch(origin):
                raise UserError(
                    f"--cors {origin} is not a web origin; write scheme, host and optional port only, in lower "
                    "case, such as https://example.org or capacitor://localhost, or null."
                )
        # as browsers send them (https://html.spec.whatwg.org/#ascii-serialisation-of-an-origin)
        object.__setattr__(self, "cors", tuple(_without_default_port(origin) for origin in self.cors))
        if not re.fullmatch(r"(/[\w.~-]+)*", self.root_path, re.ASCII) or {".", ".."} & {*self.root_path.split("/")}:
            raise UserError(
                f"--root-path {self.root_path} is not a path; start it with a slash and end it without one, as in "
                "/alexnet."
            )

    @property
    def body_budget(self) -> int:
        """Bytes of request bodies that may be in memory at once."""
        return MAX_BODIES * self.max_bytes


def _without_default_port(origin: str) -> str:
    found = DEFAULT_PORT.fullmatch(origin)
    return found[found.lastindex or 0] if found else origin
