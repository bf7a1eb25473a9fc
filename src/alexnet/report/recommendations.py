"""What to try next: rules that look at a run's curves, classes and mistakes.

Each gives a sentence of `report_text` and, where one follows, the command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from alexnet.inference.calibration import ece
from alexnet.plots.calibration import Confidence
from alexnet.plots.confusion import Confusion
from alexnet.report.run_data import RunData
from alexnet.training.recipe import FLAG_NAMES


@dataclass(frozen=True)
class Recommendation:
    """One thing to try or to look at."""

    key: str
    """Of the texts, without `advice_`."""
    values: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    warns: bool = True
    """Whether something is wrong, rather than could be better."""


def recommend(
    facts: RunData, confusion: Confusion | None = None, confidence: Confidence | None = None
) -> list[Recommendation]:
    """What the rules say, the gravest first; one friendly word if nothing stands out."""
    broken = list(_broken(facts))
    if broken:
        return broken
    found = [*_curves(facts), *_data(facts), *_classes(facts, confusion), *_measured(facts, confidence)]
    if not any(advice.command for advice in found):
        command = f"alexnet eval {shlex.quote(str(facts.run.path))} --ten-crop"
        found.append(Recommendation("nothing", {}, command, warns=False))
    return found


def _again(facts: RunData, **settings: Any) -> str:
    """The command that trains again with other settings; empty if this version has none of them."""
    return _train(facts.run.recipe_json, settings)


def _train(what: str | Path, settings: dict[str, Any]) -> str:
    known = {name: value for name, value in settings.items() if name in FLAG_NAMES}
    if not known:
        return ""
    words = ["alexnet", "train", str(what)]
    for name, value in known.items():
        words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return shlex.join(words)


def _guess(facts: RunData) -> float:
    """The accuracy of always answering the commonest class."""
    if facts.answers is None:
        return 1 / max(1, facts.summary.get("classes", 1))
    counts = np.bincount(facts.answers.targets)
    return float(counts.max() / counts.sum())


# ── it does not learn ─────────────────────────────────────────────────────────────────────────────────────────────


def _broken(facts: RunData) -> Iterator[Recommendation]:
    rows = facts.rows
    lr = float(facts.recipe.get("lr") or rows[0].get("lr") or 0)
    bad = next((row for row in rows if not math.isfinite(row["train_loss"])), None)
    if bad is not None:
        yield Recommendation("diverged", {"epoch": bad["epoch"], "lr": lr}, _again(facts, lr=f"{lr / 10:.3g}"))
        return
    guess = _guess(facts)
    low = facts.figures["interval"][0] if facts.figures else max(row["top1"] for row in rows)
    if len(rows) >= 2 and low <= 1.1 * guess < 0.95:
        yield Recommendation("stuck", {"guess": guess}, _again(facts, lr=f"{lr / 10:.3g}"))


# ── how it learned ────────────────────────────────────────────────────────────────────────────────────────────────


def _curves(facts: RunData) -> Iterator[Recommendation]:
    rows, recipe = facts.rows, facts.recipe
    if len(rows) < 5:
        yield Recommendation("short", {"epochs": len(rows)}, _again(facts, epochs=max(10, 4 * len(rows))), warns=False)
        return
    top1 = [row["top1"] for row in rows]
    losses = [row["val_loss"] for row in rows]
    last, train = rows[-1], rows[-1]["train_top1"]
    quarter = max(2, len(rows) // 4)
    gain = top1[-1] - top1[-1 - quarter]
    least = int(np.argmin(losses))
    gap = train - last["top1"]
    harder = {"augment": "strong", "weight_decay": f"{2 * float(recipe.get('weight_decay') or 5e-4):.3g}"}
    if gap > 0.1 and losses[-1] > 1.1 * losses[least]:
        yield Recommendation(
            "overfit",
            {"epoch": rows[least]["epoch"], "split": last["split"], "least": losses[least], "last": losses[-1],
             "train": train, "val": last["top1"]},
            _again(facts, **harder),
        )  # fmt: skip
    elif gap > 0.15:
        yield Recommendation("gap", {"train": train, "val": last["top1"]}, _again(facts, **harder), warns=False)
    elif gain > 0.01 and top1[-1] >= max(top1) and last["top1"] < 0.995:
        yield Recommendation(
            "improving", {"gain": 100 * gain, "n": quarter}, _again(facts, epochs=2 * len(rows)), warns=False
        )
    elif train < 0.95 and last["top1"] < 0.95 and gap < 0.03 and abs(gain) < 0.005:
        wider = f"{2 * float(recipe.get('width') or 1):g}"
        yield Recommendation("underfit", {"train": train}, _again(facts, width=wider), warns=False)
    late = range(max(1, len(rows) - quarter), len(rows))
    jumps = [(abs(top1[i] - top1[i - 1]), i) for i in late if top1[i] < top1[i - 1]]
    if jumps and max(jumps)[0] > 0.05:
        jump, i = max(jumps)
        lr = float(recipe.get("lr") or 0)
        yield Recommendation(
            "jumps", {"jump": 100 * jump, "epoch": rows[i]["epoch"]}, _again(facts, lr=f"{lr / 2:.3g}")
        )


# ── what it learned from ──────────────────────────────────────────────────────────────────────────────────────────


def _data(facts: RunData) -> Iterator[Recommendation]:
    if facts.bad_files:
        data = facts.recipe.get("data")
        command = f"alexnet check {shlex.quote(str(data))}" if data else ""
        yield Recommendation("bad_files", {"n": len(facts.bad_files)}, command)
    pictures, classes = facts.training_pictures, int(facts.summary.get("classes") or len(facts.classes) or 1)
    if pictures and pictures / classes < 100 and facts.summary["best"]["top1"] < 0.97:
        own = facts.recipe.get("dataset") == "folder" and facts.recipe.get("data") and not facts.recipe.get("weights")
        # from the data, not from recipe.json: the weights bring an architecture of their own
        command = _train(facts.recipe["data"], {"weights": "torchvision:IMAGENET1K_V1"}) if own else ""
        yield Recommendation("few", {"each": pictures / classes}, command, warns=False)


def class_counts(facts: RunData) -> dict[str, int]:
    """Training pictures of each class, as far as split.csv names them by their folders; else those evaluated."""
    if facts.split_counts and facts.recipe.get("dataset") in ("folder", "imagenet") and not facts.recipe.get("labels"):
        from alexnet.data.split import read_split

        counts = dict.fromkeys(facts.classes, 0)
        for name, part in read_split(facts.run.split_csv):
            folder = PurePosixPath(name).parent.name
            if part == "train" and folder in counts:
                counts[folder] += 1
        if all(counts.values()):
            return counts
    return {c["label"]: c["n"] for c in facts.figures["per_class"] if c["n"]} if facts.figures else {}


# ── where it errs ─────────────────────────────────────────────────────────────────────────────────────────────────


def _classes(facts: RunData, confusion: Confusion | None) -> Iterator[Recommendation]:
    if facts.figures is None or facts.answers is None:
        return
    seen = [c for c in facts.figures["per_class"] if c["n"] >= 5]
    if len(seen) >= 2:
        mean = float(np.mean([c["recall"] for c in seen]))
        worst = min(seen, key=lambda c: c["recall"])
        counts = class_counts(facts)
        times = max(counts.values()) / min(counts.values())
        rare = sorted(seen, key=lambda c: counts.get(c["label"], 0))[: max(1, len(seen) // 4)]
        if times >= 4 and float(np.mean([c["recall"] for c in rare])) < mean - 0.05:
            yield Recommendation("balance", {"times": times}, _again(facts, balance=True))
        elif worst["recall"] < mean - 0.25:
            values = {"label": worst["label"], "recall": worst["recall"], "mean": mean}
            values |= {"own": counts.get(worst["label"], 0), "most": max(counts.values())}
            yield Recommendation("uneven", values)
    wrong = facts.answers.said != facts.answers.targets
    if confusion is not None and wrong.sum() >= 10 and len(facts.classes) > 2:
        both = np.triu(confusion.counts + confusion.counts.T, 1)
        i, j = divmod(int(both.argmax()), len(both))
        share = both[i, j] / wrong.sum()
        if share >= max(0.15, 4 / (len(both) * (len(both) - 1))):  # twice what one of all pairs has by chance
            size = facts.model.get("preprocess", {}).get("size", "?")
            yield Recommendation(
                "pair", {"share": share, "a": confusion.labels[i], "b": confusion.labels[j], "size": size}, warns=False
            )
    sure = int((wrong & (facts.answers.sure > 0.95)).sum())
    if sure >= 5 and sure >= 0.1 * wrong.sum():
        yield Recommendation("sure_mistakes", {"wrong": int(wrong.sum()), "n": sure}, warns=False)


def _measured(facts: RunData, found: Confidence | None) -> Iterator[Recommendation]:
    """How well all this is known, and how well the network knows it."""
    if facts.figures is None:
        return
    if found is not None and found.calibration is not None and ece(found.plain, found.right) > 0.05:
        values = {"mean": float(found.plain.mean()), "top1": float(found.right.mean())}
        yield Recommendation("calibration", values, warns=False)
        if (off := ece(found.best, found.right)) > 0.05 and len(found.right) >= 500:  # of few, bins are uneven anyway
            yield Recommendation("confidence", {"ece": off, "split": facts.split})
    low, high = facts.figures["interval"]
    if high - low > 0.06:
        yield Recommendation("small_test", {"width": 100 * (high - low), "n": facts.figures["n"]}, warns=False)
    val, split = facts.summary["best"]["top1"], facts.summary["split"]
    if facts.split == "test" != split and val - facts.figures["top1"] > 2 * (high - low):
        yield Recommendation("optimistic", {"test": facts.figures["top1"], "val": val, "split": split})
