"""docs/gallery: its pages in Chromium, in both languages, as the site has them; whose drawings they show."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from alexnet.export.web import translate_page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted((DOCS / "gallery").glob("*.html"))
MISTAKEN = {"fashion-mnist": {"Pullover"}}


def network(page: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(page.read_text(encoding="utf-8").split('id="network">')[1].split("</script>")[0])
    return found


def test_the_gallery_pages_show_every_file_with_its_size_and_command():
    assert len(PAGES) == 3
    for text in ((DOCS / name).read_text(encoding="utf-8") for name in ("gallery.md", "gallery.zh-CN.md")):
        for page in PAGES:
            assert text.count(f"](gallery/{page.name})") == 2
            assert f"--out docs/gallery/{page.name}\n" in text
            assert f"{page.stat().st_size / 1e6:.2f} MB" in text
            parameters = sum(layer.get("parameters", 0) for layer in network(page)["layers"])
            assert f"{parameters:,}" in text
    assert sum(page.stat().st_size for page in PAGES) < 6.5e6


@pytest.mark.slow
def test_samples_are_the_drawings(tmp_path):
    subprocess.run([sys.executable, DOCS / "gallery" / "drawings.py", tmp_path], check=True)
    drawn = {path.parent.name for path in tmp_path.rglob("*.png")}
    for page in PAGES:
        classes = network(page)["classes"]
        text = page.read_text(encoding="utf-8").split('id="sample-images">')[1].split("</script>")[0]
        labels = {classes[sample["label"]] for sample in json.loads(text) if sample["label"] is not None}
        assert labels <= (set(map(str, range(10))) if page.stem == "digits" else drawn)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("page_file", PAGES, ids=lambda path: path.stem)
def test_samples_get_their_labels_offline(browser, tmp_path, page_file, lang):
    translate_page(page_file, tmp_path / page_file.name, lang)
    page = browser.new_context(offline=True).new_page()
    page.goto((tmp_path / page_file.name).as_uri())
    page.wait_for_selector("#result:empty", state="attached")
    assert page.locator("#file").count() == 1
    assert (re.search(r"[\u4e00-\u9fff]", page.locator("main").inner_text()) is not None) == (lang == "zh")
    found = page.evaluate("""async () => {
      const found = [];
      for (const { url, label } of samples) {
        const { confidences } = await classifier.call("classify", { source: toBlob(url) });
        found.push([label === null ? null : classes[label], classes[confidences.indexOf(Math.max(...confidences))]]);
      }
      return found;
    }""")
    assert len(found) >= 7
    wrong = {expected for expected, label in found if expected not in (None, label)}
    assert wrong == MISTAKEN.get(page_file.stem, set())
    page.context.close()
