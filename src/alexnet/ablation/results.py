"""The result of one comparison: each run's outcome, the arms, differences, p-value and verdict, as JSON and text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from alexnet.ablation import stats
from alexnet.ablation.claims import Claim
from alexnet.text import join_lines

if TYPE_CHECKING:
    from alexnet.plots.style import Drawing


@dataclass(frozen=True)
class Outcome:
    """What one training of an arm has measured. Accuracies and errors are fractions of 1."""

    seed: int
    run: str
    value: float
    """What the claim is about, by its `measure`; for a race that was not won, all its epochs."""
    top1: float
    """On the test split, or without one on val."""
    classes: int
    images: int
    """Number of images of that split."""
    epochs: int = 0
    """Epochs trained; 0 for the SVM."""
    last_gain: float = 0.0
    """Training top-1 gained in the last epoch."""
    train_top1: float | None = None
    """For the measures `train_error` and `gap`: on the training images as they are, without augmentation or dropout."""
    reached: bool = True
    """For `epochs`: whether the run reached the target error."""
    seconds: float = 0.0


@dataclass(frozen=True)
class ArmResult:
    """One arm: the outcome of each seed."""

    name: str
    outcomes: list[Outcome]
    settings: dict[str, Any]
    """Those that differ from the base."""
    rates: dict[str, float] = field(default_factory=dict)
    """For an arm whose learning rate was chosen: the training error by rate, on a seed that is not among the tested."""

    @property
    def values(self) -> list[float]:
        return [outcome.value for outcome in self.outcomes]

    @property
    def runs(self) -> list[str]:
        return [outcome.run for outcome in self.outcomes]

    @property
    def reached(self) -> bool:
        """For epochs: whether every run reached the target error; if not, all epochs of such a run count."""
        return all(outcome.reached for outcome in self.outcomes)

    def to_dict(self) -> dict[str, Any]:
        values = self.values
        return {
            "name": self.name, "values": values, "runs": self.runs, "settings": self.settings, "reached": self.reached,
            "mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "rates": self.rates, "outcomes": [asdict(outcome) for outcome in self.outcomes],
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class Ablation:
    """The result of a comparison. A positive difference is in favor of the claim: with minus without the part in
    top-1; without minus with it in training error, in the gap between training and test, and in epochs."""

    claim: Claim
    part: ArmResult
    without: ArmResult
    recipe: dict[str, Any]
    planned: int
    """The number of pairs that the spread of the first three asked for, or --seeds."""
    files: list[str] = field(default_factory=list)
    figure: Drawing | None = field(default=None, compare=False)

    @property
    def seeds(self) -> list[int]:
        return list(range(len(self.part.outcomes)))

    @property
    def differences(self) -> list[float]:
        return pair_differences(self.claim.measure, self.part.values, self.without.values)

    @property
    def difference(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def censored(self) -> bool:
        """Whether a run of a race was stopped before it reached the target, so that its epochs are a lower bound."""
        return not (self.part.reached and self.without.reached)

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.censored else stats.paired_interval(self.differences)

    @property
    def p(self) -> float | None:
        """Two-sided and uncorrected; None for a single pair."""
        if len(self.seeds) < 2:
            return None
        if not self.censored:
            return stats.paired_p(self.differences)
        pairs = zip(self.part.outcomes, self.without.outcomes, self.differences, strict=True)
        return stats.sign_p([_order(part, without, difference) for part, without, difference in pairs])

    @property
    def reason(self) -> str | None:
        """Why there can be no verdict, or None."""
        race = self.claim.measure == "epochs"
        reasons = (stats.unlearned(arm.name, arm.outcomes, race) for arm in (self.part, self.without))
        return next((reason for reason in reasons if reason), None)

    @property
    def verdict(self) -> str:
        """The verdict of this comparison alone (see `stats`); a table of several claims corrects for their number."""
        return "cannot tell" if self.reason else stats.verdict(self.difference, self.p, self.p, len(self.seeds))

    @property
    def seconds(self) -> float:
        """Seconds of all trainings, each counted once."""
        spent = {o.run: o.seconds for arm in (self.part, self.without) for o in arm.outcomes}
        return sum(spent.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet ablate`."""
        c = self.claim
        return {
            "claim": c.name, "says": c.statement, "source": c.source, "figure": c.published, "log": c.log,
            "measure": c.measure, "difference": self.difference,
            "interval": list(self.interval) if self.interval else None, "p": self.p,
            "test": "sign" if self.censored else "t", "verdict": self.verdict, "reason": self.reason,
            "planned": self.planned, "seeds": self.seeds, "differences": self.differences, "seconds": self.seconds,
            "arms": [self.part.to_dict(), self.without.to_dict()], "recipe": self.recipe, "files": self.files,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [f"{self.claim.name}: {self.claim.statement}"]
        measure = self.claim.measure
        for arm in (self.part, self.without):
            values = ", ".join(format_value(v, measure) for v in arm.values)
            note = "" if arm.reached else " (at least: not every run reached the target)"
            lines.append(f"  {arm.name}: {format_value(statistics.fmean(arm.values), measure)} mean of {values}{note}")
        interval = " to ".join(format_value(v, measure, sign=True) for v in self.interval or ())
        sure = f"95 % interval {interval}" if interval else "sign test" if self.censored else "no interval"
        p = "" if self.p is None else f", p = {self.p:.2g}"
        difference = format_value(self.difference, measure, sign=True)
        lines.append(f"  difference {difference} ({sure}{p}): {self.reason or VERDICTS[self.verdict]}")
        lines.append(f"  published: {self.claim.published} ({self.claim.source})")
        return join_lines(*lines, *self.files)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_text

        figure = self.figure._repr_mimebundle_()[0]["text/html"] if self.figure else ""
        return render_text(str(self)) + str(figure)


VERDICTS = {
    "supports": "supports the claim", "leans": "leans towards the claim", "cannot tell": "cannot tell",
    "leans against": "leans against the claim", "contradicts": "contradicts the claim",
}  # fmt: skip


def pair_differences(measure: str, part: Sequence[float], without: Sequence[float]) -> list[float]:
    """Return the difference of each pair, positive if it is in favor of the claim."""
    sign = 1 if measure == "top1" else -1
    return [sign * (a - b) for a, b in zip(part, without, strict=True)]


def _order(part: Outcome, without: Outcome, difference: float) -> int:
    """Return 1 or -1 for the winner of a race, or 0 if neither arrived."""
    if part.reached != without.reached:
        return 1 if part.reached else -1
    return (difference > 0) - (difference < 0) if part.reached else 0


def format_value(value: float, measure: str, sign: bool = False) -> str:
    plus = "+" if sign else ""
    return f"{value:{plus}.2f} epochs" if measure == "epochs" else f"{100 * value:{plus}.2f} %"
