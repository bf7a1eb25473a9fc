"""The numbers in docs/variants.md match the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import AlexNet_Weights

from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.initial_weights import INITS
from alexnet.models.spec import layers
from alexnet.models.summary import summarize, table
from alexnet.training.recipes import imagenet_torchvision

PAGE = (Path(__file__).resolve().parents[2] / "docs/variants.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line[:1] == "|"]
LABELS = {row[0]: row[1:] for row in ROWS if len(row) == 7}
COLUMNS = [re.findall(r"`([\w-]+)`", cell)[0] for cell in LABELS["name in this package"]]
NAMES = ("paper", "code2012", "cuda-convnet2", "caffe", "caffenet", "torchvision")


def cell(label: str, name: str) -> str:
    """Return a cell of the first table."""
    return LABELS[label][COLUMNS.index(name)]


def test_columns_of_the_first_table() -> None:
    assert COLUMNS == ["paper", "code2012", "cuda-convnet2", "caffe", "caffenet", "torchvision"]


@pytest.mark.parametrize("name", NAMES)
def test_column_matches_the_architecture(name: str) -> None:
    spec = ARCHITECTURES[name]
    stack = layers(spec)
    assert cell("parameters", name) == f"{summarize(spec).parameters:,}"
    assert cell("convolution widths", name) == "-".join(str(conv.out_channels) for conv in spec.convs)
    groups = int(cell("groups in conv2, conv4, conv5", name))
    assert [conv.groups for conv in spec.convs] == [1, groups, 1, groups, groups]
    assert cell("input size", name) == str(spec.image_size)
    words = {"relu": "ReLU", "lrn": "LRN", "rnorm": "spatial norm", "maxpool": "pool"}
    for n in (1, 2):
        order = [words[layer.kind] for layer in stack if layer.name.endswith(str(n)) and layer.kind in words]
        assert cell(f"order after conv{n}", name) == ", ".join(order)
    if spec.norm == "lrn":
        assert float(cell("LRN k", name)) == spec.lrn.k
        assert float(cell("LRN alpha (PyTorch convention: ÷ 5)", name)) == spec.lrn.alpha
        assert (cell("LRN within each tower", name) == "yes") == (spec.lrn.towers == 2)
    if name == "paper":
        padding = "not stated"
    elif stack[0].kind == "pad":
        assert name in ("code2012", "cuda-convnet2")
        padding = "3 right, 3 bottom"
    else:
        padding = {0: "0", 2: "2 on all sides"}[spec.convs[0].padding]
    assert cell("conv1 padding", name) == padding
    assert cell("dropout (p = .5)", name) == f"{spec.dropout_position} fc6, fc7"
    assert spec.dropout == 0.5
    init = INITS[spec.init]
    if init.bias is None:
        assert "PyTorch default" in cell("initial biases of conv2, conv4, conv5, fc6, fc7", name)
    else:
        first, _, last = cell("initial biases of conv2, conv4, conv5, fc6, fc7", name).partition("; fc8 ")
        expected = dict.fromkeys(("conv2", "conv4", "conv5", "hidden"), float(first))
        assert init.biases == expected | ({"fc8": float(last.replace("−", "-"))} if last else {})
        stds = cell("standard deviation of initial weights", name)
        assert all(f"{std:g}".lstrip("0") in stds for std in (init.std, *init.stds.values()))


def test_torchvision_column_matches_the_recipe() -> None:
    recipe = imagenet_torchvision()
    optimization, schedule = recipe.optimization, recipe.schedule
    assert cell("batch size; length", "torchvision") == f"{optimization.batch_size}; {schedule.epochs} epochs"
    assert cell("learning rate", "torchvision") == f".01, ÷ 10 every {schedule.lr_step_size} epochs"
    assert (optimization.lr, schedule.lr_gamma, optimization.weight_decay, optimization.decay_biases) == (
        0.01,
        0.1,
        1e-4,
        True,
    )
    metrics = AlexNet_Weights.IMAGENET1K_V1.meta["_metrics"]["ImageNet-1K"]
    published = cell("published results on ILSVRC-2012 validation", "torchvision")
    assert f"{metrics['acc@1']} % / {metrics['acc@5']} %" in published


def test_architectures_are_listed_with_parameter_counts() -> None:
    listed = {row[0].strip("`"): row[1] for row in ROWS if len(row) == 4 and row[0].startswith("`")}
    assert listed == {row["name"]: f"{row['parameters']:,}" for row in table()}


def test_claims_of_the_text() -> None:
    paper, merged = summarize(ARCHITECTURES["paper"]), summarize(ARCHITECTURES["one-tower"])
    assert f"{merged.parameters:,} parameters" in PAGE
    assert f"{merged.macs / paper.macs:.1f} times the multiply-accumulates" in PAGE
    x = torch.randn(2, 3, 9, 9)
    pool = nn.MaxPool2d(3, 2)
    assert torch.equal(pool(x.relu()), pool(x).relu())
    norm = nn.LocalResponseNorm(5, 1.0)
    assert not torch.allclose(norm(x.relu()), norm(x).relu())
    choices = [row[1] for row in ROWS if len(row) == 2]
    recommended = {name for choice in choices for name in re.findall(r"`([a-z\d-]+)`", choice)}
    assert recommended <= set(ARCHITECTURES)
    assert len(recommended) >= 6
