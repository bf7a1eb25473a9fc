"""Shared fixtures: small class folders, a checkpoint, its exported files, and one small trained run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alexnet.checkpoint import save_model, update_model_json
from alexnet.data.transforms import EvalTransform
from alexnet.export.export import Export, Exporter
from alexnet.export.parity import Parity
from alexnet.progress import Silent
from alexnet.runtimes.calibration import KEY, Calibration
from alexnet.runtimes.manifest import FORMATS
from alexnet.training.api import train
from browser import CHROMIUM
from helpers import CLASS_NAMES, make_confident_model, make_image, make_image_folder

torch.set_num_threads(1)  # small tensors gain nothing from more threads, and lose much on a busy machine


@pytest.fixture(autouse=True)
def _test_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tests one cache, apart from the user's."""
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Class folders without a split: three classes of eight small JPEGs."""
    return make_image_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four short epochs on digits. Read-only: copy it before changing it."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    out = tmp_path_factory.mktemp("runs") / "small"
    train("digits", out=out, epochs=4, width=0.25, batch_size=64, lr=0.05, progress=Silent())
    return out


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder without a run. Read-only."""
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(
        folder,
        make_confident_model(),
        CLASS_NAMES,
        EvalTransform(size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)),
    )
    return folder


@pytest.fixture(scope="session")
def large_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of 150×110 in class folders, larger than the input of `checkpoint`."""
    root = tmp_path_factory.mktemp("images")
    for i, name in enumerate(CLASS_NAMES):
        for n in range(4):
            make_image(root / name / f"{n}.jpg", i, 10 * i + n, size=(150, 110))
    return root


class LazyExports(dict[str, Export]):
    """Exports by format, each written when it is first used."""

    def __init__(self, exporter: Exporter, folder: Path) -> None:
        self._exporter, self._folder = exporter, folder

    def __missing__(self, kind: str) -> Export:
        self[kind] = self._exporter.export(kind, self._folder / f"net{FORMATS[kind].suffix}")
        return self[kind]


@pytest.fixture(scope="session")
def exports(
    checkpoint: Path, large_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Export]]:
    """`checkpoint` exported to any format that `dev` installs, in files named `net`. Read-only."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    with Exporter(checkpoint, images=large_images) as exporter:
        yield LazyExports(exporter, tmp_path_factory.mktemp("exports"))


@pytest.fixture(scope="session")
def calibrated_checkpoint(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `checkpoint` with a temperature and a confidence threshold. Read-only."""
    folder = Path(shutil.copytree(checkpoint, tmp_path_factory.mktemp("calibrated") / "checkpoint"))
    update_model_json(folder, KEY, Calibration(temperature=1.5, threshold=0.48).to_dict())
    return folder


@pytest.fixture(scope="session")
def exported(calibrated_checkpoint: Path, large_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `calibrated_checkpoint` in all formats that `dev` installs, in files named `net`, exported without
    the slow check of parity. Read-only."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    folder = tmp_path_factory.mktemp("exported")
    with (
        pytest.MonkeyPatch.context() as patch,
        Exporter(calibrated_checkpoint, images=large_images) as exporter,
    ):
        patch.setattr(
            "alexnet.export.parity.compare",
            lambda *_, **__: Parity(12, 0.0, "", 1.0, None, {}, False),
        )
        patch.setattr("alexnet.export.parity.LATENCY_SECONDS", 0)
        for kind in ("onnx", "openvino", "torchscript", "pt2", "huggingface"):
            exporter.export(kind, folder / f"net{FORMATS[kind].suffix}")
    return folder


@pytest.fixture
def export_folder(exported: Path, tmp_path: Path) -> Path:
    """A writable copy of the folder `exported`."""
    return Path(shutil.copytree(exported, tmp_path / "files"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, driven by playwright; without it the test is skipped."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; it is in the extra dev")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed; install it to run the browser tests")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()
