"""Transfer learning: which weights are copied, new or frozen, and the learning rate of the rest."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

import alexnet
from alexnet.checkpoint import load_checkpoint
from alexnet.data.dataset import ImageArrays, ImageDataset
from alexnet.data.loader import evaluation_batches
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.messages.translator import Translator
from alexnet.models.model import create_model
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.api import resume, train
from alexnet.training.optim import make_optimizer, schedule_at
from alexnet.training.recipe import Recipe, read_recipe, with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.transfer import (
    TINY_FOLDER,
    choose_frozen_layers,
    choose_tiny_settings,
    fit_last_layer,
    freeze,
    frozen_layers,
    starts_from_tiny,
    weighted_layers,
)
from helpers import LogRecorder, make_image_folder

SMALL = {"arch": "cifar", "image_size": 32, "width": 0.125, "precision": "fp32", "device": "cpu", "workers": 0}


def best(run: Path) -> dict[str, torch.Tensor]:
    folder = Run(run).named_checkpoint("best")
    assert folder is not None
    return load_checkpoint(folder).model.state_dict()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on three classes of color images."""
    root = tmp_path_factory.mktemp("trained")
    data = make_image_folder(root / "data")
    return train("folder", data=data, out=root / "run", epochs=1, progress=Silent(), **SMALL).run


@pytest.fixture
def others(tmp_path) -> Path:
    """An image folder with two other classes."""
    return make_image_folder(tmp_path / "others", classes=("kilo", "lima"))


def test_frozen_features_are_unchanged_and_the_new_head_is_trained(trained, others, tmp_path):
    recorder = LogRecorder()
    result = train("folder", data=others, weights=str(trained), out=tmp_path / "run", epochs=2, progress=recorder)
    before, after = best(trained), best(result.run)
    assert after["fc8.weight"].shape[0] == 2
    for name in before:
        assert name.startswith("fc8") or torch.equal(before[name], after[name]), name  # also the averages of batch norm
    recipe = read_recipe(result.run / "recipe.json")
    assert (recipe.model.freeze, recipe.model.arch, recipe.model.width) == ("features", "cifar", 0.125)
    assert recipe.model.weights == str(trained.absolute())
    assert any(
        "images per class are enough only for a linear classifier" in line and "--freeze" in line
        for line in recorder.lines
    )
    new = json.loads((Run(result.run).named_checkpoint("best") / "model.json").read_text())
    old = json.loads((Run(trained).named_checkpoint("best") / "model.json").read_text())
    assert new["preprocess"] == old["preprocess"]


def test_the_head_is_kept_for_the_same_classes(trained, tmp_path):
    data = read_recipe(trained / "recipe.json").data.path
    shared = {"data": data, "weights": str(trained), "freeze": "none", "lr": 1e-9, "progress": Silent()}
    run = train("folder", out=tmp_path / "run", epochs=1, **shared).run
    assert torch.allclose(best(trained)["fc8.weight"], best(run)["fc8.weight"], atol=1e-6)
    # without a new layer all have the same rate
    assert read_recipe(run / "recipe.json").optimization.backbone_lr_mult == 1.0


def test_resuming_does_not_need_the_pretrained_run(trained, others, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    shared = {"data": others, "weights": str(copy), "freeze": "conv1-conv2", "progress": Silent()}
    unbroken = train("folder", out=tmp_path / "unbroken", epochs=2, schedule="constant", **shared).run
    stopped = train("folder", out=tmp_path / "stopped", epochs=1, schedule="constant", **shared).run
    shutil.rmtree(copy)
    resume(stopped, epochs="+1", progress=Silent())
    a, b = (load_checkpoint(Run(run).named_checkpoint("last")).model.state_dict() for run in (unbroken, stopped))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(a["conv2.weight"], best(trained)["conv2.weight"])
    assert not torch.equal(a["conv3.weight"], best(trained)["conv3.weight"])


def test_pretrained_layers_have_a_tenth_of_the_rate():
    model = create_model("cifar", num_classes=3, width=0.125)
    recipe = Recipe().replace(weights="run", backbone_lr_mult=0.1, lr=0.5, weight_decay=0.01, schedule="constant")
    optimizer = make_optimizer(model, recipe)
    schedule_at(recipe, 0, 10).set_rates(optimizer)
    rates = {group["layer"]: group["lr"] for group in optimizer.param_groups}
    assert rates["fc8"] == 0.5
    assert all(rate == pytest.approx(0.05) for layer, rate in rates.items() if layer != "fc8")
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}


