"""Names of classes, files and runs are text in every page, whatever they contain."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from alexnet.data.quality.check import check_dataset
from alexnet.files import write_json
from alexnet.report.check_page import write_page
from alexnet.report.compare import write_comparison
from alexnet.report.report import write_report
from fake_run import make_fake_run

HOSTILE = (
    '"><img src=x onerror=alert(1)>',
    "'><script>alert(1)<",
    "&amp;{{ 7 * 7 }}{% raw %}",
    "\u202eevil\u2066",  # right to left
    "\udce9",  # a byte of a file name that is not UTF-8
)
NAMES = (*HOSTILE, "</script><b>")
"""With one that no folder can have."""


class Elements(HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def check_that_names_are_text(path, names):
    """Check that no name became an element or attribute, and that each can be read in the page."""
    page = Elements(path.read_text(encoding="utf-8"))
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]
    assert not [a for tag, a in page.elements if tag == "img" and not a["src"].startswith("data:image/")]
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts in ([], [{}], [{"type": "application/json", "id": "confusion-data"}, {}])
    for name in names:
        assert name in page.text or name.replace("\udce9", "\\xe9") in page.text, name
    return page


@pytest.fixture
def hostile_run(tmp_path):
    run = make_fake_run(tmp_path / HOSTILE[0], classes=len(NAMES), per_class=10)
    model = next(run.path.glob("checkpoints/*/model.json"))
    model.write_text(json.dumps(json.loads(model.read_text()) | {"classes": NAMES}))
    for split in ("val", "test"):
        _, targets, logits = run.read_evaluation(split)
        run.write_evaluation(split, [f"{NAMES[t]}/{i}.jpg" for i, t in enumerate(targets)], targets, logits)
    write_json(run.path / "alarms.json", [{"epoch": 1, "kind": "dead", "text": NAMES[1]}])
    write_json(run.path / "check.json", {"warnings": [NAMES[2]]})
    (run.path / "bad_files.csv").write_text("path,reason\n\udce9,<script>\n", errors="surrogateescape")
    return run


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_report(hostile_run, lang):
    path, *_ = write_report(hostile_run, lang)
    page = check_that_names_are_text(path, [name for name in NAMES if name.isprintable()])
    assert "\\xe9" in page.text
    assert {title for tag, a in page.elements if tag == "span" and (title := a.get("title"))} >= set(NAMES[:3])


@pytest.mark.slow
def test_comparison(hostile_run, tmp_path):
    other = make_fake_run(tmp_path / HOSTILE[1], classes=3, recipe={"data": "</script><b>"})
    path, *_ = write_comparison([hostile_run, other])
    check_that_names_are_text(path, [*HOSTILE[:2], json.dumps("</script><b>")])


def test_check_page(tmp_path):
    root = tmp_path / HOSTILE[1]
    rng = np.random.default_rng(0)
    for name in HOSTILE:
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (24, 30 + i, 3), dtype=np.uint8)
            with (folder / f"{name}{i}.png").open("wb") as file:
                Image.fromarray(pixels).save(file, "PNG")
        (folder / f"{name}.jpg").write_bytes(b"no image")
        (folder / f"{name}-copy.png").write_bytes((folder / f"{name}0.png").read_bytes())
    page = check_that_names_are_text(write_page(check_dataset(root), tmp_path / "page.html"), [root.name, *HOSTILE])
    assert any(a.get("alt", "").endswith(f"{HOSTILE[0]}0.png") for tag, a in page.elements if tag == "img")
