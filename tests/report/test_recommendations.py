import json
import math
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.cli import run
from alexnet.files import write_json
from alexnet.messages.translator import Translator, load_texts
from alexnet.report import recommendations
from alexnet.report.recommendations import class_counts, recommend
from alexnet.report.report import write_report
from alexnet.report.run_data import read_run_data
from alexnet.run_dir import Run
from fake_run import make_fake_run

FLAT = [0.5, 0.6, 0.7, 0.7, 0.701, 0.7, 0.701, 0.7]
RISING = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99]
MANY_IMAGES = {"batch_size": 100_000}


class Accepted(Exception):
    """The arguments of a command were accepted."""


def accept(*_, **__):
    raise Accepted


def check_arguments(command):
    """Run a command up to the point where its arguments, and for `train` the settings together, are accepted."""
    if command:
        with pytest.MonkeyPatch.context() as patch:
            for function in ("api.train", "inference.evaluate.evaluate", "serving.registry.open_models",
                             "data.quality.check.check_dataset"):  # fmt: skip
                patch.setattr(f"alexnet.{function}", accept)
            for module in ("files", "training.recipe"):  # a fake run has no images
                patch.setattr(f"alexnet.{module}.check_data_exists", lambda _: None)
                patch.setattr(f"alexnet.{module}.check_labels_exist", lambda _: None)
            with pytest.raises(Accepted):
                run([*shlex.split(command)[1:], "--debug"])


def recommendations_for(path, **options):
    """Return the recommendations for a fake run by key, after checking their texts and commands."""
    options = {"per_class": 300, **options, "recipe": MANY_IMAGES | options.get("recipe", {})}
    data = read_run_data(make_fake_run(path, **options))
    assert data.predictions is not None
    found = recommend(data)
    for recommendation in found:
        for lang in ("en", "zh"):
            assert Translator(lang)("advice_" + recommendation.key, **recommendation.values)
        check_arguments(recommendation.command)
    return {recommendation.key: recommendation for recommendation in found}


def test_a_part_of_an_epoch_is_not_called_an_epoch(tmp_path):
    run = make_fake_run(tmp_path / "run", val_top1=[0.3], recipe={"time_budget": "1m", **MANY_IMAGES})
    write_json(run.path / "summary.json", {**run.summary(), "steps_per_epoch": 40})  # of which it took 10, in 75 s
    data = read_run_data(run)
    (found,) = (one for one in recommend(data) if one.key in ("short", "partial"))
    assert (found.key, found.values) == ("partial", {"steps": 10, "all": 40})
    assert found.command.endswith("--time-budget 50m")  # for ten epochs
    text = write_report(run, "zh")[0].read_text()
    assert text.count("40 步中的 10 步") == 3  # the result, the advice, how it was made
    for key in ("epoch_partial", "time_value_partial", "advice_partial"):
        values = {"steps": 1234, "all": 4000, "time": "1 s", "device": "cpu", "speed": 1}
        assert "1,234 of the 4,000 steps" in Translator()(key, **values)


def test_a_good_run_is_recommended_ten_crop_evaluation(tmp_path):
    val_top1 = [0.6, 0.9, 0.95, 0.96, 0.97, 0.971, 0.97, 0.972]
    found = recommendations_for(tmp_path / "run", accuracy=0.97, val_top1=val_top1)
    # fake logits may be miscalibrated, and a few mistakes confident
    assert {"nothing"} <= set(found) <= {"nothing", "calibration", "confident_mistakes"}
    assert "--ten-crop" in found["nothing"].command


def test_a_network_without_mistakes_is_recommended_other_images(tmp_path):
    solved = recommendations_for(tmp_path / "run", accuracy=1.0, per_class=30, val_top1=[0.9, 0.95, 1, 1, 1, 1])
    assert list(solved) == ["solved"]
    assert solved["solved"].command == f"alexnet serve {tmp_path / 'run'}"


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
        ("confident_mistakes", {"accuracy": 0.95, "confident": True}),
        ("small_test", {"per_class": 10}),
        ("stuck", {"accuracy": 0.34, "val_top1": [0.33] * 8}),
        ("slow", {"accuracy": 0.34, "val_top1": [0.33] * 8,
                  "train_top1": [0.3, 0.32, 0.34, 0.36, 0.38, 0.4, 0.4, 0.42]}),
        ("gap", {"accuracy": 0.34, "val_top1": [0.33] * 8, "train_top1": [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9, 0.9]}),
        ("short", {"accuracy": 0.34, "val_top1": [0.33] * 4}),
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


def test_an_unfinished_run_is_resumed_first(tmp_path):
    run = make_fake_run(
        tmp_path / "run", val_top1=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6], recipe={"batch_size": 8, "epochs": 20}
    )
    write_json(run.path / "summary.json", run.summary() | {"complete": False})
    found = recommend(read_run_data(run))
    assert [one.key for one in found] == ["unfinished", "few"]
    assert found[0].command == f"alexnet resume {run.path}"
    assert "6 of 20 epochs" in Translator()("advice_unfinished", **found[0].values)


def test_a_network_that_names_few_classes_is_not_told_what_it_confuses(tmp_path):
    options = {"classes": 5, "per_class": 100, "accuracy": 0.9, "confuse": (0, 1), "confident": True}
    run = make_fake_run(tmp_path / "run", **options, recipe=MANY_IMAGES)
    assert {"pair", "confident_mistakes"} & {one.key for one in recommend(read_run_data(run))}
    paths, targets, logits = run.read_evaluation("test")
    run.write_evaluation("test", paths, targets, np.where(np.arange(5) < 2, logits, logits - 100))
    found = recommend(read_run_data(run))
    collapsed = next(one for one in found if one.key == "collapsed")
    assert collapsed.values == {"split": "test", "named": 2, "classes": 5}
    assert {one.key for one in found} <= recommendations.AFTER_COLLAPSE | {"collapsed"}
    for one in found:
        check_arguments(one.command)
    assert any(one.command for one in found)
    few = make_fake_run(tmp_path / "few", accuracy=0.34, val_top1=[0.33] * 8, recipe={"batch_size": 8})
    assert [one.key for one in recommend(read_run_data(few))] == ["few", "stuck"]


