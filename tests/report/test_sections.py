import csv
import json
import re

import numpy as np
import pytest

from alexnet.report.report import write_report
from alexnet.report.run_data import read_run_data
from fake_run import make_fake_run


def section(page: str, key: str) -> str:
    """Return the HTML of one section of a page."""
    return re.search(rf'<section id="{key}">(.*?)</section>', page, re.DOTALL)[1]


# ── calibration ───────────────────────────────────────────────────────────────────────────────────────────────────


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


def test_a_run_validated_on_test_is_not_calibrated(tmp_path):
    data = overconfident_run(tmp_path, validate_on="test")
    assert data.confidence.calibration is None
    html = section(write_report(data.run)[0].read_text(), "calibration")
    assert "No temperature or threshold was fitted" in html
    assert "validates on the test split" in html
    assert "with temperature" not in html


# ── confusion matrix ──────────────────────────────────────────────────────────────────────────────────────────────


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
