"""A trained network in memory with its class names, preprocessing and origin."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.data.transforms import EvalTransform
from alexnet.run_dir import Run

if TYPE_CHECKING:
    from alexnet.models.model import Network


@dataclass(frozen=True)
class LoadedModel:
    """A network ready for use, and where it came from."""

    model: Network
    classes: tuple[str, ...]
    preprocess: EvalTransform
    run: Run | None
    checkpoint: Path | None
    identity: str
    """What tells it from other networks: see `identity`."""
