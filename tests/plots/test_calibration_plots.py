import csv
import re

import numpy as np

from alexnet.plots.calibration import Confidence
from alexnet.report.report import write_report
from alexnet.report.run_data import read_run_data
from fake_run import make_fake_run


def too_sure(tmp_path, **recipe):
    """A network whose logits are three times too large."""
    run = make_fake_run(tmp_path / "run", per_class=400, accuracy=0.7, recipe=recipe)
    for split in ("val", "test"):
        paths, targets, logits = run.read_evaluation(split)
        run.write_evaluation(split, paths, targets, 3 * logits)
    return run


def test_the_temperature_brings_confidence_to_accuracy(tmp_path):
    facts = read_run_data(too_sure(tmp_path))
    found = Confidence.of(facts, facts.answers)
    assert found.right.mean() == np.mean(facts.answers.said == facts.answers.targets)
    assert found.plain.mean() > 0.95
    assert abs(found.corrected.mean() - 0.7) < 0.1
    page = write_report(facts.run)[0].read_text()
    section = re.search(r'<section id="calibration">.*?</section>', page, re.DOTALL).group()
    assert f"{found.calibration.temperature:.3g}" in section
    assert f"{found.calibration.threshold:.1%}" in section
    assert section.count("<svg") == 2
    with (facts.run.path / "report" / "thresholds.csv").open(encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["pictures that are answered"]) == 1.0
    assert float(rows[0]["right, of the answered"]) == found.right.mean()


def test_a_run_that_may_choose_nothing_shows_the_plain_curve(tmp_path):
    facts = read_run_data(too_sure(tmp_path, validate_on="test"))
    assert Confidence.of(facts, facts.answers).calibration is None
    section = write_report(facts.run)[0].read_text().split('<section id="calibration">')[1].split("</section>")[0]
    assert "validates on the test split" in section
    assert "with temperature" not in section
