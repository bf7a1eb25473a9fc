"""`alexnet arch`: the table of architectures, or one of them layer by layer."""

from __future__ import annotations

from typing import Any, Literal

from alexnet.cli.output import print_json, print_table


def arch(
    name: str | None = None,
    /,
    *,
    image_size: int | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    norm: Literal["auto", "lrn", "batch", "none"] = "auto",
    width: float = 1.0,
    json: bool = False,
) -> None:
    """Show the table of all architectures, or one of them layer by layer.

    Args:
        name: An architecture, or torchvision/NAME for a classifier of torchvision; without it, all of ours.
        image_size: Side of the input in pixels.
        num_classes: Outputs of the last layer.
        in_channels: 3 for color, 1 for grayscale.
        norm: Normalization; auto is the architecture's own.
        width: Factor on all channel counts and hidden units.
        json: Print one JSON document.
    """
    from alexnet.models.architectures import TORCHVISION, architecture
    from alexnet.models.summary import describe_layer, summarize, table

    if name is None:
        rows = table()
        if json:
            print_json(rows)
            return
        print_table(
            ("name", "parameters", "MACs", "input", "classes", "description"),
            [
                (r["name"], f"{r['parameters']:,}", f"{r['macs']:,}",
                 f"{r['in_channels']}×{r['image_size']}×{r['image_size']}", r["num_classes"], r["title"])
                for r in rows
            ],
        )  # fmt: skip
        print("Run 'alexnet arch NAME' to see one layer by layer.")
        return
    settings: dict[str, Any] = {
        "image_size": image_size, "num_classes": num_classes, "in_channels": in_channels,
        "norm": None if norm == "auto" else norm, "width": width,
    }  # fmt: skip
    if name.startswith(TORCHVISION):
        _show_torchvision(name, json, settings)
        return
    spec = architecture(name, **settings)
    summary = summarize(spec)
    if json:
        print_json(summary.to_dict())
        return
    print(f"{spec.name}: {spec.title} ({spec.source})\n")
    print_table(
        ("layer", "output", "parameters", "MACs", "memory", "receptive field", "type"),
        [
            (r.name, "×".join(map(str, r.output)), _count(r.parameters, r.parameters / summary.parameters),
             _count(r.macs, r.macs / summary.macs), f"{r.activation_bytes / 1024:,.0f} KiB",
             f"{r.receptive_field}", f"{r.kind} {describe_layer(r)}")
            for r in summary.rows
        ],
    )  # fmt: skip
    print(
        f"\n{summary.parameters:,} parameters, {summary.macs:,} multiply-accumulates per image, "
        f"{summary.activation_bytes / 2**20:.1f} MiB of activations in float32"
    )
    for text in (*([spec.repair] if spec.repair else []), *spec.departures):
        print(f"- {text}")


def _show_torchvision(name: str, json: bool, settings: dict[str, Any]) -> None:
    """Show a classifier of torchvision module by module."""
    from alexnet.models.torchvision_models import summarize_torchvision, torchvision_spec

    found = summarize_torchvision(torchvision_spec(name, **settings))
    if json:
        print_json(found.to_dict())
        return
    print_table(
        ("module", "output", "parameters", "MACs", "type"),
        [
            (p.name, "×".join(map(str, p.output)), _count(p.parameters, p.parameters / found.parameters),
             _count(p.macs, p.macs / found.macs), p.type)
            for p in found.parts
        ],
    )  # fmt: skip
    print(f"\n{found.parameters:,} parameters, {found.macs:,} multiply-accumulates per image; {found.spec.source}")


def _count(count: int, share: float) -> str:
    """Format a count and its share of the total; empty for 0."""
    return f"{count:,} {share:4.0%}" if count else ""
