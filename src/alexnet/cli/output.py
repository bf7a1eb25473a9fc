"""Results on stdout: one JSON document, or a table; and which of several processes prints them."""

from __future__ import annotations

import contextlib
import json as jsonlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alexnet.errors import UserError


def _speaks() -> bool:
    """Whether this process tells what all of them found: the only one, or the first that torchrun started."""
    if "RANK" not in os.environ:
        return True
    from alexnet.device import rank

    return rank() == 0


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


def _views(ten_crop: bool, crops: int | None) -> int:
    if ten_crop and crops not in (None, 10):
        raise UserError(f"--ten-crop is 10 views and --crops asks for {crops}; give one of them.")
    return 10 if ten_crop else crops if crops is not None else 1


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _share(count: int, share: float) -> str:
    return f"{count:,} {share:4.0%}" if count else ""


_SHOWN = 10  # of each kind; --json and --html have all


def _list(title: str, lines: list[str], most: int = _SHOWN) -> None:
    if lines:
        print(f"\n{title} ({len(lines):,}):")
        for line in lines[:most]:
            print(f"  {_printable(line)}")
        if len(lines) > most:
            print(f"  … and {len(lines) - most:,} more; --json lists all")


def _bar(count: int, most: int) -> str:
    return "█" * max(1, round(24 * count / most)) if count else ""


def _printable(text: str) -> str:
    """Names may hold newlines and worse, and one entry stays one line."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int, int, str], None] | None]:
    """A moving line on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from alexnet.training.progress import Live

    live = Live()
    try:
        yield live.update
    finally:
        live.close()


def _lines() -> Callable[[int, int, str], None]:
    """For logs and pipes: a line at each tenth of what takes long."""
    said = {"": -1}

    def work(done: int, total: int, what: str) -> None:
        tenth = 10 * done // total if total >= 5000 else -1
        if tenth > said.get(what, 0):
            said[what] = tenth
            print(f"{what}: {done:,} of {total:,}", file=sys.stderr, flush=True)

    return work
