"""What several tests need: small class folders made on the spot, and one small trained run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet.checkpoint import save_model
from alexnet.data.transforms import EvalTransform
from alexnet.export.export import Export, Exporter
from alexnet.runtimes.manifest import FORMATS
from alexnet.training.api import train
from alexnet.training.progress import Silent
from browsing import CHROMIUM
from helpers import FRUIT, make_folder, make_picture, sharp

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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without a run. Tests must not change it."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(folder, sharp(), FRUIT, EvalTransform(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)))
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve pictures of 150×110 in class folders, larger than the network of `checkpoint` reads."""
    root = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(FRUIT):
        for n in range(4):
            make_picture(root / name / f"{n}.jpg", i, 10 * i + n, size=(150, 110))
    return root


@pytest.fixture(scope="session")
def exports(checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Export]:
    """`checkpoint` in every format that `dev` installs, files called `net`. Tests must not change them; copy them."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")  # where the key to sign with is
    folder = tmp_path_factory.mktemp("exports")
    kinds = ("onnx", "openvino", "torchscript", "pt2", "huggingface")
    with Exporter(checkpoint, images=photos) as exporter:
        return {kind: exporter.export(kind, folder / f"net{FORMATS[kind].suffix}") for kind in kinds}


@pytest.fixture
def files(exports: dict[str, Export], tmp_path: Path) -> Path:
    """A folder with a copy of `exports`, which may be damaged."""
    return Path(shutil.copytree(exports["onnx"].file.parent, tmp_path / "files"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, by playwright; without one the test is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the extra dev")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here; install it to see pages as people do")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
