"""Recommendations of a report: rules on a run's curves, data, classes and confidence.

Each recommendation is a text `advice_…` of `messages`, with a command where one follows from it.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from alexnet.data.quality.findings import FEW_IMAGES, PRETRAINED
from alexnet.models.architectures import TORCHVISION
from alexnet.report.run_data import RunData
from alexnet.runtimes.calibration import ece
from alexnet.training.recipe import SETTINGS, TINY

ORDER = (
    "unfinished", "diverged", "few", "stuck", "slow", "collapsed", "overfit", "short", "partial", "improving",
    "underfit", "gap", "jumps", "bad_files", "balance", "uneven", "optimistic", "pair", "confident_mistakes",
    "small_test", "confidence", "calibration", "nothing", "solved",
)  # fmt: skip
"""All recommendations, the largest expected effect on accuracy first, then those on how to read it."""
AFTER_COLLAPSE = {"few", "short", "partial", "improving", "overfit", "gap", "bad_files", "balance", "small_test"}
"""Those that hold, too, for a network that names few of the classes; the others judge what it has learned."""
UNFINISHED = {"diverged", "few", "bad_files", "balance"}
"""Those that do not depend on how long a run has trained."""
MIN_EPOCHS = 5  # with fewer, a run is short whatever else it is
STUCK = 0.98  # fraction of its first value above which the training loss has not fallen
MIN_CALIBRATION_IMAGES = 500  # with fewer, the bins of the calibration error hold too few images
SOLVED = 0.98  # top-1 above which ten-crop evaluation has nothing left to add


@dataclass(frozen=True)
class Recommendation:
    """One thing to try or to check."""

    key: str
    """Key of the text, without `advice_`."""
    values: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    warns: bool = True
    """Whether it is about a problem rather than a possible improvement."""


def recommend(data: RunData) -> list[Recommendation]:
    """Return the recommendations for a run in `ORDER`; ten-crop evaluation, or other images, if none has a command."""
    if not data.summary.get("complete", True):
        resume = shlex.join(["alexnet", "resume", str(data.run.path)])
        values = {"done": len(data.history), "epochs": data.recipe.get("epochs")}
        others = [*_check_failed(data), *_check_data(data)]
        return [Recommendation("unfinished", values, resume), *(one for one in others if one.key in UNFINISHED)]
    if failed := list(_check_failed(data)):
        few = (one for one in _check_data(data) if one.key == "few" and failed[0].key != "diverged")
        return [*few, *failed]
    found = [*_check_curves(data), *_check_data(data), *_check_classes(data), *_check_confidence(data)]
    if collapsed := _check_collapse(data):
        found = [one for one in found if one.key in AFTER_COLLAPSE]
        command = "" if any(one.command for one in found) else _train_longer(data, max(10, 2 * len(data.history)))
        found.append(Recommendation("collapsed", collapsed, command))
    elif not any(recommendation.command for recommendation in found):
        top1 = data.metrics["top1"] if data.metrics else data.summary["best"]["top1"]
        key, words = ("nothing", ["eval", "--ten-crop"]) if top1 < SOLVED else ("solved", ["serve"])
        command = shlex.join(["alexnet", words[0], str(data.run.path), *words[1:]])
        found.append(Recommendation(key, {}, command, warns=False))
    return sorted(found, key=lambda recommendation: ORDER.index(recommendation.key))


def _rerun(data: RunData, **settings: Any) -> str:
    """Return the command that trains again with other settings; empty if none is a flag of this version."""
    known = {name: value for name, value in settings.items() if name in SETTINGS and SETTINGS[name].flag}
    arguments = [SETTINGS[name].as_argument(value).split(" ", 1) for name, value in known.items()]
    return shlex.join(["alexnet", "train", str(data.run.recipe_json), *itertools.chain(*arguments)]) if known else ""


def _train_longer(data: RunData, epochs: int) -> str:
    """Return the command that trains for so many epochs, or for as much more time if the run had a time budget."""
    if data.recipe.get("time_budget"):
        seconds = data.summary["seconds"] * epochs / data.passes
        return _rerun(data, time_budget=f"{math.ceil(seconds / 60)}m")
    return _rerun(data, epochs=epochs)


def _data_arguments(data: RunData, check: bool = False) -> list[str]:
    """Return the arguments of `alexnet train`, or of `alexnet check`, that name the run's images and labels."""
    names = ("data", "labels", "encoding", "columns")
    given = {name: str(value) for name in names if (value := data.recipe.get(name))}
    words = [given.pop("data")] if check and "data" in given else []
    return words + [f"--{name}={value}" for name, value in given.items()]


