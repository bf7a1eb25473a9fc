"""Calls of the public functions from Python: their arguments are checked, and errors name keywords instead of flags.

What functions below raise names the flags of the command line, which calls them without `public`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial, wraps
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from alexnet.errors import ShownAsMessage, UserError, suggest

P = ParamSpec("P")
T = TypeVar("T")


class WrongCall(UserError, TypeError):
    """Arguments that a function does not take: unknown, missing or of a wrong type."""


def public(name: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator for the public function called `name` in errors, such as "alexnet.load".

    A call with unknown, missing or wrong arguments raises `WrongCall`, and the errors with a message for the user name
    arguments as `as_keywords` does.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @wraps(function)
        def call(*arguments: P.args, **keywords: P.kwargs) -> T:
            check_arguments(name, function, arguments, keywords)
            try:
                return function(*arguments, **keywords)
            except ShownAsMessage as error:
                error.args = tuple(as_keywords(part) if isinstance(part, str) else part for part in error.args)
                raise

        return call

    return decorate


# ── arguments ─────────────────────────────────────────────────────────────────────────────────────


def check_arguments(
    name: str, function: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any]
) -> None:
    """Raise `WrongCall` unless `function` (or a class), called `name` in errors, takes these arguments."""
    signature, kinds_of_values = _read_signature(function)
    named = {key: p for key, p in signature.parameters.items() if key != "self"}
    kinds = {p.kind for p in named.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds:
        check_keywords(name, keywords, [key for key, p in named.items() if p.kind != p.VAR_POSITIONAL])
    try:
        bound = signature.bind(*arguments, **keywords)
    except TypeError as error:
        raise WrongCall(_describe_call(name, named, keywords, len(arguments), str(error))) from None
    for key, given in bound.arguments.items():
        parameter, kind = signature.parameters[key], kinds_of_values[key]
        for value in given if parameter.kind == parameter.VAR_POSITIONAL else (given,):
            if parameter.kind != parameter.VAR_KEYWORD and not _fits(value, kind):
                expected = _join(dict.fromkeys(_words(kind)))
                raise WrongCall(f"{name}() takes {expected} as {key}, not {_show(value)}{_hint(value)}.")


@cache  # reading it takes as long as a small network needs for an image
def _read_signature(function: Callable[..., Any]) -> tuple[inspect.Signature, dict[str, Any]]:
    """Return the signature of a function, and the types of its parameters by name."""
    signature = inspect.signature(function)
    scope = vars(sys.modules[inspect.unwrap(function).__module__])
    return signature, {key: _resolve(p.annotation, scope) for key, p in signature.parameters.items()}


def check_keywords(name: str, keywords: Iterable[str], known: Iterable[str]) -> None:
    """Raise `WrongCall` for the first of `keywords` that the function called `name` does not know."""
    names = list(known)
    for key in keywords:
        if key not in names:
            listed = f"; it takes {', '.join(names)}" if len(names) <= 20 else f"; help({name}) says what it takes"
            raise WrongCall(f"{name}() takes no argument '{key}'{suggest(key, names) or listed}.".replace("?.", "?"))


def _describe_call(
    name: str, parameters: dict[str, inspect.Parameter], keywords: dict[str, Any], given: int, reason: str
) -> str:
    """Return the sentence for a call that does not fit the `parameters` of a function, for Python's `reason`."""
    required = [key for key, p in parameters.items() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    if "missing" in reason:
        lacking = [key for key in required[min(given, len(required)) :] if key not in keywords] or required[-1:]
        return f"{name}() needs {_join(lacking, 'and')}: {name}({', '.join([*required, '…'])})."
    if "too many positional" in reason:
        positional = [key for key, p in parameters.items() if p.kind == p.POSITIONAL_OR_KEYWORD]
        others = [key for key, p in parameters.items() if p.kind == p.KEYWORD_ONLY]
        names = f", such as {others[0]}=…" if others else ""
        return f"{name}() takes only {_join(positional, 'and')} by position; give the rest by name{names}."
    return f"{name}(): {reason}."


def _resolve(annotation: Any, scope: dict[str, Any]) -> Any:
    """Return the type of an annotation; Any where it names what only a type checker imports."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"value": annotation}), scope)["value"]
    except (NameError, AttributeError):
        return Any


def _fits(value: Any, kind: Any) -> bool:
    """Return whether `value` is of the type `kind`; True for what this does not check."""
    if isinstance(kind, TypeVar):
        kind = kind.__bound__
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if origin is Sequence:  # any iterable: a generator of paths, an array of numbers
        (item,) = get_args(kind)
        if isinstance(value, (str, bytes, dict)) or not isinstance(value, Iterable):
            return False
        return not isinstance(value, (list, tuple)) or all(_fits(one, item) for one in value)
    if origin is not None:
        return not isinstance(origin, type) or isinstance(value, origin)
    if kind in (None, NoneType):
        return value is None
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in vars(kind) if not name.startswith("_"))
    return not isinstance(kind, type) or kind is inspect.Parameter.empty or isinstance(value, kind)


def _words(kind: Any) -> list[str]:
    """Return what a user calls the types that `kind` consists of."""
    if isinstance(kind, TypeVar):
        kind = kind.__bound__
    if get_origin(kind) in (Union, UnionType):
        return [word for one in get_args(kind) for word in _words(one)]
    if get_origin(kind) is Sequence:
        return ["a list"]
    known: dict[Any, str] = {None: "None", NoneType: "None", float: "a number", bool: "True or False"}
    return [known.get(kind) or _with_article(getattr(kind, "__name__", str(kind)))]


def _with_article(name: str) -> str:
    return f"{'an' if name.lower().startswith(('a', 'e', 'i', 'o', 'u', 'nd')) else 'a'} {name}"


def _show(value: Any) -> str:
    plain = value is None or isinstance(value, (str, bytes, bool, int, float, Path))
    return repr(value) if plain and len(repr(value)) <= 60 else _with_article(type(value).__name__)


def _hint(value: Any) -> str:
    """Return what to give instead of a run that was trained, or of a classifier."""
    if isinstance(getattr(value, "run", None), Path):
        return "; give its .run"
    names = getattr(getattr(value, "ensemble", None), "names", None)
    return f"; give the run that it was loaded from, {_join(map(repr, names), 'and')}" if names else ""


def _join(words: Iterable[str], last: str = "or") -> str:
    *first, end = words
    return f"{', '.join(first)} {last} {end}" if first else end


# ── flags ─────────────────────────────────────────────────────────────────────────────────────────

SWITCHES = {"skip_bad", "resume", "force", "half", "with_preprocessing", "trust", "tensorboard"}
"""Flags without a value that errors name."""
PROSE = frozenset({
    "a", "allows", "and", "applies", "asks", "before", "both", "brings", "cannot", "describes", "does", "for",
    "greater", "holds", "if", "in", "is", "its", "leaves", "must", "names", "needs", "of", "on", "or",
    "out", "override", "overrides", "sets", "takes", "that", "the", "they", "to", "trains", "which", "with", "would",
    "writes",
})  # fmt: skip
"""Words that follow a flag in sentences and are not its value."""
_COMMAND_OR_FLAG = re.compile(
    r"'(?:alexnet|torchrun) [^']*'|(?<![\w-])--(no-)?([a-z][a-z0-9-]*)(?:[= ](?!--)([^\s;:)；：）。，、]+))?"
)
_NUMBER = re.compile(r"[-+]?\d*\.?\d+|[A-Z]+…?")  # or a word in capitals that stands for one


def as_keywords(text: str, lang: str = "en") -> str:
    """Return a message in the language `lang` with flags as keywords of Python; commands in quotes stay as they are.

    >>> as_keywords("--top must be at least 1, not 0; use --engine exact, or give --data.")
    "top= must be at least 1, not 0; use engine='exact', or give data=."
    """
    return _COMMAND_OR_FLAG.sub(partial(_as_keyword, lang), text)


def _as_keyword(lang: str, found: re.Match[str]) -> str:
    if found[2] is None:
        return found[0]
    name, word = found[2].replace("-", "_"), found[3] or ""
    value = word.rstrip(".,")
    rest = word[len(value) :]
    if name == "set" and "=" in value:
        key, _, given = value.partition("=")
        words = {"null": "None", "true": "True", "false": "False"}
        return f"{key}={words.get(given) or _literal(given)}{rest}"
    after = f" {word}" if word else ""
    if name == "ten_crop":
        return f"views=10{after}"
    if found[1]:
        return f"{name}=False{after}"
    if name in SWITCHES:
        return f"{name}=True{after}"
    if not value or value in PROSE or (lang == "zh" and not value.isascii()):
        return f"{name}={after}"
    return f"{name}={_literal(value)}{rest}"


def _literal(value: str) -> str:
    """Return a flag's value as Python writes it."""
    if _NUMBER.fullmatch(value) or value[0] in "'[(…":
        return value
    parts = value.split(",")
    return f"({', '.join(parts)})" if len(parts) > 1 and all(map(_NUMBER.fullmatch, parts)) else repr(value)
