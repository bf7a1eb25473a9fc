import re
import shutil

import numpy as np
import pytest

from alexnet.cli import run as alexnet
from alexnet.errors import UserError
from alexnet.report.compare import behind, write_comparison
from alexnet.report.run_data import read_run_data
from fake_run import make_fake_run


def test_the_page_has_each_run_and_what_differs(tmp_path):
    good = make_fake_run(tmp_path / "good", accuracy=0.9, per_class=100)
    bad = make_fake_run(tmp_path / "bad", accuracy=0.6, per_class=100, recipe={"lr": 0.02})
    files = write_comparison([bad, good])
    page = files[0].read_text()
    assert files[0] == bad.path / "comparison.html"
    rows = re.findall(r'<tr><td class="long">(\w+)</td><td class="text">test</td><td data-v="([\d.]+)"', page)
    assert [name for name, _ in rows] == ["good", "bad"]
    assert float(rows[0][1]) == pytest.approx(0.9)
    settings = page[page.index('<section id="differ">') :]
    assert re.findall(r'<tr><td class="text">(\w+)</td>', settings) == ["data", "lr"]
    assert {"accuracy.svg", "top1.png", "loss.svg", "top1-by-minutes.png", "accuracies.csv"} <= {f.name for f in files}


def test_the_difference_is_paired(tmp_path):
    a, b = (read_run_data(make_fake_run(tmp_path / str(r), accuracy=r, per_class=200)) for r in (0.9, 0.8))
    mean, low, high = behind(a, b)
    assert mean == pytest.approx(0.1)
    assert 0 < low < mean < high < 0.2
    # the same pictures in another order are the same pictures
    paths, targets, logits = b.run.read_evaluation("test")
    order = np.random.default_rng(0).permutation(len(paths))
    b.run.write_evaluation("test", [paths[i] for i in order], targets[order], logits[order])
    assert behind(a, read_run_data(b.run)) == pytest.approx((mean, low, high))


def test_other_pictures_are_not_paired(tmp_path):
    a, b = make_fake_run(tmp_path / "a", per_class=20), make_fake_run(tmp_path / "b", per_class=30)
    assert behind(read_run_data(a), read_run_data(b)) is None
    assert "not measured on the same pictures" in write_comparison([a, b])[0].read_text()


def test_the_same_run_twice_is_no_comparison(tmp_path):
    run = make_fake_run(tmp_path / "a")
    with pytest.raises(UserError, match="two different runs"):
        write_comparison([run, run])


def test_folders_of_one_name_are_told_apart(tmp_path):
    first = make_fake_run(tmp_path / "x" / "run")
    second = shutil.copytree(first.path, tmp_path / "y" / "run")
    assert alexnet(["report", str(first.path), str(second), "--lang", "zh", "--out", str(tmp_path / "both.html")]) == 0
    page = (tmp_path / "both.html").read_text()
    assert str(second) in page
    assert "所有设置相同" in page
