"""An AlexNet as data, and the expansion of that data into a list of layers with shapes.

Every variant is a value of one dataclass, `AlexNetSpec`. `model.py` builds one module per layer and `summary.py` one
table row, so the built network and the printed table cannot differ. Sizes are checked here, before memory is allocated.

Shapes omit the batch: (C, H, W) for maps, (F,) for vectors. Images are square. This module does not import torch.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from alexnet.errors import UserError, unknown_name
from alexnet.files import convert

ACTIVATIONS = ("relu", "tanh", "sigmoid")
MAX_SIDE = 1 << 40  # pixels; no memory holds an image of this side
NORMS = ("lrn", "batch", "none")


def check_at_least(least: int, name: str, value: object) -> None:
    """Raise `UserError` unless `value` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is {value!r} and must be an integer of at least {least}.")


def _check_choice(kind: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown_name(kind, str(value), known)


@dataclass(frozen=True)
class LRNSpec:
    """Constants of b = a / (k + alpha/n · Σ a²)^beta, where the sum runs over a window of n values.

    For LRN the window is n = `size` channels within one of `towers` equal groups of channels; for the spatial norm it
    is n = size² pixels of one channel. Torch and the 2012 code divide alpha by n; the paper (section 3.3) does not.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    towers: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, "size", self.size)
        check_at_least(1, "towers", self.towers)


# The spatial response norm after conv2's LRN: `rnorm2` of layers-145.cfg and its parameter file.
SPATIAL_NORM = LRNSpec(size=5, alpha=1e-3, beta=0.75, k=1.0)


@dataclass(frozen=True)
class ConvSpec:
    """A convolution and the stages that follow it."""

    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    ceil: bool = False
    """Output size of the 2012 code, 1 + ceil((in - kernel) / stride), with zeros padded at the right and bottom."""
    stages: tuple[str, ...] = ("act",)
    """In order, from "act", "lrn", "rnorm" (spatial) and "pool"."""
    pool: str = "max"
    pool_kernel: int = 3
    pool_stride: int = 2
    pool_ceil: bool = False

    def __post_init__(self) -> None:
        for name in ("out_channels", "kernel", "stride", "groups", "pool_kernel", "pool_stride"):
            check_at_least(1, name, getattr(self, name))
        check_at_least(0, "padding", self.padding)
        for stage in self.stages:
            _check_choice("stage", stage, ("act", "lrn", "rnorm", "pool"))
        if len(set(self.stages)) != len(self.stages):
            raise UserError(f"The stages {self.stages} of a convolution contain a duplicate; list each once.")
        _check_choice("kind of pooling", self.pool, ("max", "avg"))


@dataclass(frozen=True)
class AlexNetSpec:
    """A network from image to logits. `architectures.py` holds the known ones."""

    name: str
    title: str
    source: str
    """Where the numbers come from."""
    convs: tuple[ConvSpec, ...]
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the fully connected layers except the last."""
    dropout: float = 0.5
    """Drop probability; 0 omits the dropout layers."""
    dropout_position: str = "after"
    """After the activation of each hidden fully connected layer (2012), or before the layer (torchvision)."""
    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    activation: str = "relu"
    norm: str = "none"
    """"lrn" uses the stages "lrn" and "rnorm"; "batch" ignores them and adds batch norm after each convolution."""
    lrn: LRNSpec = LRNSpec()
    spatial_norm: LRNSpec = SPATIAL_NORM
    """Constants of the stage "rnorm"."""
    init: str = "paper"
    """A name in `architectures.INITS`."""
    width: float = 1.0
    """Scales channels and hidden widths; see `conv_channels`."""
    adaptive_pool: int | None = None
    """Side to which the last maps are average-pooled if they differ, so that fc6 fits at any image size."""
    departures: tuple[str, ...] = ()
    """Differences from the network printed in the paper."""
    repair: str = ""
    """For a tutorial's network that cannot run as printed: the mistake and its fix."""

    def __post_init__(self) -> None:
        for name in ("num_classes", "in_channels", "image_size"):
            check_at_least(1, name, getattr(self, name))
        if self.adaptive_pool is not None:
            check_at_least(1, "adaptive_pool", self.adaptive_pool)
        for width in self.hidden:
            check_at_least(1, "hidden", width)
        if not self.convs:
            raise UserError(f"The network '{self.name}' has no convolutions; give it at least one.")
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1):
            raise UserError(f"dropout is {self.dropout!r} and must be at least 0 and below 1.")
        if not (isinstance(self.width, (int, float)) and 0 < self.width < math.inf):
            raise UserError(f"width is {self.width!r} and must be a number above 0.")
        _check_choice("activation", self.activation, ACTIVATIONS)
        _check_choice("norm", self.norm, NORMS)
        _check_choice("dropout position", self.dropout_position, ("after", "before"))

    def conv_channels(self, conv: ConvSpec) -> int:
        """Return the output channels of `conv` at this width: the nearest multiple of 8·groups, exact at width 1."""
        return _scale_channels(conv.out_channels, self.width, 8 * conv.groups)

    def hidden_widths(self) -> tuple[int, ...]:
        """Return the hidden fully connected widths at this width: nearest multiples of 8, exact at width 1."""
        return tuple(_scale_channels(hidden, self.width, 8) for hidden in self.hidden)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and dicts, ready for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> AlexNetSpec:
        """Invert `to_dict`. Raises `UserError` on an unknown or missing key, a wrong type or a bad value."""
        return convert(d, cls, "the network's specification")


