"""Architectures compute what the released configurations of cuda-convnet describe, run by an interpreter of its own.

The interpreter below reads the configuration files and knows nothing of `AlexNetSpec`: towers are separate layers,
sizes follow the rules of cuda-convnet's layer.py, and normalization and pooling are written out.
"""

from __future__ import annotations

from configparser import ConfigParser
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.initial_weights import INITS
from alexnet.models.model import AlexNet, create_model
from alexnet.models.spec import layers

FILES = {
    "code2012": "layers-145.cfg",
    "paper-six": "layers-146-2012-2011.cfg",
    "cuda-convnet2": "layers-imagenet-1gpu.cfg",
    "convnet-26": "layers-80sec.cfg",
    "convnet-18": "layers-18pct.cfg",
}
# scale, pow and minDiv, from layer-params-145, -146-2012-2011, -imagenet-1gpu and -18pct-noisylr.cfg; rnorm has no
# minDiv and adds 1.
CHANNEL_NORM = (1e-4, 0.75, 2.0)
SPATIAL_NORM = {"convnet-18": (5e-5, 0.75, 1.0)}
SPATIAL_NORM_2012 = (1e-3, 0.75, 1.0)


def read(name: str) -> dict[str, dict[str, str]]:
    """Return the sections of a configuration, without data and loss."""
    parser = ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # keep the case of keys
    parser.read(Path(__file__).parent / "cuda_convnet" / FILES[name])
    return {
        s: dict(parser[s]) for s in parser.sections() if parser[s]["type"] not in ("data", "softmax", "cost.logreg")
    }


def blocks(name: str) -> dict[str, list[str]]:
    """Return the sections that each of our layers with weights stands for: two where the network has towers."""
    sections = read(name)
    weighted = [s for s, values in sections.items() if values["type"] in ("conv", "fc")]
    towers = 2 if "conv1b" in sections else 1
    parts = [weighted[i : i + towers] for i in range(0, len(weighted), towers)]
    ours = [layer.name for layer in layers(ARCHITECTURES[name]) if layer.kind in ("conv", "linear")]
    return dict(zip(ours, parts, strict=True))


def interpret(name: str, model: AlexNet, images: Tensor) -> Tensor:
    """Return the output of the last layer at test time, with the weights of `model`."""
    outputs, halves, halved = {"data": images}, {"data": 0}, set()
    place = {section: (ours, part) for ours, part in blocks(name).items() for section in part}
    for section, values in read(name).items():
        inputs = values["inputs"].split(",")
        x = outputs[inputs[0]]
        halves[section] = halves[inputs[0]]
        match values["type"]:
            case "conv" | "fc":
                ours, part = place[section]
                halves[section] = part.index(section)
                weight, bias = (p.chunk(len(part))[part.index(section)] for p in model.get_submodule(ours).parameters())
                columns = weight.chunk(len(inputs), dim=1)
                out: Tensor | float = 0.0
                for source in inputs:
                    # Units were halved at test time after dropout; ours double them in training, with half the weights.
                    w = columns[halves[source] if len(inputs) > 1 else 0] * (2 if source in halved else 1)
                    out = out + weighted_sum(outputs[source], w, values)
                x = out + bias.view(-1, *[1] * (weight.ndim - 2))
            case "cmrnorm":
                x = normalize(x, int(values["size"]), 1, CHANNEL_NORM)
            case "rnorm":
                x = normalize(x, 1, int(values["size"]), SPATIAL_NORM.get(name, SPATIAL_NORM_2012))
            case "pool":
                x = pool(x, int(values["sizeX"]), int(values["stride"]), values["pool"])
            case "hs" | "dropout2":
                x = x * float(values.get("keep", "0.5"))
                halved.add(section)
            case other:
                raise AssertionError(other)
        outputs[section] = x.relu() if values.get("neuron") == "relu" else x
    return x


def weighted_sum(x: Tensor, weight: Tensor, values: dict[str, str]) -> Tensor:
    if values["type"] == "fc":
        return x.flatten(1) @ weight.T
    padding, stride = (int(values[key].split(",")[0]) for key in ("padding", "stride"))
    missing = -(x.shape[-1] + 2 * padding - weight.shape[-1]) % stride
    return F.conv2d(F.pad(x, (padding, padding + missing) * 2), weight, stride=stride)


def normalize(x: Tensor, channels: int, pixels: int, constants: tuple[float, float, float]) -> Tensor:
    """Divide by (minDiv + scale / n · the sum of squares of n neighbors) ** pow."""
    scale, power, smallest = constants
    windows = F.pad(x.square(), [*(pixels // 2,) * 4, *(channels // 2,) * 2])
    for dimension, size in ((1, channels), (2, pixels), (3, pixels)):
        windows = windows.unfold(dimension, size, 1).sum(-1)
    return x / (smallest + scale / (channels * pixels**2) * windows) ** power


def pool(x: Tensor, size: int, stride: int, kind: str) -> Tensor:
    """Pool with as many windows as cover all pixels; the last covers those that exist."""
    starts = range(0, -(-(x.shape[-1] - size) // stride) * stride + 1, stride)
    for dimension in (2, 3):
        parts = [x.narrow(dimension, at, min(size, x.shape[dimension] - at)) for at in starts]
        merged = [part.amax(dimension) if kind == "max" else part.mean(dimension) for part in parts]
        x = torch.stack(merged, dimension)
    return x


SMALL = [(name, 96 if ARCHITECTURES[name].image_size == 224 else 32) for name in FILES]
FULL = [pytest.param(name, 224, marks=pytest.mark.slow) for name, side in SMALL if side == 96]


@pytest.mark.parametrize(("name", "side"), [*SMALL, *FULL])
def test_logits_are_those_of_the_released_configuration(name: str, side: int) -> None:
    with torch.device("meta"):
        model = create_model(name, image_size=side)
    model.to_empty(device="cpu").double().eval()
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        block = torch.rand(1_000_003, generator=draw, dtype=torch.float64) - 0.5  # repeated: drawing all takes seconds
        reach = (3.0 / (parameter[0].numel() if parameter.ndim > 1 else 3)) ** 0.5
        parameter.data = block.repeat(-(-parameter.numel() // len(block)))[: parameter.numel()].view_as(parameter)
        parameter.data *= 2 * reach
    images = 255 * torch.rand(1, 3, side, side, generator=draw, dtype=torch.float64) - 128
    with torch.inference_mode():
        ours, theirs = model(images), interpret(name, model, images)
    assert ours.shape == theirs.shape == (1, model.spec.num_classes)
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-12 * ours.abs().max()


@pytest.mark.parametrize("name", FILES)
def test_initial_weights_are_those_of_the_released_configuration(name: str) -> None:
    rule, sections, parts = INITS[ARCHITECTURES[name].init], read(name), blocks(name)
    assert (rule.conv, rule.linear) == ("normal", "normal")
    for ours, own in parts.items():
        key = "hidden" if ours.startswith("fc") and ours != list(parts)[-1] else ours
        for section in own:
            assert rule.stds.get(key, rule.std) == float(sections[section]["initW"].split(",")[0]), section
            assert rule.biases.get(key, rule.bias) == float(sections[section].get("initB", 0)), section
