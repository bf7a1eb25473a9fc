"""The commands that train, use and describe networks, each a typed function.

Results are printed on stdout. Everything heavy is imported inside the command that needs it, so that `alexnet --help`
answers at once.
"""

from __future__ import annotations

from typing import Any, Literal

from alexnet.cli.output import _print_json, _share, _table


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
    """The table of all architectures, or one of them layer by layer.

    Args:
        name: An architecture, or torchvision/NAME for a classifier of torchvision; all of ours if left out.
        image_size: Side of the input in pixels.
        num_classes: Outputs of the last layer.
        in_channels: 3 for colour, 1 for grey.
        norm: Normalisation; auto is the architecture's own.
        width: Scale of all channel counts and hidden units.
        json: Print one JSON document.
    """
    from alexnet.models.architectures import TORCHVISION, architecture
    from alexnet.models.summary import summarize, table

    if name is None:
        rows = table()
        if json:
            _print_json(rows)
            return
        _table(
            ("name", "parameters", "MACs", "input", "classes", "what it is"),
            [
                (r["name"], f"{r['parameters']:,}", f"{r['macs']:,}",
                 f"{r['in_channels']}×{r['image_size']}×{r['image_size']}", r["num_classes"], r["title"])
                for r in rows
            ],
        )  # fmt: skip
        print("'alexnet arch NAME' shows one layer by layer.")
        return
    if name.startswith(TORCHVISION):
        _show_foreign(
            name, json, image_size=image_size, num_classes=num_classes, in_channels=in_channels,
            norm=None if norm == "auto" else norm, width=width,
        )  # fmt: skip
        return
    spec = architecture(
        name, image_size=image_size, num_classes=num_classes, in_channels=in_channels,
        norm=None if norm == "auto" else norm, width=width,
    )  # fmt: skip
    summary = summarize(spec)
    if json:
        _print_json(summary.to_dict())
        return
    print(f"{spec.name}: {spec.title} ({spec.source})\n")
    _table(
        ("layer", "output", "parameters", "MACs", "memory", "sees", "what"),
        [
            (r.name, "×".join(map(str, r.output)), _share(r.parameters, r.parameters_share),
             _share(r.macs, r.macs_share), f"{r.activation_bytes / 1024:,.0f} KiB",
             f"{r.receptive_field}", f"{r.type} {r.detail}")
            for r in summary.rows
        ],
    )  # fmt: skip
    print(
        f"\n{summary.parameters:,} parameters, {summary.macs:,} multiply-accumulates an image, "
        f"{summary.activation_bytes / 2**20:.1f} MiB of activations in float32; 'sees' is the receptive field"
    )
    for text in (*([spec.repair] if spec.repair else []), *spec.departures):
        print(f"- {text}")


def _show_foreign(name: str, json: bool, **settings: Any) -> None:
    """A network of torchvision, part by part."""
    from alexnet.models.torchvision_models import summarize_torchvision, torchvision_spec

    found = summarize_torchvision(torchvision_spec(name, **settings))
    if json:
        _print_json(found.to_dict())
        return
    _table(
        ("part", "output", "parameters", "MACs", "what"),
        [
            (p.name, "×".join(map(str, p.output)), _share(p.parameters, p.parameters / found.parameters),
             _share(p.macs, p.macs / found.macs), p.type)
            for p in found.parts
        ],
    )  # fmt: skip
    print(f"\n{found.parameters:,} parameters, {found.macs:,} multiply-accumulates an image; {found.spec.source}")
