"""Report section on calibration: reliability diagram, accuracy against coverage, and a table of thresholds."""

from __future__ import annotations

from alexnet.errors import UserError
from alexnet.inference.calibration import ece, find_calibration
from alexnet.inference.metrics import correct_at
from alexnet.plots.calibration import Confidence, coverage_figure, reliability_figure
from alexnet.report.html import Column, Page, escape_text
from alexnet.report.run_data import Predictions, RunData

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def measure_confidence(data: RunData, predictions: Predictions) -> Confidence:
    """Return the confidence of `predictions`; a damaged calibration counts as none."""
    try:
        calibration, note = find_calibration(data.run.named_checkpoint("best"), data.run)
    except UserError as error:
        calibration, note = None, str(error)
    calibrated = calibration.confidence(predictions.logits) if calibration else None
    correct = correct_at(predictions.logits, predictions.targets, 1)
    return Confidence(correct, predictions.confidence, calibrated, calibration, note)


def calibration_html(page: Page, data: RunData, confidence: Confidence) -> str:
    """Return the calibration errors in sentences, two plots, and the table of thresholds."""
    translate, calibration, correct = page.translate, confidence.calibration, confidence.correct
    mean, error = confidence.uncalibrated.mean(), ece(confidence.uncalibrated, correct)
    sentences = [translate("ece", mean=mean, top1=correct.mean(), ece=error)]
    if calibration is None:
        sentences.append(translate("not_calibrated", why=confidence.note))
    else:
        fitted_on = translate.split(calibration.split)
        accepted = ~calibration.is_unsure(confidence.reported)
        error = ece(confidence.reported, correct)
        sentences += [
            translate("temperature", t=calibration.temperature, ece=error, split=fitted_on),
            translate("threshold", threshold=calibration.threshold, share=accepted.mean(),
                      split=translate.split(data.split)),
        ]  # fmt: skip
        if accepted.any():
            sentences.append(translate("accepted", accuracy=correct[accepted].mean()))
        if not accepted.all():
            sentences.append(translate("rejected", accuracy=correct[~accepted].mean()))
        if confidence.note:
            sentences.append(translate("fitted_now", split=fitted_on))
    plots = page.plot("calibration", lambda theme, translate: reliability_figure(confidence, theme, translate))
    plots += page.plot("coverage", lambda theme, translate: coverage_figure(confidence, theme, translate))
    return (
        f'<p>{escape_text(translate.join(sentences))}</p><div class="plots">{plots}</div>'
        + page.details("thresholds", _thresholds_table(page, confidence))
    )  # fmt: skip


def _thresholds_table(page: Page, confidence: Confidence) -> str:
    """Return coverage and accuracy at several thresholds, including that of the calibration."""
    thresholds = {*THRESHOLDS, *([confidence.calibration.threshold] if confidence.calibration else [])}
    rows = []
    for threshold in sorted(thresholds):
        accepted = confidence.reported >= threshold
        rows.append((threshold, accepted.mean(), confidence.correct[accepted].mean() if accepted.any() else None))
    columns = (Column("confidence", ".1%"), Column("accepted_share", ".1%"), Column("accepted_accuracy", ".1%"))
    return page.table("thresholds", columns, rows)
