"""Starting from a trained network: what is taken over, what is new, what stays still, at which rate the rest moves."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alexnet.checkpoint import load_checkpoint
from alexnet.errors import UserError
from alexnet.models.model import create_model
from alexnet.run_dir import Run
from alexnet.training.api import resume, train
from alexnet.training.optim import make_optimizer, schedule_at
from alexnet.training.progress import Silent
from alexnet.training.recipe import Recipe, read_recipe
from alexnet.training.transfer import choose_frozen_layers, freeze, frozen_layers, weighted_layers
from helpers import make_image_folder

SMALL = {"arch": "cifar", "image_size": 32, "width": 0.125, "precision": "fp32", "device": "cpu", "workers": 0}


class Said(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def log(self, text: str) -> None:
        self.lines.append(text)


def best(run: Path) -> dict[str, torch.Tensor]:
    folder = Run(run).named_checkpoint("best")
    assert folder is not None
    return load_checkpoint(folder).model.state_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A network of three classes of colour pictures."""
    root = tmp_path_factory.mktemp("trained")
    data = make_image_folder(root / "data")
    return train("folder", data=data, out=root / "run", epochs=1, progress=Silent(), **SMALL).run


@pytest.fixture
def others(tmp_path) -> Path:
    """Other classes."""
    return make_image_folder(tmp_path / "others", classes=("kilo", "lima"))


def test_features_stay_to_the_bit_and_the_new_head_learns(trained, others, tmp_path):
    said = Said()
    result = train("folder", data=others, weights=str(trained), out=tmp_path / "run", epochs=2, progress=said)
    before, after = best(trained), best(result.run)
    assert after["fc8.weight"].shape[0] == 2
    for name in before:
        assert name.startswith("fc8") or torch.equal(before[name], after[name]), name  # batch norm's averages too
    recipe = read_recipe(result.run / "recipe.json")
    assert (recipe.freeze, recipe.arch, recipe.width) == ("features", "cifar", 0.125)
    assert recipe.weights == str(trained.absolute())
    assert any("pictures a class are too few" in line and "--freeze" in line for line in said.lines)
    described = json.loads((Run(result.run).named_checkpoint("best") / "model.json").read_text())
    was = json.loads((Run(trained).named_checkpoint("best") / "model.json").read_text())
    assert described["preprocess"] == was["preprocess"]


def test_the_same_classes_keep_their_head(trained, tmp_path):
    data = read_recipe(trained / "recipe.json").data
    shared = {"data": data, "weights": str(trained), "freeze": "none", "lr": 1e-9, "progress": Silent()}
    run = train("folder", out=tmp_path / "run", epochs=1, **shared).run
    assert torch.allclose(best(trained)["fc8.weight"], best(run)["fc8.weight"], atol=1e-6)
    assert read_recipe(run / "recipe.json").backbone_lr_mult == 1.0  # nothing is new, so nothing is to be slower


def test_a_resumed_run_needs_the_first_one_no_more(trained, others, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shared = {"data": others, "weights": str(copy), "freeze": "conv1-conv2", "progress": Silent()}
    whole = train("folder", out=tmp_path / "whole", epochs=2, schedule="constant", **shared).run
    part = train("folder", out=tmp_path / "part", epochs=1, schedule="constant", **shared).run
    shutil.rmtree(copy)
    resume(part, epochs="+1", progress=Silent())
    a, b = (load_checkpoint(Run(run).named_checkpoint("last")).model.state_dict() for run in (whole, part))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(a["conv2.weight"], best(trained)["conv2.weight"])
    assert not torch.equal(a["conv3.weight"], best(trained)["conv3.weight"])


def test_old_layers_move_at_a_tenth_of_the_rate():
    model = create_model("cifar", num_classes=3, width=0.125)
    recipe = Recipe(weights="run", backbone_lr_mult=0.1, lr=0.5, weight_decay=0.01, schedule="constant")
    optimizer = make_optimizer(model, recipe)
    schedule_at(recipe, 0, 10).set_rates(optimizer)
    rates = {group["layer"]: group["lr"] for group in optimizer.param_groups}
    assert rates["fc8"] == 0.5
    assert all(rate == pytest.approx(0.05) for layer, rate in rates.items() if layer != "fc8")
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}


