"""Every engine against exact; what is kept, chosen, made anew; and what runs without torch or torchvision."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.inference.ensemble import forward
from alexnet.inference.evaluate import evaluate
from alexnet.inference.load import load_model
from alexnet.inference.predict import EngineClassifier, load, load_fast
from alexnet.run_dir import Run
from alexnet.runtimes import engines
from alexnet.runtimes.engine_cache import EngineCache
from alexnet.runtimes.select import TOLERANCE, EngineConfig, make_probes, open_engine
from helpers import make_image, make_image_folder

CPU = torch.device("cpu")
OFF = {
    "onnxruntime": 1e-5,
    "openvino": 1e-5,
    "openvino-int8-fc": 0.02,
    "openvino-int8": 0.15,
    "onnxruntime-int8": 0.15,
    "torch-bf16": 0.05,
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "engines"


@pytest.fixture
def picture(tmp_path):
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (40, 50), dtype=np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.fixture(scope="module")
def digits():
    from alexnet.data.datasets import load_dataset

    return load_dataset("digits").splits["val"].images.numpy()


@pytest.mark.parametrize("name", OFF)
def test_an_engine_says_what_exact_says(small_run, digits, name):
    opened = load_model(small_run)
    images = digits[:70]  # more than are computed at once
    said = []
    engine = open_engine(opened, EngineConfig(name, CPU, log=said.append), images)
    exact = open_engine(opened, EngineConfig("exact", CPU), images)
    found, expected = engine.logits(images), exact.logits(images)
    assert (found.shape, found.dtype) == ((70, 10), np.float32)
    off = np.abs(engines.softmax(found) - engines.softmax(expected)).max()
    assert off <= OFF[name]
    assert engine.note.startswith(f"engine {name}: probabilities differ from exact by at most ")
    np.testing.assert_allclose(engine.logits(images[:1]), found[:1], atol=1e-2)  # any number at once


def test_exact_is_the_module_s_own_numbers(small_run, digits):
    opened, images = load_model(small_run), torch.from_numpy(digits[:9])
    exact = open_engine(opened, EngineConfig("exact", CPU), digits[:9])
    with torch.no_grad():
        expected = forward(opened.model, images, opened.preprocess)
    np.testing.assert_array_equal(exact.logits(digits[:9]), expected.numpy())


def test_a_mean_image_is_in_the_file(tmp_path):
    from dataclasses import replace

    from alexnet.data.transforms import EvalTransform
    from alexnet.models.model import create_model
    from alexnet.runtimes.engines import LoadedModel

    mean = torch.rand(3, 36, 36, generator=torch.Generator().manual_seed(0))
    preprocess = EvalTransform(size=32, resize=36, mean_image=mean)
    model = create_model("cifar-towers", width=0.125).eval()  # grouped convolutions and LRN
    model.fc8.weight.data *= 100
    opened = LoadedModel(model, tuple("0123456789"), preprocess, None, None, "with-a-mean-image")
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    plain = replace(preprocess, mean_image=None)
    with torch.no_grad():
        expected = model(preprocess.normalize(torch.from_numpy(images))).numpy()
        without = model(plain.normalize(torch.from_numpy(images))).numpy()
    for name in ("onnxruntime", "openvino"):
        found = open_engine(opened, EngineConfig(name, CPU), images).logits(images)
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(expected - without).max() > 1e-2


def test_eval_by_an_engine(small_run, cache, capsys):
    exact = evaluate(small_run, device="cpu")
    before = Run(small_run).path / "evaluation" / "test.parquet"
    written = before.stat().st_mtime_ns
    found = evaluate(small_run, engine="openvino", device="cpu")
    assert found["engines"] == ["openvino"]
    assert (found["top1"], found["n"]) == (exact["top1"], exact["n"])
    assert found["loss"] == pytest.approx(exact["loss"], abs=1e-5)
    assert before.stat().st_mtime_ns == written  # only exact logits are kept
    ten = evaluate(small_run, engine="openvino", device="cpu", views=10)
    assert ten["loss"] == pytest.approx(evaluate(small_run, device="cpu", views=10)["loss"], abs=1e-5)


def test_fast_chooses_once_for_one_picture_and_once_for_many(small_run, cache, digits):
    opened = load_model(small_run)
    for images in (digits[:1], digits[:9]):
        engine = open_engine(opened, EngineConfig("fast", CPU), images)
        chosen = EngineCache(opened.model_id)._measurements()
        off = np.abs(
            engines.softmax(engine.logits(images)) - load(small_run).probabilities(torch.from_numpy(images)).numpy()
        ).max()
        assert off <= TOLERANCE
        again = open_engine(opened, EngineConfig("fast", CPU), images)
        assert (again.name, again.note) == (engine.name, engine.note)
        assert EngineCache(opened.model_id)._measurements() == chosen
    assert len(chosen) == 2
    assert {found["engine"] for found in chosen.values()} <= set(engines.ENGINES)


def test_fast_stays_with_exact_where_nothing_else_is_close(small_run, cache, digits, monkeypatch):
    monkeypatch.setattr("alexnet.runtimes.select.TOLERANCE", -1.0)
    engine = open_engine(load_model(small_run), EngineConfig("fast", CPU), digits[:4])
    assert engine.name == "exact"
    assert "more than -1.0" in engine.note


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(path.read_bytes()[:-9]), Path.unlink])
def test_a_damaged_file_is_made_anew(small_run, cache, picture, damage):
    load_fast(small_run, engine="onnxruntime").predict(picture)
    (file,) = cache.rglob("model.onnx")
    whole = file.stat().st_size
    damage(file)
    classifier = load_fast(small_run, engine="onnxruntime")
    assert isinstance(classifier, EngineClassifier)
    expected = load(small_run, engine="onnxruntime").predict(picture).labels
    assert dict(classifier.predict(picture).labels) == pytest.approx(dict(expected), abs=1e-6)
    assert file.stat().st_size == whole
    (cache / EngineCache(load_model(small_run).model_id).model_id / "measured.json").write_text("{")
    load_fast(small_run, engine="onnxruntime").predict(picture)


def test_a_cache_that_cannot_be_written(small_run, tmp_path, monkeypatch, picture):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALEXNET_CACHE", str(tmp_path / "file" / "cache"))
    exact = load(small_run).predict(picture)
    found = load_fast(small_run, engine="openvino-int8-fc").predict(picture)
    assert [p for _, p in found.labels] == pytest.approx([p for _, p in exact.labels], abs=0.02)


def test_a_stored_classifier_is_the_same_classifier(small_run, cache, picture, tmp_path):
    first = load_fast(small_run, engine="openvino")
    make_image_folder(tmp_path / "many")
    labels = first.predict(picture).labels
    third = load_fast(small_run, engine="openvino")
    assert isinstance(third, EngineClassifier)
    assert dict(third.predict(picture).labels) == pytest.approx(dict(labels), abs=1e-6)
    views = third.predict(picture, views=10).labels
    assert dict(views) == pytest.approx(dict(load(small_run).predict(picture, views=10).labels), abs=1e-5)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    good, none = third.predict_many([picture, bad])
    assert good.labels == third.predict(picture).labels
    assert none.error


def test_eight_bits_are_calibrated_on_the_pictures_given(small_run, cache, tmp_path, picture):
    for i in range(4):
        make_image(tmp_path / "pictures" / f"{i}.png", i % 3, i)
    found = load(small_run, engine="openvino-int8", calibrate=tmp_path / "pictures").predict(picture)
    assert sum(p for _, p in found.labels) <= 1 + 1e-5
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="None of the images in .*bad can be read"):
        load(small_run, engine="openvino-int8", calibrate=tmp_path / "bad").predict(picture)


def test_few_pictures_are_mirrored_and_turned():
    picture = np.arange(9, dtype=np.uint8).reshape(1, 1, 3, 3)
    probes = make_probes(picture)
    assert len(np.unique(probes.reshape(len(probes), -1), axis=0)) == 8
    np.testing.assert_array_equal(probes[:1], picture)
    assert len(make_probes(np.repeat(picture, 40, axis=0))) == engines.CHUNK


BLOCKED = """
import sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name)

