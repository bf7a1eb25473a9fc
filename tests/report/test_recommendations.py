import json
import math
import shlex
from pathlib import Path

import numpy as np
import pytest

from alexnet.messages.translator import Translator, load_texts
from alexnet.report import recommendations
from alexnet.report.recommendations import class_counts, recommend
from alexnet.report.run_data import read_run_data
from alexnet.training.recipe import SETTINGS
from fake_run import make_fake_run

FLAT = [0.5, 0.6, 0.7, 0.7, 0.701, 0.7, 0.701, 0.7]
RISING = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99]
MANY_IMAGES = {"batch_size": 100_000}


def recommendations_for(path, **options):
    """Return the recommendations for a fake run by key, after checking their texts and commands."""
    options = {"per_class": 300, **options, "recipe": MANY_IMAGES | options.get("recipe", {})}
    data = read_run_data(make_fake_run(path, **options))
    assert data.predictions is not None
    found = recommend(data)
    for recommendation in found:
        for lang in ("en", "zh"):
            assert Translator(lang)("advice_" + recommendation.key, **recommendation.values)
        flags = [word[2:].replace("-", "_") for word in shlex.split(recommendation.command) if word.startswith("--")]
        assert set(flags) <= {*(name for name in SETTINGS if SETTINGS[name].flag), "ten_crop"}
    return {recommendation.key: recommendation for recommendation in found}


def test_a_good_run_is_recommended_ten_crop_evaluation(tmp_path):
    val_top1 = [0.6, 0.9, 0.95, 0.96, 0.97, 0.971, 0.97, 0.972]
    found = recommendations_for(tmp_path / "run", accuracy=0.97, val_top1=val_top1)
    assert {"nothing"} <= set(found) <= {"nothing", "calibration"}  # fake logits may be miscalibrated
    assert "--ten-crop" in found["nothing"].command


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("short", {"val_top1": [0.3, 0.5]}),
        ("improving", {"val_top1": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]}),
        ("overfit", {"val_top1": FLAT, "train_top1": RISING,
                     "val_losses": [1.2, 1.1, 1.0, 1.0, 1.1, 1.2, 1.3, 1.4]}),
        ("gap", {"val_top1": FLAT, "train_top1": RISING, "val_losses": [1.0] * 8}),
        ("underfit", {"val_top1": FLAT, "train_top1": FLAT}),
        ("jumps", {"val_top1": [0.5, 0.6, 0.7, 0.8, 0.8, 0.8, 0.6, 0.8]}),
        ("few", {"recipe": {"batch_size": 8}}),
        ("pair", {"classes": 6, "accuracy": 0.9, "confuse": (0, 1)}),
        ("confident_mistakes", {"accuracy": 0.7, "confident": True}),
        ("small_test", {"per_class": 10}),
        ("stuck", {"accuracy": 0.34, "val_top1": [0.33] * 8}),
        ("optimistic", {"accuracy": 0.5}),
    ],
)  # fmt: skip
def test_each_rule_applies_where_it_should(tmp_path, key, options):
    assert key in recommendations_for(tmp_path / "run", **options)


def test_recommendations_name_the_overfitting_epoch_and_confused_pair(tmp_path):
    val_losses = [1.2, 1.1, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4]
    found = recommendations_for(tmp_path / "a", val_top1=FLAT, train_top1=RISING, val_losses=val_losses)
    assert found["overfit"].values["epoch"] == 3
    assert "--weight-decay 0.001" in found["overfit"].command
    pair = recommendations_for(tmp_path / "b", classes=6, accuracy=0.9, confuse=(0, 1))["pair"]
    assert {pair.values["a"], pair.values["b"]} == {"class 0", "class 1"}


def test_a_diverged_run_gets_no_other_recommendation(tmp_path):
    run = make_fake_run(tmp_path / "run")
    history = run.metrics()
    history[2]["train_loss"] = math.nan
    run.metrics_jsonl.write_text("".join(json.dumps(epoch) + "\n" for epoch in history))
    (recommendation,) = recommend(read_run_data(run))
    assert (recommendation.key, recommendation.values["epoch"]) == ("diverged", 3)
    assert "--lr 0.01" in recommendation.command


def test_rare_classes_with_low_recall(tmp_path):
    """The rarest class has a tenth of the training images, and half of its test images are misclassified."""
    run = make_fake_run(tmp_path / "run", per_class=100, accuracy=0.9)
    folders = [("train/class 0/", 20), ("train/class 1/", 200), ("train/class 2/", 180)]
    lines = [f"{folder}{i}.jpg,train" for folder, n in folders for i in range(n)]
    run.split_csv.write_text("\n".join(["name,split", *lines]) + "\n")
    paths, targets, logits = run.read_evaluation("test")
    logits = logits.copy()
    logits[(targets == 0) & (np.arange(len(targets)) % 2 == 0), 1] += 20
    run.write_evaluation("test", paths, targets, logits)
    data = read_run_data(run)
    assert class_counts(data) == {"class 0": 20, "class 1": 200, "class 2": 180}
    found = {recommendation.key: recommendation for recommendation in recommend(data)}
    assert found["balance"].values["times"] == 10


def test_every_text_belongs_to_a_rule():
    code = Path(recommendations.__file__).read_text()
    for key in load_texts("en"):
        if key.startswith("advice_"):
            assert f'"{key.removeprefix("advice_")}"' in code
