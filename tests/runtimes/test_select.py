"""Every engine against exact; what is cached, chosen and rebuilt; and what runs without torch or torchvision."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.checkpoint import save_model
from alexnet.cli import run
from alexnet.data.datasets import load_dataset
from alexnet.data.transforms import EvalTransform
from alexnet.device import Precision
from alexnet.errors import UserError
from alexnet.inference.ensemble import forward
from alexnet.inference.evaluate import evaluate
from alexnet.inference.load import calibration_images, load_model
from alexnet.inference.predict import load
from alexnet.models.model import create_model
from alexnet.run_dir import Run
from alexnet.runtimes import engines, manifest, select
from alexnet.runtimes.engines import LoadedModel
from alexnet.runtimes.manifest import manifest_path
from alexnet.runtimes.select import TOLERANCE, EngineCache, EngineConfig, make_probes, open_engine
from helpers import make_image

pytestmark = pytest.mark.usefixtures("converts_once")

CPU = torch.device("cpu")
TRAINING_IMAGES = partial(calibration_images, folder=None)
MAX_DIFFERENCE = {
    "onnxruntime": 1e-5,
    "openvino": 1e-5,
    "openvino-int8-fc": 0.02,
    "openvino-int8": 0.15,
    "onnxruntime-int8": 0.15,
    "torch-bf16": 0.05,
}


@pytest.fixture(scope="module")
def built_engines(small_run, tmp_path_factory):
    """An engine cache with the files of `small_run`, and no measurements. Read-only."""
    folder = tmp_path_factory.mktemp("engines")
    loaded = load_model(small_run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_CACHE", str(folder))
        for name in ("onnxruntime", "openvino", "openvino-int8-fc"):
            select.open_or_build(loaded, EngineConfig(name, CPU))
    return folder


@pytest.fixture
def cache(built_engines, tmp_path, monkeypatch):
    """A writable copy of `built_engines`, as the cache of this test."""
    monkeypatch.setattr(select, "TIMING_SECONDS", 0.0)  # two repeats
    monkeypatch.setenv("ALEXNET_CACHE", str(shutil.copytree(built_engines, tmp_path / "cache")))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def image(tmp_path):
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits").splits["val"].images.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("name", MAX_DIFFERENCE)
def test_engine_agrees_with_exact(small_run, cache, digits, name):
    loaded = load_model(small_run)
    images = digits[:70]  # several chunks
    engine = open_engine(loaded, EngineConfig(name, CPU, calibration_images=TRAINING_IMAGES), images)
    exact = open_engine(loaded, EngineConfig("exact", CPU), images)
    found, expected = engine.logits(images), exact.logits(images)
    assert (found.shape, found.dtype) == ((70, 10), np.float32)
    difference = np.abs(engines.softmax(found) - engines.softmax(expected)).max()
    assert difference <= MAX_DIFFERENCE[name]
    assert engine.note.startswith(f"engine {name}: probabilities differ from exact by at most ")
    np.testing.assert_allclose(engine.logits(images[:1]), found[:1], atol=1e-2)  # any batch size


def test_exact_is_the_module_itself(small_run, digits):
    loaded, images = load_model(small_run), torch.from_numpy(digits[:9])
    exact = open_engine(loaded, EngineConfig("exact", CPU), digits[:9])
    with torch.no_grad():
        expected = forward(loaded.model, images, loaded.preprocess)
    np.testing.assert_array_equal(exact.logits(digits[:9]), expected.numpy())


@pytest.mark.slow
def test_mean_image_is_in_the_file():
    mean = torch.rand(3, 36, 36, generator=torch.Generator().manual_seed(0))
    preprocess = EvalTransform(size=32, resize=36, mean_image=mean)
    model = create_model("cifar-towers", width=0.125).eval()  # grouped convolutions and LRN
    model.fc8.weight.data *= 100
    loaded = LoadedModel(model, tuple("0123456789"), preprocess, None, None, "with-a-mean-image")
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    plain = replace(preprocess, mean_image=None)
    with torch.no_grad():
        expected = model(preprocess.normalize(torch.from_numpy(images))).numpy()
        without = model(plain.normalize(torch.from_numpy(images))).numpy()
    for name in ("onnxruntime", "openvino"):
        found = open_engine(loaded, EngineConfig(name, CPU), images).logits(images)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - without).max() > 1e-2


@pytest.mark.slow
def test_eval_with_an_engine(small_run, cache):
    exact = evaluate(small_run, device="cpu")
    stored = Run(small_run).path / "evaluation" / "test.parquet"
    written = stored.stat().st_mtime_ns
    found = evaluate(small_run, engine="openvino", device="cpu")
    assert found["engines"] == ["openvino"]
    assert (found["top1"], found["n"]) == (exact["top1"], exact["n"])
    assert found["loss"] == pytest.approx(exact["loss"], abs=1e-5)
    assert stored.stat().st_mtime_ns == written  # only exact logits are stored
    ten = evaluate(small_run, engine="openvino", device="cpu", views=10)
    assert ten["loss"] == pytest.approx(evaluate(small_run, device="cpu", views=10)["loss"], abs=1e-5)


def test_fast_chooses_once_for_a_single_image_and_once_for_many(small_run, cache, digits):
    loaded = load_model(small_run)
    for images in (digits[:1], digits[:9]):
        engine = open_engine(loaded, EngineConfig("fast", CPU), images)
        chosen = EngineCache(loaded.model_id)._measurements()
        difference = np.abs(
            engines.softmax(engine.logits(images)) - load(small_run).probabilities(torch.from_numpy(images)).numpy()
        ).max()
        assert difference <= TOLERANCE
        again = open_engine(loaded, EngineConfig("fast", CPU), images)
        assert (again.name, again.note) == (engine.name, engine.note)
        assert EngineCache(loaded.model_id)._measurements() == chosen
    assert len(chosen) == 2
    assert {found["engine"] for found in chosen.values()} <= set(engines.ENGINES)


def test_fast_is_exact_where_no_other_engine_is_close(small_run, cache, digits, monkeypatch):
    monkeypatch.setattr(select, "TOLERANCE", -1.0)
    engine = open_engine(load_model(small_run), EngineConfig("fast", CPU), digits[:4])
    assert engine.name == "exact"
    assert "more than -1.0" in engine.note


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _lose_manifest(path: Path) -> None:
    manifest_path(path).unlink()


@pytest.mark.parametrize("damage", [_truncate, _lose_manifest, pytest.param(Path.unlink, marks=pytest.mark.slow)])
def test_damaged_engine_file_is_rebuilt(small_run, cache, image, damage):
    load(small_run, engine="onnxruntime", cached_for="many").predict(image)
    stored = EngineCache(load_model(small_run).model_id)
    file = stored.file(select.ONNX)
    damage(file)
    assert stored.open("onnxruntime") is None
    classifier = load(small_run, engine="onnxruntime", cached_for="many")
    assert classifier.model is not None
    expected = load(small_run, engine="onnxruntime").predict(image).labels
    assert dict(classifier.predict(image).labels) == pytest.approx(dict(expected), abs=1e-6)
    assert stored.open("onnxruntime") is not None
    (stored.path / "measured.json").write_text("{")
    load(small_run, engine="onnxruntime", cached_for="many").predict(image)


def test_cache_that_cannot_be_written(small_run, tmp_path, monkeypatch, image):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "file" / "cache"))
    exact = load(small_run).predict(image)
    found = load(small_run, engine="openvino-int8-fc", cached_for="many").predict(image)
    assert [p for _, p in found.labels] == pytest.approx([p for _, p in exact.labels], abs=0.02)


def test_cached_engine_predicts_the_same(small_run, cache, image, tmp_path):
    first = load(small_run, engine="openvino", cached_for="many")
    labels = first.predict(image).labels
    cached = load(small_run, engine="openvino", cached_for="many")
    assert cached.model is None
    assert dict(cached.predict(image).labels) == pytest.approx(dict(labels), abs=1e-6)
    views = cached.predict(image, views=10).labels
    assert dict(views) == pytest.approx(dict(load(small_run).predict(image, views=10).labels), abs=1e-5)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    good, none = cached.predict_many([image, bad])
    assert good.labels == cached.predict(image).labels
    assert none.error


def test_int8_is_calibrated_on_the_given_folder(small_run, cache, tmp_path, image):
    for i in range(4):
        make_image(tmp_path / "images" / f"{i}.png", i % 3, i)
    found = load(small_run, engine="openvino-int8", calibrate=tmp_path / "images").predict(image)
    assert sum(p for _, p in found.labels) <= 1 + 1e-5
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="None of the images in .*bad can be read"):
        load(small_run, engine="openvino-int8", calibrate=tmp_path / "bad").predict(image)


def test_few_images_are_mirrored_and_rotated():
    image = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    probes = make_probes(image)
    assert len(np.unique(probes.reshape(len(probes), -1), axis=0)) == 8
    np.testing.assert_array_equal(probes[:1], image)
    assert len(make_probes(np.repeat(image, 40, axis=0))) == engines.CHUNK


BLOCK_IMPORTS = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name)

blocked = [name for name in sys.argv[1].split(",")]
sys.meta_path.insert(0, Blocked())
from alexnet.checkpoint import save_model
from alexnet.cli import run
sys.exit(run(sys.argv[2:]))
"""


