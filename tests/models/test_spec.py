"""Specifications: expansion into layers, size checks, and JSON round trips."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, architecture
from alexnet.models.model import build
from alexnet.models.spec import (
    MODIFICATIONS,
    AlexNetSpec,
    ConvSpec,
    ImageTooSmall,
    apply_modifications,
    layers,
    minimal_image_size,
)
from alexnet.models.summary import summarize


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_spec_round_trips_through_json(name: str) -> None:
    spec = architecture(name, width=0.5, num_classes=7, norm="batch")
    assert AlexNetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"color": 1}, "color"),
        ({"num_classses": 1}, "did you mean 'num_classes'"),
        (
            {"num_classes": "ten"},
            "specification cannot be 'ten' at num_classes: expected an integer",
        ),
        ({"num_classes": True}, "cannot be true at num_classes: expected an integer"),
        ({"num_classes": 2.5}, "cannot be 2.5 at num_classes: expected an integer"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"hidden": 4096}, "cannot be 4096 at hidden: expected a list"),
        ({"hidden": [4096, None]}, r"at hidden\[1\]"),
        ({"convs": [3]}, r"at convs\[0\]"),
        ({"convs": []}, "no convolutions"),
        ({"convs": [{"out_channels": 8}]}, r"lacks the field kernel at convs\[0\]"),
        ({"convs": [{"out_channels": 8, "kernel": 3, "stages": ["act", "act"]}]}, "duplicate"),
        ({"convs": [{"out_channels": 8, "kernel": 3, "stages": ["pol"]}]}, "did you mean 'pool'"),
        ({"lrn": None}, "cannot be null at lrn: expected an object"),
        ({"lrn": {"size": 0}}, "size is 0"),
        ({"dropout": 1}, "below 1"),
        ({"width": float("nan")}, "width is nan"),
        ({"norm": "lnr"}, "did you mean 'lrn'"),
        ({"dropout_position": "between"}, "choose one of after, before"),
    ],
)
def test_invalid_values_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AlexNetSpec.from_dict({**ARCHITECTURES["paper"].to_dict(), **change})


@pytest.mark.parametrize("junk", [None, [], "paper", 3])
def test_non_objects_are_refused(junk: object) -> None:
    with pytest.raises(UserError, match="specification cannot be .*: expected an object"):
        AlexNetSpec.from_dict(junk)  # type: ignore[arg-type]


def test_missing_keys_take_defaults_or_are_refused() -> None:
    d = ARCHITECTURES["paper"].to_dict()
    del d["repair"]  # has a default
    assert AlexNetSpec.from_dict(d) == ARCHITECTURES["paper"]
    del d["convs"]
    with pytest.raises(UserError, match="lacks the field convs"):
        AlexNetSpec.from_dict(d)


def test_each_layer_takes_the_output_of_the_previous_one() -> None:
    for spec in ARCHITECTURES.values():
        stack = layers(spec)
        assert stack[0].input == (spec.in_channels, spec.image_size, spec.image_size)
        assert all(a.output == b.input for a, b in pairwise(stack))
        assert stack[-1].output == (spec.num_classes,)
        assert len({layer.name for layer in stack}) == len(stack)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_minimal_image_size_is_minimal(name: str) -> None:
    least = minimal_image_size(ARCHITECTURES[name])
    assert layers(architecture(name, image_size=least))
    with pytest.raises(UserError, match=f"use at least {least}×{least}"):
        layers(architecture(name, image_size=least - 1))


def test_too_small_images_name_layer_size_and_alternative() -> None:
    with pytest.raises(UserError) as error:
        layers(architecture("paper", image_size=32))
    assert str(error.value) == (
        "Images of 32×32 are too small for 'paper': pool5 would get 1×1 and needs 3×3; "
        "use at least 64×64 or an architecture made for such sizes, such as 'cifar'."
    )
    with pytest.raises(UserError, match=r"conv1 would get 7×7 and needs 11×11; use at least 64×64\.$"):
        layers(architecture("paper", image_size=7))  # no architecture takes 7 pixels, so none is suggested
    with pytest.raises(UserError, match="such as 'lenet'"):
        layers(architecture("d2l", image_size=28))
    with pytest.raises(ImageTooSmall, match=r"pool5 would get 1×1 and needs 3×3; use at least 64×64\.$") as small:
        layers(replace(ARCHITECTURES["paper"], image_size=32))  # no suggestion without the table of architectures
    assert small.value.minimal == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"lrn": replace(ARCHITECTURES["paper"].lrn, towers=5)},
            "The input of lrn1 has 96 channels",
        ),
        ({"convs": (ConvSpec(96, 11, groups=2),)}, "The input of conv1 has 3 channels"),
        (
            {"convs": (ConvSpec(8, 11), ConvSpec(9, 3, groups=2))},
            "The output of conv2 has 9 channels",
        ),
    ],
)
def test_channels_must_be_divisible(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        layers(replace(ARCHITECTURES["paper"], **change))  # type: ignore[arg-type]


def test_width_rounds_to_multiples_of_eight_per_group() -> None:
    spec = architecture("paper", width=0.3)
    assert [spec.conv_channels(c) for c in spec.convs] == [32, 80, 112, 112, 80]
    assert spec.hidden_widths() == (1232, 1232)
    tiny = architecture("paper", width=1e-6)
    assert [tiny.conv_channels(c) for c in tiny.convs] == [8, 16, 8, 16, 16]
    assert [ARCHITECTURES["lenet"].conv_channels(c) for c in ARCHITECTURES["lenet"].convs] == [
        6,
        16,
    ]


# ── modifications ─────────────────────────────────────────────────────────────────────────────────


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
