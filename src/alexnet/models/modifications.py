"""Changes to a network that no flag makes: the other side of the paper's comparisons, as functions of a spec.

Each takes one thing away and leaves the rest, so that two trainings differ by that thing alone. `recipe.json` names
them (`"spec_edits": ["average-pool"]`), and the spec that they give is kept whole in `model.json`. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from alexnet.errors import UserError, unknown_name
from alexnet.models.spec import AlexNetSpec, ConvSpec


def average_pool(spec: AlexNetSpec) -> AlexNetSpec:
    """Average instead of maximal values in every pool."""
    return _each(spec, lambda conv: replace(conv, pool="avg"))


def plain_pool(spec: AlexNetSpec) -> AlexNetSpec:
    """Pools of 2×2 with stride 2, which do not overlap, instead of 3×3 with stride 2 (paper, section 3.4).

    At AlexNet's sizes (55, 27 and 13 pixels, and 16, 8 and 4 of the network for 32×32) the maps stay as large as
    overlapping pools leave them, as the paper says of its own comparison."""
    return _each(spec, lambda conv: replace(conv, pool_kernel=conv.pool_stride))


def half(spec: AlexNetSpec) -> AlexNetSpec:
    """One tower instead of two: half of the channels, but for the last convolution, whose number of channels keeps
    the first fully connected layer, and so most of the parameters, as large (paper, section 3.2; layers-145-half.cfg).
    """
    if all(conv.groups == 1 for conv in spec.convs):
        raise UserError(f"The network '{spec.name}' has no towers to halve; use an architecture with two.")
    last = len(spec.convs) - 1
    convs = (
        replace(conv, groups=1, out_channels=conv.out_channels if n == last else conv.out_channels // 2)
        for n, conv in enumerate(spec.convs)
    )
    return replace(spec, convs=tuple(convs), lrn=replace(spec.lrn, towers=1))


def silent_towers(spec: AlexNetSpec) -> AlexNetSpec:
    """Towers that do not talk before the fully connected layers: conv3 reads its own tower only.

    The 2012 code's run 150 went further (its fc6 and fc7 also read one tower only, and conv2 has 160 filters a tower
    to make up for the lost weights)."""
    towers = max(conv.groups for conv in spec.convs)
    if towers == 1:
        raise UserError(f"The network '{spec.name}' has one tower, which cannot fall silent; use one with two.")
    convs = (replace(conv, groups=towers if n else conv.groups) for n, conv in enumerate(spec.convs))
    return replace(spec, convs=tuple(convs))


def without_conv4(spec: AlexNetSpec) -> AlexNetSpec:
    """The fourth convolution left out, one of the middle layers whose removal costs about 2 % (paper, section 7)."""
    if len(spec.convs) < 5:
        raise UserError(f"The network '{spec.name}' has {len(spec.convs)} convolutions, so no conv4 to leave out.")
    return replace(spec, convs=spec.convs[:3] + spec.convs[4:])


def _each(spec: AlexNetSpec, change: Callable[[ConvSpec], ConvSpec]) -> AlexNetSpec:
    return replace(spec, convs=tuple(change(c) if "pool" in c.stages else c for c in spec.convs))


MODIFICATIONS: dict[str, Callable[[AlexNetSpec], AlexNetSpec]] = {
    function.__name__.replace("_", "-"): function
    for function in (average_pool, plain_pool, half, silent_towers, without_conv4)
}


def apply_modifications(spec: AlexNetSpec, edits: tuple[str, ...]) -> AlexNetSpec:
    """`spec` after the named edits, in that order. Raises `UserError` for an unknown one or one that does not fit."""
    for name in edits:
        if name not in MODIFICATIONS:
            raise unknown_name("edit", name, MODIFICATIONS)
        spec = MODIFICATIONS[name](spec)
    return replace(spec, departures=(*spec.departures, *(f"Edited: {name}." for name in edits)))