def _check_failed(data: RunData) -> Iterator[Recommendation]:
    history = data.history
    lr = float(data.recipe.get("lr") or history[0].get("lr") or 0)
    bad = next((epoch for epoch in history if not math.isfinite(epoch["train_loss"])), None)
    if bad is not None:
        yield Recommendation("diverged", {"epoch": bad["epoch"], "lr": lr}, _rerun(data, lr=f"{lr / 10:.3g}"))
        return
    guess = data.majority
    top1 = data.metrics["interval"][0] if data.metrics else max(epoch["top1"] for epoch in history)
    if len(history) < MIN_EPOCHS or top1 > 1.1 * guess or guess > 0.86 or history[-1]["train_top1"] > guess + 0.15:
        return
    if history[-1]["train_loss"] > STUCK * history[0]["train_loss"]:
        yield Recommendation("stuck", {"guess": guess}, _rerun(data, lr=f"{lr / 10:.3g}"))
    else:
        yield Recommendation("slow", {"guess": guess}, _train_longer(data, 2 * len(history)))


def _check_collapse(data: RunData) -> dict[str, Any] | None:
    """Return how many classes the network names, if at most half of those evaluated; None if more or unknown."""
    if data.predictions is None:
        return None
    evaluated = {*data.predictions.targets.tolist()}
    named = evaluated & {*data.predictions.predicted.tolist()}
    if len(evaluated) < 3 or 2 * len(named) > len(evaluated):
        return None
    return {"split": data.split, "named": len(named), "classes": len(evaluated)}


