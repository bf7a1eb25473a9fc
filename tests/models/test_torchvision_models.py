"""Torchvision's classifiers: counts, initial weights, input checks and loading of weights."""

import dataclasses
import json
import re

import pytest
import torch
from torchvision import models

import alexnet
from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.models.model import build, create_model, spec_from_dict
from alexnet.models.torchvision_models import (
    TorchvisionNetwork,
    TorchvisionSpec,
    summarize_torchvision,
    torchvision_spec,
)


def small(name: str, **settings) -> TorchvisionNetwork:
    return create_model(f"torchvision/{name}", **{"num_classes": 4, "image_size": 32, **settings})


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "vit_b_16", "regnet_y_400mf"])
def test_counts_equal_those_published_by_torchvision(name):
    """The metadata of its weights lists parameters and multiply-accumulates (`_ops`, in billions to three places)."""
    published = models.get_model_weights(name).DEFAULT.meta
    found = summarize_torchvision(TorchvisionSpec(f"torchvision/{name}"))
    assert found.parameters == published["num_params"]
    assert round(found.macs / 1e9, 3) == published["_ops"]
    assert sum(part.macs for part in found.parts) == found.macs


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "googlenet"])
def test_every_parameter_gets_a_gradient(name):
    model = small(name).train()
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 4)
    logits.square().sum().backward()
    for key, p in model.named_parameters():
        assert p.grad is not None, key


def test_initial_weights_equal_torchvisions_for_the_same_seed():
    torch.manual_seed(3)
    ours = small("mobilenet_v3_small")
    torch.manual_seed(3)
    theirs = models.mobilenet_v3_small(num_classes=4)
    for (key, a), b in zip(ours.network.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("name", ["resnet18", "regnet_y_400mf"])
def test_counting_draws_no_random_numbers(name):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    summarize_torchvision(TorchvisionSpec(f"torchvision/{name}", image_size=64))
    assert torch.equal(torch.get_rng_state(), before)


def test_gray_images_are_repeated_to_three_channels():
    model = small("mobilenet_v3_small", in_channels=1).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), model.network(torch.cat([x, x, x], dim=1)))


def test_the_input_is_checked():
    model = small("mobilenet_v3_small")
    with pytest.raises(
        UserError,
        match="'torchvision/mobilenet_v3_small' expects images of shape N×3×32×32 and got",
    ):
        model(torch.zeros(1, 3, 40, 40))
    with pytest.raises(UserError, match="floating-point"):
        model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_the_image_size_reaches_networks_that_need_it():
    assert summarize_torchvision(torchvision_spec("torchvision/vit_b_16", image_size=32)).parts[0].output == (768, 2, 2)
    with pytest.raises(UserError, match=r"vit_b_16' cannot read images of 40×40 \(Input shape indivisible"):
        torchvision_spec("torchvision/vit_b_16", image_size=40)
    with pytest.raises(
        UserError,
        match=r"inception_v3' cannot read images of 32×32 \(.*; choose another image size",
    ):
        torchvision_spec("torchvision/inception_v3", image_size=32)


def test_specification_json_round_trip():
    spec = TorchvisionSpec("torchvision/resnet18", 7, 1, 64)
    again = spec_from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec
    with pytest.raises(UserError, match="no key 'color' in the network's specification"):
        spec_from_dict({**spec.to_dict(), "color": 1})
    plain = create_model("cifar", width=0.1).spec
    assert spec_from_dict(plain.to_dict()) == plain


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("resnt18", {}, "no torchvision classifier 'resnt18'; did you mean 'resnet18'"),
        (
            "fasterrcnn_resnet50_fpn",
            {},
            "is in torchvision.models.detection and not an image classifier",
        ),
        ("fcn_resnet50", {}, "is in torchvision.models.segmentation"),
        ("resnet18", {"norm": "batch", "width": 0.5}, "where norm, width cannot be set"),
        ("resnet18", {"dropout": 0.1}, "where dropout cannot be set"),
        (
            "resnet18",
            {"init": "paper", "activation": "tanh"},
            "where activation, init cannot be set",
        ),
        ("resnet18", {"in_channels": 4}, "takes 3 channels, or 1 that is repeated, not 4"),
        ("resnet18", {"num_classes": 0}, "num_classes is 0"),
    ],
)
def test_invalid_settings(name, settings, message):
    with pytest.raises(UserError, match=message):
        create_model(f"torchvision/{name}", **settings)


def test_torchvision_weights_are_loaded_by_name(tmp_path):
    theirs = models.mobilenet_v3_small(num_classes=4)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    model = alexnet.load_weights(small("mobilenet_v3_small"), tmp_path / "theirs.pt").eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), theirs.eval()(x))
    again = alexnet.load_weights(build(model.spec), model.state_dict()).eval()
    assert torch.equal(again(x), model(x))
    with pytest.raises(
        UserError,
        match="cannot load the weights: 'classifier.0.bias' is only in 'torchvision/mobile",
    ):
        alexnet.load_weights(model, {"weight": torch.zeros(1)})
    other = dataclasses.replace(model.spec, num_classes=5)
    with pytest.raises(UserError, match="classifier.3.weight' has shape"):
        alexnet.load_weights(build(other), theirs.state_dict())


def test_arch_command(capsys):
    assert run(["arch", "torchvision/resnet18", "--image-size", "32", "--num-classes", "10", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["name"], found["parameters"], found["macs"]) == ("torchvision/resnet18", 11_181_642, 37_016_576)
    assert {"name", "type", "output", "parameters", "macs", "receptive_field"} <= set(found["layers"][0])
    assert {"image_size", "in_channels", "source"} <= set(found)
    assert run(["arch", "torchvision/resnet18"]) == 0
    assert "layer4.1" in capsys.readouterr().out


def test_files_with_old_names_are_loaded():
    """Torchvision's files of densenets are from before torch 0.4: other names, and no counters of batches."""
    theirs = models.densenet121(num_classes=4).state_dict()
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", key): value
        for key, value in theirs.items()
        if not key.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    own = alexnet.load_weights(small("densenet121"), old).network.state_dict()
    assert all(torch.equal(own[key], value) for key, value in theirs.items())


@pytest.mark.parametrize("name", ["googlenet", pytest.param("inception_v3", marks=pytest.mark.slow)])
def test_auxiliary_classifiers_are_left_out(name):
    theirs = models.get_model(name, init_weights=False, num_classes=4).state_dict()
    side = 299 if name == "inception_v3" else 64
    own = alexnet.load_weights(small(name, image_size=side), theirs).network.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in own.items())
    assert len(own) < len(theirs)
