"""Counts of a network: shapes, parameters, multiply-accumulates, memory and receptive fields.

Computed from the specification alone, without torch or weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from alexnet.messages.translator import Translator
from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.spec import AlexNetSpec, Layer, layers


@dataclass(frozen=True, repr=False)
class Summary:
    """Layers and totals of a network, per image; displayed in the language `lang`."""

    spec: AlexNetSpec
    rows: tuple[Layer, ...]
    parameters: int
    macs: int
    """Multiply-accumulates of convolutions and linear layers: half of torch's FlopCounterMode count."""
    activation_bytes: int
    """Sum over the layers: roughly what training saves for the backward pass without in-place operations."""
    lang: str = "en"

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

    @property
    def head(self) -> list[str]:
        columns = ("layer", "output", "parameters", "macs", "memory", "receptive_field", "type")
        return [Translator(self.lang)(f"arch_{column}") for column in columns]

    def cells(self) -> list[tuple[str, ...]]:
        """Return a row of texts for each layer, with the columns of `head`."""
        translate = Translator(self.lang)

        def describe(row: Layer) -> str:
            return translate("comma").join(map(translate.sentence, describe_layer(row).split(", ")))

        return [
            (row.name, "×".join(map(str, row.output)), format_count(row.parameters, self.parameters),
             format_count(row.macs, self.macs), f"{row.activation_bytes / 1024:,.0f} KiB", str(row.receptive_field),
             f"{row.kind} {describe(row)}")
            for row in self.rows
        ]  # fmt: skip

    def title(self) -> str:
        translate, spec = Translator(self.lang), self.spec
        return translate("arch_title", name=spec.name, title=translate.sentence(spec.title), source=spec.source)

    def notes(self) -> list[str]:
        """Return the totals, the repair and the departures from the source, a line each."""
        translate = Translator(self.lang)
        counts = translate("arch_counts", parameters=self.parameters, macs=self.macs)
        totals = translate("arch_activations", counts=counts, mib=self.activation_bytes / 2**20)
        return [
            totals,
            *(f"- {translate.sentence(text)}" for text in (self.spec.repair, *self.spec.departures) if text),
        ]

    def __repr__(self) -> str:
        return "\n".join([self.title(), *self.notes()])

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_table

        return render_table(self.title(), self.cells(), self.head, note="\n".join(self.notes()))


def summarize(spec: AlexNetSpec) -> Summary:
    """Count the network of `spec`. Raises `ImageTooSmall` if its images are too small."""
    rows = tuple(layers(spec))
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    return Summary(spec, rows, parameters, macs, sum(row.activation_bytes for row in rows))


class ArchitectureTable(list[dict[str, Any]]):
    """One entry per architecture, as printed by `alexnet arch --json`; displayed in the language `lang`."""

    lang = "en"

    @property
    def head(self) -> list[str]:
        columns = ("name", "parameters", "macs", "input", "classes", "description")
        return [Translator(self.lang)(f"arch_{column}") for column in columns]

    def cells(self) -> list[tuple[str, ...]]:
        """Return a row of texts for each architecture, with the columns of `head`."""
        return [
            (r["name"], f"{r['parameters']:,}", f"{r['macs']:,}",
             f"{r['in_channels']}×{r['image_size']}×{r['image_size']}", str(r["num_classes"]),
             Translator(self.lang).sentence(r["title"]))
            for r in self
        ]  # fmt: skip

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_table

        return render_table(Translator(self.lang)("arch_all"), self.cells(), self.head)


def table() -> ArchitectureTable:
    """Return the table of all architectures."""
    return ArchitectureTable(summarize(spec).totals() for spec in ARCHITECTURES.values())


def format_count(count: int, total: int) -> str:
    """Format a count and its share of the total; empty for 0."""
    return f"{count:,} {count / total:4.0%}" if count else ""


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
