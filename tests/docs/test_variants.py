"""The figures of docs/variants.md are those of our code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import AlexNet_Weights

from alexnet.models.architectures import ARCHITECTURES, INITS, architecture
from alexnet.models.spec import layers
from alexnet.models.summary import summarize, table
from alexnet.training.recipes import imagenet_torchvision

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/variants.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in DOCUMENT.splitlines() if line[:1] == "|"]
LABELS = {row[0]: row[1:] for row in ROWS if len(row) == 7}
COLUMNS = [re.findall(r"`([\w-]+)`", cell)[0] for cell in LABELS["our name"]]
OURS = ("paper", "code2012", "caffe", "caffenet", "torchvision")


def cell(label: str, name: str) -> str:
    """What the table says of one of our networks; its last column of that name, as cuda-convnet2's is only near."""
    return LABELS[label][len(COLUMNS) - 1 - COLUMNS[::-1].index(name)]


def test_the_six() -> None:
    assert COLUMNS == ["paper", "code2012", "torchvision", "caffe", "caffenet", "torchvision"]


@pytest.mark.parametrize("name", OURS)
def test_each_column(name: str) -> None:
    spec = ARCHITECTURES[name]
    stack = layers(spec)
    assert cell("parameters", name) == f"{summarize(spec).parameters:,}"
    assert cell("widths of the convolutions", name) == "-".join(str(conv.out_channels) for conv in spec.convs)
    assert [conv.groups for conv in spec.convs] == [
        1,
        (g := int(cell("groups (towers) in conv2, conv4, conv5", name))),
        1,
        g,
        g,
    ]
    assert cell("image", name) == str(spec.image_size)
    words = {"relu": "ReLU", "lrn": "LRN", "rnorm": "spatial norm", "maxpool": "pool"}
    for n in (1, 2):
        order = [words[layer.kind] for layer in stack if layer.name.endswith(str(n)) and layer.kind in words]
        assert cell(f"order after conv{n}", name) == ", ".join(order)
    if spec.norm == "lrn":
        assert float(cell("LRN: k", name)) == spec.lrn.k
        assert float(cell("LRN: alpha in torch's meaning (÷ 5)", name)) == spec.lrn.alpha
        assert (cell("LRN stays inside a tower", name) == "yes") == (spec.lrn.towers == 2)
    pads = {"pad": "3 right, 3 below"} if name == "code2012" else {}
    assert cell("padding of conv1", name) == (
        "not told"
        if name == "paper"
        else pads.get(stack[0].kind) or {0: "0", 2: "2 on all sides"}[spec.convs[0].padding]
    )
    assert cell("dropout .5", name) == f"{spec.dropout_position} fc6, fc7"
    assert spec.dropout == 0.5
    init = INITS[spec.init]
    if init.bias is None:
        assert "torch's default" in cell("initial bias of conv2, conv4, conv5, fc6, fc7", name)
    else:
        bias = float(cell("initial bias of conv2, conv4, conv5, fc6, fc7", name))
        assert set(init.biases.items()) == {("conv2", bias), ("conv4", bias), ("conv5", bias), ("hidden", bias)}
        deviations = cell("deviation of initial weights", name)
        assert all(f"{std:g}".lstrip("0") in deviations for std in (init.std, *init.stds.values()))


def test_torchvisions_training_is_our_recipe() -> None:
    recipe = imagenet_torchvision()
    assert cell("batch; length", "torchvision") == f"{recipe.batch_size}; {recipe.epochs} epochs"
    assert cell("learning rate", "torchvision") == f".01, ÷ 10 each {recipe.lr_step_size} epochs"
    assert (recipe.lr, recipe.lr_gamma, recipe.weight_decay, recipe.decay_biases) == (0.01, 0.1, 1e-4, True)
    metrics = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
    assert f"{metrics['acc@1']} % / {metrics['acc@5']} %" in cell(
        "published result on ILSVRC-12 validation", "torchvision"
    )


def test_cuda_convnet2_has_the_parameters_of_torchvision_with_lrn() -> None:
    assert LABELS["parameters"][2] == f"{summarize(architecture('torchvision', norm='lrn')).parameters:,}"


def test_the_list_of_ours_is_counted() -> None:
    listed = {row[0].strip("`"): row[1] for row in ROWS if len(row) == 4 and row[0].startswith("`")}
    assert listed == {row["name"]: f"{row['parameters']:,}" for row in table()}


def test_what_the_text_says() -> None:
    paper, merged = summarize(ARCHITECTURES["paper"]), summarize(ARCHITECTURES["one-tower"])
    assert f"{merged.parameters:,} parameters" in DOCUMENT
    assert f"{merged.macs / paper.macs:.1f} times the multiply-accumulates" in DOCUMENT
    x = torch.randn(2, 3, 9, 9)
    pool = nn.MaxPool2d(3, 2)
    assert torch.equal(pool(x.relu()), pool(x).relu())
    norm = nn.LocalResponseNorm(5, 1.0)
    assert not torch.allclose(norm(x.relu()), norm(x).relu())
    advised = [row[1] for row in ROWS if len(row) == 2]
    named = {name for advice in advised for name in re.findall(r"`([a-z\d-]+)`", advice)}
    assert named <= set(ARCHITECTURES)
    assert len(named) >= 6
