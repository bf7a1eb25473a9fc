import csv

import numpy as np

from alexnet.messages.translator import Translator
from alexnet.report.calibration import calibration_html, measure_confidence
from alexnet.report.html import Page
from alexnet.report.run_data import read_run_data
from fake_run import make_fake_run


def overconfident_run(tmp_path, **recipe):
    """A run whose logits are three times too large."""
    run = make_fake_run(tmp_path / "run", per_class=400, accuracy=0.7, recipe=recipe)
    for split in ("val", "test"):
        paths, targets, logits = run.read_evaluation(split)
        run.write_evaluation(split, paths, targets, 3 * logits)
    return read_run_data(run)


def test_temperature_brings_confidence_to_accuracy(tmp_path):
    data = overconfident_run(tmp_path)
    confidence = measure_confidence(data, data.predictions)
    assert confidence.correct.mean() == np.mean(data.predictions.predicted == data.predictions.targets)
    assert confidence.uncalibrated.mean() > 0.95
    assert abs(confidence.calibrated.mean() - 0.7) < 0.1
    page = Page(tmp_path / "a.html", "a", Translator())
    html = calibration_html(page, data, confidence)
    assert f"{confidence.calibration.temperature:.3g}" in html
    assert f"{confidence.calibration.threshold:.1%}" in html
    assert html.count("<svg") == 2
    assert {"calibration.svg", "coverage.png"} <= {path.name for path in page.files}
    with (page.folder / "thresholds.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["share of images accepted"]) == 1.0
    assert float(rows[0]["accuracy on accepted images"]) == confidence.correct.mean()


def test_a_run_validated_on_test_is_not_calibrated(tmp_path):
    data = overconfident_run(tmp_path, validate_on="test")
    confidence = measure_confidence(data, data.predictions)
    assert confidence.calibration is None
    html = calibration_html(Page(tmp_path / "a.html", "a", Translator()), data, confidence)
    assert "No temperature or threshold was fitted" in html
    assert "validates on the test split" in html
    assert "with temperature" not in html
