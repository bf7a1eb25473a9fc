"""What a server allows: the settings of `alexnet serve`, checked."""

from __future__ import annotations

from dataclasses import dataclass, field

from alexnet.errors import UserError

HELD = 8  # bodies of the largest size that may be in memory at once, those still being received included


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
    """Seconds that a client may take to send a request."""
    drain: float = 1.0
    """Seconds after SIGTERM in which requests are still accepted, and /readyz says that no more should come."""

    def __post_init__(self) -> None:
        least = {"port": 0, "max_batch": 1, "max_delay_ms": 0, "queue": 1, "max_bytes": 1, "max_pixels": 1,
                 "max_images": 1, "timeout": 0.1, "drain": 0}  # fmt: skip
        for name, value in least.items():
            if not getattr(self, name) >= value:  # so that NaN is refused too
                flag = name.replace("_", "-")
                raise UserError(f"--{flag} must be at least {value}, not {getattr(self, name)}.")
        if self.port > 65535:
            raise UserError(f"--port {self.port} does not exist; ports go from 0 to 65535.")
        if self.queue < 10 * self.max_images:
            raise UserError(
                f"--queue {self.queue} has no room for a request of {self.max_images} pictures in ten views each; give "
                f"at least {10 * self.max_images}, or a smaller --max-images."
            )
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UserError("The token must be printable ASCII characters; make one with: openssl rand -hex 32")

    @property
    def held_bytes(self) -> int:
        """Bytes of bodies that may be in memory at once."""
        return HELD * self.max_bytes
