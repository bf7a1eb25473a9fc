"""Jinja2 templates of pages: every value is escaped, every text comes from the messages of one language."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from alexnet.files import printable
from alexnet.messages.translator import Translator


def load_template(package: str, name: str, lang: str = "en") -> Template:
    """Return `name` of the folder templates/ of `package`. Raises `UserError` for an unknown language.

    In a template `text` is the `Translator`, `value|number(".1%")` formats a number, and `value|tojson` is JSON that
    cannot end its script element. A name that has no value is an error.
    """
    return _environment(package, lang).get_template(name)


@cache
def _environment(package: str, lang: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_make_printable,
    )  # fmt: skip
    environment.globals["text"] = Translator(lang)
    environment.filters["number"] = format
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _make_printable(value: Any) -> Any:
    """Make file names printable that are not UTF-8, which no page could contain. Markup stays markup."""
    return printable(value) if type(value) is str else value
