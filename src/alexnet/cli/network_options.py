"""The flags that `alexnet arch` and `alexnet code` share: how the network differs from the architecture's own."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class NetworkOptions:
    """How the network differs from the architecture's own."""

    image_size: int | None = None
    """Side of the input in pixels."""
    num_classes: int | None = None
    """Outputs of the last layer."""
    in_channels: int | None = None
    """3 for color, 1 for grayscale."""
    norm: Literal["auto", "lrn", "batch", "none"] = "auto"
    """Normalization; auto is the architecture's own."""
    width: float = 1.0
    """Factor on all channel counts and hidden units."""

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of `architectures.architecture`."""
        return {**asdict(self), "norm": None if self.norm == "auto" else self.norm}


OWN = NetworkOptions()
"""The architecture's own values."""
