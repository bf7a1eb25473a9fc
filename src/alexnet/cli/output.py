"""What commands print: one JSON document or tables on stdout, logs on stderr, from rank 0 only."""

from __future__ import annotations

import importlib.abc
import json as jsonlib
import locale
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from alexnet.text import escape, escape_json, join_lines

BEGAN = time.monotonic()
"""When this process began, but for what Python takes to start."""
MAX_LISTED = 10
"""Items of each kind that a command lists; --json has all."""


def system_language() -> Literal["en", "zh"]:
    """Return the default of --lang: the language of the system's locale if there are texts in it, else English."""
    variables = ("LC_ALL", "LC_MESSAGES", "LANG")  # as gettext reads them; Windows has none
    name = next(filter(None, map(os.environ.get, variables)), None) or locale.getlocale()[0] or ""
    return "zh" if name.lower().startswith(("zh", "chinese")) else "en"


LANGUAGE = system_language()
"""The default of --lang."""


def is_main_process() -> bool:
    """Return whether this process prints results: the only one, or rank 0 under torchrun."""
    if "RANK" not in os.environ:
        return True
    from alexnet.device import rank

    return rank() == 0


def log(message: str) -> None:
    """Print a line on stderr."""
    print(escape(message), file=sys.stderr, flush=True)


def open_in_browser(file: Path) -> None:
    """Open a page or an image in the user's browser, or say where it is if there is none."""
    import webbrowser

    if not webbrowser.open(file.resolve().as_uri()):
        log(f"No browser was found; open {file} in one.")


class ImportNotice(importlib.abc.MetaPathFinder):
    """Says which large package is being imported, which takes seconds: the first sign of most commands.

    It finds no module.
    """

    PACKAGES: ClassVar = {"torch": "PyTorch", "matplotlib": "Matplotlib"}

    def find_spec(self, name: str, *_: object) -> None:
        """Print a line before the first import of one of the packages."""
        if name in self.PACKAGES:
            sys.meta_path.remove(self)
            if is_main_process():
                log(f"Loading {self.PACKAGES[name]} …")


def print_lines(*lines: object) -> None:
    """Print lines, without control characters and newlines that names in them may hold."""
    print(join_lines(*lines), flush=True)


class LogFormatter(logging.Formatter):
    """Does the same for what packages log, such as the errors of a server."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return escape(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return join_lines(*super().formatException(ei).split("\n"))


def print_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    print(escape_json(jsonlib.dumps(document, indent=2, ensure_ascii=False)))


def print_table(head: Sequence[str], rows: Sequence[Sequence[Any]], numeric: bool = True) -> None:
    """Print a table; `numeric` right-aligns all columns but the first and the last."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*head, box=None, pad_edge=False, header_style="bold")
    for column in table.columns[1:-1] if numeric else ():
        column.justify = "right"
    for row in rows:
        table.add_row(*(Text(escape(str(cell))) for cell in row))
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    with console.capture() as captured:  # printed by print, since rich exits with 1 if the reader has left
        console.print(table)
    print(captured.get(), end="")


def print_list(
    title: str,
    lines: list[str],
    limit: int = MAX_LISTED,
    heading: str = "{title} ({n:,}):",
    more: str = "… and {n:,} more; --json lists all",
) -> None:
    """Print `title`, the number of `lines` and the first `limit` of them; nothing if there are none."""
    if not lines:
        return
    print("\n" + heading.format(title=title, n=len(lines)))
    for line in lines[:limit]:
        print(f"  {escape(line)}")
    if len(lines) > limit:
        print(f"  {more.format(n=len(lines) - limit)}")
