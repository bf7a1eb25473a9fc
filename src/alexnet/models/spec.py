"""What an AlexNet is, as data, and the one place that turns that data into a list of layers.

All variants are values of one dataclass, `AlexNetSpec`; none is a class of its own. `layers` expands a spec into its
ordered layers with every shape worked out. `model.py` makes a module of each layer and `summary.py` a row of a table,
so that what is built and what is printed cannot differ. Sizes are checked here, before any memory is taken.

Shapes leave out the batch: (C, H, W) for maps, (F,) for vectors. Images are square. No torch in this module.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from alexnet.errors import UserError, unknown_name

ACTIVATIONS = ("relu", "tanh", "sigmoid")
NORMS = ("lrn", "batch", "none")
STAGES = ("act", "lrn", "rnorm", "pool")
POOLS = ("max", "avg")
DROPOUT_POSITIONS = ("after", "before")


def check_at_least(least: int, name: str, value: object) -> None:
    """Raise `UserError` unless `value` is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name} is {value!r} and must be a whole number, at least {least}.")


def _one_of(kind: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise unknown_name(kind, str(value), known)


@dataclass(frozen=True)
class LRNSpec:
    """Constants of b = a / (k + alpha/n · Σ a²)^beta, where the sum runs over a window of n values.

    For LRN the window is `size` channels, n = size, and it stays inside one of `towers` equal groups of channels; for
    the spatial norm it is size×size pixels of one channel and n = size². Dividing by n is torch's meaning of alpha,
    and the 2012 code's; the paper's formula (section 3.3) prints alpha without it.
    """

    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0
    towers: int = 1

    def __post_init__(self) -> None:
        check_at_least(1, "size", self.size)
        check_at_least(1, "towers", self.towers)


# The one spatial response norm there is, after conv2's LRN: `rnorm2` of layers-145.cfg and its parameters file.
SPATIAL_NORM = LRNSpec(size=5, alpha=1e-3, beta=0.75, k=1.0)


@dataclass(frozen=True)
class ConvSpec:
    """One convolution and what follows it."""

    out_channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    ceil: bool = False
    """The 2012 code's size, 1 + ceil((in - kernel) / stride): the missing pixels are zeros at the right and bottom."""
    stages: tuple[str, ...] = ("act",)
    """What follows, in order: of "act", "lrn", "rnorm" (spatial), "pool"."""
    pool: str = "max"
    pool_kernel: int = 3
    pool_stride: int = 2
    pool_ceil: bool = False

    def __post_init__(self) -> None:
        for name in ("out_channels", "kernel", "stride", "groups", "pool_kernel", "pool_stride"):
            check_at_least(1, name, getattr(self, name))
        check_at_least(0, "padding", self.padding)
        for stage in self.stages:
            _one_of("stage", stage, STAGES)
        if len(set(self.stages)) != len(self.stages):
            raise UserError(f"The stages {self.stages} of a convolution name one twice; name each once.")
        _one_of("kind of pooling", self.pool, POOLS)


@dataclass(frozen=True)
class AlexNetSpec:
    """A network from image to logits. `architectures.py` holds the known ones."""

    name: str
    title: str
    source: str
    """Where the numbers come from."""
    convs: tuple[ConvSpec, ...]
    hidden: tuple[int, ...] = (4096, 4096)
    """Widths of the fully connected layers before the last."""
    dropout: float = 0.5
    """Probability of dropping; 0 leaves dropout out."""
    dropout_position: str = "after"
    """Of each hidden fully connected layer: after its activation (2012) or before its matrix (torchvision)."""
    num_classes: int = 1000
    in_channels: int = 3
    image_size: int = 224
    activation: str = "relu"
    norm: str = "none"
    """"lrn" honours the stages "lrn" and "rnorm", "batch" puts batch norm after each convolution instead."""
    lrn: LRNSpec = LRNSpec()
    init: str = "paper"
    """A name in `architectures.INITS`."""
    width: float = 1.0
    """Scales channels and hidden widths; see `conv_channels`."""
    adaptive_pool: int | None = None
    """Side that the last maps are averaged to where they have another, so that fc6 fits at any image size."""
    departures: tuple[str, ...] = ()
    """Where this network is not the one printed in the paper."""
    repair: str = ""
    """For a tutorial's network that could not run as printed: what was wrong and what was done."""

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
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("norm", self.norm, NORMS)
        _one_of("dropout position", self.dropout_position, DROPOUT_POSITIONS)

    def conv_channels(self, conv: ConvSpec) -> int:
        """Output channels of `conv` at this width: the nearest multiple of 8·groups, exact at width 1."""
        return _scaled(conv.out_channels, self.width, 8 * conv.groups)

    def hidden_widths(self) -> tuple[int, ...]:
        """Widths of the hidden fully connected layers at this width: nearest multiples of 8, exact at width 1."""
        return tuple(_scaled(hidden, self.width, 8) for hidden in self.hidden)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings, lists and dicts, ready for JSON."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> AlexNetSpec:
        """The inverse of `to_dict`. Raises `UserError` on an unknown or missing key, a wrong type or a bad value."""
        return decode(cls, d, "the network's specification")


@dataclass(frozen=True)
class Layer:
    """One step of the network with its shapes.

    `kind` is conv, relu, tanh, sigmoid, lrn, rnorm, batchnorm, maxpool, avgpool, adaptiveavgpool, pad (zeros at the
    right and bottom, `padding` of them), flatten, linear or dropout.
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

    @property
    def parameters(self) -> int:
        """How many numbers are learned here."""
        if self.kind == "batchnorm":
            return 2 * self.output[0]
        if self.kind not in ("conv", "linear"):
            return 0
        weights = self.input[0] // self.groups * self.output[0] * (self.kernel**2 if self.kind == "conv" else 1)
        return weights + (self.output[0] if self.bias else 0)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image; only convolutions and matrices count, and biases are free."""
        if self.kind == "conv":
            return math.prod(self.output) * self.input[0] // self.groups * self.kernel**2
        return self.input[0] * self.output[0] if self.kind == "linear" else 0


def layers(spec: AlexNetSpec) -> list[Layer]:
    """The ordered layers of `spec`, named conv1, relu1, lrn1, pool1 … flatten, fc6, relu6, drop6 … fc8.

    Fully connected layers go on counting after the convolutions. Raises `UserError` if the image is too small for a
    layer, naming the layer, the size there and an architecture that fits, or if channels do not divide into groups.
    """
    try:
        return _expand(spec, spec.image_size)
    except _TooSmallError as small:
        side, least = spec.image_size, minimal_image_size(spec)
        # Here, because the table of architectures imports this module.
        from alexnet.models.architectures import nearest_that_fits

        other = nearest_that_fits(side)
        advice = f" or an architecture made for such sizes, as '{other}' is" if other else ""
        raise UserError(
            f"Images of {side}×{side} are too small for '{spec.name}': {small.layer} would get "
            f"{small.size}×{small.size} and needs {small.need}×{small.need}; use at least {least}×{least}{advice}."
        ) from None


def minimal_image_size(spec: AlexNetSpec) -> int:
    """The smallest side of an image, in pixels, that passes all layers of `spec`."""
    side = 1
    while True:
        try:
            _expand(spec, side)
        except _TooSmallError:
            side += 1
        else:
            return side


class _TooSmallError(Exception):
    def __init__(self, layer: str, size: int, need: int) -> None:
        super().__init__(layer)
        self.layer, self.size, self.need = layer, size, need


def _expand(spec: AlexNetSpec, side: int) -> list[Layer]:
    found: list[Layer] = []
    shape: tuple[int, ...] = (spec.in_channels, side, side)

    def add(name: str, kind: str, output: tuple[int, ...] | None = None, **settings: Any) -> None:
        nonlocal shape
        found.append(Layer(name, kind, shape, output or shape, **settings))
        shape = found[-1].output

    for n, conv in enumerate(spec.convs, 1):
        channels, size = spec.conv_channels(conv), shape[1]
        _divides(conv.groups, shape[0], f"the input of conv{n}")
        _divides(conv.groups, channels, f"the output of conv{n}")
        reach = size + 2 * conv.padding - conv.kernel
        if reach < 0:
            raise _TooSmallError(f"conv{n}", size, conv.kernel - 2 * conv.padding)
        if conv.ceil and (zeros := -reach % conv.stride):
            add(f"pad{n}", "pad", (shape[0], size + zeros, size + zeros), padding=zeros)
            reach += zeros
        out = reach // conv.stride + 1
        add(
            f"conv{n}",
            "conv",
            (channels, out, out),
            kernel=conv.kernel,
            stride=conv.stride,
            padding=conv.padding,
            groups=conv.groups,
            bias=spec.norm != "batch",  # batch norm subtracts any bias again, and adds its own
        )
        if spec.norm == "batch":
            add(f"norm{n}", "batchnorm")
        for stage in conv.stages:
            if stage == "act":
                add(f"{spec.activation}{n}", spec.activation)
            elif stage == "pool":
                kernel, stride, ceil = conv.pool_kernel, conv.pool_stride, conv.pool_ceil
                # In ceil mode the last window may hang over the edge, where it sees only the pixels that exist.
                need = max(1, kernel - stride + 1) if ceil else kernel
                if shape[1] < need:
                    raise _TooSmallError(f"pool{n}", shape[1], need)
                out = _pooled(shape[1], kernel, stride, ceil)
                add(f"pool{n}", f"{conv.pool}pool", (shape[0], out, out), kernel=kernel, stride=stride, ceil=ceil)
            elif spec.norm == "lrn" and stage == "lrn":
                _divides(spec.lrn.towers, shape[0], f"the input of lrn{n}")
                add(f"lrn{n}", "lrn", norm=spec.lrn)
            elif spec.norm == "lrn":
                add(f"rnorm{n}", "rnorm", norm=SPATIAL_NORM)

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
    return found


def _pooled(size: int, kernel: int, stride: int, ceil: bool) -> int:
    """Side after pooling without padding, torch's rule: a window that starts beyond the last pixel is left out."""
    if not ceil:
        return (size - kernel) // stride + 1
    out = -(-(size - kernel) // stride) + 1
    return out - 1 if (out - 1) * stride >= size else out


def _scaled(value: int, width: float, unit: int) -> int:
    return value if width == 1 else max(unit, int(value * width / unit + 0.5) * unit)


def _divides(groups: int, channels: int, where: str) -> None:
    if channels % groups:
        raise UserError(
            f"{where[0].upper()}{where[1:]} has {channels} channels, which do not divide into {groups} equal groups; "
            f"use a multiple of {groups}."
        )


T = TypeVar("T")


def decode(kind: type[T], value: object, where: str) -> T:
    """`value` as the dataclass `kind`, its fields checked against their annotations."""
    if not isinstance(value, Mapping):
        raise UserError(f"In {where}, {_shown(value)} stands where a JSON object belongs.")
    hints = get_type_hints(kind)
    if unknown := [key for key in value if key not in hints]:
        raise unknown_name(f"key in {where}", str(unknown[0]), hints)
    assert is_dataclass(kind)
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}
    if missing := sorted(required - set(value)):
        raise UserError(f"In {where}, '{missing[0]}' is missing; add it, or save the network again.")
    return kind(**{key: _typed(hints[key], entry, f"{where}, '{key}'") for key, entry in value.items()})


def _typed(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) in (types.UnionType, Union):  # only "X | None" occurs
        return None if value is None else _typed(get_args(hint)[0], value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"In {where}, {_shown(value)} stands where a list belongs.")
        return tuple(_typed(get_args(hint)[0], entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if isinstance(hint, type) and is_dataclass(hint):
        return decode(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not hint:  # not isinstance: True is no number here
        raise UserError(f"In {where}, {_shown(value)} stands where a value of type {hint.__name__} belongs.")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
