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
    from alexnet.models.summary import summarize, table

    if name is None:
        rows = table()
        if json:
            print_json(rows)
            return
        print_table(rows.head, rows.cells())
        print("Run 'alexnet arch NAME' to see one layer by layer.")
        return
    settings: dict[str, Any] = {
        "image_size": image_size, "num_classes": num_classes, "in_channels": in_channels,
        "norm": None if norm == "auto" else norm, "width": width,
    }  # fmt: skip
    if name.startswith(TORCHVISION):
        _show_torchvision(name, json, settings)
        return
    summary = summarize(architecture(name, **settings))
    if json:
        print_json(summary.to_dict())
        return
    print(f"{summary.title()}\n")
    print_table(summary.head, summary.cells())
    print("", *summary.notes(), sep="\n")


def _show_torchvision(name: str, json: bool, settings: dict[str, Any]) -> None:
    """Show a classifier of torchvision module by module."""
    from alexnet.models.torchvision_models import summarize_torchvision, torchvision_spec

    found = summarize_torchvision(torchvision_spec(name, **settings))
    if json:
        print_json(found.to_dict())
        return
    print_table(found.head, found.cells())
    print(f"\n{found.totals()}")
