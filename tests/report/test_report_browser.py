"""Reports in a real browser: phone and desktop, light and dark, English and Chinese.

Skipped without Chromium or playwright. With ALEXNET_SCREENSHOTS=DIR the screenshots are kept.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.data.quality.check import check_dataset
from alexnet.files import write_json
from alexnet.plots.show import show
from alexnet.report.check_page import write_page
from alexnet.report.compare import write_comparison
from alexnet.report.report import write_report
from alexnet.run_dir import Run
from browser import OVERLAPS, keep_screenshot
from damaged_images import damage_dataset, make_photos, split_photos
from fake_run import make_fake_run

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a report by name: a trained run, a fake run with fifty classes and every optional part, a comparison."""
    folder = tmp_path_factory.mktemp("pages")

    @cache
    def many_classes() -> Run:
        curves = {"accuracy": 0.6, "train_top1": [0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0]}
        run = make_fake_run(folder / "many", classes=50, per_class=10, **curves)
        write_json(run.path / "alarms.json", [{"epoch": 2, "kind": "dead", "text": "Half of conv2's units are dead."}])
        (run.path / "bad_files.csv").write_text(f"path,reason\n{'long-name-' * 20}.jpg,cut short\n")
        return run

    @cache
    def write(name: str) -> Path:
        kind, lang = name.split("-")
        out = folder / f"{name}.html"
        if kind == "many":
            return write_report(many_classes(), lang, out)[0]
        if kind == "comparison":
            long_name = folder / "another-run-with-a-very-long-and-descriptive-name"
            other = make_fake_run(long_name, classes=50, per_class=10, accuracy=0.7)
            return write_comparison([many_classes(), other], lang, out)[0]
        if kind == "ten":
            run = make_fake_run(folder / name, classes=10, per_class=1000, accuracy=0.7)
        else:
            run = Run(shutil.copytree(request.getfixturevalue("small_run"), folder / name))
        return write_report(run, lang, out)[0]

    return write


def check_page(browser, path, views) -> None:
    events: list[str] = []
    for width, scheme in views:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("console", lambda message: events.append(message.text))
        page.on("pageerror", lambda error: events.append(str(error)))
        page.on("request", lambda request: events.append(request.url) if not request.url.startswith("data:") else None)
        page.goto(path.as_uri())
        assert events == [path.as_uri()]  # the page itself: no other request, no message
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (width, "scrolls sideways")
        assert page.evaluate(OVERLAPS) == [], (width, scheme)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(22, 26, 29)")
        keep_screenshot(page, f"{path.stem}-{width}-{scheme}")
        context.close()
        events.clear()


@pytest.mark.slow
def test_a_report_fits_phone_and_desktop(browser, report):
    check_page(browser, report("many-zh"), [(390, "light"), (1280, "dark")])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits-en", "digits-zh", "many-zh", "comparison-en"])
def test_every_report_fits_phone_and_desktop_in_both_themes(browser, report, name):
    check_page(browser, report(name), [(width, scheme) for width in (390, 1280) for scheme in ("light", "dark")])


@pytest.mark.slow
def test_checks_and_figures_do_not_scroll_sideways(browser, tmp_path):
    root = split_photos(make_photos(tmp_path / "photos", 60), tmp_path / "data")
    damage_dataset(root)
    first = next(root.rglob("*.jpg"))
    shutil.copy(first, first.with_name(f"{'without-a-break' * 9}.jpg"))
    findings = check_dataset(root)
    figure = show("architecture", ["paper"], tmp_path / "figure.html")
    page = browser.new_page(viewport={"width": 390, "height": 900})
    for path in (*(write_page(findings, tmp_path / f"{lang}.html", lang) for lang in ("en", "zh")), figure):
        page.goto(path.as_uri())
        boxes = "[document.documentElement, ...document.querySelectorAll('.wide')]"
        assert page.evaluate(f"{boxes}.every((box) => box.scrollWidth <= box.clientWidth)"), path
    assert page.evaluate("document.querySelector('img').clientWidth") > 600  # legible, in a box that scrolls
    page.click("label")
    assert page.evaluate("document.querySelector('img').clientWidth") > 1200
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.close()


@pytest.mark.slow
def test_a_phone_shows_ten_classes_whole_and_hints_at_more(browser, report):
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(report("ten-en").as_uri())
    fits = "[...document.querySelectorAll('.matrix, .cells b')].every((box) => box.scrollWidth <= box.clientWidth)"
    assert page.evaluate(fits)
    page.goto(report("many-zh").as_uri())
    for box in (".matrix", "#classes .wide"):
        assert page.evaluate(f"document.querySelector('{box}').scrollWidth") > 390
        at_start = right_edge(page.locator(box).first.screenshot())
        page.evaluate(f"document.querySelector('{box}').scrollTo(9999, 0)")
        assert at_start < right_edge(page.locator(box).first.screenshot()), box  # darker: the shadow
    page.close()


def right_edge(png: bytes) -> float:
    """Return the mean brightness of the last column of a screenshot."""
    return float(np.asarray(Image.open(io.BytesIO(png)).convert("L"))[:, -1].mean())


@pytest.mark.slow
def test_overlap_is_detected(browser):
    """`OVERLAPS`, which the tests above rely on, finds overlapping lines."""
    page = browser.new_page()
    page.set_content("<p>one line of text</p><p style='margin-top:-2rem'>and another one</p>")
    assert page.evaluate(OVERLAPS)
    page.set_content("<p>one line of text</p><p>and another one</p>")
    assert not page.evaluate(OVERLAPS)
    page.close()


@pytest.mark.slow
def test_tables_sort_and_the_matrix_shows_counts(browser, report):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(report("many-zh").as_uri())
    recall = "[...document.querySelectorAll('#classes tbody tr')].map((row) => +row.cells[3].dataset.v)"
    page.click("#classes th:nth-child(4)")
    rising = page.evaluate(recall)
    page.click("#classes th:nth-child(4)")
    assert rising == sorted(rising)
    assert page.evaluate(recall) == rising[::-1]
    page.hover("#confusion .cells", position={"x": 5, "y": 5})
    assert "预测为" in page.inner_text("#confusion output")
    before = page.evaluate("document.querySelector('.cells').offsetWidth")
    page.fill("#confusion input", "40")
    assert page.evaluate("document.querySelector('.cells').offsetWidth") == 50 * 40 > before
    page.fill("#confusion input", "3")
    assert page.evaluate("getComputedStyle(document.querySelector('.true span')).fontSize") == "0px"
    page.close()


@pytest.mark.slow
def test_a_report_can_be_printed(browser, report):
    page = browser.new_page(color_scheme="dark")
    page.goto(report("many-zh").as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert len(page.pdf()) > 10_000
    page.close()
