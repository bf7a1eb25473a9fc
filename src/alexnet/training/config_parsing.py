"""Typed settings from user input: a recipe.json, NAME=VALUE on the command line, durations. Needs no torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from alexnet.errors import UserError, unknown_name
from alexnet.training.manual_schedule import ScheduleChange


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """Parse texts such as `padding_mode=reflect` or `mean=[0.5,0.5,0.5]`; values are JSON or plain words.

    Raises `UserError`.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text} has no value; write NAME=VALUE, such as --set padding_mode=reflect.")
        try:
            found[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.strip().replace("-", "_")] = value
    return found


def parse_duration(text: str, complaint: str = "--time-budget must be a time") -> float:
    """Return the seconds in a time such as 90s, 10m or 1.5h. Raises `UserError` that starts with `complaint`."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{complaint} such as 90s, 10m or 1.5h, not '{text}'.")
    return seconds


def parse_interval(text: str | None) -> tuple[int | None, float | None]:
    """Parse `--checkpoint-every` as (steps, seconds), of which at most one is not None. Raises `UserError`."""
    if text is None:
        return None, None
    if text.isascii() and text.isdecimal() and int(text):
        return int(text), None
    return None, parse_duration(text, "--checkpoint-every must be a number of steps such as 500, or a time")


def convert_fields(kind: type, values: dict[str, Any], prefix: str, where: str) -> dict[str, Any]:
    """Convert `values` to the declared types of the fields of the dataclass `kind`. Raises `UserError`.

    In errors, `prefix` precedes a field's name and `where` follows it, such as " in recipe.json".
    """
    hints = get_type_hints(kind)
    if unknown := [key for key in values if key not in hints]:
        raise unknown_name("setting", prefix + str(unknown[0]), [prefix + name for name in hints], where)
    return {key: _convert(prefix + key, value, hints[key], where) for key, value in values.items()}


def _convert(key: str, value: Any, kind: Any, where: str, hint: Any = None) -> Any:
    """Convert `value` (from JSON or a caller) to the type `kind`, which is part of the declared type `hint`."""
    wrong = UserError(f"The setting {key}{where} cannot be {value!r}; it must be {_describe(hint or kind)}.")
    options = get_args(kind)
    if get_origin(kind) is Literal:
        if value not in options:
            raise wrong
        return value
    if get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)) or (Ellipsis not in options and len(value) != len(options)):
            raise wrong
        return tuple(_convert(f"{key}[{i}]", entry, options[0], where) for i, entry in enumerate(value))
    if kind is ScheduleChange:
        value = dataclasses.asdict(value) if isinstance(value, ScheduleChange) else value
        if not isinstance(value, dict) or "epoch" not in value:
            raise wrong
        return ScheduleChange(**convert_fields(ScheduleChange, value, f"{key}.", where))
    if options:  # X | None
        return None if value is None else _convert(key, value, options[0], where, kind)
    if kind is Path and isinstance(value, (str, Path)):
        return Path(value)
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if kind is not float and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise wrong


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(get_args(kind))
    if get_origin(kind) is tuple:
        return "a list of " + {float: "numbers", str: "strings", ScheduleChange: "changes"}[get_args(kind)[0]]
    if kind is ScheduleChange:
        return "an object with an epoch, and with layers, lr, bias_lr or pca_noise"
    if options := get_args(kind):
        return f"{_describe(options[0])} or null"
    return {int: "an integer", float: "a number", str: "a string", bool: "true or false", Path: "a path"}[kind]
