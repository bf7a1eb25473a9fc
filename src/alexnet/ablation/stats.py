"""Statistics of paired comparisons: interval, p-values, number of pairs, Holm's correction and the verdict.

The rules, stated here once:

- The p-value is two-sided: Student's paired t; if a run of a race was stopped before it reached the target, the exact
  sign test on the pairs whose order is known all the same.
- The number of pairs follows from the spread of the first three, never from their mean: as many as narrow the 95 %
  interval to a half width that is fixed for each measure, at least 5 and at most 12. A spread cannot be estimated from
  stopped runs: then 10, the fewest with which a sign test can pass Holm's correction for all claims.
- Verdicts: `supports` or `contradicts` if p, corrected over the table, is below .05 and there are at least 5 pairs;
  `leans` or `leans against` if only the uncorrected p is below .05, or there are fewer pairs; else `cannot tell`.
- An arm that did not learn gives no verdict: see `unlearned`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

SIGNIFICANCE = 0.05
PILOT_PAIRS = 3  # pairs trained before fixing how many there will be
MIN_PAIRS = 5  # unless --seeds is given
MAX_PAIRS = 12
SIGN_PAIRS = 10  # 2 / 2**10 = .00195 is below .05 / 19 claims = .0026; with 9 pairs it would not be
HALF_WIDTHS = {"top1": 0.005, "train_error": 0.005, "gap": 0.005, "epochs": 0.5}  # half a point; half an epoch
TARGET_ERROR = 0.25  # training error, figure 1 of the paper
LEARNED_SHARE = 0.1  # of the way from chance to 100 %
STEEP_GAIN = 0.01  # training top-1 gained in the last epoch


def paired_interval(differences: Sequence[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """Return Student's confidence interval of the mean of paired differences; None for fewer than two, or if all are
    equal, as these do not show their spread."""
    from scipy.stats import t

    n = len(differences)
    if n < 2 or statistics.stdev(differences) == 0:
        return None
    mean = statistics.fmean(differences)
    half = float(t.ppf((1 + confidence) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return mean - half, mean + half


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p-value of Student's paired t-test against a mean of 0; None for fewer than two.

    Equal differences, as small test splits give, do not show their spread: then that of the sign test.
    """
    from scipy.stats import t

    n = len(differences)
    if n < 2:
        return None
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return sign_p([(d > 0) - (d < 0) for d in differences])
    return 2 * float(t.sf(abs(mean) / spread * math.sqrt(n), n - 1))


def sign_p(signs: Sequence[int]) -> float:
    """Return the two-sided p-value of the exact sign test; `signs` are 1, -1 or 0 for a tie, which does not count."""
    from scipy.stats import binomtest

    wins, losses = signs.count(1), signs.count(-1)
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def pairs_needed(differences: Sequence[float], half_width: float) -> int:
    """Return how many pairs of this spread narrow the 95 % interval to ± `half_width`, from 5 to 12."""
    from scipy.stats import t

    spread = statistics.stdev(differences)
    for n in range(MIN_PAIRS, MAX_PAIRS):
        if float(t.ppf(0.975, n - 1)) * spread / math.sqrt(n) <= half_width:
            return n
    return MAX_PAIRS


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values corrected by Holm's step-down method (Holm 1979), in the given order."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def verdict(difference: float, p: float | None, corrected: float | None, pairs: int) -> str:
    """Return the verdict by the rules above; a positive difference is in favor of the claim."""
    if p is None or p >= SIGNIFICANCE or difference == 0:
        return "cannot tell"
    if corrected is not None and corrected < SIGNIFICANCE and pairs >= MIN_PAIRS:
        return "supports" if difference > 0 else "contradicts"
    return "leans" if difference > 0 else "leans against"


def learned_above(classes: int, images: int) -> float:
    """Return the top-1 above which a network has learned: a tenth of the way from chance to 100 % (19 % for ten
    classes), and more than guessing on so many test images reaches in one of a hundred trials."""
    from scipy.stats import binom

    chance = 1 / classes
    return max(chance + LEARNED_SHARE * (1 - chance), float(binom.ppf(0.99, images, chance)) / images)


def unlearned(name: str, outcomes: Sequence[Any], race: bool) -> str | None:
    """Return why an arm cannot be judged, or None: a run of it is near chance, or training top-1 still rose by more
    than one point in the last epoch, on average over its runs. In a race to a training error, the second is no reason.

    `outcomes` are `results.Outcome`s.
    """
    near_chance = sum(outcome.top1 <= learned_above(outcome.classes, outcome.images) for outcome in outcomes)
    if near_chance:
        return f"not trained long enough to judge: {near_chance} of {len(outcomes)} runs of '{name}' are near chance"
    if race or any(outcome.epochs == 0 for outcome in outcomes):  # a race, or an SVM, which has no epochs
        return None
    if any(outcome.epochs == 1 for outcome in outcomes):
        return f"not trained long enough to judge: '{name}' was trained for a single epoch"
    gain = statistics.fmean(outcome.last_gain for outcome in outcomes)
    if gain > STEEP_GAIN:
        return (
            f"not trained long enough to judge: the training top-1 of '{name}' still rose by {100 * gain:.1f} points "
            "in the last epoch"
        )
    return None


def epochs_to_error(rows: Sequence[dict[str, Any]], error: float = TARGET_ERROR) -> float | None:
    """Return the epochs until the training error falls to `error`, interpolated linearly; None if it never does.

    `rows` are those of metrics.jsonl. Their `train_top1` is the mean over an epoch, so it is placed at its middle.
    """
    previous_epoch, previous = 0.0, 1.0
    for row in rows:
        epoch, current = row["epoch"] - 0.5, 1 - row["train_top1"]
        if current <= error:
            return previous_epoch + (epoch - previous_epoch) * (previous - error) / (previous - current)
        previous_epoch, previous = epoch, current
    return None
