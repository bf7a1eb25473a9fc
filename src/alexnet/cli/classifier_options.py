"""The flags that `alexnet eval` and `alexnet predict` share: which checkpoint, in which engine, on which views."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alexnet.cli.output import log
from alexnet.errors import UserError


@dataclass(frozen=True)
class ClassifierOptions:
    """How the network computes."""

    checkpoint: Literal["best", "last"] = "best"
    """Which checkpoint of the run."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    ten_crop: bool = False
    """Average the four corners, the center and their mirror images, as the paper's test does."""
    crops: int | None = None
    """Average this many views instead: 2, 8, 18, 32, 50 … form grids."""
    scales: tuple[float, ...] = (1.0,)
    """Average over the image resized by each of these factors, such as 1 1.15 1.3."""
    engine: str = "exact"
    """exact (torch in float32, as in training), fast (the fastest installed here that stays close to exact),
    torch-bf16, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, openvino-int8-fc or openvino-int8."""
    calibrate: Path | None = None
    """A folder of images that calibrates the int8 engines; the run's own images by default."""
    trust: bool = False
    """Open an exported file in a format that can run code (TorchScript, pt2)."""

    @property
    def views(self) -> int:
        """Views per image."""
        if self.ten_crop and self.crops not in (None, 10):
            raise UserError(f"--ten-crop is 10 views, but --crops is {self.crops}; give only one of them.")
        return 10 if self.ten_crop else self.crops if self.crops is not None else 1

    def to_load(self) -> dict[str, Any]:
        """Return the keyword arguments of `inference.predict.load`."""
        return {
            "checkpoint": self.checkpoint, "device": self.device, "engine": self.engine, "calibrate": self.calibrate,
            "trust": self.trust, "log": log,
        }  # fmt: skip
