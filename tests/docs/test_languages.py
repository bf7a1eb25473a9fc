"""The Chinese pages of docs/ have the code, the rows and the links of the English ones."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

DOCS = Path(__file__).resolve().parents[2] / "docs"
CHINESE = sorted([*DOCS.rglob("*.zh-CN.md"), *DOCS.parent.glob("*.zh-CN.md")])
PERFORMANCE = sorted(f"performance/{page.stem}" for page in DOCS.glob("performance/*.md") if "zh-CN" not in page.stem)
NAMES = sorted(page.name.removesuffix(".zh-CN.md") for page in DOCS.glob("*.zh-CN.md")) + PERFORMANCE
SAME_NUMBERS = ("distributed", "export", "own-images", "packed-data", "recipes", "serving", "tutorials", "variants")
pages = pytest.mark.parametrize("name", NAMES)


def read(name: str) -> tuple[str, str]:
    """Return a page in English and in Chinese."""
    english, chinese = (DOCS / f"{name}{ending}" for ending in (".md", ".zh-CN.md"))
    return english.read_text(encoding="utf-8"), chinese.read_text(encoding="utf-8")


def blocks(page: str) -> list[str]:
    """Return the fenced blocks, without comments, which are translated."""
    found = re.findall(r"^```[^\n]*\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\s*# .*", "", block) for block in found]


def tables(page: str) -> list[str]:
    return [line for line in page.splitlines() if line.startswith("|")]


@pages
def test_both_languages_link_to_each_other(name: str) -> None:
    english, chinese = read(name)
    file = posixpath.basename(name)
    assert f"[中文]({file}.zh-CN.md)" in english
    assert f"[English]({file}.md)" in chinese


@pytest.mark.parametrize("page", CHINESE, ids=lambda path: path.name)
def test_chinese_pages_link_to_chinese_pages(page: Path) -> None:
    links = re.findall(r"\[([^\]]*)\]\(([\w./-]+)\.md", page.read_text(encoding="utf-8"))
    english = [link for link in links if (page.parent / f"{link[1]}.zh-CN.md").exists()]
    assert [link for link in english if link[0] not in ("English", "英文版")] == []


@pytest.mark.parametrize("name", PERFORMANCE)
def test_links_and_images_are_the_same(name: str) -> None:
    english, chinese = (
        sorted(target.replace(".zh-CN.md", ".md") for target in re.findall(r"\]\(([^()\s#]+)", page))
        for page in read(name)
    )
    assert chinese == english


@pages
def test_code_is_the_same(name: str) -> None:
    english, chinese = read(name)
    assert blocks(chinese) == blocks(english)


@pages
def test_tables_have_the_same_rows(name: str) -> None:
    english, chinese = map(tables, read(name))
    assert [row.count("|") for row in chinese] == [row.count("|") for row in english]
    for a, b in zip(english, chinese, strict=True):
        assert set(re.findall(r"`([^`]+)`", b)) == set(re.findall(r"`([^`]+)`", a))
        if name in (*SAME_NUMBERS, *PERFORMANCE):
            assert sorted(re.findall(r"\d[\d,.]*\d|\d", b)) == sorted(re.findall(r"\d[\d,.]*\d|\d", a))


@pages
def test_anchors_of_chinese_pages_exist(name: str) -> None:
    _, chinese = read(name)
    for target, anchor in re.findall(r"\]\(([\w./-]+\.zh-CN\.md)#([^)]+)\)", chinese):
        linked = (DOCS / posixpath.dirname(name) / target).read_text(encoding="utf-8")
        headings = re.findall(r"^#+ (.*)$", linked, re.MULTILINE)
        assert anchor in [re.sub(r"[^\w\s-]", "", heading).replace(" ", "-").lower() for heading in headings]


@pytest.mark.parametrize("page", CHINESE, ids=lambda path: path.name)
def test_emphasis_is_not_shown_as_asterisks(page: Path) -> None:
    """As by **这里。**那里: between punctuation and a Chinese character, asterisks do not end an emphasis."""
    tokens = MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))
    texts = [part.content for token in tokens for part in token.children or [] if part.type == "text"]
    assert [text for text in texts if "*" in text] == []
