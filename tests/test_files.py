"""Atomic writes and typed reading of JSON."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from alexnet.errors import UserError
from alexnet.files import atomic_write, convert, read_json


def test_a_failed_write_leaves_only_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@dataclass(frozen=True)
class Inner:
    rate: float
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outer:
    inner: Inner
    path: Path | None = None
    size: int = 1
    mode: Literal["a", "b"] = "a"
    several: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError("The size must be positive.")


def test_values_are_converted_to_the_declared_types():
    value = {"inner": {"rate": 1, "names": ["x"]}, "path": "a/b", "several": [{"rate": 0.5}]}
    assert convert(value, Outer, "x") == Outer(Inner(1.0, ("x",)), Path("a/b"), 1, "a", (Inner(0.5),))
    assert convert({"inner": {"rate": 1}, "path": None}, Outer, "x").path is None
    assert convert({"a": 1}, dict[str, float], "x") == {"a": 1.0}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "recipe: Expected object, got array."),
        ({}, "recipe: Object missing required field inner."),
        ({"inner": {"rate": True}}, "recipe: Expected float, got bool - at $.inner.rate."),
        ({"inner": {"rate": "1"}}, "recipe: Expected float, got str - at $.inner.rate."),
        ({"inner": {"rate": 1}, "size": 1.5}, "recipe: Expected int, got float - at $.size."),
        ({"inner": {"rate": 1}, "size": True}, "recipe: Expected int, got bool - at $.size."),
        ({"inner": {"rate": 1}, "mode": "c"}, "recipe: Invalid enum value 'c' - at $.mode."),
        ({"inner": {"rate": 1}, "path": 3}, "recipe: Expected Path, got int - at $.path."),
        ({"inner": {"rate": 1}, "size": 0}, "The size must be positive."),
        ({"inner": {"rate": 1}, "siez": 2}, "There is no key 'siez' in recipe; did you mean 'size'?"),
        ({"inner": {"rate": 1, "rat": 2}}, "There is no key 'rat' in recipe; did you mean 'rate'?"),
        ({"inner": {"rate": 1}, "several": [{"rate": 1, "x": 2}]}, "There is no key 'x' in recipe; choose one of"),
    ],
)
def test_other_types_and_unknown_keys_are_rejected(value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        convert(value, Outer, "recipe")


def test_a_file_that_is_not_json_is_rejected(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"x\.json is damaged or not JSON"):
        read_json(path, dict)
    path.write_text('{"a": "b"}')
    assert read_json(path, dict[str, str]) == {"a": "b"}
