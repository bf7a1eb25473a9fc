import re
import shutil
from html.parser import HTMLParser

import pytest
from PIL import Image

from alexnet.errors import UserError
from alexnet.files import write_json
from alexnet.report.report import write_report
from alexnet.run_dir import Run
from fake_run import make_fake_run


class Tags(HTMLParser):
    VOID = ("meta", "br", "path", "use", "img", "input")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def headings(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', page)


def test_the_page_of_a_real_run_is_whole_and_self_contained(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "a <run>")
    files = write_report(Run(copy))
    page = files[0].read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not [link for link in tags.links if not link.startswith(("#", "data:image/"))]
    assert "a &lt;run&gt;" in page
    top1 = Run(copy).summary()["test"]["top1"]
    assert f"{top1:.1%}" in re.search(r'class="headline">([^<]*)<', page).group(1)
    parts = ["result", "next", "curves", "confusion", "classes", "mistakes", "lucky", "calibration", "filters", "split"]
    optional = {"alarms", "warnings", "augmented"}  # what training may have left
    assert [part for part in headings(page) if part not in optional] == [*parts, "made", "files"]
    assert "cannot be shown" not in page
    assert page.count("data:image/jpeg") >= 12  # pictures of the embedded digits, which are no files
    assert all(path.is_file() for path in files)
    plots = ("loss", "top1", "rate", "speed", "confusion", "calibration", "coverage", "filters")
    tables = ("epochs", "confusions", "classes", "lucky", "split", "thresholds")
    names = {path.name for path in files}
    assert {f"{plot}.{form}" for plot in plots for form in ("svg", "png")} | {f"{t}.csv" for t in tables} <= names


def test_it_is_the_same_again_and_small(small_run, tmp_path):
    copy = Run(shutil.copytree(small_run, tmp_path / "run"))
    first = write_report(copy)[0].read_bytes()
    assert write_report(copy)[0].read_bytes() == first
    assert len(first) < 2_000_000


def test_in_chinese_to_another_place(small_run, tmp_path):
    out = tmp_path / "pages" / "run.html"
    files = write_report(Run(shutil.copytree(small_run, tmp_path / "run")), "zh", out)
    page = out.read_text()
    assert files[0] == out
    assert 'lang="zh-CN"' in page
    assert "混淆矩阵" in page
    assert "What is taken for what" not in page
    assert (out.parent / "run" / "loss.svg").is_file()
    with pytest.raises(UserError, match="'xx'"):
        write_report(Run(tmp_path / "run"), "xx")


def test_a_run_without_an_epoch_has_no_page(tmp_path):
    run = Run.create("x", tmp_path / "run", "{}")
    with pytest.raises(UserError, match="has not finished an epoch"):
        write_report(run)
    assert not (run.path / "report.html").exists()
    assert not (run.path / "report").exists()


def test_what_is_missing_is_said_and_the_rest_is_there(tmp_path):
    """No pictures, no weights, no evaluation: one after the other."""
    run = make_fake_run(tmp_path / "run")
    page = write_report(run)[0].read_text()
    assert "cannot be read any more" in page  # the data is not there
    assert re.search(r'<section id="filters">.*cannot be shown: [^<]*model', page)  # nor are the weights
    assert headings(page)[:5] == ["result", "next", "curves", "confusion", "classes"]
    (run.path / "evaluation" / "test.parquet").write_bytes(b"damaged")
    page = write_report(run)[0].read_text()
    assert headings(page) == ["result", "next", "curves", "filters", "split", "made", "files"]
    assert f"alexnet eval {run.path}" in page
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "env.json").unlink()
    assert headings(write_report(run)[0].read_text())[:3] == ["result", "next", "curves"]


def test_what_training_left_is_shown(tmp_path):
    run = make_fake_run(tmp_path / "run")
    write_json(run.path / "alarms.json", [{"epoch": 3, "kind": "dead", "text": "Half of <conv2> is dead."}])
    Image.new("RGB", (1400, 60), "red").save(run.path / "augmented.png")
    (run.path / "bad_files.csv").write_text("path,reason\na/b.jpg,cut short\n")
    page = write_report(run)[0].read_text()
    assert {"alarms", "warnings", "augmented"} <= set(headings(page))
    assert "Epoch 3: Half of &lt;conv2&gt; is dead." in page
    assert "cut short" in page
    assert page.count('<img class="sheet"') == 1


def test_two_hundred_classes_stay_small(tmp_path):
    page = write_report(make_fake_run(tmp_path / "run", classes=200, per_class=5))[0].read_text()
    assert len(page) < 1_500_000
    assert "cannot be shown" in page  # the filters alone
    assert page.count("cannot be shown") == 1