def test_frozen_layers_are_given_by_name_range_or_group():
    plain, batch = (create_model("cifar", norm=norm, width=0.125) for norm in ("none", "batch"))
    assert frozen_layers(plain, "conv1-conv3") == ["conv1", "conv2", "conv3"]
    assert frozen_layers(plain, "conv2,fc6") == ["conv2", "fc6"]
    assert frozen_layers(batch, "conv1-conv2") == ["conv1", "norm1", "conv2", "norm2"]
    assert frozen_layers(batch, "features") == weighted_layers(batch)[:-1]
    assert frozen_layers(batch, "convolutions")[-1] == "norm5"
    assert frozen_layers(plain, "none") == frozen_layers(plain, "auto") == []


def test_modules_up_to_the_last_frozen_layer_are_in_eval_mode():
    model = create_model("cifar", norm="batch", dropout=0.5, width=0.125)
    frozen = freeze(model, "conv1-fc6")
    model.train()
    for module in frozen:
        module.eval()
    training = {name: module.training for name, module in model.named_children()}
    assert not training["norm1"]
    assert not training["drop6"]
    assert training["drop7"]
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "fc7.weight", "fc7.bias", "fc8.weight", "fc8.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("conv1-conv9", "'conv9'"),
        ("conv3-conv1", "first before the last"),
        ("conv1-fc8", "no layer to train"),
    ],
)
def test_invalid_ranges_are_refused(which, message):
    with pytest.raises(UserError, match=message):
        frozen_layers(create_model("cifar", width=0.125), which)


@pytest.mark.parametrize(("images", "frozen"), [(500, "features"), (3000, "convolutions"), (60_000, "none")])
def test_frozen_layers_are_chosen_by_the_number_of_images(images, frozen):
    assert choose_frozen_layers("auto", images / 10)[0] == frozen
    assert choose_frozen_layers("conv1", images / 10) == ("conv1", "")


def test_weights_for_another_architecture_or_color_mode_are_refused(trained, others, small_run, tmp_path):
    with pytest.raises(UserError, match="leave --arch out"):
        train("folder", data=others, weights=str(trained), arch="torchvision", out=tmp_path / "a", progress=Silent())
    with pytest.raises(UserError, match="takes grayscale images, and these are color"):
        train("folder", data=others, weights=str(small_run), out=tmp_path / "b", progress=Silent())
    assert not (tmp_path / "a").exists()
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_training_from_torchvision_weights(others, tmp_path, monkeypatch):
    """A random state dict of the same form replaces the download."""
    from torchvision.models import alexnet as torchvision_alexnet

    from alexnet.models import weights

    state = torchvision_alexnet(weights=None).state_dict()
    monkeypatch.setattr(weights, "torchvision_weights", lambda *_: (state, [f"class {i}" for i in range(1000)]))
    shared = {"workers": 0, "precision": "fp32", "device": "cpu", "progress": Silent(), "batch_size": 8}
    run = train("folder", data=others, weights="torchvision:IMAGENET1K_V1", limit_steps=1, out=tmp_path / "run",
                **shared).run  # fmt: skip
    after = best(run)
    assert torch.equal(after["conv1.weight"], state["features.0.weight"])
    assert torch.equal(after["fc7.weight"], state["classifier.4.weight"])
    assert after["fc8.weight"].shape == (2, 4096)
    preprocess = load_checkpoint(Run(run).named_checkpoint("best")).preprocess
    assert (preprocess.size, preprocess.resize, preprocess.mean) == (224, 256, (0.485, 0.456, 0.406))


def test_weights_can_be_none():
    assert with_settings(Recipe().replace(weights="run"), {"weights": "none"}).model.weights is None


def test_weights_with_spec_edits_are_refused():
    with pytest.raises(UserError, match="--weights brings its own network; leave it out"):
        Recipe().replace(weights="run", spec_edits=("average-pool",))


FEW = {"limit_steps": 1, "threads": 1, "precision": "fp32", "device": "cpu", "workers": 0}


