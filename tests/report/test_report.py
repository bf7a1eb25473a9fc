import csv
import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.errors import UserError
from alexnet.files import write_json
from alexnet.report.report import write_report
from alexnet.report.run_data import read_run_data
from alexnet.run_dir import Run
from fake_run import make_fake_run
from parsed_html import page_links


def section_ids(page: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', page)


@pytest.mark.slow
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


def test_a_run_without_mistakes_says_among_how_many_images(tmp_path, skip_plots):
    run = make_fake_run(tmp_path / "run", accuracy=1.0, per_class=500)
    assert "No mistakes among 1,500 test images." in write_report(run)[0].read_text()


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
    alarms = [{"epoch": 3, "kind": "dead", "text": "Half of <conv2> is dead."},
              {"epoch": 4, "kind": "stuck", "text": "Nothing is learned.", "withdrawn": 6}]  # fmt: skip
    write_json(run.path / "alarms.json", alarms)
    Image.new("RGB", (1400, 60), "red").save(run.path / "augmented.png")
    (run.path / "bad_files.csv").write_text("path,reason\na/b.jpg,cut short\n")
    page = write_report(run)[0].read_text()
    assert {"alarms", "warnings", "augmented"} <= set(section_ids(page))
    assert "Epoch 3: Half of &lt;conv2&gt; is dead." in page
    assert "Nothing is learned" not in page
    assert "cut short" in page
    assert page.count('<img class="sheet"') == 1
    (run.path / "bad_files.csv").write_text("path,reason\na/b.jpg,it is cut short\n")
    assert "文件不完整" in write_report(run, "zh")[0].read_text()


@pytest.mark.slow
def test_report_of_200_classes_is_small(tmp_path):
    page = write_report(make_fake_run(tmp_path / "run", classes=200, per_class=5))[0].read_text()
    assert len(page) < 1_500_000
    assert page.count("cannot be shown") == 1  # the filters: a fake run has no weights


def section(page: str, key: str) -> str:
    """Return the HTML of one section of a page."""
    return re.search(rf'<section id="{key}">(.*?)</section>', page, re.DOTALL)[1]


# ── calibration ───────────────────────────────────────────────────────────────────────────────────


def overconfident_run(tmp_path, **recipe):
    """A run whose logits are three times too large."""
    run = make_fake_run(tmp_path / "run", per_class=400, accuracy=0.7, recipe=recipe)
    for split in ("val", "test"):
        paths, targets, logits = run.read_evaluation(split)
        run.write_evaluation(split, paths, targets, 3 * logits)
    return read_run_data(run)


def test_temperature_brings_confidence_to_accuracy(tmp_path):
    data = overconfident_run(tmp_path)
    confidence = data.confidence
    assert confidence.correct.mean() == np.mean(data.predictions.predicted == data.predictions.targets)
    assert confidence.uncalibrated.mean() > 0.95
    assert abs(confidence.calibrated.mean() - 0.7) < 0.1
    page, *files = write_report(data.run)
    html = section(page.read_text(), "calibration")
    assert f"{confidence.calibration.temperature:.3g}" in html
    assert f"{confidence.calibration.threshold:.1%}" in html
    assert html.count("<svg") == 2
    assert {"calibration.svg", "coverage.png"} <= {path.name for path in files}
    with (data.run.path / "report" / "thresholds.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["share of images accepted"]) == 1.0
    assert float(rows[0]["accuracy on accepted images"]) == confidence.correct.mean()
    with (data.run.path / "report" / "mistakes.csv").open(encoding="utf-8-sig") as file:
        shown = {row["file"]: float(row["confidence"]) for row in csv.DictReader(file)}
    expected = dict(zip(data.predictions.names, confidence.calibrated, strict=True))  # what predict reports
    assert shown == pytest.approx({name: expected[name] for name in shown}, abs=1e-4)


def test_a_run_validated_on_test_is_not_calibrated(tmp_path):
    data = overconfident_run(tmp_path, validate_on="test")
    assert data.confidence.calibration is None
    html = section(write_report(data.run)[0].read_text(), "calibration")
    assert "No temperature or threshold was fitted" in html
    assert "validates on the test split" in html
    assert "with temperature" not in html


# ── confusion matrix ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("n", "cells"), [(4, 16), (40, 0)])
def test_cells_are_elements_or_pixels(tmp_path, skip_plots, n, cells):
    run = make_fake_run(tmp_path / "run", classes=n, per_class=5)
    html = section(write_report(run)[0].read_text(), "confusion")
    assert len(re.findall("<b", html)) == cells
    assert html.count("data:image/png") == (cells == 0)
    data = json.loads(re.search(r'id="confusion-data">(.*?)</script>', html).group(1))
    confusion = read_run_data(run).confusion
    assert data["names"] == list(confusion.labels)
    assert [row.get(str(i), 0) for i, row in enumerate(data["cells"])] == confusion.counts.diagonal().tolist()


def test_headings_of_the_matrix_are_upright(tmp_path, skip_plots):
    """Chinese names are columns of letters, digits stay as they are, and other names are turned."""
    run = make_fake_run(tmp_path / "run", classes=3)
    best = next(run.path.glob("checkpoints/*/model.json"))
    model = json.loads(best.read_text())
    for names, flat, upright in ((["金毛寻回犬", "狗", "a dog"], 0, 2), (["0", "1", "10"], 1, 0)):
        write_json(best, {**model, "classes": names})
        html = section(write_report(run)[0].read_text(), "confusion")
        heads = html[html.index('<div class="predicted') : html.index('<div class="true">')]
        assert heads.count("predicted flat") == flat
        assert heads.count('class="upright"') == upright


# ── data of a run ─────────────────────────────────────────────────────────────────────────────────


def test_run_data_reads_predictions_and_splits(tmp_path):
    data = read_run_data(make_fake_run(tmp_path / "run", classes=4, per_class=10, accuracy=0.8))
    assert data.split == "test"
    assert data.classes == ("class 0", "class 1", "class 2", "class 3")
    assert data.metrics["top1"] == pytest.approx(0.8)
    softmax = torch.tensor(data.predictions.logits).softmax(1)
    assert data.predictions.confidence == pytest.approx(softmax.amax(1).numpy())
    assert data.training_images == 640  # ten steps of 64
    data.run.split_csv.write_text("name,split\na.jpg,train\nb.jpg,val\nc.jpg,train\n")
    data = read_run_data(data.run)
    assert data.split_counts == {"train": 2, "val": 1}
    assert data.training_images == 2


def test_missing_or_damaged_files_are_none(tmp_path):
    run = make_fake_run(tmp_path / "run")
    (run.path / "evaluation" / "test.parquet").write_bytes(b"PAR1 not really")
    (run.path / "env.json").write_text("{")
    (run.path / "best").write_text("00000099\n")
    data = read_run_data(run)
    assert (data.predictions, data.metrics, data.env, data.classes) == (None, None, {}, ())
    assert (data.training_warnings, data.data_warnings) == ([], [])
    (run.path / "alarms.json").write_text("[1]")
    (run.path / "check.json").write_text("[")
    assert (data.training_warnings, data.data_warnings) == ([], [])