def run_without(packages: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process where `packages` cannot be imported."""
    command = [sys.executable, "-c", BLOCK_IMPORTS, packages, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ), timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "openvino", pytest.param("openvino-int8-fc", marks=pytest.mark.slow)])
def test_cached_engine_needs_no_torch(small_run, cache, image, capsys, name):
    arguments = ["predict", str(small_run), str(image), "--engine", name, "--json"]
    assert run(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    found = run_without("torch,torchvision,sklearn,scipy,pyarrow", *arguments)
    assert found.returncode == 0, found.stderr
    (prediction,) = json.loads(found.stdout)["predictions"]
    assert prediction["unsure"] == first["predictions"][0]["unsure"] is not None
    assert prediction["confidence"] == pytest.approx(first["predictions"][0]["confidence"], abs=1e-6)
    labels = {label["label"]: label["p"] for label in json.loads(found.stdout)["predictions"][0]["labels"]}
    assert labels == pytest.approx(
        {label["label"]: label["p"] for label in first["predictions"][0]["labels"]}, abs=1e-6
    )
    assert found.stderr.startswith(f"engine {name}: ")


def test_onnxruntime_writes_nothing_into_the_home_folder(small_run, cache, image, tmp_path, monkeypatch):
    arguments = ["predict", str(small_run), str(image), "--engine", "onnxruntime"]
    assert run(arguments) == 0
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    assert run_without("torch", *arguments).returncode == 0
    assert not list((tmp_path / "home").rglob("*onnxruntime*"))


@pytest.mark.slow  # imports torch in a subprocess
def test_predict_needs_no_torchvision(small_run, image):
    found = run_without("torchvision", "predict", str(small_run), str(image))
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"{image}: ")


def test_missing_package_is_reported(small_run, image):
    found = run_without("openvino", "predict", str(small_run), str(image), "--engine", "openvino")
    assert found.returncode == 2
    message = "--engine openvino needs openvino, which is not installed; install it with: pip install 'alexnet[fast]'."
    assert message in found.stderr


def test_fast_is_exact_where_no_engine_is_installed(small_run, cache, image, monkeypatch, capsys):
    monkeypatch.setattr(manifest, "_is_installed", lambda package: package not in ("openvino", "onnxruntime"))
    monkeypatch.setattr(select, "pick_precision", lambda *_: Precision("fp32", ""))  # or torch-bf16 may win
    assert run(["predict", str(small_run), str(image), "--engine", "fast"]) == 0
    assert capsys.readouterr().err.startswith("engine exact: no engine installed here is faster")


@pytest.mark.slow
def test_torchvision_network_in_an_engine(tmp_path, cache, image):
    model = create_model("torchvision/squeezenet1_1", num_classes=3, image_size=64).eval()
    save_model(tmp_path, model, ("a", "b", "c"), EvalTransform(size=64))
    exact = load(tmp_path).predict(image).labels
    found = load(tmp_path, engine="onnxruntime").predict(image).labels
    assert dict(found) == pytest.approx(dict(exact), abs=1e-5)


def test_ensemble_in_an_engine(small_run, cache, tmp_path, image):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    exact = load([small_run, copy]).predict(image).labels
    assert dict(load([small_run, copy], engine="openvino").predict(image).labels) == pytest.approx(
        dict(exact), abs=1e-5
    )
