"""Errors for unknown names, and what a notebook shows of an error."""

import sys
from types import SimpleNamespace

import pytest

from alexnet.data.decode import BadImage
from alexnet.errors import TrainingFailed, UserError, unknown_name


def test_close_names_are_suggested():
    error = unknown_name("architecture", "ccode2012", ["paper", "code2012", "lenet"])
    assert isinstance(error, ValueError)
    assert str(error) == "There is no architecture 'ccode2012'; did you mean 'code2012'?"


def test_all_names_are_listed_if_none_is_close():
    assert str(unknown_name("recipe", "zzz", ["a1", "b2"])) == "There is no recipe 'zzz'; choose one of a1, b2."


def test_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (UserError("No run."), ["UserError: No run."]),
        (TrainingFailed("The loss is NaN."), ["TrainingFailed: The loss is NaN."]),
        (BadImage("it is cut short", "a.png"), ["BadImage: Cannot read a.png: it is cut short; replace or remove it."]),
    ],
)
def test_a_notebook_shows_the_message_alone(error, lines, monkeypatch):
    formatter = SimpleNamespace(mode="Context", structured_traceback=lambda kind, value, traceback: ["everything"])
    shell = SimpleNamespace(InteractiveTB=formatter)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert error._render_traceback_() == lines
    formatter.mode = "Verbose"  # %tb Verbose
    assert error._render_traceback_() == ["everything"]
