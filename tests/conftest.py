"""What several tests need: small class folders made on the spot, and one small trained run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from alexnet.training.progress import Silent
from alexnet.training.start import train
from helpers import make_folder

torch.set_num_threads(1)  # small tensors gain nothing from more, and lose much on a busy machine


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests share one cache of their own and leave the user's alone."""
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three classes of eight small JPEGs, without a split."""
    return make_folder(tmp_path / "pictures")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four short epochs on the digits. Tests must not change it; copy it first."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    out = tmp_path_factory.mktemp("runs") / "small"
    train("digits", out=out, epochs=4, width=0.25, batch_size=64, lr=0.05, progress=Silent())
    return out
