"""Training on 12-bit values in 16-bit files is training on the same images in 8 bits, and so is all that follows."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.ablation.hog import extract_features
from alexnet.checkpoint import load_checkpoint
from alexnet.data.quality.check import check_dataset
from alexnet.data.shards.manifest import open_packed
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.batch_predict import write_predictions
from alexnet.inference.evaluate import evaluate
from alexnet.inference.load import load_image
from alexnet.inference.predict import load
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.serving.registry import open_models
from alexnet.text import BY_CONTENT
from alexnet.training.api import resume, train
from alexnet.training.recipe import Recipe
from alexnet.training.setup import prepare_training
from helpers import LogRecorder
from server_client import running_server

RECIPE = Recipe().replace(
    name="deep", dataset="folder", arch="cifar", image_size=32, width=0.125, epochs=1, batch_size=8, precision="fp32",
    device="cpu", workers=0, crop="random", flip=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same images with 12 bits in 16-bit TIFFs and with 8 bits in PNGs."""
    deep, shallow = tmp_path_factory.mktemp("deep"), tmp_path_factory.mktemp("shallow")
    for label, level in (("bright", 2600), ("dark", 1200)):
        (deep / label).mkdir()
        (shallow / label).mkdir()
        for i in range(12):
            values = np.random.default_rng(i).normal(level, 400, (36, 36)).clip(0, 4095).astype(np.uint16)
            Image.fromarray(values).save(deep / label / f"{i:02}.tif")
            Image.fromarray(np.rint(values / 4095 * 255).astype(np.uint8)).save(shallow / label / f"{i:02}.png")
    return deep, shallow


@pytest.fixture(scope="module")
def run(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(RECIPE.replace(data=folders[0]), out=tmp_path_factory.mktemp("runs") / "run", progress=Silent()).run


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = Run(run).named_checkpoint("last")
    assert folder is not None
    return load_checkpoint(folder).model.state_dict()


def test_a_run_equals_that_on_8_bits(run, folders, tmp_path):
    twin = train(RECIPE.replace(data=folders[1]), out=tmp_path / "twin", progress=Silent()).run
    theirs = weights(twin)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(run).items())
    assert json.loads((run / "recipe.json").read_text())["value_range"] == [0, 4095]
    assert json.loads((twin / "recipe.json").read_text())["value_range"] is None
    ours, other = load(run), load(twin)
    assert (ours.preprocess.value_range, other.preprocess.value_range) == ((0, 4095), None)
    assert "value_range" not in other.preprocess.to_dict()
    assert EvalTransform.from_dict(ours.preprocess.to_dict()) == ours.preprocess
    for name in ("bright/03", "dark/07"):
        deep, shallow = folders[0] / f"{name}.tif", folders[1] / f"{name}.png"
        assert ours.predict(deep).labels == other.predict(shallow).labels
        np.testing.assert_array_equal(load_image(deep, ours.preprocess), load_image(shallow, other.preprocess))
        assert not ours.predict(deep).clipped
    assert evaluate(run)["loss"] == evaluate(twin)["loss"]
    more = resume(run, epochs=2, progress=Silent()).run
    assert load(more).preprocess == ours.preprocess


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("crop", ["random", "resized"])
def test_batches_equal_those_of_8_bits(folders, in_memory, crop):
    found = []
    for folder in folders:
        log = LogRecorder()
        setup = prepare_training(RECIPE.replace(data=folder, in_memory=in_memory, crop=crop), log)
        found.append([next(iter(loader.batches(0))).images for loader in (setup.train, setup.evaluation["val"])])
        said = [line for line in log.lines if "more than 8 bits" in line]
        assert len(said) == (folder is folders[0])

    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)


