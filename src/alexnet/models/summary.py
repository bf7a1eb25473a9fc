"""Counts of a network: shapes, parameters, multiply-accumulates, memory and receptive fields.

Computed from the specification alone, without torch or weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.spec import AlexNetSpec, Layer, layers


@dataclass(frozen=True)
class Summary:
    """Layers and totals of a network, per image."""

    spec: AlexNetSpec
    rows: tuple[Layer, ...]
    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and linear layers: half of torch's FlopCounterMode count."""
    activation_bytes: int
    """Sum over the layers: roughly what training saves for the backward pass without in-place operations."""

    def totals(self) -> dict[str, Any]:
        """Return an entry of `alexnet arch --json`."""
        spec = self.spec
        return {
            "name": spec.name, "title": spec.title, "source": spec.source, "parameters": self.parameters,
            "macs": self.macs, "image_size": spec.image_size, "in_channels": spec.in_channels,
            "num_classes": spec.num_classes,
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet arch NAME`: totals, departures, repair and `layers`."""
        rows = [
            {
                "name": row.name, "type": row.kind, "output": list(row.output), "detail": describe_layer(row),
                "kernel": row.kernel, "stride": row.stride, "padding": row.padding, "groups": row.groups,
                "parameters": row.parameters, "macs": row.macs, "activation_bytes": row.activation_bytes,
                "receptive_field": row.receptive_field, "parameters_share": row.parameters / self.parameters,
                "macs_share": row.macs / self.macs,
            }
            for row in self.rows
        ]  # fmt: skip
        return {
            **self.totals(), "activation_bytes": self.activation_bytes, "departures": list(self.spec.departures),
            "repair": self.spec.repair, "layers": rows,
        }  # fmt: skip


def summarize(spec: AlexNetSpec) -> Summary:
    """Count the network of `spec`. Raises `ImageTooSmall` if its images are too small."""
    rows = tuple(layers(spec))
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    return Summary(spec, rows, parameters, macs, sum(row.activation_bytes for row in rows))


def table() -> list[dict[str, Any]]:
    """Return one entry per architecture, as printed by `alexnet arch --json`."""
    return [summarize(spec).totals() for spec in ARCHITECTURES.values()]


def describe_layer(layer: Layer) -> str:
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
