import re
import shutil

import numpy as np
import pytest

from alexnet.cli import run as alexnet
from alexnet.errors import UserError
from alexnet.inference.evaluate import Evaluation
from alexnet.report.compare import accuracy_difference, write_comparison
from alexnet.report.report import write_report
from alexnet.report.run_data import read_run_data
from alexnet.training.api import TrainingResult
from fake_run import make_fake_run


def test_page_lists_runs_and_differing_settings(tmp_path):
    good = make_fake_run(tmp_path / "good", accuracy=0.9, per_class=100)
    bad = make_fake_run(tmp_path / "bad", accuracy=0.6, per_class=100, recipe={"lr": 0.02})
    files = write_comparison([bad, good])
    page = files[0].read_text()
    assert "cannot be shown" not in page
    assert files[0] == bad.path / "comparison.html"
    rows = re.findall(r'<tr><td class="long">(\w+)</td><td class="text">test</td><td data-v="([\d.]+)"', page)
    assert [name for name, _ in rows] == ["good", "bad"]
    assert float(rows[0][1]) == pytest.approx(0.9)
    settings = page[page.index('<section id="differ">') :]
    assert re.findall(r'<tr><td class="text">(\w+)</td>', settings) == ["data", "lr"]
    assert {"accuracy.svg", "top1.png", "loss.svg", "top1-by-minutes.png", "accuracies.csv"} <= {f.name for f in files}


@pytest.mark.parametrize(("classes", "shown"), [(5, False), (6, True)])
def test_top5_is_left_out_where_it_is_always_100_percent(tmp_path, skip_plots, classes, shown):
    runs = [make_fake_run(tmp_path / name, classes=classes) for name in ("a", "b")]
    for page in (write_comparison(runs)[0], write_report(runs[0])[0]):
        assert ("top-5" in page.read_text().lower()) == shown
    result = TrainingResult(runs[0].path, runs[0].summary() | {"calibration": None, "classes": classes})
    result.summary["test"] |= {"top5": 1.0, "interval": [0.7, 0.9]}
    assert ("top-5" in str(result)) == shown
    data = read_run_data(runs[0])
    evaluation = Evaluation(data.metrics | {"split": "test", "calibration": None, "ece": 0.1, "calibration_note": ""})
    assert ("top-5" in repr(evaluation)) == shown


def test_accuracy_difference_is_paired(tmp_path):
    a, b = (read_run_data(make_fake_run(tmp_path / str(r), accuracy=r, per_class=200)) for r in (0.9, 0.8))
    mean, low, high = accuracy_difference(a, b)
    assert mean == pytest.approx(0.1)
    assert 0 < low < mean < high < 0.2
    # the order of the images does not matter
    paths, targets, logits = b.run.read_evaluation("test")
    order = np.random.default_rng(0).permutation(len(paths))
    b.run.write_evaluation("test", [paths[i] for i in order], targets[order], logits[order])
    assert accuracy_difference(a, read_run_data(b.run)) == pytest.approx((mean, low, high))


def test_different_images_are_not_paired(tmp_path, skip_plots):
    a, b = make_fake_run(tmp_path / "a", per_class=20), make_fake_run(tmp_path / "b", per_class=30)
    assert accuracy_difference(read_run_data(a), read_run_data(b)) is None
    assert "not all evaluated on the same images" in write_comparison([a, b])[0].read_text()


def test_a_repeated_run_is_refused(tmp_path):
    run = make_fake_run(tmp_path / "a")
    with pytest.raises(UserError, match="two different runs"):
        write_comparison([run, run])


def test_runs_of_the_same_name_are_shown_by_path(tmp_path, skip_plots):
    first = make_fake_run(tmp_path / "x" / "run")
    second = shutil.copytree(first.path, tmp_path / "y" / "run")
    assert alexnet(["report", str(first.path), str(second), "--lang", "zh", "--out", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert str(second) in page
    assert "所有设置相同" in page
