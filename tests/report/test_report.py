import re
import shutil

import pytest
from PIL import Image

from alexnet.errors import UserError
from alexnet.files import write_json
from alexnet.report.report import write_report
from alexnet.run_dir import Run
from fake_run import make_fake_run
from parsed_html import page_links


def section_ids(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', page)


def test_report_of_a_trained_run(small_run, tmp_path):
    """It is complete, self-contained, small, and the same when written again."""
    run = Run(shutil.copytree(small_run, tmp_path / "a <run>"))
    files = write_report(run)
    page = files[0].read_text()
    assert not [link for link in page_links(page) if not link.startswith(("#", "data:image/"))]
    assert "a &lt;run&gt;" in page
    top1 = run.summary()["test"]["top1"]
    assert f"{top1:.1%}" in re.search(r'class="headline">([^<]*)<', page).group(1)
    expected = [
        "result",
        "next",
        "curves",
        "confusion",
        "classes",
        "mistakes",
        "least_confident_correct",
    ]
    expected += ["calibration", "filters", "split", "made", "files"]
    optional = {"alarms", "warnings", "augmented"}  # depend on what training wrote
    assert [name for name in section_ids(page) if name not in optional] == expected
    assert "cannot be shown" not in page
    assert page.count("data:image/jpeg") >= 12  # images of the embedded digits, which are not files
    assert all(path.is_file() for path in files)
    plots = ("loss", "top1", "rate", "speed", "confusion", "calibration", "coverage", "filters")
    tables = ("epochs", "confusions", "classes", "least_confident_correct", "split", "thresholds")
    names = {path.name for path in files}
    assert {f"{plot}.{form}" for plot in plots for form in ("svg", "png")} | {f"{t}.csv" for t in tables} <= names
    assert len(files[0].read_bytes()) < 2_000_000
    assert write_report(run)[0].read_text() == page


def test_chinese_report_in_another_place(tmp_path):
    run, out = make_fake_run(tmp_path / "run"), tmp_path / "pages" / "run.html"
    files = write_report(run, "zh", out)
    page = out.read_text()
    assert files[0] == out
    assert 'lang="zh-CN"' in page
    assert "混淆矩阵" in page
    assert "Confusion matrix" not in page
    assert (out.parent / "run" / "loss.svg").is_file()
    with pytest.raises(UserError, match="'xx'"):
        write_report(run, "xx")


def test_a_run_without_an_epoch_has_no_report(tmp_path):
    run = Run.create("x", tmp_path / "run", "{}")
    with pytest.raises(UserError, match="has not finished an epoch"):
        write_report(run)
    assert not (run.path / "report.html").exists()
    assert not (run.path / "report").exists()


def test_missing_parts_are_stated_and_the_rest_is_shown(tmp_path, skip_plots):
    """First without images and weights, then without evaluation, then without checkpoints."""
    run = make_fake_run(tmp_path / "run")
    page = write_report(run)[0].read_text()
    assert "can no longer be read" in page  # the images
    assert re.search(
        r'<section id="filters">\s*<h2>[^<]*</h2>\s*<p [^<]*cannot be shown: [^<]*model', page
    )  # the weights
    assert section_ids(page)[:5] == ["result", "next", "curves", "confusion", "classes"]
    (run.path / "evaluation" / "test.parquet").write_bytes(b"damaged")
    page = write_report(run)[0].read_text()
    assert section_ids(page) == ["result", "next", "curves", "filters", "split", "made", "files"]
    assert f"alexnet eval {run.path}" in page
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "env.json").unlink()
    assert section_ids(write_report(run)[0].read_text())[:3] == ["result", "next", "curves"]


def test_warnings_and_augmented_images_of_training_are_shown(tmp_path, skip_plots):
    run = make_fake_run(tmp_path / "run")
    write_json(run.path / "alarms.json", [{"epoch": 3, "kind": "dead", "text": "Half of <conv2> is dead."}])
    Image.new("RGB", (1400, 60), "red").save(run.path / "augmented.png")
    (run.path / "bad_files.csv").write_text("path,reason\na/b.jpg,cut short\n")
    page = write_report(run)[0].read_text()
    assert {"alarms", "warnings", "augmented"} <= set(section_ids(page))
    assert "Epoch 3: Half of &lt;conv2&gt; is dead." in page
    assert "cut short" in page
    assert page.count('<img class="sheet"') == 1


@pytest.mark.slow
def test_report_of_200_classes_is_small(tmp_path):
    page = write_report(make_fake_run(tmp_path / "run", classes=200, per_class=5))[0].read_text()
    assert len(page) < 1_500_000
    assert page.count("cannot be shown") == 1  # the filters: a fake run has no weights