def test_frozen_layers_are_named_one_by_one_or_as_ranges():
    plain, batch = create_model("cifar", norm="none"), create_model("cifar", norm="batch")
    assert frozen_layers(plain, "conv1-conv3") == ["conv1", "conv2", "conv3"]
    assert frozen_layers(plain, "conv2,fc6") == ["conv2", "fc6"]
    assert frozen_layers(batch, "conv1-conv2") == ["conv1", "norm1", "conv2", "norm2"]
    assert frozen_layers(batch, "features") == weighted_layers(batch)[:-1]
    assert frozen_layers(batch, "convolutions")[-1] == "norm5"
    assert frozen_layers(plain, "none") == frozen_layers(plain, "auto") == []


def test_what_comes_before_the_last_frozen_layer_is_in_use_and_the_rest_in_training():
    model = create_model("cifar", norm="batch", dropout=0.5)
    still = freeze(model, "conv1-fc6")
    model.train()
    for weights in still:
        weights.eval()
    training = {name: weights.training for name, weights in model.named_children()}
    assert not training["norm1"]
    assert not training["drop6"]
    assert training["drop7"]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "fc7.weight", "fc7.bias", "fc8.weight", "fc8.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "complaint"),
    [("conv1-conv9", "'conv9'"), ("conv3-conv1", "first before the last"), ("conv1-fc8", "no layer to train")],
)
def test_a_range_that_cannot_be(which, complaint):
    with pytest.raises(UserError, match=complaint):
        frozen_layers(create_model("cifar"), which)


@pytest.mark.parametrize(("pictures", "frozen"), [(500, "features"), (3000, "convolutions"), (60_000, "none")])
def test_how_much_is_trained_follows_from_the_pictures(pictures, frozen):
    assert choose_frozen_layers("auto", pictures, 10)[0] == frozen
    assert choose_frozen_layers("conv1", pictures, 10) == ("conv1", "")


def test_weights_of_another_architecture_or_of_grey_pictures_are_refused(trained, others, small_run, tmp_path):
    with pytest.raises(UserError, match="leave --arch out"):
        train("folder", data=others, weights=str(trained), arch="torchvision", out=tmp_path / "a", progress=Silent())
    with pytest.raises(UserError, match="reads grey pictures and these are colour"):
        train("folder", data=others, weights=str(small_run), out=tmp_path / "b", progress=Silent())
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


def test_published_weights_are_a_start_like_any_other(others, tmp_path, monkeypatch):
    """torchvision's cannot be downloaded in a test: a state dict of its form, made on the spot, stands for them."""
    from torchvision.models import alexnet as torchvision_alexnet

    from alexnet.models import weights

    state = torchvision_alexnet(weights=None).state_dict()
    monkeypatch.setattr(weights, "torchvision_weights", lambda name: (state, [f"class {i}" for i in range(1000)]))
    shared = {"workers": 0, "precision": "fp32", "device": "cpu", "progress": Silent(), "batch_size": 8}
    run = train("folder", data=others, weights="torchvision:IMAGENET1K_V1", limit_steps=1, out=tmp_path / "run",
                **shared).run  # fmt: skip
    after = best(run)
    assert torch.equal(after["conv1.weight"], state["features.0.weight"])
    assert torch.equal(after["fc7.weight"], state["classifier.4.weight"])
    assert after["fc8.weight"].shape == (2, 4096)
    preprocess = load_checkpoint(Run(run).named_checkpoint("best")).preprocess
    assert (preprocess.size, preprocess.resize, preprocess.mean) == (224, 256, (0.485, 0.456, 0.406))


def test_a_setting_of_the_recipe_that_changes_the_network_is_refused():
    with pytest.raises(UserError, match="brings a network as it is"):
        replace(Recipe(weights="run"), spec_edits=("average-pool",))
