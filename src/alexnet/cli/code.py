"""`alexnet code`: an architecture as plain PyTorch source."""

from __future__ import annotations

from pathlib import Path

from alexnet.cli.network_options import OWN, NetworkOptions
from alexnet.cli.output import print_json, print_lines
from alexnet.errors import UserError


def code(name: str, /, *, network: NetworkOptions = OWN, out: Path | None = None, json: bool = False) -> None:
    """Print an architecture as a plain PyTorch class, which needs nothing but torch.

    For example:
      alexnet code paper
      alexnet code cifar --norm batch --num-classes 3 --out net.py

    Args:
        name: An architecture, as listed by 'alexnet arch'.
        out: Write the source to this file, as UTF-8, instead of printing it.
        json: Print one JSON document.
    """
    from alexnet.files import write_text
    from alexnet.models.code import architecture_code

    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder; give the name of a file in it.")
    source = architecture_code(name, **network.settings())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, source)
    if json:
        print_json({"name": name, "code": source, "files": [str(out)] if out else []})
    elif out is not None:
        print_lines(out)
    else:
        print(source, end="")
