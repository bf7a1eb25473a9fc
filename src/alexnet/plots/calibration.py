"""How far a network's confidence can be trusted, drawn: confidence against accuracy before and after the temperature,
and what the threshold for "unsure" answers and costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from alexnet.errors import UserError
from alexnet.inference.calibration import coverage, find_calibration, reliability
from alexnet.inference.metrics import correct_at
from alexnet.messages.texts import Translator
from alexnet.plots.curves import panel
from alexnet.plots.style import Theme
from alexnet.report.run_data import Answers, RunData
from alexnet.runtimes.calibration import Calibration

BINS = 10  # that are drawn: with more, few pictures make a jagged line


@dataclass(frozen=True)
class Confidence:
    """How sure the network was of each answer, and whether it was right, (n,) each."""

    right: np.ndarray
    plain: np.ndarray
    """The largest probability."""
    corrected: np.ndarray | None
    """The same at the temperature; None without a calibration."""
    calibration: Calibration | None
    note: str
    """Why there is no calibration, or how it was come by."""

    @property
    def best(self) -> np.ndarray:
        return self.plain if self.corrected is None else self.corrected

    @classmethod
    def of(cls, facts: RunData, answers: Answers) -> Confidence:
        """Of the answers on the reported split; a calibration that is damaged is none."""
        try:
            calibration, note = find_calibration(facts.run.named_checkpoint("best"), facts.run)
        except UserError as error:
            calibration, note = None, str(error)
        corrected = calibration.confidence(answers.logits) if calibration else None
        right = correct_at(answers.logits, answers.targets, 1)
        return cls(right, answers.sure, corrected, calibration, note)


def _reliability_figure(found: Confidence, theme: Theme, words: Translator) -> Figure:
    """Where the line is below the diagonal the network is too sure. Dots are as large as their share of pictures, and
    left out where there are few, and chance alone would draw the line."""
    n = len(found.right)
    enough = max(min(5, n / 20), n / 500)
    figure, axes = panel(5.2, 4.2)
    axes.plot((0, 1), (0, 1), color=theme.faint, lw=1)
    lines = [(found.plain, "--", theme.orange, words("before"))]
    if found.corrected is not None:
        lines.append((found.corrected, "-", theme.blue, words("after")))
    for p, style, colour, label in lines:
        bins = reliability(p, found.right, BINS)
        there = bins.n >= enough
        axes.plot(bins.confidence[there], bins.accuracy[there], style, color=colour, label=label)
        axes.scatter(bins.confidence[there], bins.accuracy[there], 8 + 250 * bins.n[there] / bins.n.sum(), color=colour)
    axes.set(xlim=(-0.02, 1.03), ylim=(-0.02, 1.03))
    axes.set_xlabel(words("sure"))
    axes.set_ylabel(words("share_right"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=True)
    axes.legend(loc="best")
    return figure


def _coverage_figure(found: Confidence, theme: Theme, words: Translator) -> Figure:
    """What is gained by not answering the least sure."""
    figure, axes = panel(5.2, 4.2)
    curve = coverage(found.best, found.right)
    some = np.unique(np.linspace(0, len(curve.coverage) - 1, 400).astype(int))  # of tens of thousands of steps
    axes.plot(curve.coverage[some], curve.accuracy[some], color=theme.blue, lw=2.2)
    if found.calibration is not None and (answered := ~found.calibration.is_unsure(found.best)).any():
        label = f"{words('unsure_below')} {found.calibration.threshold:.1%}"
        axes.plot(answered.mean(), found.right[answered].mean(), "o", color=theme.orange, ms=10, label=label)
        axes.legend(loc="best")
    low = float(min(curve.accuracy[curve.coverage > 0.05].min(initial=1.0), found.right.mean()))
    axes.set(xlim=(-0.02, 1.03), ylim=(max(0.0, low - 0.05 * (1.02 - low)), 1 + 0.04 * (1 - low)))
    axes.set_xlabel(words("answered_share"))
    axes.set_ylabel(words("answered_right"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=True)
    return figure
