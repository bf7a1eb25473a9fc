"""The table of architectures: exact numbers, the 2012 code, overrides, and mistakes in the tutorials."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, architecture, nearest_that_fits
from alexnet.models.initial_weights import INITS
from alexnet.models.model import create_model
from alexnet.models.spec import SPATIAL_NORM, layers

PARAMETERS = {
    "paper": 60_965_224,
    "code2012": 60_965_224,
    "half": 59_798_312,
    "paper-six": 61_555_304,
    "cuda-convnet2": 61_100_840,
    "one-tower": 62_378_344,
    "torchvision": 61_100_840,
    "torchvision-lrn": 61_100_840,
    "seed-merged": 28_868_968,
    "caffe": 60_965_224,
    "caffenet": 60_965_224,
    "d2l": 46_764_746,
    "d2l-unpadded": 46_764_746,
    "cifar": 23_471_946,
    "cifar-towers": 22_581_066,
    "convnet-26": 145_578,
    "convnet-18": 89_578,
    "lenet": 61_706,
}


def sides(name: str, **given: int) -> list[int]:
    """The sides of the maps where they change."""
    found: list[int] = []
    for layer in layers(architecture(name, **given)):  # type: ignore[arg-type]
        if len(layer.output) == 3 and layer.kind != "pad" and (not found or found[-1] != layer.output[1]):
            found.append(layer.output[1])
    return found


def kinds(name: str, number: int, **given: str) -> list[str]:
    """The kinds of the layers of one block, in order."""
    return [layer.kind for layer in layers(architecture(name, **given)) if layer.name.endswith(str(number))]  # type: ignore[arg-type]


# ── the numbers ───────────────────────────────────────────────────────────────────────────────────


def test_all_architectures_are_complete() -> None:
    assert set(ARCHITECTURES) == set(PARAMETERS)
    assert all(name == spec.name and spec.source and spec.title for name, spec in ARCHITECTURES.items())
    assert all(spec.departures and spec.init in INITS for spec in ARCHITECTURES.values())
    assert {name for name, spec in ARCHITECTURES.items() if spec.repair} == {"cifar", "d2l-unpadded"}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert sum(layer.parameters for layer in layers(ARCHITECTURES[name])) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("paper", [55, 27, 13, 6]),
        ("code2012", [55, 27, 13, 6]),
        ("half", [55, 27, 13, 6]),
        ("one-tower", [55, 27, 13, 6]),
        ("torchvision", [55, 27, 13, 6]),
        ("caffe", [55, 27, 13, 6]),
        ("d2l", [54, 26, 12, 5]),
        ("d2l-unpadded", [54, 26, 12, 5]),
        ("cifar", [16, 8, 4, 2]),
        ("cifar-towers", [16, 8, 4, 2]),
        ("paper-six", [55, 27, 13, 6]),
        ("cuda-convnet2", [55, 27, 13, 6]),
        ("convnet-26", [32, 16, 8, 4]),
        ("convnet-18", [32, 16, 8, 4]),
        ("lenet", [28, 14, 10, 5]),
    ],
)
def test_side_lengths_of_feature_maps(name: str, expected: list[int]) -> None:
    assert sides(name) == expected


def test_torchvision_pools_adaptively_only_where_needed() -> None:
    assert sides("torchvision", image_size=192) == [47, 23, 11, 5, 6]
    for size in (63, 192, 224, 256):
        fc6 = next(layer for layer in layers(architecture("torchvision", image_size=size)) if layer.name == "fc6")
        assert fc6.input == (9216,)


# ── 2012 ──────────────────────────────────────────────────────────────────────────────────────────


def test_code2012_layer_by_layer() -> None:
    assert kinds("code2012", 1) == ["pad", "conv", "lrn", "maxpool", "relu"]
    assert kinds("code2012", 2) == ["conv", "relu", "lrn", "rnorm", "maxpool"]
    assert kinds("code2012", 3) == kinds("code2012", 4) == ["conv", "relu"]
    assert kinds("code2012", 5) == ["conv", "maxpool", "relu"]
    assert kinds("code2012", 6) == kinds("code2012", 7) == ["linear", "relu", "dropout"]
    stack = {layer.name: layer for layer in layers(ARCHITECTURES["code2012"])}
    assert stack["pad1"].padding == 3
    assert [stack[f"conv{n}"].groups for n in range(1, 6)] == [1, 2, 1, 2, 2]
    lrn = stack["lrn1"].norm
    assert lrn is not None
    assert (lrn.size, lrn.alpha, lrn.beta, lrn.k, lrn.towers) == (5, 1e-4, 0.75, 2.0, 2)
    assert stack["rnorm2"].norm == SPATIAL_NORM
    assert [kinds("half", n) for n in range(1, 6)] == [kinds("code2012", n) for n in range(1, 6)]
    assert [c.out_channels for c in ARCHITECTURES["half"].convs] == [48, 128, 192, 192, 256]


def test_layer_order_and_lrn_constants() -> None:
    assert kinds("paper", 1) == ["pad", "conv", "relu", "lrn", "maxpool"]
    assert kinds("caffe", 2) == ["conv", "relu", "lrn", "maxpool"]
    assert kinds("caffenet", 2) == ["conv", "relu", "maxpool", "lrn"]
    assert kinds("torchvision-lrn", 5) == ["conv", "relu", "maxpool", "lrn"]
    assert kinds("torchvision", 6) == ["dropout", "linear", "relu"]
    paper, caffe = ARCHITECTURES["paper"].lrn, ARCHITECTURES["caffe"].lrn
    assert (paper.alpha, paper.k, paper.towers) == (5e-4, 2.0, 2)
    assert (caffe.alpha, caffe.k, caffe.towers) == (1e-4, 1.0, 1)


# ── overrides ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norm_overrides(name: str) -> None:
    convs = len(ARCHITECTURES[name].convs)
    none = [layer.kind for layer in layers(architecture(name, norm="none"))]
    assert not {"lrn", "rnorm", "batchnorm"} & set(none)
    batch = layers(architecture(name, norm="batch"))
    assert not {"lrn", "rnorm"} & {layer.kind for layer in batch}
    after_convs = [b for a, b in pairwise(batch) if a.kind == "conv"]
    assert [layer.name for layer in after_convs] == [f"norm{n + 1}" for n in range(convs)]
    assert not any(layer.bias for layer in batch if layer.kind == "conv")
    lrn = architecture(name, norm="lrn")
    assert {"lrn", "rnorm"} & {layer.kind for layer in layers(lrn)}
    if ARCHITECTURES[name].norm == "lrn":
        assert lrn == ARCHITECTURES[name]
    else:
        assert [layer.name for layer in layers(lrn) if layer.kind == "lrn"] == ["lrn1", "lrn2"]
        assert (lrn.lrn.alpha, lrn.lrn.k) == (5e-4, 2.0)


def test_only_given_settings_are_replaced() -> None:
    assert architecture("paper") == ARCHITECTURES["paper"]
    spec = architecture(
        "paper", num_classes=3, in_channels=1, image_size=100, activation="tanh", dropout=0.0, width=0.5
    )
    stack = layers(spec)
    assert stack[0].input == (1, 100, 100)
    assert stack[-1].output == (3,)
    assert {layer.kind for layer in stack} >= {"tanh", "lrn"}
    assert not {"relu", "dropout"} & {layer.kind for layer in stack}


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("ccode2012", {}, "no architecture 'ccode2012'; did you mean 'code2012'"),
        ("resnet", {}, "architecture"),
        ("paper", {"norm": "layer"}, "no norm 'layer'"),
        ("paper", {"activation": "rleu"}, "did you mean 'relu'"),
        ("paper", {"init": "kaimng"}, "did you mean 'kaiming'"),
        ("paper", {"num_classes": 0}, "num_classes is 0"),
        ("paper", {"in_channels": -1}, "in_channels is -1"),
        ("paper", {"image_size": 22.5}, "image_size is 22.5"),
        ("paper", {"dropout": 1.0}, "dropout is 1.0"),
        ("paper", {"dropout": "half"}, "dropout is 'half'"),
        ("paper", {"width": 0}, "width is 0"),
    ],
)
def test_invalid_arguments_are_refused(name: str, given: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        architecture(name, **given)  # type: ignore[arg-type]


def test_nearest_architecture_for_an_image_size() -> None:
    assert nearest_that_fits(32) == "cifar"
    assert nearest_that_fits(28) == "lenet"
    assert nearest_that_fits(5) is None


def test_the_table_needs_no_torch() -> None:
    code = "import sys, alexnet.models.summary as s; assert s.table(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


# ── mistakes in the tutorials ─────────────────────────────────────────────────────────────────────


def features(widths: tuple[int, ...], channels: int = 3, padding: int = 2) -> nn.Sequential:
    """The convolutions of the tutorials: 11×11 stride 4, 5×5, three 3×3, with 3/2 pools after 1, 2 and 5."""
    modules: list[nn.Module] = []
    for n, width in enumerate(widths):
        kernel, stride, pad = ((11, 4, padding), (5, 1, 2))[n] if n < 2 else (3, 1, 1)
        modules += [nn.Conv2d(channels, width, kernel, stride, pad), nn.ReLU()]
        if n in (0, 1, 4):
            modules.append(nn.MaxPool2d(3, 2))
        channels = width
    return nn.Sequential(*modules)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def classifier(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes))


def test_tutorial_001_is_another_network() -> None:
    with torch.device("meta"):
        convs = features((96, 256, 384, 384, 256))
        assert convs(torch.empty(1, 3, 224, 224)).shape == (1, 256, 6, 6)
        assert convs[:3](torch.empty(1, 3, 224, 224)).shape[-1] == 27
        assert convs[:6](torch.empty(1, 3, 224, 224)).shape[-1] == 13  # conv3 reads 13×13, not 27×27
        assert count(convs, classifier(9216, 2048, 1000)) == PARAMETERS["seed-merged"] == 28_868_968
        assert count(convs, classifier(9216, 4096, 1000)) == PARAMETERS["one-tower"]


def test_tutorial_002_cannot_run() -> None:
    with torch.device("meta"):
        convs = features((64, 192, 384, 256, 256))
        found, x = [], torch.empty(1, 3, 32, 32)
        for module in convs[:-1]:
            x = module(x)
            found += [] if isinstance(module, nn.ReLU) else [x.shape[-1]]
        assert found == [7, 3, 3, 1, 1, 1, 1]
        with pytest.raises(RuntimeError, match="too small"):
            convs[-1](x)
        assert count(convs, classifier(256 * 2 * 2, 4096, 10)) == 23_490_378
    with pytest.raises(UserError, match="pool5"):
        layers(architecture("torchvision", image_size=32))
    fc6 = next(layer for layer in layers(ARCHITECTURES["cifar"]) if layer.name == "fc6")
    assert fc6.input == (256 * 2 * 2,)
    widths = [c.out_channels for c in ARCHITECTURES["cifar"].convs]
    assert widths == [64, 192, 384, 256, 256]


def test_tutorial_004_is_not_python_and_reads_6400() -> None:
    with pytest.raises(SyntaxError):
        compile("net == Sequential(\n    MaxPool2d(3, stride=2)\n    Conv2d(96, 256, 5),\n)", "seed", "exec")
    with pytest.raises(NameError):  # with the commas in place, the comparison still has nothing to compare with
        exec(compile("net == Sequential(MaxPool2d(3, stride=2), Conv2d(96, 256, 5))", "seed", "exec"), {})
    with torch.device("meta"):
        convs = features((96, 256, 384, 384, 256), channels=1, padding=0)
        assert convs(torch.empty(1, 1, 224, 224)).flatten(1).shape == (1, 6400)
        head = classifier(6400, 4096, 10)
        assert count(convs, head) == PARAMETERS["d2l-unpadded"]
        assert count(*head[:2]) * 4 / 1e6 == pytest.approx(172, abs=0.5)  # "nearly 1 GB", in the tutorial
        assert count(*classifier(9216, 4096, 10)[:2]) * 4 / 1e6 == pytest.approx(218, abs=0.5)
