"""Each modification changes what it names and nothing else."""

from __future__ import annotations

import pytest
import torch

from alexnet.errors import UserError
from alexnet.models.architectures import architecture
from alexnet.models.model import build
from alexnet.models.modifications import MODIFICATIONS, apply_modifications
from alexnet.models.spec import layers
from alexnet.models.summary import summarize


def kinds(spec):
    return [(layer.name, layer.kind, layer.output) for layer in layers(spec)]


@pytest.mark.parametrize("name", MODIFICATIONS)
def test_a_modified_network_gets_gradients_in_every_layer(name):
    spec = apply_modifications(architecture("cifar-towers", width=0.25), (name,))
    model = build(spec)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert spec.departures[-1] == f"Modified: {name}."


@pytest.mark.parametrize("arch", ["paper", "cifar"])
def test_non_overlapping_pooling_keeps_the_sizes(arch):
    spec = architecture(arch)
    plain = apply_modifications(spec, ("plain-pool",))
    assert kinds(plain) == kinds(spec)
    assert {layer.kernel for layer in layers(plain) if layer.kind == "maxpool"} == {2}


def test_average_pooling_replaces_all_max_pooling_only():
    spec = architecture("paper")
    average = apply_modifications(spec, ("average-pool",))
    pools = [(layer.kind, layer.name) for layer in layers(average) if layer.kind.endswith("pool")]
    assert pools == [("avgpool", "pool1"), ("avgpool", "pool2"), ("avgpool", "pool5")]
    assert [layer.output for layer in layers(average)] == [layer.output for layer in layers(spec)]


def test_half_of_code2012_equals_the_half_architecture():
    assert apply_modifications(architecture("code2012"), ("half",)).convs == architecture("half").convs
    assert summarize(apply_modifications(architecture("code2012"), ("half",))).parameters == 59_798_312


def test_silent_towers_are_independent_before_fc6():
    spec = apply_modifications(architecture("cifar-towers", width=0.25, dropout=0.0), ("silent-towers",))
    model = build(spec).eval()
    maps = model[: [n for n, _ in model.named_children()].index("flatten")]
    x = torch.randn(1, 3, 32, 32)
    before = maps(x)
    with torch.no_grad():
        model.conv1.weight[model.conv1.out_channels // 2 :] += 1  # the second tower only
    after = maps(x)
    half = before.shape[1] // 2
    assert torch.equal(after[:, :half], before[:, :half])
    assert not torch.equal(after[:, half:], before[:, half:])


def test_without_conv4_keeps_the_other_layers():
    spec, full = apply_modifications(architecture("paper"), ("without-conv4",)), architecture("paper")
    assert spec.convs == (*full.convs[:3], full.convs[4])


@pytest.mark.parametrize(
    ("arch", "name", "message"),
    [
        ("cifar", "half", "no towers to halve"),
        ("cifar", "silent-towers", "no connection to remove"),
        ("lenet", "without-conv4", "no conv4"),
        ("cifar", "avrage-pool", "did you mean 'average-pool'"),
    ],
)
def test_inapplicable_modifications_are_refused(arch, name, message):
    with pytest.raises(UserError, match=message):
        apply_modifications(architecture(arch), (name,))
