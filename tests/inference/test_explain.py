"""Saliency on networks whose relevant pixels are known, and the outputs of each stage."""

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.inference.explain import METHODS, activations, saliency
from alexnet.models.model import create_model
from alexnet.models.spec import layers
from alexnet.runtimes.engines import LoadedModel

pytest.importorskip("captum")


def as_loaded(model, classes=("quiet", "loud")):
    spec = model.spec
    gray = (0.5,) * spec.in_channels
    seen = EvalTransform(spec.image_size, None, spec.in_channels, gray, gray)
    return LoadedModel(model.eval(), classes, seen, None, None, "untrained")


def noise(side=32, channels=3):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


@torch.no_grad()
def quarter_sensitive_network():
    """Return a network whose logit "loud" grows with every bright pixel of the top left quarter, and nothing else."""
    model = create_model("lenet", num_classes=2, image_size=32, activation="relu")
    for parameter in model.parameters():
        parameter.zero_()
    model.conv1.weight[0, 0, 2, 2] = 1
    model.conv2.weight[0, 0, 2, 2] = 1
    side = 6  # the maps that fc3 reads are 16×6×6
    quarter = torch.zeros(16, side, side)
    quarter[0, : side // 2, : side // 2] = 1
    model.fc3.weight[0] = quarter.flatten()
    model.fc4.weight[0, 0] = 1
    model.fc5.weight[1, 0] = 1
    return as_loaded(model)


@pytest.mark.parametrize("method", METHODS)
def test_saliency_finds_the_relevant_region(method):
    pixels = np.full((32, 32), 255, np.uint8)
    if method == "grad-cam":  # averages gradients over all positions, so only the maps show where
        pixels[16:] = pixels[:, 16:] = 0
    found = saliency(quarter_sensitive_network(), Image.fromarray(pixels), method)
    assert (found.label, found.heat.shape, found.image.shape) == ("loud", (32, 32), (32, 32, 1))
    inside, outside = found.heat[:16, :16], found.heat[20:, 20:]
    assert inside.mean() > 0
    assert abs(outside).max() < 1e-3 * inside.max()


@pytest.mark.parametrize(("side", "method", "cells"), [(32, "occlusion", None), (64, "grad-cam", 8)])
def test_small_inputs_are_explained_by_occlusion(side, method, cells):
    """The last convolution has 4×4 positions at 32 pixels; those of Grad-CAM are squares of its map."""
    model = create_model("cifar", num_classes=2, in_channels=1, image_size=side, width=0.1)
    found = saliency(as_loaded(model), Image.new("L", (side, side), 255))
    assert (found.method, found.cells) == (method, cells)
    if cells:
        squares = found.heat.reshape(cells, side // cells, cells, side // cells)
        assert (squares == squares[:, :1, :, :1]).all()


def test_evidence_against_a_label_is_negative():
    model = quarter_sensitive_network()
    with torch.no_grad():
        model.model.fc5.weight[1, 0] = -1
    bright = Image.fromarray(np.full((32, 32), 255, np.uint8))
    for method in ("occlusion", "integrated-gradients"):
        assert saliency(model, bright, method, "loud").heat[:12, :12].mean() < 0


def test_integrated_gradients_sum_to_the_difference():
    torch.manual_seed(0)
    model = create_model("lenet", num_classes=3, image_size=28)  # smooth: sigmoids and means
    given = as_loaded(model, ("a", "b", "c"))
    found = saliency(given, noise(28, 1), "integrated-gradients", "b")
    x = given.preprocess.normalize(torch.from_numpy(found.image).permute(2, 0, 1)[None])
    with torch.no_grad():
        difference = (model(x) - model(torch.zeros_like(x)))[0, 1].item()
        assert found.probability == pytest.approx(model(x).softmax(1)[0, 1].item(), abs=1e-6)
    assert found.heat.sum() == pytest.approx(difference, rel=0.01)


def test_grad_cam_matches_its_paper():
    """Selvaraju et al., equations 1 and 2: maps weighted by the mean of their gradients, then a ReLU."""
    torch.manual_seed(0)
    given = as_loaded(create_model("cifar", num_classes=2, width=0.125, norm="batch"))
    found = saliency(given, noise(), "grad-cam", "loud")
    x = given.preprocess.normalize(torch.from_numpy(found.image).permute(2, 0, 1)[None])
    names = [layer.name for layer in layers(given.model.spec)]
    cut = names.index("relu5") + 1
    maps = given.model[:cut](x).detach().requires_grad_()
    given.model[cut:](maps)[0, 1].backward()
    cam = (maps.grad.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    expected = torch.nn.functional.interpolate(cam, (32, 32), mode="nearest-exact")[0, 0].detach()
    torch.testing.assert_close(torch.from_numpy(found.heat), expected)


def test_stages_are_module_outputs():
    torch.manual_seed(0)
    given = as_loaded(create_model("code2012", num_classes=2, width=0.1))
    image = noise(224)
    found = {stage.name: stage for stage in activations(given, image)}
    assert list(found) == [
        "conv1", "lrn1", "pool1", "conv2", "lrn2", "rnorm2", "pool2", "conv3", "conv4", "conv5", "pool5", "fc6",
        "fc7", "fc8",
    ]  # fmt: skip
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    x = given.preprocess.normalize(pixels)
    by_name = {layer.name: layer for layer in layers(given.model.spec)}
    with torch.no_grad():
        for name, module in given.model.named_children():
            x = module(x)
            if name == "pool1":  # before its ReLU, which works in place
                np.testing.assert_array_equal(found["pool1"].values, x[0].numpy())
                assert found["pool1"].values.min() < 0
    np.testing.assert_array_equal(found["fc8"].values, x[0].numpy())
    assert all(stage.values.shape == by_name[name].output for name, stage in found.items())
    assert 0 < found["conv3"].active < 1


def test_invalid_input():
    given = as_loaded(create_model("lenet", num_classes=2))
    with pytest.raises(UserError, match="There is no class 'lowd'; did you mean 'loud'"):
        saliency(given, noise(28), label="lowd")
    with pytest.raises(UserError, match="There is no method 'gradcam'; did you mean 'grad-cam'"):
        saliency(given, noise(28), "gradcam")
    foreign = as_loaded(create_model("torchvision/resnet18", num_classes=2, image_size=32))
    with pytest.raises(UserError, match="not for 'torchvision/resnet18'; 'alexnet features' writes"):
        activations(foreign, noise())
    assert saliency(foreign, noise()).heat.max() > 0


def test_without_captum_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum", None)
    with pytest.raises(UserError, match=r"pip install 'alexnet\[show\]'"):
        saliency(as_loaded(create_model("lenet", num_classes=2)), noise(28))