@dataclass(frozen=True)
class Layer:
    """A layer of the network with its shapes.

    `kind` is conv, relu, tanh, sigmoid, lrn, rnorm, batchnorm, maxpool, avgpool, adaptiveavgpool, pad (`padding` zeros
    at the right and bottom), flatten, linear or dropout.
    """

    name: str
    kind: str
    input: tuple[int, ...]
    output: tuple[int, ...]
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    groups: int = 1
    ceil: bool = False
    bias: bool = False
    norm: LRNSpec | None = None
    p: float = 0.0
    receptive_field: int = 0
    """Side, in pixels, of the image region (including zero padding) that an output value depends on; the full image for
    vectors. LRN windows run over channels and do not enlarge it."""

    @property
    def fan_in(self) -> int:
        """Values that an output of a convolution or linear layer is a weighted sum of."""
        return self.input[0] // self.groups * (self.kernel**2 if self.kind == "conv" else 1)

    @property
    def parameters(self) -> int:
        if self.kind == "batchnorm":
            return 2 * self.output[0]
        if self.kind not in ("conv", "linear"):
            return 0
        return self.output[0] * (self.fan_in + self.bias)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image, counting only convolutions and linear layers, without biases."""
        if self.kind == "conv":
            return math.prod(self.output) * self.input[0] // self.groups * self.kernel**2
        return self.input[0] * self.output[0] if self.kind == "linear" else 0

    @property
    def activation_bytes(self) -> int:
        """Size of the output of one image in float32; 0 for flatten, which does not copy."""
        return 0 if self.kind == "flatten" else 4 * math.prod(self.output)


class ImageTooSmall(UserError):
    """The images of a specification are too small for one of its layers; `minimal` is the smallest side that fits."""

    def __init__(self, message: str, minimal: int) -> None:
        super().__init__(message)
        self.minimal = minimal


def layers(spec: AlexNetSpec) -> list[Layer]:
    """Return the ordered layers of `spec`, named conv1, relu1, lrn1, pool1 … flatten, fc6, relu6, drop6 … fc8.

    Numbering continues from the convolutions to the fully connected layers. Raises `ImageTooSmall`, naming the layer
    and the size it needs, and `UserError` if channels are not divisible by the groups.
    """
    try:
        return _expand(spec, spec.image_size)
    except _LayerTooSmall as small:
        layer, size, need = small.args
        side, minimal = spec.image_size, minimal_image_size(spec)
        raise ImageTooSmall(
            f"Images of {side}×{side} are too small for '{spec.name}': {layer} would get "
            f"{size}×{size} and needs {need}×{need}; use at least {minimal}×{minimal}.",
            minimal,
        ) from None


def minimal_image_size(spec: AlexNetSpec) -> int:
    """Return the smallest image side, in pixels, that all layers of `spec` accept."""
    limit = 1
    while limit < MAX_SIDE and not _accepts(spec, limit):
        limit *= 2
    return bisect_left(range(limit), True, lo=1, key=lambda side: _accepts(spec, side))


def _accepts(spec: AlexNetSpec, side: int) -> bool:
    try:
        _expand(spec, side)
    except _LayerTooSmall:
        return False
    return True


class _LayerTooSmall(Exception):
    """Arguments: the layer, the size it would get, and the size it needs."""


def _expand(spec: AlexNetSpec, side: int) -> list[Layer]:
    stack: list[Layer] = []
    shape: tuple[int, ...] = (spec.in_channels, side, side)
    field, step = 1, 1  # receptive field, and image pixels between neighboring values

    def add(name: str, kind: str, output: tuple[int, ...] | None = None, **settings: Any) -> None:
        nonlocal shape, field, step
        layer = Layer(name, kind, shape, output or shape, **settings)
        shape = layer.output
        if len(shape) == 1 or kind == "adaptiveavgpool":
            field = side
        elif kind == "rnorm":
            field += (spec.spatial_norm.size - 1) * step
        elif layer.kernel:
            field += (layer.kernel - 1) * step
            step *= layer.stride
        stack.append(replace(layer, receptive_field=field))

    for n, conv in enumerate(spec.convs, 1):
        channels, size = spec.conv_channels(conv), shape[1]
        _check_divisible(conv.groups, shape[0], f"the input of conv{n}")
        _check_divisible(conv.groups, channels, f"the output of conv{n}")
        span = size + 2 * conv.padding - conv.kernel
        if span < 0:
            raise _LayerTooSmall(f"conv{n}", size, conv.kernel - 2 * conv.padding)
        if conv.ceil and (zeros := -span % conv.stride):
            add(f"pad{n}", "pad", (shape[0], size + zeros, size + zeros), padding=zeros)
            span += zeros
        out = span // conv.stride + 1
        add(
            f"conv{n}", "conv", (channels, out, out), kernel=conv.kernel, stride=conv.stride, padding=conv.padding,
            groups=conv.groups, bias=spec.norm != "batch",  # batch norm would subtract it, and has its own
        )  # fmt: skip
        if spec.norm == "batch":
            add(f"norm{n}", "batchnorm")
        for stage in conv.stages:
            if stage == "act":
                add(f"{spec.activation}{n}", spec.activation)
            elif stage == "pool":
                kernel, stride, ceil = conv.pool_kernel, conv.pool_stride, conv.pool_ceil
                # In ceil mode the last window may extend beyond the edge and covers only existing pixels.
                need = max(1, kernel - stride + 1) if ceil else kernel
                if shape[1] < need:
                    raise _LayerTooSmall(f"pool{n}", shape[1], need)
                out = _pooled_size(shape[1], kernel, stride, ceil)
                add(f"pool{n}", f"{conv.pool}pool", (shape[0], out, out), kernel=kernel, stride=stride, ceil=ceil)
            elif spec.norm == "lrn" and stage == "lrn":
                _check_divisible(spec.lrn.towers, shape[0], f"the input of lrn{n}")
                add(f"lrn{n}", "lrn", norm=spec.lrn)
            elif spec.norm == "lrn":
                add(f"rnorm{n}", "rnorm", norm=spec.spatial_norm)

    if spec.adaptive_pool is not None and shape[1] != spec.adaptive_pool:
        add("avgpool", "adaptiveavgpool", (shape[0], spec.adaptive_pool, spec.adaptive_pool))
    add("flatten", "flatten", (math.prod(shape),))
    n = len(spec.convs)
    for width in spec.hidden_widths():
        n += 1
        if spec.dropout and spec.dropout_position == "before":
            add(f"drop{n}", "dropout", p=spec.dropout)
        add(f"fc{n}", "linear", (width,), bias=True)
        add(f"{spec.activation}{n}", spec.activation)
        if spec.dropout and spec.dropout_position == "after":
            add(f"drop{n}", "dropout", p=spec.dropout)
    add(f"fc{n + 1}", "linear", (spec.num_classes,), bias=True)
    return stack


def _pooled_size(size: int, kernel: int, stride: int, ceil: bool) -> int:
    """Return the side after unpadded pooling by torch's rule: no window starts beyond the last pixel."""
    if not ceil:
        return (size - kernel) // stride + 1
    out = -(-(size - kernel) // stride) + 1
    return out - 1 if (out - 1) * stride >= size else out


def _scale_channels(value: int, width: float, unit: int) -> int:
    return value if width == 1 else max(unit, int(value * width / unit + 0.5) * unit)


def _check_divisible(groups: int, channels: int, where: str) -> None:
    if channels % groups:
        raise UserError(
            f"{where[0].upper()}{where[1:]} has {channels} channels, which are not divisible into {groups} groups; use "
            f"a multiple of {groups}."
        )


# ── modifications ─────────────────────────────────────────────────────────────────────────────────

# For the paper's comparisons. Each changes one thing, so that two trainings differ in nothing else. recipe.json lists
# them by name (`"spec_edits": ["average-pool"]`), and model.json holds the resulting spec.


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


def cifar_lrn(spec: AlexNetSpec) -> AlexNetSpec:
    """Use the LRN of the authors' network for CIFAR-10, whose inputs are levels of 0 to 255 (cuda-convnet2,
    layers-cifar10-11pct.cfg and its parameter file: size 9, scale .001, power .75; k is the code's default of 1)."""
    return replace(spec, lrn=replace(spec.lrn, size=9, alpha=1e-3, beta=0.75, k=1.0))


def half_hidden(spec: AlexNetSpec) -> AlexNetSpec:
    """Halve the hidden layers, which hold most of the weights and on small images have few inputs."""
    return replace(spec, hidden=tuple(units // 2 for units in spec.hidden))


def constant_lrn(spec: AlexNetSpec) -> AlexNetSpec:
    """Multiply by the constant k^-beta where LRN stands: LRN on inputs too small for its alpha."""
    return replace(spec, lrn=replace(spec.lrn, alpha=0.0))


def four_layers(spec: AlexNetSpec) -> AlexNetSpec:
    """Use four layers for 32×32 images, as in figure 1 of the paper, which does not print them: the three convolutions
    and the linear layer of the 2012 code's layers-18pct.cfg, without its normalization."""
    conv = ConvSpec(32, 5, padding=2, stages=("act", "pool"), pool_ceil=True)
    convs = (conv, replace(conv, pool="avg"), replace(conv, out_channels=64, pool="avg"))
    return replace(spec, convs=convs, hidden=())


def _change_pooling(spec: AlexNetSpec, change: Callable[[ConvSpec], ConvSpec]) -> AlexNetSpec:
    return replace(spec, convs=tuple(change(c) if "pool" in c.stages else c for c in spec.convs))


MODIFICATIONS: dict[str, Callable[[AlexNetSpec], AlexNetSpec]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        average_pool, plain_pool, half, silent_towers, without_conv4, cifar_lrn, half_hidden, constant_lrn,
        four_layers,
    )
}  # fmt: skip


def apply_modifications(spec: AlexNetSpec, edits: tuple[str, ...]) -> AlexNetSpec:
    """Apply the named modifications in order. Raises `UserError` for an unknown or inapplicable one."""
    for name in edits:
        if name not in MODIFICATIONS:
            raise unknown_name("modification", name, MODIFICATIONS)
        spec = MODIFICATIONS[name](spec)
    return replace(spec, departures=(*spec.departures, *(f"Modified: {name}." for name in edits)))
