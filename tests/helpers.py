"""Small data made on the spot, and the way to the real data sets where they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.models.model import Network, create_model

FRUIT = ("apple", "leaf", "sky")


def make_picture(path: Path, hue: int, seed: int, size: tuple[int, int] = (40, 36)) -> None:
    """A JPEG or PNG of noise around one of three colours, easy to tell apart."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 90, (size[1], size[0], 3))
    noise[..., hue] += 150
    Image.fromarray(noise.astype(np.uint8)).save(path)


def make_folder(root: Path, classes: tuple[str, ...] = ("apple", "leaf", "sky"), count: int = 8) -> Path:
    """`root/<class>/<n>.jpg`."""
    for i, name in enumerate(classes):
        for n in range(count):
            make_picture(root / name / f"{n}.jpg", i % 3, 100 * i + n)
    return root


def data_folder(name: str) -> Path:
    """The real data set `name`, or the test is skipped."""
    roots = [Path(os.environ["ALEXNET_DATA"])] if "ALEXNET_DATA" in os.environ else []
    roots.append(Path(__file__).resolve().parents[2] / "shared" / "data")
    for root in roots:
        if (root / name).exists():
            return root / name
    pytest.skip(f"{name} is not in $ALEXNET_DATA")


def sharp(name: str = "cifar") -> Network:
    """A small network with fresh weights whose answers are far from even, so that a wrong pixel shows in them."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=len(FRUIT), width=0.125).eval()
    with torch.no_grad():
        model.fc8.weight *= 500
    return model
