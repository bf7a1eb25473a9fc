"""Torchvision's classifiers for comparison, called `torchvision/NAME`.

Torchvision builds the network and draws its initial weights (nothing is downloaded). This module
adds what training and checkpoints need: a specification for JSON, an input check, and counts of
parameters and multiply-accumulates, measured on torch's meta device, where tensors have shapes but
no values.

The auxiliary classifiers of googlenet and inception_v3 are omitted, and dropout cannot be changed.
Torchvision takes seconds to import, so it is imported only where needed; an AlexNet does not need
it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alexnet.errors import UserError, unknown_name
from alexnet.files import convert
from alexnet.messages.translator import Translator
from alexnet.models.architectures import TORCHVISION
from alexnet.models.layers import check_images, describe_network
from alexnet.models.spec import check_at_least
from alexnet.models.summary import format_count

KIND = "torchvision"  # marks the specification in model.json


@dataclass(frozen=True)
class TorchvisionSpec:
    """A torchvision classifier with its input and output shapes.

    Raises `UserError` for names that torchvision does not have or that are not image classifiers.
    """

    name: str
    """Including the prefix: torchvision/resnet18."""
    num_classes: int = 1000
    in_channels: int = 3
    """3, or 1: gray images are repeated to three channels."""
    image_size: int = 224

    def __post_init__(self) -> None:
        check_torchvision_name(self.name)
        check_at_least(1, "num_classes", self.num_classes)
        check_at_least(1, "image_size", self.image_size)
        if self.in_channels not in (1, 3):
            raise UserError(
                f"'{self.name}' takes 3 channels, or 1 that is repeated, not {self.in_channels}; use 3 or 1."
            )

    @property
    def builder(self) -> str:
        """Torchvision's name, without the prefix."""
        return self.name.removeprefix(TORCHVISION)

    @property
    def source(self) -> str:
        return f"torchvision.models.{self.builder}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON, marked by "kind"."""
        return {"kind": KIND, **asdict(self)}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> TorchvisionSpec:
        """Invert `to_dict`. Raises `UserError` on an unknown or missing key, a wrong type or a bad value."""
        return convert({key: value for key, value in d.items() if key != "kind"}, cls, "the network's specification")


