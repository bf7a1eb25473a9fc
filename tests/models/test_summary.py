"""Counts against torch's FLOP counter, against the built model, and a few by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.model import build
from alexnet.models.spec import AlexNetSpec
from alexnet.models.summary import describe_layer, summarize, table

SPECS = [
    *ARCHITECTURES.values(),
    architecture("paper", image_size=100, norm="batch", width=0.5),
    architecture("torchvision", image_size=192, in_channels=1, num_classes=3),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.name}-{s.image_size}")
def test_counts_agree_with_torch(spec: AlexNetSpec) -> None:
    summary = summarize(spec)
    with torch.device("meta"):
        model = build(spec).eval()
        x = torch.empty(1, spec.in_channels, spec.image_size, spec.image_size)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert counter.get_total_flops() == 2 * summary.macs
    for row, (name, module) in zip(summary.rows, model.named_children(), strict=True):
        x = module(x)
        assert row.name == name
        assert row.output == tuple(x.shape[1:])
        assert row.parameters == sum(p.numel() for p in module.parameters())
    assert summary.parameters == sum(row.parameters for row in summary.rows)
    rows = summary.to_dict()["layers"]
    assert sum(row["parameters_share"] for row in rows) == pytest.approx(1)
    assert sum(row["macs_share"] for row in rows) == pytest.approx(1)


def test_receptive_fields_by_probing() -> None:
    # With average pools and tanh every pixel of the field has a gradient, so its side can be measured exactly.
    spec = architecture("code2012", width=0.01, activation="tanh", image_size=255)
    spec = replace(spec, convs=tuple(replace(conv, pool="avg") for conv in spec.convs))
    torch.manual_seed(0)
    model = build(replace(spec, init="torch")).double()
    y = x = torch.rand(1, 3, 255, 255, dtype=torch.float64, requires_grad=True)
    for row, module in zip(summarize(spec).rows, model, strict=True):
        y = module(y)
        if row.name in ("conv1", "pool1", "conv2", "rnorm2", "pool2", "conv3"):
            middle = y.shape[-1] // 2
            (grad,) = torch.autograd.grad(y[..., middle, middle].sum(), x, retain_graph=True)
            seen = grad.abs().sum((0, 1, 3)).nonzero()
            assert int(seen.max() - seen.min()) + 1 == row.receptive_field
        if row.name == "conv3":
            break
    assert summarize(spec).rows[-1].receptive_field == 255


def test_receptive_fields_of_the_paper() -> None:
    paper = {row.name: row.receptive_field for row in summarize(ARCHITECTURES["paper"]).rows}
    assert [paper[n] for n in ("conv1", "conv2", "conv3", "conv4", "conv5", "pool5")] == [11, 51, 99, 131, 163, 195]


def test_rows_equal_hand_computed_counts() -> None:
    summary = summarize(ARCHITECTURES["paper"])
    rows = {row.name: row for row in summary.rows}
    assert rows["conv1"].parameters == 96 * 3 * 11 * 11 + 96
    assert rows["conv1"].macs == 55 * 55 * 96 * 3 * 11 * 11
    assert rows["conv1"].activation_bytes == 4 * 55 * 55 * 96
    assert rows["conv2"].macs == 27 * 27 * 256 * 48 * 5 * 5  # 48: its own tower
    assert rows["flatten"].activation_bytes == 0
    assert describe_layer(rows["conv2"]) == "5×5, padding 2, groups 2"
    assert describe_layer(rows["pad1"]) == "3 zeros at the right and bottom"
    assert describe_layer(rows["lrn1"]) == "size 5, alpha 0.0005, beta 0.75, k 2, 2 towers"
    assert describe_layer(rows["drop6"]) == "p 0.5"
    shares = {row["name"]: row["parameters_share"] for row in summary.to_dict()["layers"]}
    assert shares["fc6"] == pytest.approx(37_752_832 / 60_965_224)


def test_summary_and_table_are_json() -> None:
    document = json.loads(json.dumps(summarize(ARCHITECTURES["cifar"]).to_dict()))
    assert document["repair"] == ARCHITECTURES["cifar"].repair
    assert document["departures"] == list(ARCHITECTURES["cifar"].departures)
    assert {"name", "type", "output", "parameters", "macs", "receptive_field"} <= set(document["layers"][0])
    assert document["layers"][0]["output"] == [64, 16, 16]
    entries = json.loads(json.dumps(table()))
    assert [entry["name"] for entry in entries] == list(ARCHITECTURES)
    keys = {"name", "parameters", "macs", "image_size", "in_channels", "num_classes", "source", "title"}
    assert all(set(entry) == keys for entry in entries)


def test_too_small_images_name_the_layer() -> None:
    with pytest.raises(UserError, match="pool5"):
        summarize(architecture("paper", image_size=32))
