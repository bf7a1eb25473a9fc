"""The lessons of docs/course: both languages have the same code, and three exercises with solutions.

Building the site executes every cell, and with it the assertions of the solutions.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

COURSE = Path(__file__).resolve().parents[2] / "docs" / "course"
LESSONS = sorted(page.name.removesuffix(".zh-CN.md") for page in COURSE.glob("*.zh-CN.md"))
CELL = re.compile(r"^```\{code-cell\} python\n((?::[^\n]*\n)*)\n?(.*?)^```$", re.MULTILINE | re.DOTALL)
lessons = pytest.mark.parametrize("name", LESSONS)


def read(name: str) -> tuple[str, str]:
    """Return a lesson in English and in Chinese."""
    english, chinese = (COURSE / f"{name}{ending}" for ending in (".md", ".zh-CN.md"))
    return english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")


def cells(lesson: str) -> list[tuple[str, str]]:
    """Return the options and the code of each cell."""
    return CELL.findall(lesson)


class _WithoutTexts(ast.NodeTransformer):
    """Take the strings out of code, into `texts`; the values in an f-string stay, whatever the words between them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        if not isinstance(node.value, str):
            return node
        self.texts.append(node.value)
        return ast.Constant("")

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Tuple:
        return ast.Tuple([self.visit(part.value) for part in node.values if isinstance(part, ast.FormattedValue)])


def without_texts(code: str) -> tuple[str, list[str]]:
    """Return the structure of code without its strings and comments, and the strings."""
    transformer = _WithoutTexts()
    return ast.dump(transformer.visit(ast.parse(code))), transformer.texts


def test_lessons_are_numbered_in_order_and_in_both_languages() -> None:
    assert [int(name.split("-")[0]) for name in LESSONS] == list(range(1, 9))
    assert len(list(COURSE.glob("*.md"))) == 2 * len(LESSONS)


@lessons
def test_code_is_the_same_but_for_texts(name: str) -> None:
    english, chinese = map(cells, read(name))
    assert [options for options, _ in chinese] == [options for options, _ in english]
    for (_, a), (_, b) in zip(english, chinese, strict=True):
        (structure, texts), (chinese_structure, chinese_texts) = without_texts(a), without_texts(b)
        assert chinese_structure == structure
        pairs = [(old, new) for old, new in zip(texts, chinese_texts, strict=True) if new != old]
        assert [new for old, new in pairs if new.isascii() and (old, new) != ("en", "zh")] == []


@lessons
def test_each_lesson_has_three_exercises_whose_solutions_are_checked(name: str) -> None:
    for lesson, heading in zip(read(name), ("## Exercises", "## 练习"), strict=True):
        exercises = lesson.split(heading)[1]
        assert re.findall(r"^\*\*(\d)\.\*\*", exercises, re.MULTILINE) == ["1", "2", "3"]
        solutions = [code for options, code in cells(exercises) if "solution" in options]
        assert len(solutions) == 3
        assert all("assert " in code for code in solutions)


@lessons
def test_both_languages_have_the_same_headings(name: str) -> None:
    english, chinese = (re.findall(r"^#+ ", CELL.sub("", lesson), re.MULTILINE) for lesson in read(name))
    assert chinese == english