def _check_curves(data: RunData) -> Iterator[Recommendation]:
    history, recipe = data.history, data.recipe
    n = len(history)
    if n < MIN_EPOCHS:
        if history[-1]["top1"] < 0.995:
            command = _train_longer(data, max(10, 4 * n))
            if data.passes < 1:
                values = {"steps": data.summary["steps"], "all": data.summary["steps_per_epoch"]}
                yield Recommendation("partial", values, command, warns=False)
            else:
                yield Recommendation("short", {"epochs": f"{data.passes:.3g}"}, command, warns=False)
        return
    top1 = [epoch["top1"] for epoch in history]
    losses = [epoch["val_loss"] for epoch in history]
    train, val, split = history[-1]["train_top1"], top1[-1], history[-1]["split"]
    accuracies = {"train": train, "val": val, "split": split}
    quarter = max(2, n // 4)
    gain = top1[-1] - top1[-1 - quarter]
    least = int(np.argmin(losses))
    gap = train - val
    regularized = {"augment": "strong", "weight_decay": f"{2 * float(recipe.get('weight_decay') or 5e-4):.3g}"}
    if gap > 0.1 and losses[-1] > 1.1 * losses[least]:
        values = accuracies | {"epoch": history[least]["epoch"], "least": losses[least], "last": losses[-1]}
        yield Recommendation("overfit", values, _rerun(data, **regularized))
    elif gap > 0.15:
        yield Recommendation("gap", accuracies, _rerun(data, **regularized), warns=False)
    elif gain > 0.01 and val >= max(top1) and val < 0.995:
        yield Recommendation("improving", {"gain": 100 * gain, "n": quarter}, _train_longer(data, 2 * n), warns=False)
    elif train < 0.95 and val < 0.95 and gap < 0.03 and abs(gain) < 0.005:
        own_network = not recipe.get("weights") and not str(recipe.get("arch", "")).startswith(TORCHVISION)
        command = _rerun(data, width=f"{2 * float(recipe.get('width') or 1):g}") if own_network else ""
        yield Recommendation("underfit", {"train": train}, command, warns=False)
    drop, i = max((top1[i - 1] - top1[i], i) for i in range(max(1, n - quarter), n))
    if drop > 0.05:
        lr = float(recipe.get("lr") or 0)
        values = {"jump": 100 * drop, "epoch": history[i]["epoch"]}
        yield Recommendation("jumps", values, _rerun(data, lr=f"{lr / 2:.3g}"))


def _check_data(data: RunData) -> Iterator[Recommendation]:
    recipe = data.recipe
    source = recipe.get("data") or recipe.get("labels")
    if data.bad_files:
        command = shlex.join(["alexnet", "check", *_data_arguments(data, check=True)]) if source else ""
        yield Recommendation("bad_files", {"n": len(data.bad_files)}, command)
    images, classes = data.training_images, int(data.summary.get("classes") or len(data.classes) or 1)
    if images and images / classes < FEW_IMAGES and data.summary["best"]["top1"] < 0.97:
        command = ""
        # the recipe `folder`, not recipe.json: the weights come with their own architecture
        if recipe.get("dataset") == "folder" and recipe.get("weights") in (None, "", TINY) and source:
            words = [*_data_arguments(data), *(["--skip-bad"] if recipe.get("skip_bad") else [])]
            if recipe.get("value_range"):
                words.append(SETTINGS["value_range"].as_argument(tuple(recipe["value_range"])))
            command = shlex.join(["alexnet", "train", "folder", *words, *PRETRAINED])
        yield Recommendation("few", {"each": images / classes}, command, warns=False)


def class_counts(data: RunData) -> dict[str, int]:
    """Return the training images of each class; for a run of an earlier version, the evaluated images."""
    evaluated = {c["label"]: c["n"] for c in data.metrics["per_class"] if c["n"]} if data.metrics else {}
    return data.class_images or evaluated


def _check_classes(data: RunData) -> Iterator[Recommendation]:
    if data.metrics is None or data.predictions is None:
        return
    measured = [c for c in data.metrics["per_class"] if c["n"]]
    if len(measured) >= 2:
        mean = float(np.mean([c["recall"] for c in measured]))
        worst = min(measured, key=lambda c: (c["recall"], -c["n"]))
        counts = class_counts(data)
        times = max(counts.values()) / max(1, min(counts.values()))
        rare = sorted(measured, key=lambda c: counts.get(c["label"], 0))[: max(1, len(measured) // 4)]
        if times >= 4 and float(np.mean([c["recall"] for c in rare])) < mean - 0.05:
            yield Recommendation("balance", {"times": times}, _rerun(data, balance=True))
        if worst["recall"] < mean - 0.25:
            values = {"label": worst["label"], "recall": worst["recall"], "n": worst["n"], "mean": mean}
            values |= {"own": counts.get(worst["label"], 0), "most": max(counts.values())}
            yield Recommendation("uneven", values)
    wrong = data.predictions.predicted != data.predictions.targets
    confusion = data.confusion
    if confusion is not None and wrong.sum() >= 10 and len(data.classes) > 2:
        pairs = np.triu(confusion.counts + confusion.counts.T, 1)
        i, j = divmod(int(pairs.argmax()), len(pairs))
        share = pairs[i, j] / wrong.sum()
        if share >= max(0.15, 4 / (len(pairs) * (len(pairs) - 1))):  # twice the share of a pair by chance
            size = data.model.get("preprocess", {}).get("size", "?")
            values = {"share": share, "a": confusion.labels[i], "b": confusion.labels[j], "size": size}
            yield Recommendation("pair", values, warns=False)
    assert data.confidence is not None, "there are predictions"
    confident = int((wrong & (data.confidence.reported > 0.95)).sum())
    if confident >= 5 and confident >= 0.1 * wrong.sum():
        yield Recommendation("confident_mistakes", {"wrong": int(wrong.sum()), "n": confident}, warns=False)


def _check_confidence(data: RunData) -> Iterator[Recommendation]:
    """Check the network's confidence, and how precisely its accuracy is known."""
    if data.metrics is None:
        return
    confidence = data.confidence
    enough = data.metrics["n"] >= MIN_CALIBRATION_IMAGES
    if enough and confidence is not None and confidence.calibration is not None:
        correct, uncalibrated = confidence.correct, confidence.uncalibrated
        if ece(uncalibrated, correct) > 0.05:
            values = {"mean": float(uncalibrated.mean()), "top1": float(correct.mean())}
            yield Recommendation("calibration", values, warns=False)
            if (error := ece(confidence.reported, correct)) > 0.05:
                yield Recommendation("confidence", {"ece": error, "split": data.split})
    low, high = data.metrics["interval"]
    if high - low > 0.06:
        yield Recommendation("small_test", {"width": 100 * (high - low), "n": data.metrics["n"]}, warns=False)
    test, val, split = data.metrics["top1"], data.summary["best"]["top1"], data.summary["split"]
    if data.split == "test" != split and val - test > 2 * (high - low):
        yield Recommendation("optimistic", {"test": test, "val": val, "split": split})
