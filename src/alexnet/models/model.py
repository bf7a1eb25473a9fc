"""Networks built from their specifications: an AlexNet is a plain `nn.Sequential` whose modules have layer names.

`AlexNet` builds one module per layer of `spec.layers`, so `model.conv1`, `model.fc7` and the keys of the state dict
(`conv1.weight` …) match the table of `alexnet arch`. Modules are built, and dropout draws, in torchvision's order: with
the same seed both networks get the same random numbers, bit for bit.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.errors import unknown_name
from alexnet.models.architectures import TORCHVISION, architecture
from alexnet.models.initial_weights import INITS
from alexnet.models.layers import Dropout, LocalResponseNorm, SpatialResponseNorm, check_images, describe_network
from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.models.torchvision_models import KIND, TorchvisionNetwork, TorchvisionSpec, torchvision_spec


class AlexNet(nn.Sequential):
    """The network of `spec`: preprocessed floating-point images, N×C×H×W, to logits, N×num_classes.

    A slice (`model[:4]`) is an ordinary `nn.Sequential` that shares the modules. ReLUs work in place: a hook that keeps
    the output of a convolution must clone it. Raises the errors of `spec.layers`, and `UserError` in `forward` for
    images of another shape than the spec's.
    """

    def __init__(self, spec: AlexNetSpec) -> None:
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        previous = ""
        for layer in layers(spec):
            modules[layer.name] = _build_module(layer, previous)
            previous = layer.kind
        super().__init__(modules)
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        # During tracing sizes are tensors, and TorchScript would record the comparison as a constant, with a warning.
        if not torch.jit.is_tracing():
            check_images(x, f"conv1 of '{self.spec.name}'", self.spec.in_channels, self.spec.image_size)
        return super().forward(x)

    def extra_repr(self) -> str:
        return describe_network(self, self.spec)

    def __getitem__(self, index: Any) -> Any:
        # nn.Sequential builds a slice by calling its own class with modules; here that class takes a spec.
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


Spec = AlexNetSpec | TorchvisionSpec
Network = AlexNet | TorchvisionNetwork


def create_model(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    norm: str | None = None,
    activation: str | None = None,
    init: str | None = None,
    dropout: float | None = None,
    width: float | None = None,
) -> Network:
    """Return the architecture called `name` with fresh weights, an `nn.Module` in float32.

    It takes a batch of preprocessed images, floating-point (N, in_channels, H, W), of `image_size` pixels a side, and
    returns logits (N, num_classes). Its layers are named `conv1` … `conv5`, `fc6` … `fc8`. A setting that is None is
    the architecture's own. `norm` is "lrn", "batch" or "none", `activation` "relu", "tanh" or "sigmoid", `init` a rule
    of `models.initial_weights`, `dropout` a probability in [0, 1), and `width` scales channels and hidden units.
    `torchvision/NAME` is any classifier of torchvision and accepts only the first three settings.

    Raises `UserError` on an unknown name, an invalid number, or images too small for the layers.

    >>> model = alexnet.create_model("paper", num_classes=10, width=0.25)
    >>> model(torch.zeros(2, 3, 224, 224)).shape
    torch.Size([2, 10])
    """
    settings: dict[str, Any] = {
        "num_classes": num_classes, "in_channels": in_channels, "image_size": image_size, "norm": norm,
        "activation": activation, "init": init, "dropout": dropout, "width": width,
    }  # fmt: skip
    return build(specify(name, **settings))


def specify(name: str, **settings: Any) -> Spec:
    """Return `architecture(name, **settings)`, or `torchvision_spec(name, **settings)` for a torchvision name."""
    if name.startswith(TORCHVISION):
        return torchvision_spec(name, **settings)
    return architecture(name, **settings)


def spec_from_dict(d: Mapping[str, Any]) -> Spec:
    """Invert `to_dict` of either kind of specification. Raises `UserError`."""
    is_torchvision = isinstance(d, Mapping) and d.get("kind") == KIND
    return TorchvisionSpec.from_dict(d) if is_torchvision else AlexNetSpec.from_dict(d)


def build(spec: Spec) -> Network:
    """Build the network of `spec` (float32), with initial weights from torch's global generator: by its `init` rule, or
    torchvision's own."""
    if isinstance(spec, TorchvisionSpec):
        return TorchvisionNetwork(spec)
    model = AlexNet(spec)
    # Modules already have torch's default weights; drawing them again would differ from torchvision's network.
    return model if spec.init == "torch" else initialize(model, spec.init)


@torch.no_grad()
def initialize(model: AlexNet, init: str) -> AlexNet:
    """Redraw all weights and biases of `model` in place, layer by layer, by the rule `init` in `INITS`."""
    if init not in INITS:
        raise unknown_name("init", init, INITS)
    rule = INITS[init]
    last = list(model.named_children())[-1][0]
    for name, module in model.named_children():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # the identity
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        module.reset_parameters()  # the rule may leave biases at torch's default
        hidden = isinstance(module, nn.Linear) and name != last
        kind = rule.conv if isinstance(module, nn.Conv2d) else rule.linear
        if kind == "normal":
            fan_in = module.weight[0].numel()
            gain = math.sqrt(rule.fan_ins.get(name, fan_in) / fan_in)
            nn.init.normal_(module.weight, 0.0, gain * rule.std_of(name, hidden))
        elif kind == "kaiming":
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif kind == "xavier":
            nn.init.xavier_uniform_(module.weight)
        if module.bias is not None and (bias := rule.bias_of(name, hidden)) is not None:
            nn.init.constant_(module.bias, bias)
    return model


def _build_module(layer: Layer, previous: str) -> nn.Module:
    """Build the module of `layer`; `previous` is the kind of the preceding layer."""
    match layer.kind:
        case "conv":
            return nn.Conv2d(
                layer.input[0], layer.output[0], layer.kernel, stride=layer.stride, padding=layer.padding,
                groups=layer.groups, bias=layer.bias,
            )  # fmt: skip
        case "linear":
            return nn.Linear(layer.input[0], layer.output[0], bias=layer.bias)
        case "relu":
            # In place only after layers whose backward pass does not need their output.
            return nn.ReLU(inplace=previous in ("conv", "linear", "batchnorm", "maxpool"))
        case "tanh":
            return nn.Tanh()
        case "sigmoid":
            return nn.Sigmoid()
        case "maxpool":
            return nn.MaxPool2d(layer.kernel, layer.stride, ceil_mode=layer.ceil)
        case "avgpool":
            return nn.AvgPool2d(layer.kernel, layer.stride, ceil_mode=layer.ceil)
        case "adaptiveavgpool":
            return nn.AdaptiveAvgPool2d(layer.output[1:])
        case "lrn" if layer.norm is not None:
            c = layer.norm
            return LocalResponseNorm(c.size, c.alpha, c.beta, c.k, c.towers)
        case "rnorm" if layer.norm is not None:
            c = layer.norm
            return SpatialResponseNorm(c.size, c.alpha, c.beta, c.k)
        case "batchnorm":
            return nn.BatchNorm2d(layer.output[0])
        case "pad":
            return nn.ZeroPad2d((0, layer.padding, 0, layer.padding))  # left, right, top, bottom
        case "flatten":
            return nn.Flatten()
        case "dropout":
            return Dropout(layer.p, layer.output[0])
    raise AssertionError(f"no module for layer kind {layer.kind!r}")