def test_rare_classes_with_low_recall(tmp_path):
    """The rarest class has a tenth of the training images, and half of its test images are misclassified."""
    run = make_fake_run(tmp_path / "run", per_class=100, accuracy=0.9)
    write_json(run.path / "summary.json", run.summary() | {"class_images": [20, 200, 180]})
    paths, targets, logits = run.read_evaluation("test")
    logits = logits.copy()
    logits[(targets == 0) & (np.arange(len(targets)) % 2 == 0), 1] += 20
    run.write_evaluation("test", paths, targets, logits)
    data = read_run_data(run)
    assert class_counts(data) == {"class 0": 20, "class 1": 200, "class 2": 180}
    found = {recommendation.key: recommendation for recommendation in recommend(data)}
    assert found["balance"].values["times"] == 10
    check_arguments(found["balance"].command)
    assert class_counts(replace(data, summary={})) == {"class 0": 100, "class 1": 100, "class 2": 100}


def test_the_weakest_class_is_named_even_if_small(tmp_path):
    run = make_fake_run(tmp_path / "run", per_class=30, accuracy=1.0)
    paths, targets, logits = run.read_evaluation("test")
    kept = np.array([*range(3), *range(30, 90)])
    wrong = logits[kept]
    wrong[:2, 1] += 20
    run.write_evaluation("test", [paths[i] for i in kept], targets[kept], wrong)
    found = {one.key: one for one in recommend(read_run_data(run))}["uneven"]
    assert (found.values["label"], found.values["n"]) == ("class 0", 3)
    assert "(of 3 images evaluated)" in Translator("en")("advice_uneven", **found.values)


def test_pretrained_weights_come_first_for_few_images_and_settings_of_the_data_are_kept(tmp_path):
    data = {"labels": "a table.csv", "columns": "path=id,label=kind", "skip_bad": True, "value_range": [0, 4095]}
    found = recommendations_for(tmp_path / "a", recipe={"batch_size": 8, **data}, val_top1=[0.3, 0.5])
    assert list(found)[:2] == ["few", "short"]
    words = shlex.split(found["few"].command)
    assert {"--labels=a table.csv", "--columns=path=id,label=kind", "--skip-bad", "--value-range=0,4095"} <= {*words}
    run = make_fake_run(tmp_path / "b", recipe=data)
    (run.path / "bad_files.csv").write_text("path,reason\na.jpg,cut short\n")
    command = {one.key: one for one in recommend(read_run_data(run))}["bad_files"].command
    assert shlex.split(command)[2:] == [str(run.path / "data"), "--labels=a table.csv", "--columns=path=id,label=kind"]
    check_arguments(command)


def test_advice_to_train_longer_extends_a_time_budget(tmp_path):
    found = recommendations_for(tmp_path / "run", recipe={"time_budget": "1m"}, val_top1=[0.3, 0.5])
    assert found["short"].command.endswith("recipe.json --time-budget 7m")  # 75 s for two epochs: 375 s for ten


def test_torchvision_networks_are_not_widened(tmp_path):
    recipe = {"arch": "torchvision/resnet18"}
    assert not recommendations_for(tmp_path / "run", val_top1=FLAT, train_top1=FLAT, recipe=recipe)["underfit"].command


def test_calibration_is_not_judged_on_few_images(tmp_path):
    for per_class, judged in ((22, False), (300, True)):
        found = recommendations_for(tmp_path / str(per_class), per_class=per_class, accuracy=0.6)
        assert bool({"calibration", "confidence"} & set(found)) == judged


@pytest.mark.slow
@pytest.mark.parametrize("key", ["short", "overfit", "underfit", "jumps", "balance", "bad_files", "nothing"])
def test_commands_run_as_printed(tmp_path, monkeypatch, key):
    """On a run of a folder with nested classes and a cut file, trained with --skip-bad for one short epoch."""
    noise = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "pets" / label / "more").mkdir(parents=True)
        for i in range(6):
            Image.fromarray(noise.integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / f"pets/{label}/more/{i}.png")
    (tmp_path / "pets" / "cat" / "cut.png").write_bytes((tmp_path / "pets/cat/more/0.png").read_bytes()[:99])
    monkeypatch.chdir(tmp_path)
    small = ["--skip-bad", "--width", "0.0625", "--image-size", "32", "--epochs", "1", "--batch-size", "4"]
    assert run(["train", "pets", "--out", "run", *small]) == 0
    data = read_run_data(Run(Path("run")))
    assert class_counts(data) == {"cat": 5, "dog": 5}
    commands = {
        "short": recommendations._train_longer(data, 2),
        "overfit": recommendations._rerun(data, augment="strong", weight_decay="0.001"),
        "underfit": recommendations._rerun(data, width="0.125"),
        "jumps": recommendations._rerun(data, lr="0.01"),
        "balance": recommendations._rerun(data, balance=True),
        "bad_files": next(one.command for one in recommend(data) if one.key == "bad_files"),
        "nothing": "alexnet eval run --ten-crop",
    }
    assert run(shlex.split(commands[key])[1:]) == 0


def test_every_text_belongs_to_a_rule():
    code = Path(recommendations.__file__).read_text()
    for key in load_texts("en"):
        if key.startswith("advice_"):
            assert f'"{key.removeprefix("advice_")}"' in code
