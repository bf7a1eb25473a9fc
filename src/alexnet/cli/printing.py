"""Results on stdout: one JSON document, or a table; and which of several processes prints them."""

from __future__ import annotations

import json as jsonlib
import os
import sys
from collections.abc import Sequence
from typing import Any


def _speaks() -> bool:
    """Whether this process tells what all of them found: the only one, or the first that torchrun started."""
    if "RANK" not in os.environ:
        return True
    from alexnet import runtime  # here, since it takes a while

    return runtime.rank() == 0


def _print_json(document: Any) -> None:
    print(jsonlib.dumps(document, indent=2, ensure_ascii=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: bool = True) -> None:
    """Columns between the first and the last are `numbers`, set right, unless said."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:-1] if numbers else ():
        column.justify = "right"
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else 160, highlight=False).print(table)