def test_a_folder_with_few_images_starts_from_the_network_of_the_package(others, tmp_path):
    recorder = LogRecorder()
    run = train("folder", data=others, out=tmp_path / "run", progress=recorder, **FEW).run
    recipe = read_recipe(run / "recipe.json")
    assert (recipe.model.weights, recipe.model.image_size, recipe.model.freeze) == ("tiny", 64, "features")
    shipped = load_checkpoint(TINY_FOLDER).model
    after = best(run)
    kept = {n: v for n, v in shipped.state_dict().items() if not n.startswith(("fc7", "fc8"))}
    assert all(torch.equal(after[n], v) for n, v in kept.items())
    assert torch.equal(after["fc7.weight"], torch.eye(len(after["fc7.weight"])))
    said = [line for line in recorder.lines if not line.startswith("epoch")]
    assert not [line for line in said if Translator("zh").sentence(line) == line], "all of it has a translation"
    log = " ".join(recorder.lines)
    assert "starts from the small network of this package" in log
    assert "--weights none starts from scratch" in log
    assert f"alexnet predict {run} IMAGE" in log


def test_weights_none_starts_from_scratch(others, tmp_path):
    run = train("folder", data=others, out=tmp_path / "run", progress=Silent(), weights="none", **FEW).run
    assert read_recipe(run / "recipe.json").model.weights is None


@pytest.mark.parametrize(
    ("settings", "per_class", "channels", "side", "expected"),
    [
        ({}, 199, 3, 128, True),
        ({}, 200, 3, 128, False),
        ({}, 1000, 3, 32, True),
        ({}, 1001, 3, 32, False),
        ({}, 20, 1, 128, False),
        ({"dropout": 0.1, "freeze": "none", "norm": "batch", "in_channels": 3, "epochs": 2}, 20, 3, 128, True),
        ({"weights": "none"}, 20, 3, 128, False),
        ({"arch": "cifar"}, 20, 3, 128, False),
        ({"image_size": 64}, 20, 3, 128, False),
        ({"width": 0.5}, 20, 3, 128, False),
        ({"norm": "lrn"}, 20, 3, 128, False),
        ({"init": "xavier"}, 20, 3, 128, False),
        ({"spec_edits": ("average-pool",)}, 20, 3, 128, False),
        ({"mean": (0.0,) * 3}, 20, 3, 128, False),
    ],
)
def test_when_training_starts_from_it(settings, per_class, channels, side, expected):
    pixels = torch.zeros(1, dtype=torch.uint8).expand(2 * per_class, channels, side, side)
    part = ImageArrays(pixels, torch.zeros(2 * per_class), [])
    dataset = ImageDataset("few", ("kilo", "lima"), {"train": part}, channels)
    assert starts_from_tiny(with_settings(named_recipe("folder"), settings), dataset) is expected


def test_many_classes_of_small_images_do_not_start_from_it():
    """The last layer is fitted to at most 20,000 images."""
    pixels = torch.zeros(1, dtype=torch.uint8).expand(25_000, 3, 64, 64)
    part = ImageArrays(pixels, torch.zeros(25_000), [])
    dataset = ImageDataset("many", tuple(map(str, range(50))), {"train": part}, channels=3)
    assert not starts_from_tiny(named_recipe("folder"), dataset)


def test_what_training_from_it_leaves_to_the_user(others, tmp_path):
    given = {"weights": "tiny", "lr": 0.002, "epochs": 3, "freeze": "none", **FEW}
    run = train("folder", data=others, out=tmp_path / "run", progress=Silent(), **given).run
    recipe = read_recipe(run / "recipe.json")
    o = recipe.optimization
    assert (o.lr, o.backbone_lr_mult, o.optimizer, recipe.schedule.epochs) == (0.002, 1.0, "muon", 3)
    assert recipe.model.freeze == "none"
    last = load_checkpoint(Run(run).named_checkpoint("last")).model
    assert not torch.equal(last.conv1.weight, load_checkpoint(TINY_FOLDER).model.conv1.weight)


@pytest.mark.parametrize(("per_class", "freeze", "lr"), [(30, "auto", 0.0001), (31, "auto", 0.01), (20, "none", 0.01)])
def test_the_rate_is_lower_where_only_the_last_layer_is_trained(per_class, freeze, lr):
    recipe = with_settings(named_recipe("folder"), {"weights": "tiny", "freeze": freeze})
    assert choose_tiny_settings(recipe, per_class).optimization.lr == lr


