"""From a command's words to its arguments: tyro reads flags and help off a signature.

Its boxed complaint becomes the one sentence of a `UserError`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import re
from collections.abc import Callable
from typing import Any

from alexnet.errors import UserError


def _typed(function: Callable[..., int | None]) -> Callable[[list[str]], int | None]:
    """A command whose flags tyro reads off its signature."""

    @functools.wraps(function)
    def read(*values: Any, **flags: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return values, flags

    def call(arguments: list[str]) -> int | None:
        name = "eval" if function.__name__ == "evaluate" else function.__name__
        values, flags = _parse(read, arguments, f"alexnet {name}", None)
        return function(*values, **flags)

    call.__doc__ = function.__doc__
    return call


def _parse(target: Any, arguments: list[str], program: str, about: str | None, **more: Any) -> Any:
    """What tyro makes of the arguments; its boxed complaint becomes the one sentence of a `UserError`."""
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(target, args=arguments, prog=program, description=about, **more)
    except SystemExit as stop:
        if stop.code == 2 and complaint.getvalue():
            raise UserError(_sentence(complaint.getvalue(), program)) from None
        raise


def _sentence(box: str, program: str) -> str:
    """tyro draws a box: a title, the complaint, a rule, what might have been meant. One sentence is enough."""
    title, *lines = [line.strip("│|╭╰╮╯+ ") for line in box.splitlines()]
    parts = [list(group) for rule, group in itertools.groupby(lines, lambda line: set(line) <= set("─-")) if not rule]
    text = " ".join(parts[0]).strip().rstrip(".") if parts else title
    text = text[:1].upper() + text[1:]
    if "Perhaps you meant" in box and (near := re.findall(r"--[a-z][a-z0-9-]*", " ".join(parts[1]))):
        return f"{text}; did you mean {near[0]}?"
    return f"{text}; '{program} --help' shows what it takes."
