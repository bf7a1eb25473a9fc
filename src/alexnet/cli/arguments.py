"""From command-line words to arguments: tyro derives flags and help from a signature.

tyro's boxed error becomes the one sentence of a `UserError`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import itertools
import re
from collections.abc import Callable, Iterator
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

from alexnet.errors import UserError

if TYPE_CHECKING:
    from tyro.constructors import PrimitiveConstructorSpec, PrimitiveTypeInfo, UnsupportedTypeAnnotationError


def command(function: Callable[..., int | None], words: str = "", name: str = "") -> Callable[[list[str]], int | None]:
    """Wrap `function` so that it takes a list of command-line words.

    `words` are what help calls its positional arguments, such as "RUN IMAGE…"; `name` defaults to the function's.
    """

    def call(arguments: list[str]) -> int | None:
        values, flags = parse(_collector(function, words.split()), arguments, f"alexnet {name or function.__name__}")
        for key, kind in get_type_hints(function).items():
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                # parsed as a subclass with help, whose values do not equal those of `kind`
                flags[key] = kind(**{field.name: getattr(flags[key], field.name) for field in dataclasses.fields(kind)})
        return function(*values, **flags)

    call.__doc__ = function.__doc__
    return call


def _collector(function: Callable[..., Any], words: list[str]) -> Callable[..., Any]:
    """Return a function with the signature of `function`, as `_annotate` completes it, that returns its arguments."""

    def collect(*values: Any, **flags: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return values, flags

    collect.__doc__ = function.__doc__
    collect.__annotations__ = kinds = _annotate(function, iter(words))
    signature = inspect.signature(function)
    parameters = [
        found.replace(default=kinds[name]()) if dataclasses.is_dataclass(kinds[name]) else found
        for name, found in signature.parameters.items()
    ]
    collect.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return collect


def _annotate(documented: Any, words: Iterator[str]) -> dict[str, Any]:
    """Return the types of the arguments of a function, or of the fields of a dataclass, annotated with their help.

    `words` are for positional arguments, which come first. Options that commands share are a dataclass of their own.
    """
    from docstring_parser import parse_from_object
    from tyro.conf import arg

    texts = {text.arg_name: " ".join((text.description or "").split()) for text in parse_from_object(documented).params}
    kinds = get_type_hints(documented)
    for name, kind in kinds.items():
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            kinds[name] = describe_fields(kind)
        else:
            shown = arg(help=texts.get(name), metavar=next(words, None), help_behavior_hint=describe_default)
            kinds[name] = Annotated[kind, shown]
    return kinds


def describe_fields(options: type) -> type:
    """Return a subclass of the dataclass `options` whose fields are annotated with their help."""
    kinds = _annotate(options, iter(()))
    fields = [(field.name, kinds[field.name], field) for field in dataclasses.fields(options)]
    about = {"__doc__": (options.__doc__ or "").partition(" Raises")[0]}
    return dataclasses.make_dataclass(
        options.__name__, fields, bases=(options,), namespace=about, frozen=True, kw_only=True
    )


def describe_default(default: str) -> str:
    """Return what follows the help of a flag: its default, unless that means that the flag is not given."""
    return f"(default: {default})" if default not in ("None", "False", "") else ""


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | UnsupportedTypeAnnotationError | None:
    """Parse `T | None` as `T`, which help then shows instead of `{None}|T`; the word None is still accepted."""
    from tyro.constructors import ConstructorRegistry, PrimitiveTypeInfo, UnsupportedTypeAnnotationError

    kinds = set(get_args(info.type)) - {NoneType}
    if NoneType not in get_args(info.type) or len(kinds) > 1:
        return None
    of = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kinds.pop(), info.markers))
    if isinstance(of, UnsupportedTypeAnnotationError):
        return of
    return dataclasses.replace(
        of,
        instance_from_str=lambda words: None if words == ["None"] else of.instance_from_str(words),
        is_instance=lambda value: value is None or of.is_instance(value),
        str_from_instance=lambda value: ["None"] if value is None else of.str_from_instance(value),
    )


def parse(target: Any, arguments: list[str], program: str, description: str | None = None, usage: str = "") -> Any:
    """Return what tyro makes of `arguments`. Raise `UserError` with one sentence where it refuses them.

    `usage` is the program as in the usage line, where it differs from `program`, as in errors.
    """
    import tyro

    arguments = _join_lists(arguments, set(_list_flags(target)))
    registry = tyro.constructors.ConstructorRegistry()
    registry.primitive_rule(_optional)
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), registry:
            config = (tyro.conf.OmitArgPrefixes,)  # flags of a group are named like all others
            return tyro.cli(target, args=arguments, prog=usage or program, description=description, config=config)
    except SystemExit as stop:
        if stop.code == 2 and stderr.getvalue():
            raise UserError(_sentence(stderr.getvalue(), program)) from None
        raise


def _list_flags(target: Any) -> Iterator[str]:
    """Yield the flags of `target` that take any number of values, those of its groups included."""
    for name, kind in get_type_hints(target).items():
        if get_origin(kind) is tuple and get_args(kind)[-1] is Ellipsis:
            yield f"--{name.replace('_', '-')}"
        elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
            yield from _list_flags(kind)


def _join_lists(arguments: list[str], flags: set[str]) -> list[str]:
    """Return `arguments` with all values of each of the `flags` behind its first occurrence; tyro keeps the last ones
    only."""
    parts: list[list[str]] = [[]]  # all but the first begin with a flag
    for word in arguments:
        if word.startswith("--"):
            parts.append([])
        parts[-1].append(word)
    joined = parts[:1]
    for part in parts[1:]:
        first = next((other for other in joined[1:] if part[0] in flags and other[0] == part[0]), None)
        if first is None:
            joined.append(part)
        else:
            first.extend(part[1:])
    return list(itertools.chain.from_iterable(joined))


def _sentence(box: str, program: str) -> str:
    """Reduce tyro's box (title, message, rule, suggestions) to one sentence."""
    title, *lines = [line.strip("│|╭╰╮╯+ ") for line in box.splitlines()]
    parts = [list(group) for rule, group in itertools.groupby(lines, lambda line: set(line) <= set("─-")) if not rule]
    if "Required options" in title:  # each with its help, indented further
        names = re.findall(r"^[│ ] {5}(\S.*?) *│?$", box.partition("For full helptext")[0], re.MULTILINE)
        return f"{parts[0][0]} {', '.join(names)}; run '{program} --help' for details."
    text = " ".join(parts[0]).strip().rstrip(".") if parts else title
    text = text[:1].upper() + text[1:]
    if "Perhaps you meant" in box and (near := re.findall(r"--[a-z][a-z0-9-]*", " ".join(parts[1]))):
        return f"{text}; did you mean {near[0]}?"
    return f"{text}; run '{program} --help' for its arguments."
