"""Shared fixtures: small class folders, a checkpoint, its exported files, and one small trained run."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from markupsafe import Markup

from alexnet.checkpoint import save_model, update_model_json
from alexnet.data import jpeg
from alexnet.data.transforms import EvalTransform
from alexnet.export.export import Export, Exporter
from alexnet.export.parity import Parity
from alexnet.progress import Silent
from alexnet.report.page import Page
from alexnet.runtimes.calibration import KEY, Calibration
from alexnet.runtimes.manifest import FORMATS
from alexnet.signals import STOP_SIGNALS
from alexnet.training.api import train
from browser import CHROMIUM
from helpers import CLASS_NAMES, make_confident_model, make_image, make_image_folder

torch.set_num_threads(1)  # small tensors gain nothing from more threads, and lose much on a busy machine


@pytest.fixture(autouse=True)
def _test_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the tests one cache, apart from the user's."""
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def _no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open exported files without the trial in another process, which takes a second."""
    monkeypatch.setattr("alexnet.runtimes.exported._try_in_process", lambda path, model_id: None)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Class folders without a split: three classes of eight small JPEGs."""
    return make_image_folder(tmp_path / "images")


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a copy, for this worker, of the folder that the first worker to need it makes with `make`."""
    base = factory.getbasetemp()
    os.environ["ALEXNET_CACHE"] = str(base / "cache")
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "made-once" / name
    shared.parent.mkdir(exist_ok=True)
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            unfinished = shared.with_name(f"{name}-unfinished")
            make(unfinished)
            unfinished.rename(shared)
    return Path(shutil.copytree(shared, factory.mktemp("made") / name))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four short epochs on digits. Read-only: copy it before changing it."""
    settings: dict[str, Any] = {"epochs": 4, "width": 0.25, "batch_size": 64, "lr": 0.05, "progress": Silent()}
    return made_once(tmp_path_factory, "small", lambda out: train("digits", out=out, **settings))


@pytest.fixture(scope="session")
def onnx_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that `converts_once` keeps."""
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def converts_once(onnx_files: Path) -> Iterator[None]:
    """Convert each network to ONNX only once: it takes seconds, and the same network gives the same file."""
    convert = torch.onnx.export

    def convert_once(module: torch.nn.Module, example: tuple[torch.Tensor], path: Path, **options: Any) -> None:
        weights = io.BytesIO()
        torch.save(module.state_dict(), weights)
        description = f"{module} {example[0].shape} {example[0].dtype} {options}".encode()
        file = onnx_files / sha256(description + weights.getvalue()).hexdigest()
        if not file.exists():
            convert(module, example, file, **options)
        shutil.copyfile(file, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", convert_once)
        yield


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


@pytest.fixture
def skip_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plots out of pages, to save time."""
    monkeypatch.setattr(Page, "plot", lambda self, name, draw: Markup("<svg></svg>"))


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

    def export_all(folder: Path) -> None:
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch, Exporter(calibrated_checkpoint, images=large_images) as exporter:
            agrees = Parity(12, 0.0, "", 1.0, None, None, {}, False)
            patch.setattr("alexnet.export.parity.compare", lambda *_, **__: agrees)
            patch.setattr("alexnet.export.parity.LATENCY_SECONDS", 0)
            for kind in ("onnx", "openvino", "torchscript", "pt2", "huggingface"):
                exporter.export(kind, folder / f"net{FORMATS[kind].suffix}")

    return made_once(tmp_path_factory, "exported", export_all)


@pytest.fixture
def export_folder(exported: Path, tmp_path: Path) -> Path:
    """A writable copy of the folder `exported`."""
    return Path(shutil.copytree(exported, tmp_path / "files"))


@pytest.fixture(params=["simplejpeg", "Pillow"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to read a JPEG: strictly, and without simplejpeg."""
    if request.param == "Pillow":
        monkeypatch.setattr(jpeg, "import_simplejpeg", lambda: None)
    return str(request.param)


@pytest.fixture
def same_handlers_afterwards() -> Iterator[None]:
    """Restore the handlers of signals afterwards; let none be ignored before, as SIGHUP is under nohup."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    for signum, handler in before.items():
        if handler is signal.SIG_IGN:
            signal.signal(signum, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


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