def test_a_given_range_and_what_is_beyond_it(folders):
    log = LogRecorder()
    setup = prepare_training(RECIPE.replace(data=folders[0], value_range=(0.0, 1000.0)), log)
    assert setup.preprocess.value_range == setup.recipe.data.value_range == (0, 1000)
    (said,) = (line for line in log.lines if "more than 8 bits" in line)
    assert "0 to 1000 becomes 0 to 255, as given. 24 of them have values beyond this range, which are clipped." in said
    with pytest.raises(UserError, match="value_range must be two numbers, the smaller first"):
        train(RECIPE.replace(data=folders[0]), value_range=(9.0, 1.0), progress=Silent())


def test_clipped_images_are_counted(run, tmp_path):
    (tmp_path / "dark").mkdir()
    (tmp_path / "bright").mkdir()
    for i, label in enumerate(("dark", "bright", "bright")):
        Image.fromarray(np.full((36, 36), 3000 + 1000 * i, np.uint16)).save(tmp_path / label / f"{i}.png")
    classifier = load(run)
    images = sorted(tmp_path.rglob("*.png"))
    clipped = {Path(p.path).name: p.to_dict().get("clipped", False) for p in classifier.predict_many(images)}
    assert clipped == {"0.png": False, "1.png": False, "2.png": True}
    written = write_predictions(classifier, images, tmp_path / "out.jsonl", {})
    assert written.to_dict()["clipped"] == 1
    with running_server(open_models([run])) as server:
        answers = server.predict(*((path.name, path.read_bytes()) for path in images)).json()["predictions"]
    assert {answer["path"]: answer.get("clipped", False) for answer in answers} == clipped
    said: list[str] = []
    assert evaluate(run, data=tmp_path, log=said.append)["clipped"] == 1
    assert said[-1] == "1 image has values beyond 0 to 4095, the range of the training images; they were clipped."


def test_the_baseline_without_a_network_uses_the_range(folders):
    pytest.importorskip("skimage")
    deep, shallow = (extract_features("folder", folder, None, BY_CONTENT, False, 32, None)[0] for folder in folders)
    for name, row in deep.items():
        np.testing.assert_array_equal(row, shallow[name.replace(".tif", ".png")])


def test_packed_images_have_the_range(run, folders, tmp_path):
    log = LogRecorder()
    pack_dataset(folders[0], tmp_path / "packed", kind="uint8", progress=log)
    pack_dataset(folders[1], tmp_path / "twin", kind="uint8")
    ours, theirs = (open_packed(tmp_path / name) for name in ("packed", "twin"))
    assert any("0 to 4095 becomes 0 to 255" in line for line in log.lines)
    assert (ours.manifest.value_range, theirs.manifest.value_range) == ((0, 4095), None)
    assert "value_range" not in json.loads((tmp_path / "twin" / "pack.json").read_text())
    for i in range(24):
        np.testing.assert_array_equal(ours.splits["train"].raw(i), theirs.splits["train"].raw(i))
    setup = prepare_training(RECIPE.replace(data=tmp_path / "packed"), Silent())
    assert setup.preprocess.value_range == setup.recipe.data.value_range == (0, 4095)
    with pytest.raises(UserError, match="--value-range cannot change"):
        prepare_training(RECIPE.replace(data=tmp_path / "packed", value_range=(0.0, 100.0)), Silent())
    assert evaluate(run, data=tmp_path / "packed", split="train")["n"] == 24
    pack_dataset(folders[0], tmp_path / "other", kind="uint8", value_range=(0.0, 65535.0))
    with pytest.raises(UserError, match="pack the images with --value-range=0,4095"):
        evaluate(run, data=tmp_path / "other", split="train")


def test_check_says_the_range_and_sees_dark_images(folders):
    found = check_dataset(folders[0])
    assert found.to_dict()["value_range"] == {"range": [0, 4095], "images": 24, "beyond": 0}
    assert any("24 of 24 images have more than 8 bits" in note for note in found.notes)
    twin = check_dataset(folders[1])
    assert [replace_bits(info.anomalies) for info in found.infos] == [info.anomalies for info in twin.infos]
    assert "value_range" not in twin.to_dict()


def replace_bits(anomalies: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(text for text in anomalies if "more than 8 bits" not in text)
