"""`alexnet arch`: the table of architectures, or one of them layer by layer."""

from __future__ import annotations

from typing import Any

from alexnet.cli.network_options import OWN, NetworkOptions
from alexnet.cli.output import print_json, print_table


def arch(name: str | None = None, /, *, network: NetworkOptions = OWN, json: bool = False) -> None:
    """Show the table of all architectures, or one of them layer by layer.

    Args:
        name: An architecture, or torchvision/NAME for a classifier of torchvision; without it, all of ours.
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
        print("Run 'alexnet arch NAME' to see one layer by layer, or 'alexnet code NAME' for its PyTorch code.")
        return
    settings = network.settings()
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
