"""Small synthetic images, class folders and models, and the path to real datasets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.models.model import Network, create_model
from alexnet.progress import Silent

CLASS_NAMES = ("apple", "leaf", "sky")
EVAL_KEYS = {"split", "top1", "top5", "loss", "n", "interval", "per_class", "views"}
"""Of the JSON document of `alexnet eval`, for one run and for several."""


class LogRecorder(Silent):
    """Keeps what is logged, as `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def make_image(path: Path, hue: int, seed: int, size: tuple[int, int] = (40, 36)) -> None:
    """Write a JPEG or PNG of noise around red, green or blue (`hue` 0–2), of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 90, (size[1], size[0], 3))
    noise[..., hue] += 150
    Image.fromarray(noise.astype(np.uint8)).save(path)


def make_image_folder(root: Path, classes: tuple[str, ...] = CLASS_NAMES, count: int = 8) -> Path:
    """Write `root/<class>/<n>.jpg`, `count` images per class, and return `root`."""
    for i, name in enumerate(classes):
        for n in range(count):
            make_image(root / name / f"{n}.jpg", i % 3, 100 * i + n)
    return root


def make_solid_image(path: Path, red: int = 0, size: tuple[int, int] = (12, 10)) -> None:
    """Write an image of one color, of `size` (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (red % 256, 80, 120)).save(path)


def make_class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Write `root/<class>/<nnn>.png`, solid images of different colors, and return `root`."""
    for name, count in counts.items():
        for i in range(count):
            make_solid_image(root / name / f"{i:03d}.png", 20 * i)
    return root


def data_folder(name: str) -> Path:
    """Return the folder of the real dataset `name`, or skip the test."""
    roots = [Path(os.environ["ALEXNET_DATA"])] if "ALEXNET_DATA" in os.environ else []
    roots.append(Path(__file__).resolve().parents[2] / "shared" / "data")
    for root in roots:
        if (root / name).exists():
            return root / name
    pytest.skip(f"{name} is not in $ALEXNET_DATA")


def make_confident_model(name: str = "cifar") -> Network:
    """Return a small untrained model with large logits, so that a wrong pixel shows in its predictions."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=len(CLASS_NAMES), width=0.125).eval()
    with torch.no_grad():
        model.fc8.weight *= 500
    return model