def test_the_card_of_the_network_of_the_package_is_true():
    model, card = load_checkpoint(TINY_FOLDER).model, (TINY_FOLDER / "README.md").read_text(encoding="utf-8")
    card = " ".join(card.split())
    channels = [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]
    units = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    for numbers, noun in ((channels, "channels"), (units, "units")):
        assert f"{', '.join(map(str, numbers[:-1]))} and {numbers[-1]} {noun}" in card
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card
    assert ("with batch norm" in card) == any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert f"({(TINY_FOLDER / 'model.safetensors').stat().st_size / 1e6:.1f} MB)" in card


@pytest.mark.parametrize("damage", ["missing", "weights", "version"])
def test_a_damaged_network_of_the_package_is_said_and_not_used(damage, others, tmp_path, monkeypatch):
    copy = tmp_path / "tiny"
    if damage != "missing":
        shutil.copytree(TINY_FOLDER, copy)
    if damage == "weights":
        with (copy / "model.safetensors").open("r+b") as file:
            file.truncate(1000)
    if damage == "version":
        (copy / "model.json").write_text((copy / "model.json").read_text().replace('"format": "', '"format": "newer '))
    monkeypatch.setattr("alexnet.training.setup.TINY_FOLDER", copy)
    recorder = LogRecorder()
    small = {"limit_steps": 1, "threads": 1, "precision": "fp32", "device": "cpu", "workers": 0}
    run = train("folder", data=others, out=tmp_path / "run", progress=recorder, **small).run
    assert read_recipe(run / "recipe.json").model.weights is None
    assert any("training starts from scratch" in line and str(copy) in line for line in recorder.lines)
    with pytest.raises(UserError, match=str(copy)):
        train("folder", data=others, weights="tiny", out=tmp_path / "other", progress=Silent())


@pytest.mark.parametrize("from_fc6", [False, True])
@pytest.mark.parametrize("present", [(0, 1), (0, 1, 2), (0, 2, 3)])
def test_the_last_layer_is_fitted_by_logistic_regression(present, from_fc6):
    """Each class has its own hue, so the features of random layers separate them."""
    model = create_model("cifar", num_classes=4, width=0.125, norm="batch").eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    targets = torch.tensor(present).repeat(20)
    hues = torch.tensor([[200, 50, 50], [50, 200, 50], [50, 50, 200], [200, 200, 50]])
    images = hues[targets][:, :, None, None] + torch.randint(-20, 20, (len(targets), 3, 32, 32), generator=generator)
    part = ImageArrays(images.to(torch.uint8), targets, [str(i) for i in range(len(targets))])
    preprocess = EvalTransform(32, 32, 3, (0.5,) * 3, (0.25,) * 3)
    batches = evaluation_batches(part, preprocess)
    fit_last_layer(model, batches, torch.device("cpu"), from_fc6=from_fc6)
    with torch.no_grad():
        x = preprocess.normalize(part.images)
        p = model(x).softmax(1)
    assert (p.argmax(1) == targets).all()
    assert p[:, [c for c in range(4) if c not in present]].max() < 1e-3
    changed = {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"fc8.weight", "fc8.bias"} | ({"fc7.weight"} if from_fc6 else set())  # fc7.bias was 0
    if from_fc6:  # fc8 reads what fc6 puts out
        with torch.no_grad():
            assert torch.equal(model[:-1](x), model[:-4](x))


def test_a_run_that_stops_by_its_training_error_may_begin_with_a_fitted_layer(trained, others, tmp_path):
    given = {"weights": str(trained), "stop_error": 0.001, "epochs": 2, "progress": Silent()}
    result = train("folder", data=others, out=tmp_path / "run", **given)
    assert result.summary["epochs"] >= 1


def test_a_run_killed_before_its_first_epoch_has_a_classifier_and_resumes(others, trained, tmp_path):
    class Killed(Exception): ...

    class Stop(Silent):
        def step(self, *_: object) -> None:
            raise Killed

    with pytest.raises(Killed):
        train("folder", data=others, weights=str(trained), epochs=1, out=tmp_path / "run", progress=Stop())
    run = Run(tmp_path / "run")
    first = load_checkpoint(run.named_checkpoint("best"))
    assert (first.epoch, first.step, first.classes) == (0, 0, ("kilo", "lima"))
    assert len(alexnet.load(tmp_path / "run").predict(next(others.rglob("*.*"))).labels) == 2
    result = resume(tmp_path / "run", progress=Silent())
    assert (result.summary["epochs"], len(run.metrics())) == (1, 1)