blocked = [name for name in sys.argv[1].split(",")]
sys.meta_path.insert(0, Blocked())
from alexnet.cli import run
sys.exit(run(sys.argv[2:]))
"""


def without(packages: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process where `packages` cannot be imported."""
    command = [sys.executable, "-c", BLOCKED, packages, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", "openvino-int8-fc"])
def test_a_stored_engine_needs_no_torch(small_run, cache, picture, capsys, name):
    arguments = ["predict", str(small_run), str(picture), "--engine", name, "--json"]
    assert run(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    found = without("torch,torchvision,sklearn,scipy,pyarrow", *arguments)
    assert found.returncode == 0, found.stderr
    (prediction,) = json.loads(found.stdout)["predictions"]
    assert prediction["unsure"] == first["predictions"][0]["unsure"] is not None
    assert prediction["confidence"] == pytest.approx(first["predictions"][0]["confidence"], abs=1e-6)
    labels = {label["label"]: label["p"] for label in json.loads(found.stdout)["predictions"][0]["labels"]}
    assert labels == pytest.approx(
        {label["label"]: label["p"] for label in first["predictions"][0]["labels"]}, abs=1e-6
    )
    assert found.stderr.startswith(f"engine {name}: ")


def test_predict_and_eval_need_no_torchvision(small_run, picture):
    found = without("torchvision", "predict", str(small_run), str(picture))
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith(f"{picture}: ")


def test_a_package_that_is_missing(small_run, picture):
    arguments = ["predict", str(small_run), str(picture), "--engine"]
    found = without("openvino", *arguments, "openvino")
    assert found.returncode == 2
    assert (
        "--engine openvino needs openvino, which is not installed; install it with: pip install 'alexnet[fast]'."
        in found.stderr
    )
    found = without("openvino,onnxruntime", *arguments, "fast")
    assert found.returncode == 0
    assert found.stderr.startswith("engine exact: no engine installed here is faster")


def test_a_network_of_torchvision(tmp_path, cache):
    from alexnet.training.api import train
    from alexnet.training.progress import Silent

    data = make_image_folder(tmp_path / "data")
    trained = train(
        data, out=tmp_path / "run", arch="torchvision/squeezenet1_1", epochs=1, limit_steps=1, progress=Silent()
    ).run
    exact = load(trained).predict(data / "sky" / "0.jpg").labels
    found = load(trained, engine="onnxruntime").predict(data / "sky" / "0.jpg").labels
    assert dict(found) == pytest.approx(dict(exact), abs=1e-5)


def test_an_ensemble_by_an_engine(small_run, cache, tmp_path, picture):
    copy = shutil.copytree(small_run, tmp_path / "copy")
    exact = load([small_run, copy]).predict(picture).labels
    assert dict(load([small_run, copy], engine="openvino").predict(picture).labels) == pytest.approx(
        dict(exact), abs=1e-5
    )
