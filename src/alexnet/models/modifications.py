"""Modifications of a network for the paper's comparisons, as functions of its spec.

Each changes one thing, so that two trainings differ in nothing else. `recipe.json` lists them by name
(`"spec_edits": ["average-pool"]`), and `model.json` holds the resulting spec. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alexnet.errors import UserError, unknown_name
from alexnet.models.spec import AlexNetSpec, ConvSpec


def average_pool(spec: AlexNetSpec) -> AlexNetSpec:
    """Use average instead of max pooling."""
    return _change_pooling(spec, lambda conv: replace(conv, pool="avg"))


def plain_pool(spec: AlexNetSpec) -> AlexNetSpec:
    """Use non-overlapping 2×2 pooling with stride 2 instead of 3×3 with stride 2 (paper, section 3.4).

    At AlexNet's sizes (55, 27 and 13 pixels; 16, 8 and 4 in the 32×32 network) the maps are as large as with
    overlapping pooling, as in the paper's comparison."""
    return _change_pooling(spec, lambda conv: replace(conv, pool_kernel=conv.pool_stride))


def half(spec: AlexNetSpec) -> AlexNetSpec:
    """Use one tower instead of two: half the channels, except in the last convolution, which keeps the first fully
    connected layer, and so most of the parameters, the same size (paper, section 3.2; layers-145-half.cfg)."""
    if all(conv.groups == 1 for conv in spec.convs):
        raise UserError(f"The network '{spec.name}' has no towers to halve; use an architecture with two.")
    last = len(spec.convs) - 1
    convs = (
        replace(conv, groups=1, out_channels=conv.out_channels if n == last else conv.out_channels // 2)
        for n, conv in enumerate(spec.convs)
    )
    return replace(spec, convs=tuple(convs), lrn=replace(spec.lrn, towers=1))


def silent_towers(spec: AlexNetSpec) -> AlexNetSpec:
    """Remove the connection between towers before the fully connected layers: conv3 reads only its own tower.

    Run 150 of the 2012 code went further: its fc6 and fc7 also read only one tower, and conv2 has 160 filters per tower
    to compensate for the lost weights."""
    towers = max(conv.groups for conv in spec.convs)
    if towers == 1:
        raise UserError(
            f"The network '{spec.name}' has one tower, so there is no connection to remove; use one with two."
        )
    convs = (replace(conv, groups=towers if n else conv.groups) for n, conv in enumerate(spec.convs))
    return replace(spec, convs=tuple(convs))


def without_conv4(spec: AlexNetSpec) -> AlexNetSpec:
    """Remove the fourth convolution, a middle layer whose removal costs about 2 % top-1 (paper, section 7)."""
    if len(spec.convs) < 5:
        raise UserError(
            f"The network '{spec.name}' has {len(spec.convs)} convolutions, so there is no conv4 to remove."
        )
    return replace(spec, convs=spec.convs[:3] + spec.convs[4:])


def _change_pooling(spec: AlexNetSpec, change: Callable[[ConvSpec], ConvSpec]) -> AlexNetSpec:
    return replace(spec, convs=tuple(change(c) if "pool" in c.stages else c for c in spec.convs))


MODIFICATIONS: dict[str, Callable[[AlexNetSpec], AlexNetSpec]] = {
    function.__name__.replace("_", "-"): function
    for function in (average_pool, plain_pool, half, silent_towers, without_conv4)
}


def apply_modifications(spec: AlexNetSpec, edits: tuple[str, ...]) -> AlexNetSpec:
    """Apply the named modifications in order. Raises `UserError` for an unknown or inapplicable one."""
    for name in edits:
        if name not in MODIFICATIONS:
            raise unknown_name("modification", name, MODIFICATIONS)
        spec = MODIFICATIONS[name](spec)
    return replace(spec, departures=(*spec.departures, *(f"Modified: {name}." for name in edits)))
