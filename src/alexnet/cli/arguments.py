"""From command-line words to arguments: tyro derives flags and help from a signature.

tyro's boxed error becomes the one sentence of a `UserError`.
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


def command(function: Callable[..., int | None], name: str | None = None) -> Callable[[list[str]], int | None]:
    """Wrap `function` so that it takes a list of command-line words; `name` defaults to the function's."""

    @functools.wraps(function)
    def collect(*values: Any, **flags: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return values, flags

    def call(arguments: list[str]) -> int | None:
        values, flags = parse(collect, arguments, f"alexnet {name or function.__name__}", None)
        return function(*values, **flags)

    call.__doc__ = function.__doc__
    return call


def parse(target: Any, arguments: list[str], program: str, description: str | None, usage: str = "") -> Any:
    """Return what tyro makes of `arguments`. Raise `UserError` with one sentence where it refuses them.

    `usage` is the program as in the usage line, where it differs from `program`, as in errors.
    """
    import tyro

    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            config = (tyro.conf.OmitArgPrefixes,)  # flags of a group are named like all others
            return tyro.cli(target, args=arguments, prog=usage or program, description=description, config=config)
    except SystemExit as stop:
        if stop.code == 2 and stderr.getvalue():
            raise UserError(_sentence(stderr.getvalue(), program)) from None
        raise


def _sentence(box: str, program: str) -> str:
    """Reduce tyro's box (title, message, rule, suggestions) to one sentence."""
    title, *lines = [line.strip("│|╭╰╮╯+ ") for line in box.splitlines()]
    parts = [list(group) for rule, group in itertools.groupby(lines, lambda line: set(line) <= set("─-")) if not rule]
    text = " ".join(parts[0]).strip().rstrip(".") if parts else title
    text = text[:1].upper() + text[1:]
    if "Perhaps you meant" in box and (near := re.findall(r"--[a-z][a-z0-9-]*", " ".join(parts[1]))):
        return f"{text}; did you mean {near[0]}?"
    return f"{text}; run '{program} --help' for its arguments."
