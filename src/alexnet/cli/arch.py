"""`alexnet arch`: the table of architectures, or one of them layer by layer."""

from __future__ import annotations

from alexnet.cli.network_options import OWN, NetworkOptions
from alexnet.cli.output import print_json, print_table


def arch(name: str | None = None, /, *, network: NetworkOptions = OWN, json: bool = False) -> None:
    """Show the table of all architectures, or one of them layer by layer.

    Args:
        name: An architecture, or torchvision/NAME for a classifier of torchvision; without it, all of ours.
        json: Print one JSON document.
    """
    from alexnet.models import describe
    from alexnet.models.summary import ArchitectureTable

    found = describe(name, **network.settings())
    if isinstance(found, ArchitectureTable):
        if json:
            print_json(found)
            return
        print_table(found.head, found.cells())
        print("Run 'alexnet arch NAME' to see one layer by layer, or 'alexnet code NAME' for its PyTorch code.")
        return
    if json:
        print_json(found.to_dict())
        return
    print(f"{found.title()}\n")
    print_table(found.head, found.cells())
    print("", *found.notes(), sep="\n")
