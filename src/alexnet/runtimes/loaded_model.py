"""A trained network in memory with its class names, preprocessing and origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.data.transforms import Preprocess
from alexnet.run_dir import Run

if TYPE_CHECKING:
    from alexnet.models.model import Network


@dataclass(frozen=True)
class Opened:
    """A network ready for use, and where it came from."""

    model: Network
    classes: tuple[str, ...]
    preprocess: Preprocess
    run: Run | None
    checkpoint: Path | None
    identity: str
    """What tells it from other networks: see `identity`."""
