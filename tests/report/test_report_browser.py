"""The pages of runs in a real browser: phone and desk, light and dark, both languages.

Where there is no Chromium, or no playwright, this is skipped. With ALEXNET_SCREENSHOTS=DIR the pictures are kept.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alexnet.files import write_json
from alexnet.report.compare import write_comparison
from alexnet.report.report import write_report
from alexnet.run_dir import Run
from browser import OVERLAPS, keep_screenshot
from fake_run import make_fake_run

pytestmark = pytest.mark.browser
VIEWS = [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def pages(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A real run, a made one with fifty classes and everything that a run may hold, and a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    copy = Run(shutil.copytree(small_run, folder / "digits"))
    confuse = {"accuracy": 0.6, "train_top1": [0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]}
    many = make_fake_run(folder / "many", classes=50, per_class=10, **confuse)
    write_json(many.path / "alarms.json", [{"epoch": 2, "kind": "dead", "text": "Half of conv2's channels are dead."}])
    (many.path / "bad_files.csv").write_text(f"path,reason\n{'long-name-' * 20}.jpg,cut short\n")
    other = make_fake_run(folder / "another-run-with-a-long-name-that-goes-on", classes=50, per_class=10, accuracy=0.7)
    found = {}
    for lang in ("en", "zh"):
        found[f"digits-{lang}"] = write_report(copy, lang, folder / f"digits-{lang}.html")[0]
    found["many-zh"] = write_report(many, "zh")[0]
    found["compared-en"] = write_comparison([many, other], "en")[0]
    return found


@pytest.mark.parametrize("name", ["digits-en", "digits-zh", "many-zh", "compared-en"])
def test_the_page_as_people_see_it(browser, pages, name):
    said: list[str] = []
    for width, scheme in VIEWS:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
        page.goto(pages[name].as_uri())
        assert said == [pages[name].as_uri()]  # the page itself, nothing from outside, no message
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, "scrolls sideways")
        assert page.evaluate(OVERLAPS) == [], (width, scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 26, 29)")
        keep_screenshot(page, f"{name}-{width}-{scheme}")
        context.close()
        said.clear()


def test_the_overlap_is_looked_for(browser):
    """The test above could fail."""
    page = browser.new_page()
    page.set_content("<p>one line of text</p><p style='margin-top:-2rem'>and another one</p>")
    assert page.evaluate(OVERLAPS)
    page.set_content("<p>one line of text</p><p>and another one</p>")
    assert not page.evaluate(OVERLAPS)
    page.close()


def test_tables_sort_and_the_matrix_is_read(browser, pages):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(pages["many-zh"].as_uri())
    recall = "[...document.querySelectorAll('#classes tbody tr')].map((row) => +row.cells[3].dataset.v)"
    page.click("#classes th:nth-child(4)")
    rising = page.evaluate(recall)
    page.click("#classes th:nth-child(4)")
    assert rising == sorted(rising)
    assert page.evaluate(recall) == rising[::-1]
    page.hover("#confusion .cells", position={"x": 5, "y": 5})
    assert "判为" in page.inner_text("#confusion output")
    before = page.evaluate("document.querySelector('.cells').offsetWidth")
    page.fill("#confusion input", "40")
    assert page.evaluate("document.querySelector('.cells').offsetWidth") == 50 * 40 > before
    page.fill("#confusion input", "3")
    assert page.evaluate("getComputedStyle(document.querySelector('.true span')).fontSize") == "0px"
    page.close()


def test_it_can_be_printed(browser, pages, tmp_path):
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["digits-en"].as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert len(page.pdf()) > 10_000
    page.close()