class TorchvisionNetwork(nn.Module):
    """The network of `spec`: preprocessed floating-point images, N×C×H×W, to logits, N×num_classes.

    `network` is torchvision's module. `forward` raises `UserError` for images of another shape than the spec's.
    """

    def __init__(self, spec: TorchvisionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.network = _build_torchvision(spec)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_tracing():  # see AlexNet.forward
            check_images(x, f"'{self.spec.name}'", self.spec.in_channels, self.spec.image_size)
        if self.spec.in_channels == 1:
            x = x.expand(-1, 3, -1, -1)
        logits: Tensor = self.network(x)
        return logits

    def extra_repr(self) -> str:
        return describe_network(self, self.spec)


def torchvision_spec(
    name: str,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    **settings: float | str | None,
) -> TorchvisionSpec:
    """Return the classifier called `name` ("torchvision/resnet18") for images of `image_size` pixels (default 224).

    `settings` are those of AlexNets: any value but None, or a width of 1, is refused. Raises
    `UserError`, also if a trial run shows that the network cannot take images of that size.
    """
    given = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    spec = TorchvisionSpec(name, **{key: value for key, value in given.items() if value is not None})
    unsupported = [key for key, value in settings.items() if value is not None and (key, value) != ("width", 1)]
    if unsupported:
        raise UserError(f"'{name}' is built by torchvision, where {', '.join(unsupported)} cannot be set; omit it.")
    summarize_torchvision(spec)
    return spec


def check_torchvision_name(name: str) -> None:
    """Raise `UserError` unless torchvision has an image classifier of this name, such as torchvision/resnet18."""
    from torchvision import models

    builder = name.removeprefix(TORCHVISION)
    classifiers = models.list_models(module=models)
    if name.startswith(TORCHVISION) and builder in classifiers:
        return
    if builder in models.list_models():
        kind = models.get_model_builder(builder).__module__.split(".")[2]
        raise UserError(
            f"'{name}' is in torchvision.models.{kind} and not an image classifier; choose one, such as "
            f"'{TORCHVISION}resnet18'."
        )
    raise unknown_name("torchvision classifier", builder, classifiers)


def _build_torchvision(spec: TorchvisionSpec) -> nn.Module:
    """Build torchvision's module, with its initial weights from torch's global generator."""
    from torchvision import models

    settings: dict[str, Any] = {}
    if spec.builder in ("googlenet", "inception_v3"):
        settings = {"aux_logits": False, "init_weights": True}
    elif spec.builder.startswith("vit_"):
        settings = {"image_size": spec.image_size}
    elif spec.builder.startswith("maxvit"):
        settings = {"input_size": (spec.image_size, spec.image_size)}
    network: nn.Module = models.get_model(spec.builder, weights=None, num_classes=spec.num_classes, **settings)
    return network


def to_current_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a torchvision network under the names of its module, without auxiliary classifiers.

    The published files of densenets have names of before torch 0.4, `norm.1` instead of `norm1`.
    """
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): t for name, t in state.items()}
    return {name: t for name, t in renamed.items() if not name.startswith(("aux1.", "aux2.", "AuxLogits."))}


# ── counting ──────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class TorchvisionPart:
    """A module of the network; numbers are per image."""

    name: str
    type: str
    output: tuple[int, ...]
    """Shape without the batch dimension."""
    parameters: int
    macs: int


@dataclass(frozen=True)
class TorchvisionSummary:
    """Parts and totals of a network, per image. Parameters outside the parts (class tokens) are only in the totals."""

    spec: TorchvisionSpec
    parts: tuple[TorchvisionPart, ...] = field(repr=False)
    parameters: int
    macs: int
    """Multiply-accumulates of convolutions, linear layers and attention: half of torch's FlopCounterMode count."""
    lang: str = field(default="en", repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON document with the keys of `Summary.to_dict`; receptive fields are not computed."""
        return {
            **asdict(self.spec),
            "title": self.title().partition(": ")[2],
            "source": self.spec.source,
            "parameters": self.parameters,
            "macs": self.macs,
            "layers": [{**asdict(part), "output": list(part.output), "receptive_field": None} for part in self.parts],
        }

    @property
    def head(self) -> list[str]:
        return [
            Translator(self.lang)(f"arch_{column}") for column in ("module", "output", "parameters", "macs", "type")
        ]

    def cells(self) -> list[tuple[str, ...]]:
        """Return a row of texts for each part, with the columns of `head`."""
        return [
            (p.name, "×".join(map(str, p.output)), format_count(p.parameters, self.parameters),
             format_count(p.macs, self.macs), p.type)
            for p in self.parts
        ]  # fmt: skip

    def title(self) -> str:
        return Translator(self.lang)("arch_compared", name=self.spec.name, source=self.spec.source)

    def notes(self) -> list[str]:
        """Return the totals, as a line."""
        return [Translator(self.lang)("arch_counts", parameters=self.parameters, macs=self.macs)]

    def __repr__(self) -> str:
        return "\n".join([self.title(), *self.notes()])

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_table

        return render_table(self.title(), self.cells(), self.head, note="\n".join(self.notes()))


@lru_cache(maxsize=32)
def summarize_torchvision(spec: TorchvisionSpec) -> TorchvisionSummary:
    """Count the network of `spec`. Raises `UserError` if it cannot be built for images of that size."""
    from torch.utils.flop_counter import FlopCounterMode

    shapes: dict[str, tuple[int, ...]] = {}
    try:
        network = build_on_meta(spec)
        parts = _list_parts(network)
        for name, part in parts.items():
            part.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        counter = FlopCounterMode(display=False)
        with counter:  # with gradients: without them attention uses a fused path that is not counted
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
            rows.append(TorchvisionPart(name, type(part).__name__, shapes[name], _count_parameters(part), macs))
    return TorchvisionSummary(spec, tuple(rows), _count_parameters(network), counter.get_total_flops() // 2)


class _EmptyOnMeta(TorchFunctionMode):
    """Allocate parameters on the meta device, but compute with other tensors as usual."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **{**(kwargs or {}), **({"device": "meta"} if func is torch.empty else {})})


def build_on_meta(spec: TorchvisionSpec) -> nn.Module:
    """Build torchvision's module without memory for its weights, and without drawing random numbers."""
    try:
        with torch.device("meta"):
            return _build_torchvision(spec).eval()
    except NotImplementedError:  # regnets compute their widths with tensors
        with _EmptyOnMeta():
            return _build_torchvision(spec).eval().to("meta")


def _list_parts(network: nn.Module) -> dict[str, nn.Module]:
    """Return the children of `network`, with plain containers replaced by their children."""
    parts = {}
    for name, child in network.named_children():
        inside = dict(child.named_children()) if type(child) in (nn.Sequential, nn.ModuleList) else {}
        parts.update({f"{name}.{number}": part for number, part in inside.items()} or {name: child})
    return parts


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
