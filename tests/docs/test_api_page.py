"""docs/api.md: every public name is there, and the examples of their docstrings run, in the order of the page."""

from __future__ import annotations

import builtins
import doctest
import inspect
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import alexnet

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "api.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^\.\. auto\w+:: (?:alexnet|functions)\.(\w+)$", PAGE, re.MULTILINE)
FAST = ("create_model", "load_weights", "arch", "code", "LocalResponseNorm", "check", "UserError")


def run_examples(names: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the examples of functions one after another in `folder`; what one writes, the next can read."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(builtins, "_", None, raising=False)  # which examples set, as a prompt does
    known = {"alexnet": alexnet, "torch": torch, "Path": Path, "Image": Image, "load_digits": load_digits}
    for name in names:
        found = getattr(alexnet, name)
        function = type(found).__call__ if inspect.ismodule(found) else found
        example = doctest.DocTestParser().get_doctest(inspect.getdoc(function) or "", known, name, None, None)
        assert example.examples, f"{name} has no example"
        failures: list[str] = []
        doctest.DocTestRunner().run(example, out=failures.append, clear_globs=False)
        assert failures == [], "".join(failures)
        known |= example.globs


def test_every_public_name_is_on_the_page() -> None:
    assert sorted(NAMES) == sorted(alexnet.__all__)


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_examples([name for name in NAMES if name in FAST], tmp_path, monkeypatch)


@pytest.mark.slow
def test_examples_with_a_run_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_examples([name for name in NAMES if name == "check" or name not in FAST], tmp_path, monkeypatch)
