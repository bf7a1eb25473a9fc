import json
import math
import shlex

import numpy as np
import pytest

from alexnet.messages.texts import TEXT, Translator
from alexnet.plots.calibration import Confidence
from alexnet.plots.confusion import Confusion
from alexnet.report.recommendations import class_counts, recommend
from alexnet.report.run_data import read_run_data
from alexnet.training.recipe import FLAG_NAMES
from fake_run import make_fake_run

FLAT = [0.5, 0.6, 0.7, 0.7, 0.701, 0.7, 0.701, 0.7]
MANY = {"batch_size": 100_000}  # pictures enough


def said(tmp_path, **made):
    made = {"per_class": 300, **made, "recipe": MANY | made.get("recipe", {})}
    facts = read_run_data(make_fake_run(tmp_path / "run", **made))
    assert facts.answers is not None
    confusion = Confusion.of(facts.answers.targets, facts.answers.said, facts.classes)
    found = recommend(facts, confusion, Confidence.of(facts, facts.answers))
    for recommendations in found:  # all of them can be said, and their commands be typed
        for lang in ("en", "zh"):
            assert Translator(lang)("advice_" + recommendations.key, **recommendations.values)
        flags = [word[2:].replace("-", "_") for word in shlex.split(recommendations.command) if word.startswith("--")]
        assert set(flags) <= {*FLAG_NAMES, "ten_crop"}
    return {recommendations.key: recommendations for recommendations in found}


def test_a_good_run_gets_one_friendly_word(tmp_path):
    found = said(tmp_path, accuracy=0.97, val_top1=[0.6, 0.9, 0.95, 0.96, 0.97, 0.971, 0.97, 0.972])
    assert {"nothing"} <= set(found) <= {"nothing", "calibration"}  # whose figures are made up
    assert "--ten-crop" in found["nothing"].command


@pytest.mark.parametrize(
    ("key", "made"),
    [
        ("short", {"val_top1": [0.3, 0.5]}),
        ("improving", {"val_top1": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}),
        ("overfit", {"val_top1": FLAT, "train_top1": [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99],
                     "val_losses": [1.2, 1.1, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4]}),
        ("gap", {"val_top1": FLAT, "train_top1": [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99], "val_losses": [1.0] * 8}),
        ("underfit", {"val_top1": FLAT, "train_top1": FLAT}),
        ("jumps", {"val_top1": [0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.6, 0.8]}),
        ("few", {"recipe": {"batch_size": 8}}),
        ("pair", {"classes": 6, "accuracy": 0.9, "confuse": (0, 1)}),
        ("sure_mistakes", {"accuracy": 0.7, "confident": True}),
        ("small_test", {"per_class": 10}),
        ("stuck", {"accuracy": 0.34, "val_top1": [0.33] * 8}),
        ("optimistic", {"accuracy": 0.5}),
    ],
)  # fmt: skip
def test_each_rule_speaks_where_it_should(tmp_path, key, made):
    assert key in said(tmp_path, **made)


def test_the_epoch_of_overfitting_and_the_pair_are_named(tmp_path):
    losses = [1.2, 1.1, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4]
    train = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99]
    found = said(tmp_path / "a", val_top1=FLAT, train_top1=train, val_losses=losses)
    assert found["overfit"].values["epoch"] == 3
    assert "--weight-decay 0.001" in found["overfit"].command
    pair = said(tmp_path / "b", classes=6, accuracy=0.9, confuse=(0, 1))["pair"]
    assert {pair.values["a"], pair.values["b"]} == {"class 0", "class 1"}


def test_a_diverged_run_is_told_that_alone(tmp_path):
    run = make_fake_run(tmp_path / "run")
    rows = run.metrics()
    rows[2]["train_loss"] = math.nan
    run.metrics_jsonl.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (recommendations,) = recommend(read_run_data(run))
    assert (recommendations.key, recommendations.values["epoch"]) == ("diverged", 3)
    assert "--lr 0.01" in recommendations.command


def test_rare_classes_that_do_worse(tmp_path):
    """Ten times as many training pictures of one class, and the rare one is hardly found."""
    run = make_fake_run(tmp_path / "run", per_class=100, accuracy=0.9)
    rows = [("train/class 0/", 20), ("train/class 1/", 200), ("train/class 2/", 180)]
    lines = [f"{folder}{i}.jpg,train" for folder, n in rows for i in range(n)]
    run.split_csv.write_text("\n".join(["name,split", *lines]) + "\n")
    paths, targets, logits = run.read_evaluation("test")
    logits = logits.copy()
    logits[(targets == 0) & (np.arange(len(targets)) % 2 == 0), 1] += 20
    run.write_evaluation("test", paths, targets, logits)
    facts = read_run_data(run)
    assert class_counts(facts) == {"class 0": 20, "class 1": 200, "class 2": 180}
    found = {recommendations.key: recommendations for recommendations in recommend(facts)}
    assert found["balance"].values["times"] == 10


def test_every_sentence_belongs_to_a_rule():
    from pathlib import Path

    from alexnet.report import recommendations

    code = Path(recommendations.__file__).read_text()
    for key in TEXT:
        if key.startswith("advice_"):
            assert f'"{key.removeprefix("advice_")}"' in code
