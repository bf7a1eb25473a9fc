"""Per-layer counts of a network: shapes, parameters, multiply-accumulates, memory and receptive fields.

Computed from the specification alone, without torch or weights.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.spec import AlexNetSpec, Layer, layers


@dataclass(frozen=True)
class Row:
    """A layer. Shapes are (C, H, W) or (F,); numbers are per image."""

    name: str
    type: str
    output: tuple[int, ...]
    detail: str
    """Kernel, stride, padding, groups and constants, as text."""
    kernel: int
    stride: int
    padding: int
    groups: int
    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and linear layers: half of torch's FlopCounterMode count."""
    activation_bytes: int
    """Size of the output in float32; 0 for flatten, which does not copy."""
    receptive_field: int
    """Side, in pixels, of the image region (including zero padding) that an output value depends on; the full image for
    vectors. LRN windows run over channels and do not enlarge it."""
    parameters_share: float
    macs_share: float


@dataclass(frozen=True)
class Summary:
    """Rows and totals of a network, per image."""

    spec: AlexNetSpec
    rows: tuple[Row, ...]
    parameters: int
    macs: int
    activation_bytes: int
    """Sum over the layers: roughly what training saves for the backward pass without in-place operations."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet arch NAME`: totals, departures, repair and `layers`."""
        return {
            **_summary_fields(self.spec, self.parameters, self.macs),
            "activation_bytes": self.activation_bytes,
            "departures": list(self.spec.departures),
            "repair": self.spec.repair,
            "layers": [{**asdict(row), "output": list(row.output)} for row in self.rows],
        }


def summarize(spec: AlexNetSpec) -> Summary:
    """Count the network of `spec`. Raises `ImageTooSmall` if its images are too small."""
    stack = layers(spec)
    parameters, macs = sum(layer.parameters for layer in stack), sum(layer.macs for layer in stack)
    rows = []
    field, step = 1, 1  # receptive field, and image pixels between neighboring values
    for layer in stack:
        if len(layer.output) == 1 or layer.kind == "adaptiveavgpool":
            field = spec.image_size
        elif layer.kind == "rnorm" and layer.norm is not None:
            field += (layer.norm.size - 1) * step
        elif layer.kernel:
            field += (layer.kernel - 1) * step
            step *= layer.stride
        rows.append(
            Row(
                name=layer.name,
                type=layer.kind,
                output=layer.output,
                detail=_describe_layer(layer),
                kernel=layer.kernel,
                stride=layer.stride,
                padding=layer.padding,
                groups=layer.groups,
                parameters=layer.parameters,
                macs=layer.macs,
                activation_bytes=0 if layer.kind == "flatten" else 4 * math.prod(layer.output),
                receptive_field=field,
                parameters_share=layer.parameters / parameters,
                macs_share=layer.macs / macs,
            )
        )
    return Summary(spec, tuple(rows), parameters, macs, sum(row.activation_bytes for row in rows))


def table() -> list[dict[str, Any]]:
    """Return one entry per architecture, as printed by `alexnet arch --json`."""
    return [_summary_fields(spec, s.parameters, s.macs) for spec in ARCHITECTURES.values() for s in [summarize(spec)]]


def _summary_fields(spec: AlexNetSpec, parameters: int, macs: int) -> dict[str, Any]:
    return {
        "name": spec.name,
        "title": spec.title,
        "source": spec.source,
        "parameters": parameters,
        "macs": macs,
        "image_size": spec.image_size,
        "in_channels": spec.in_channels,
        "num_classes": spec.num_classes,
    }


def _describe_layer(layer: Layer) -> str:
    """Return what the shapes do not show: "11×11, stride 4", "5×5, padding 2, groups 2", "size 5, alpha 0.0005 …"."""
    if layer.kind == "pad":
        return f"{layer.padding} zeros at the right and bottom"
    if layer.kind == "dropout":
        return f"p {layer.p:g}"
    if layer.norm is not None:
        c = layer.norm
        towers = f", {c.towers} towers" if c.towers > 1 else ""
        return f"size {c.size}, alpha {c.alpha:g}, beta {c.beta:g}, k {c.k:g}{towers}"
    if not layer.kernel:
        return ""
    parts = [f"{layer.kernel}×{layer.kernel}"]
    parts += [f"stride {layer.stride}"] if layer.stride > 1 else []
    parts += [f"padding {layer.padding}"] if layer.padding else []
    parts += [f"groups {layer.groups}"] if layer.groups > 1 else []
    parts += ["rounded up"] if layer.ceil else []
    return ", ".join(parts)
