"""A small network that is sure of itself, so that a wrong pixel shows, and pictures larger than it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from alexnet.data.preprocess import Preprocess
from alexnet.networks.model import Network, create_model
from alexnet.runs import write_model
from helpers import make_picture

CLASSES = ("apple", "leaf", "sky")


def sharp(name: str = "cifar", **settings: object) -> Network:
    """A network with fresh weights whose answers are far from even."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=len(CLASSES), **{"width": 0.125, **settings}).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.fc8.weight *= 500
    return model


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder, which tests must not change."""
    folder = tmp_path_factory.mktemp("checkpoint")
    write_model(folder, sharp(), CLASSES, Preprocess(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 150×110 in class folders."""
    root = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(CLASSES):
        for n in range(4):
            make_picture(root / name / f"{n}.jpg", i, 10 * i + n, size=(150, 110))
    return root
