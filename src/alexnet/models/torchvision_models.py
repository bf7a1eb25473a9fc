"""What is not AlexNet, for comparison: any classifier of torchvision, by the name `torchvision/NAME`.

Torchvision builds the network and draws its initial weights (nothing is downloaded); here it gets what training and
checkpoints need: a specification that goes into JSON, the check of its input, and a count of parameters and
multiply-accumulates, made by running it on torch's meta device, where tensors have shapes and no values.

Two settings are fixed: the auxiliary classifiers of googlenet and inception_v3 are left out, and dropout is each
network's own. Torchvision takes seconds to import and is imported where it is used: an AlexNet needs none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.errors import UserError, unknown_name
from alexnet.models.architectures import TORCHVISION
from alexnet.models.layers import check_images
from alexnet.models.spec import check_at_least, decode

KIND = "torchvision"  # what marks the specification in a model.json


@dataclass(frozen=True)
class TorchvisionSpec:
    """A classifier of torchvision, and the shape of what it reads and says.

    Raises `UserError` for names that torchvision does not have, or has for something else than classifying pictures.
    """

    name: str
    """With the prefix: torchvision/resnet18."""
    num_classes: int = 1000
    in_channels: int = 3
    """3, or 1: grey is then shown to the network as three equal channels."""
    image_size: int = 224

    def __post_init__(self) -> None:
        _check_name(self.name)
        check_at_least(1, "num_classes", self.num_classes)
        check_at_least(1, "image_size", self.image_size)
        if self.in_channels not in (1, 3):
            raise UserError(
                f"'{self.name}' reads 3 channels, or 1 repeated, not {self.in_channels}; give one of these."
            )

    @property
    def builder(self) -> str:
        """The name without the prefix, as torchvision has it."""
        return self.name.removeprefix(TORCHVISION)

    @property
    def source(self) -> str:
        return f"torchvision.models.{self.builder}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON, marked by "kind"."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> TorchvisionSpec:
        """The inverse of `to_dict`. Raises `UserError` on an unknown or missing key, a wrong type or a bad value."""
        return decode(cls, {key: value for key, value in d.items() if key != "kind"}, "the network's specification")


class TorchvisionNetwork(nn.Module):
    """The network of `spec`: N×C×H×W floating-point images, as preprocessed, to N×num_classes logits.

    Torchvision's own module is `network`. `forward` raises `UserError` for images of another shape than the spec's.
    """

    def __init__(self, spec: TorchvisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = _make(spec)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing():  # see AlexNet.forward
            check_images(x, f"'{self.spec.name}'", self.spec.in_channels, self.spec.image_size)
        if self.spec.in_channels == 1:
            x = x.expand(-1, 3, -1, -1)
        logits: Tensor = self.network(x)
        return logits


def torchvision_spec(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    **settings: float | str | None,
) -> TorchvisionSpec:
    """The classifier called `name` ("torchvision/resnet18") for images of `image_size` pixels, 224 unless given.

    `settings` are those that only AlexNets have: anything but None, or a width of 1, is refused. Raises `UserError`,
    also where the network cannot read images of that size, which is tried out.
    """
    given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    spec = TorchvisionSpec(name, **{key: value for key, value in given.items() if value is not None})
    meant = [key for key, value in settings.items() if value is not None and (key, value) != ("width", 1)]
    if meant:
        raise UserError(f"'{name}' is built by torchvision, where {', '.join(meant)} cannot be set; leave that out.")
    summarize_torchvision(spec)
    return spec


def _check_name(name: str) -> None:
    from torchvision import models

    builder = name.removeprefix(TORCHVISION)
    classifiers = models.list_models(module=models)
    if name.startswith(TORCHVISION) and builder in classifiers:
        return
    if builder in models.list_models():
        kind = models.get_model_builder(builder).__module__.split(".")[2]
        raise UserError(
            f"'{name}' is of torchvision.models.{kind} and no plain classifier of pictures; choose one, such as "
            f"'{TORCHVISION}resnet18'."
        )
    raise unknown_name("classifier of torchvision", builder, classifiers)


def _make(spec: TorchvisionSpec) -> nn.Module:
    """Torchvision's module, with its own initial weights from torch's global generator."""
    from torchvision import models

    more: dict[str, Any] = {}
    if spec.builder in ("googlenet", "inception_v3"):
        more = {"aux_logits": False, "init_weights": True}
    elif spec.builder.startswith("vit_"):
        more = {"image_size": spec.image_size}
    elif spec.builder.startswith("maxvit"):
        more = {"input_size": (spec.image_size, spec.image_size)}
    network: nn.Module = models.get_model(spec.builder, weights=None, num_classes=spec.num_classes, **more)
    return network


# ── counting ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TorchvisionPart:
    """One of the modules that the network is made of, in its own words; numbers are for one image."""

    name: str
    type: str
    output: tuple[int, ...]
    """Shape without the batch."""
    parameters: int
    macs: int


@dataclass(frozen=True)
class TorchvisionSummary:
    """A network's parts and totals, for one image. What belongs to no part (a class token) is in the totals alone."""

    spec: TorchvisionSpec
    parts: tuple[TorchvisionPart, ...]
    parameters: int
    macs: int
    """Multiply-accumulates of convolutions, matrices and attention: half of what torch's FlopCounterMode counts."""

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the keys of `summary.Summary.to_dict`; receptive fields are not worked out."""
        return {
            **asdict(self.spec),
            "title": f"{self.spec.source}, for comparison",
            "source": self.spec.source,
            "parameters": self.parameters,
            "macs": self.macs,
            "layers": [{**asdict(part), "output": list(part.output), "receptive_field": None} for part in self.parts],
        }


@lru_cache(maxsize=32)
def summarize_torchvision(spec: TorchvisionSpec) -> TorchvisionSummary:
    """Counts the network of `spec`. Raises `UserError` if it cannot be built for images of that size."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        network = _on_meta(spec)
        parts = _parts(network)
        for name, part in parts.items():
            part.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        counter = FlopCounterMode(display=False)
        with counter:  # gradients stay on: without them attention takes a short cut that is not counted
            network(torch.empty(1, 3, spec.image_size, spec.image_size, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".!")
        raise UserError(
            f"'{spec.name}' cannot read images of {spec.image_size}×{spec.image_size} ({reason}); choose another image "
            "size, such as 224."
        ) from error
    flops = counter.get_flop_counts()
    rows = []
    for name, part in parts.items():
        if name in shapes:
            macs = sum(flops.get(f"{type(network).__name__}.{name}", {}).values()) // 2
            rows.append(TorchvisionPart(name, type(part).__name__, shapes[name], _parameters(part), macs))
    return TorchvisionSummary(spec, tuple(rows), _parameters(network), counter.get_total_flops() // 2)


def _on_meta(spec: TorchvisionSpec) -> nn.Module:
    try:
        with torch.device("meta"):
            return _make(spec).eval()
    except NotImplementedError:  # regnets compute their widths with tensors
        with torch.random.fork_rng(devices=[]):  # counting must not change what is drawn next
            return _make(spec).eval().to("meta")


def _parts(network: nn.Module) -> dict[str, nn.Module]:
    """The children of `network`, and in place of a plain container those in it."""
    found = {}
    for name, child in network.named_children():
        inside = dict(child.named_children()) if type(child) in (nn.Sequential, nn.ModuleList) else {}
        found.update({f"{name}.{number}": part for number, part in inside.items()} or {name: child})
    return found


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
