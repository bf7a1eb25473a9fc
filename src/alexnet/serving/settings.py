"""What a server allows: the settings of `alexnet serve`, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from alexnet.data.decode import MAX_PIXELS
from alexnet.errors import UserError

HELD = 8  # bodies of the largest size that may be in memory at once, those still being received included

BETWEEN: dict[str, tuple[float, float]] = {
    "port": (0, 65535), "max_batch": (1, 4096), "max_delay_ms": (0, 60_000), "queue": (1, 1_000_000),
    "max_bytes": (1, 1 << 32), "max_pixels": (1, MAX_PIXELS), "max_images": (1, 10_000), "timeout": (0.1, 3600),
    "drain": (0, 3600),
}  # fmt: skip
"""The least and the most of each number; what is beyond is a slip of the finger, and would never come to an end."""


@dataclass(frozen=True)
class Settings:
    """Raises `UserError` for values that cannot work."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 takes a free one."""
    token: str | None = field(default=None, repr=False)
    """What requests must bear; None: anybody may ask."""
    cors: tuple[str, ...] = ()
    """Web sites whose pages may ask, as https://example.org; none unless given."""
    max_batch: int = 32
    """Pictures computed together at most."""
    max_delay_ms: float = 5.0
    """Milliseconds that a picture waits for others at most when the network is free."""
    queue: int = 512
    """Pictures in the house at most, each view of a ten-crop counted; beyond that requests are sent away."""
    max_bytes: int = 32 << 20
    """Of a request's body."""
    max_pixels: int = 50_000_000
    """Width × height of a picture."""
    max_images: int = 32
    """In a request."""
    timeout: float = 30.0
    """Seconds that a client may take to send a request's head, its body, and to take the answer; and that a request may
    wait for its labels."""
    drain: float = 1.0
    """Seconds after SIGTERM in which requests are still accepted, and /readyz says that no more should come."""

    def __post_init__(self) -> None:
        for name, (least, most) in BETWEEN.items():
            value = getattr(self, name)
            if not least <= value <= most:  # so that NaN is refused too
                bound = f"at least {least}" if value < least else f"at most {most:,}"
                raise UserError(f"--{name.replace('_', '-')} must be {bound}, not {value}.")
        if self.queue < 10 * self.max_images:
            raise UserError(
                f"--queue {self.queue} has no room for a request of {self.max_images} pictures in ten views each; give "
                f"at least {10 * self.max_images}, or a smaller --max-images."
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UserError("The token must be printable ASCII characters; make one with: openssl rand -hex 32")
        if self.token is not None and self.token != self.token.strip():
            raise UserError("The token has blanks at an end, which HTTP cuts off; take them away.")
        for site in self.cors:
            if site != "*" and not re.fullmatch(r"https?://[^/?#@\s]+", site):
                raise UserError(
                    f"--cors {site} cannot be the address of a web site as browsers tell it; write "
                    "https://example.org, without anything behind the name and the port."
                )

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that may be in memory at once."""
        return HELD * self.max_bytes
