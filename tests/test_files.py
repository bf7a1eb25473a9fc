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
        ([], "recipe cannot be []: expected an object."),
        ({}, "recipe lacks the field inner."),
        ({"inner": {"rate": True}}, "recipe cannot be true at inner.rate: expected a number."),
        ({"inner": {"rate": "1"}}, "recipe cannot be '1' at inner.rate: expected a number."),
        ({"inner": {"rate": 1}, "size": 1.5}, "recipe cannot be 1.5 at size: expected an integer."),
        (
            {"inner": {"rate": 1}, "size": True},
            "recipe cannot be true at size: expected an integer.",
        ),
        (
            {"inner": {"rate": 1}, "mode": "c"},
            "recipe cannot be 'c' at mode: invalid enum value 'c'.",
        ),
        ({"inner": {"rate": 1}, "path": 3}, "recipe cannot be 3 at path: expected a path."),
        ({"inner": {"rate": 1, "names": "x" * 99}}, "xxx... at inner.names: expected a list."),
        ({"inner": {"rate": 1}, "several": [{}]}, "recipe lacks the field rate at several[0]."),
        (
            {"inner": {"rate": 1}, "several": [{"rate": 1}, 7]},
            "recipe cannot be 7 at several[1]: expected an object.",
        ),
        ({"inner": {"rate": 1}, "size": 0}, "The size must be positive."),
        (
            {"inner": {"rate": 1}, "siez": 2},
            "There is no key 'siez' in recipe; did you mean 'size'?",
        ),
        ({"inner": {"rate": 1, "rat": 2}}, "There is no key 'rat' in recipe; did you mean 'rate'?"),
        (
            {"inner": {"rate": 1}, "several": [{"rate": 1, "x": 2}]},
            "There is no key 'x' in recipe; choose one of",
        ),
    ],
)
def test_other_types_and_unknown_keys_are_rejected(value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        convert(value, Outer, "recipe")


def test_a_wrong_value_of_any_key_is_rejected():
    with pytest.raises(UserError, match=r"^x has a wrong value at \[\.\.\.\]: expected a number, got a text\.$"):
        convert({"a": 1, "b": "c"}, dict[str, float], "x")


def test_a_file_that_is_not_json_is_rejected(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{")
    with pytest.raises(UserError, match=r"x\.json is damaged or not JSON"):
        read_json(path, dict)
    path.write_text('{"a": "b"}')
    assert read_json(path, dict[str, str]) == {"a": "b"}
