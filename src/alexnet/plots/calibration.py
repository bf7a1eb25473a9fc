"""Calibration plots: the reliability diagram, and accuracy against coverage when unsure predictions are rejected."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from alexnet.inference.calibration import coverage, reliability
from alexnet.messages.translator import Translator
from alexnet.plots.style import Theme, new_panel, use_percent
from alexnet.runtimes.calibration import Calibration

BINS = 10  # of the reliability diagram; with more, few images make a jagged line


@dataclass(frozen=True)
class Confidence:
    """The confidence of each prediction and whether it is correct, (n,) each."""

    correct: np.ndarray
    uncalibrated: np.ndarray
    """Probability of the predicted class."""
    calibrated: np.ndarray | None
    """The same with the temperature; None without a calibration."""
    calibration: Calibration | None
    note: str
    """Where the calibration comes from if it is not the stored one, or why there is none."""

    @property
    def reported(self) -> np.ndarray:
        """The confidence that predictions report: calibrated if there is a calibration."""
        return self.uncalibrated if self.calibrated is None else self.calibrated


def reliability_figure(confidence: Confidence, theme: Theme, translate: Translator) -> Figure:
    """Plot accuracy by confidence; below the diagonal the network is overconfident.

    The area of a dot is the share of images in its bin. Bins with few images are left out: their accuracy is noise.
    """
    n = len(confidence.correct)
    min_images = max(min(5, n / 20), n / 500)
    figure, axes = new_panel(5.2, 4.2)
    axes.plot((0, 1), (0, 1), color=theme.muted, lw=1)
    lines = [(confidence.uncalibrated, "--", theme.orange, translate("before"))]
    if confidence.calibrated is not None:
        lines.append((confidence.calibrated, "-", theme.blue, translate("after")))
    for p, style, color, label in lines:
        bins = reliability(p, confidence.correct, BINS)
        shown = bins.n >= min_images
        axes.plot(bins.confidence[shown], bins.accuracy[shown], style, color=color, label=label)
        areas = 8 + 250 * bins.n[shown] / bins.n.sum()
        axes.scatter(bins.confidence[shown], bins.accuracy[shown], areas, color=color)
    axes.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.03), xlabel=translate("confidence"), ylabel=translate("accuracy"))
    use_percent(axes.xaxis, axes.yaxis)
    axes.grid(visible=True)
    axes.legend(loc="best")
    return figure


def coverage_figure(confidence: Confidence, theme: Theme, translate: Translator) -> Figure:
    """Plot the accuracy of the most confident predictions against their share, and mark the threshold."""
    figure, axes = new_panel(5.2, 4.2)
    curve = coverage(confidence.reported, confidence.correct)
    points = np.unique(np.linspace(0, len(curve.coverage) - 1, 400).astype(int))  # of tens of thousands
    axes.plot(curve.coverage[points], curve.accuracy[points], color=theme.blue, lw=2.2)
    calibration = confidence.calibration
    if calibration is not None and (accepted := ~calibration.is_unsure(confidence.reported)).any():
        label = f"{translate('unsure_below')} {calibration.threshold:.1%}"
        axes.plot(accepted.mean(), confidence.correct[accepted].mean(), "o", color=theme.orange, ms=10, label=label)
        axes.legend(loc="best")
    low = float(min(curve.accuracy[curve.coverage > 0.05].min(initial=1.0), confidence.correct.mean()))
    axes.set(xlim=(-0.02, 1.03), ylim=(max(0.0, low - 0.05 * (1.02 - low)), 1 + 0.04 * (1 - low)))
    axes.set(xlabel=translate("accepted_share"), ylabel=translate("accepted_accuracy"))
    use_percent(axes.xaxis, axes.yaxis)
    axes.grid(visible=True)
    return figure
