"""Own images read as grayscale with --in-channels 1, whatever their files hold, in every command."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import alexnet
from alexnet.cli import run
from alexnet.data.shards.manifest import open_packed

SMALL = {"arch": "cifar", "width": 0.05, "image_size": 32, "epochs": 1, "batch_size": 8, "threads": 1, "workers": 0}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Grayscale patterns as files of one, two and three channels, of palettes, and of 16 bits."""
    root = tmp_path_factory.mktemp("gray")
    rng = np.random.default_rng(0)
    for label in "ab":
        (root / label).mkdir()
        for i in range(10):
            image = Image.fromarray(rng.integers(0, 128, (32, 32), dtype=np.uint8) + 100 * (label == "b"))
            image.convert(["L", "RGB", "LA", "P", "L"][i % 5]).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    alexnet.train("folder", data=data, in_channels=1, out=out, **SMALL)
    return out


def test_the_network_has_one_channel_and_measures_one_mean(trained):
    recipe = json.loads((trained / "recipe.json").read_text())
    assert (recipe["in_channels"], len(recipe["mean"]), len(recipe["std"])) == (1, 1, 1)
    model = alexnet.load(trained)
    assert model.preprocess.channels == 1
    assert next(p for p in model.model.parameters()).shape[1] == 1


@pytest.mark.slow
def test_it_is_used_by_eval_predict_and_further_training(trained, data, tmp_path, capsys):
    assert run(["eval", str(trained), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 20
    gray, color = tmp_path / "gray.png", tmp_path / "color.png"
    image = Image.open(data / "a" / "0.png")
    image.save(gray)
    image.convert("RGB").save(color)
    model = alexnet.load(trained)
    assert model.predict(gray).labels == model.predict(color).labels
    arguments = ["train", "folder", "--data", str(data), "--weights", str(trained), "--limit-steps", "1"]
    assert run([*arguments, "--out", str(tmp_path / "a")]) == 2
    assert "give --in-channels 1, or leave out --weights" in capsys.readouterr().err
    assert run([*arguments, "--out", str(tmp_path / "b"), "--in-channels", "1"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["folder", "--data", "DATA", "--in-channels", "2"], "--in-channels is 1 for grayscale or 3 for color, not 2"),
        (["folder", "--data", "DATA", "--in-channels", "4"], "--in-channels must be at least 1 and at most 3, not 4"),
        (["digits", "--in-channels", "3"], "stored in grayscale, which --in-channels 3 cannot change"),
        (
            ["cifar10", "--set", "dataset=folder", "--data", "DATA", "--in-channels", "1"],
            "--set mean=null --set std=null",
        ),
        (["folder", "--data", "DATA", "--in-channels", "1", "--set", "pca_noise=0.1"], "PCA noise needs color images"),
    ],
)
def test_what_does_not_fit_is_an_error(arguments, message, data, tmp_path, capsys):
    arguments = [str(data) if argument == "DATA" else argument for argument in arguments]
    assert run(["train", *arguments, "--out", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("format", ["jpeg", "uint8"])
@pytest.mark.slow
def test_packed_images_are_stored_in_grayscale(format, data, tmp_path, capsys):
    pytest.importorskip("litdata")
    packed = tmp_path / "packed"
    assert run(["pack", str(data), str(packed), "--in-channels", "1", "--format", format, "--workers", "1"]) == 0
    assert open_packed(packed).manifest.form.channels == 1
    assert run(["train", str(packed), "--out", str(tmp_path / "run"), *FLAGS, "--limit-steps", "1"]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["mean"][1:] == []
    capsys.readouterr()
    assert run(["train", str(packed), "--in-channels", "3", "--out", str(tmp_path / "other")]) == 2
    assert "stored in grayscale" in capsys.readouterr().err
