"""The site: every page of docs/ has its place, links are translated and checked, and a browser shows both languages."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import posixpath
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "docs" / "build.py"
PAGES = ("index.html", "start.html", "commands.html", "variants.html", "reproduction.html", "course/1-convolution.html")


def load_script(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"site_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


build = load_script(SCRIPT)


@pytest.mark.parametrize(("language", "index"), [("en", "docs/index.md"), ("zh", "docs/index.zh-CN.md")])
def test_every_page_stands_in_one_part_of_the_site(language: str, index: str) -> None:
    sections = (ROOT / index).read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(sections) == len(build.PARTS)
    linked = Counter()
    for section in sections:
        linked.update({posixpath.normpath(f"docs/{target}") for target in re.findall(r"\]\(([^)]+\.md)\)", section)})
    for path in build.find_pages(language):
        if path != index and not path.startswith("docs/course/"):
            assert linked[path] == 1, path


def test_links_lead_to_the_site(tmp_path: Path) -> None:
    text = (
        "[中文](x.zh-CN.md) [a](variants.md#b) [b](../README.md) [c](../benchmarks/results/memory.json) [d](../tests)\n"
        "[e](index.zh-CN.md) ![f](img/towers.svg) [![g](img/lrn.svg)](how-it-works.md) ([中文](x.zh-CN.md))\n"
        "```\n[h](x) ()\n```\n"
    )
    stage = build.Stage("en", tmp_path)
    assert stage.translate_links(text, "docs/x.md", "performance/x") == (
        " [a](../variants.md#b) [b](../start.md) [c](site:../files/benchmarks/results/memory.json) d\n"
        "[e](site:../../zh/index.html) ![f](../files/docs/img/towers.svg) "
        "[![g](../files/docs/img/lrn.svg)](../how-it-works.md)\n```\n[h](x) ()\n```\n"
    )
    assert (tmp_path / "files" / "docs" / "img" / "towers.svg").exists()
    assert stage.files == {"benchmarks/results/memory.json"}
    with pytest.raises(SystemExit, match=r"x\.md links to missing\.md"):
        stage.translate_links("[a](missing.md)", "docs/x.md", "x")


def test_chinese_lines_join_without_a_space(tmp_path: Path) -> None:
    text = "# 标题\n第一行\n第二行，\nPython 与\nC\n（注）：\n- 列表\n  二\n  三\n- 四\n\n```\n中\n文\n```\n"
    joined = "# 标题\n第一行第二行，Python 与\nC（注）：\n- 列表二三\n- 四\n\n```\n中\n文\n```\n"
    assert build.Stage("zh", tmp_path).translate_links(text, "docs/x.zh-CN.md", "x") == joined


def test_broken_links_and_outside_resources_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<p id="here"><a href="#here">a</a><a href="b.html#there">b</a><a href="c.html">c</a><a href="b.html#%E5">d</a>'
        '<a href="https://example.org">e</a><img src="https://example.org/f.png"><link rel="icon" href="g.ico">'
    )
    (tmp_path / "b.html").write_text('<p id="there">')
    assert build.broken_links(tmp_path) == [
        "a.html links to b.html#%E5, but that page has no such section",
        "a.html links to c.html, which does not exist",
        "a.html links to g.ico, which does not exist",
        "a.html loads https://example.org/f.png",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the site, without the outputs of lessons."""
    pytest.importorskip("myst_nb")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(SCRIPT), "--quick", "--out", str(folder / "site"), "--work", str(folder / "work")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *arguments: Any) -> None: ...

    handler = functools.partial(Handler, directory=str(folder / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_load_nothing_from_elsewhere(browser: Any, site: str, language: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    for name in PAGES:
        page.goto(f"{site}/{language}/{name}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), name
        if language == "zh":
            widths = page.evaluate("[...document.querySelectorAll('main td')].map(td => td.offsetWidth)")  # pixels
            assert min(widths, default=64) >= 60, f"{name} has cells of one character a line"
    assert [url for url in requested if not url.startswith((site, "data:"))] == []
    page.close()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(browser: Any, site: str, language: str, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = browser.new_page(color_scheme=scheme)
    found = []
    for name in PAGES:
        page.goto(f"{site}/{language}/{name}")
        violations = axe.Axe().run(page).response["violations"]
        found += [(name, v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]
    page.close()
    assert found == []


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(("language", "query", "found"), [
    ("zh", "学习率", "AlexNet 的工作原理"), ("zh", "卷积核的大小", "AlexNet 的工作原理"),
    ("zh", "怎么使用镜像", "安装"), ("zh", "LRN", "AlexNet 的变体"), ("en", "learning rate", "How AlexNet works"),
])  # fmt: skip
def test_search_finds_pages(browser: Any, site: str, language: str, query: str, found: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/{language}/search.html?q={query}")
    page.locator("#search-results li > a", has_text=re.compile(f"^{found}$")).first.wait_for()
    page.close()


@pytest.mark.slow
@pytest.mark.browser
def test_the_switch_leads_to_the_same_page(browser: Any, site: str) -> None:
    page = browser.new_page()
    page.goto(f"{site}/en/course/1-convolution.html")
    page.locator("a.language").first.click()
    assert page.url == f"{site}/zh/course/1-convolution.html"
    page.goto(f"{site}/en/architecture.html")  # in English only
    page.locator("a.language").first.click()
    assert page.url == f"{site}/zh/index.html"
    page.close()
