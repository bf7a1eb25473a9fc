"""Recipes: flat names and groups, JSON, settings from user input, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest

from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import (
    SETTINGS,
    Recipe,
    apply_augmentation_level,
    augmentation_settings,
    choose_settings,
    describe_lr_scaling,
    parse_duration,
    parse_interval,
    parse_settings,
    read_recipe,
    with_settings,
)
from alexnet.training.recipes import RECIPES, SCHEDULE_145, describe, find_recipe, named_recipe
from alexnet.training.settings import ScheduleChange


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_round_trips_through_json(name, tmp_path):
    recipe = named_recipe(name)
    assert recipe.name == name
    path = tmp_path / "recipe.json"
    path.write_text(recipe.to_json())
    assert read_recipe(path) == recipe
    assert describe(name)


def test_a_recipe_with_a_path_round_trips_through_json(tmp_path):
    recipe = named_recipe("folder").replace(data=Path("/some/where"), limit_steps=3, mean=(0.1, 0.2, 0.3))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert read_recipe(tmp_path / "recipe.json") == recipe


def test_lr_changes_round_trip_through_json(tmp_path):
    recipe = Recipe().replace(
        schedule="constant", optimizer="sgd2012", plateau_on="error", bias_lr_mult=2.0, pca_noise=0.1,
        lr_changes=SCHEDULE_145,
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert read_recipe(tmp_path / "recipe.json") == recipe
    short = [{"epoch": 2, "layers": ["conv1"], "lr": 1}, ScheduleChange(3, bias_lr=0.5)]
    changed = with_settings(Recipe(), {"schedule": "constant", "lr_changes": short})
    assert changed.schedule.lr_changes == (
        ScheduleChange(2, ("conv1",), lr=1.0),
        ScheduleChange(3, bias_lr=0.5),
    )


def test_flat_names_lead_to_every_field():
    fields = sum(len(dataclasses.fields(group)) for group in vars(Recipe()).values() if dataclasses.is_dataclass(group))
    assert len(SETTINGS) == fields + 2  # name and auto_fields
    assert SETTINGS["value_range"].as_argument((-1000.0, 4095.0)) == "--value-range=-1000,4095"
    changed = Recipe().replace(data=Path("x"), schedule="step", augment="light", lr=0.5, name="mine")
    assert (changed.data.path, changed.schedule.kind, changed.augmentation.level) == (
        Path("x"),
        "step",
        "light",
    )
    assert (changed.optimization.lr, changed.name) == (0.5, "mine")
    assert changed.as_dict() == Recipe().as_dict() | {
        "data": Path("x"), "schedule": "step", "augment": "light", "lr": 0.5, "name": "mine",
    }  # fmt: skip
    with pytest.raises(UserError, match="no setting 'epoch'; did you mean 'epochs'"):
        Recipe().replace(epoch=3)


def test_settings_are_converted_to_their_types():
    base = Recipe()
    assert with_settings(base, {"lr": 1}).optimization.lr == 1.0
    assert with_settings(base, {"data": "x"}).data.path == Path("x")
    assert with_settings(base, {"scale": [0.5, 1]}).augmentation.scale == (0.5, 1.0)
    assert with_settings(base, {"mean": None, "clip_norm": 2}).optimization.clip_norm == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochz": 3}, "no setting 'epochz'; did you mean 'epochs'"),
        ({"epochs": "three"}, r"^The setting epochs cannot be 'three': expected an integer\.$"),
        ({"epochs": 2.5}, "epochs cannot be 2.5: expected an integer"),
        ({"epochs": True}, "epochs cannot be true: expected an integer"),
        ({"compile": 1}, "compile cannot be 1: expected true or false"),
        ({"schedule": "stair"}, "one of constant, step"),
        ({"scale": [0.5]}, r"scale cannot be \[0.5\]: expected a list of length 2"),
        ({"mean": "grey"}, "mean cannot be 'grey': expected a list or null"),
        ({"epochs": 0}, "--epochs must be greater than 0"),
        ({"batch_size": -1}, "--batch-size must be greater than 0"),
        ({"lr": -0.1}, "--lr must be at least 0, not -0.1"),
        ({"lr": float("nan")}, "--lr must be a finite number"),
        ({"momentum": 1.0}, "--momentum must be at least 0 and less than 1"),
        ({"accumulate": 300}, "--accumulate 300 cannot be larger than --batch-size"),
        ({"num_classes": 1}, "--num-classes must be at least 2"),
        ({"momentum": 0.0, "nesterov": True}, "Nesterov"),
        ({"scale": [0.9, 0.1]}, "scale must be two shares"),
        (
            {"crop_group": 0},
            r"The setting crop_group \(--set crop_group=…\) must be greater than 0",
        ),
        (
            {"pca_noise": -0.1},
            r"The setting pca_noise \(--set pca_noise=…\) must be at least 0, not -0.1",
        ),
        ({"pca_basis": "gray"}, "one of imagenet, own"),
        (
            {"crop_pct": 1.5},
            r"crop_pct \(--set crop_pct=…\) must be greater than 0 and at most 1, not 1.5",
        ),
        ({"schedule": "one-cycle", "warmup": 1}, "one-cycle includes a warmup"),
        (
            {"schedule": "plateau", "validate_on": "test"},
            "would tune the learning rate on the test images",
        ),
        ({"mean": [0.1, "x"]}, r"mean cannot be 'x' at \[1\]: expected a number"),
        ({"bias_lr_mult": -1}, "The setting bias_lr_mult .* must be at least 0, not -1"),
        ({"pca_noise": float("inf")}, "The setting pca_noise .* must be a finite number"),
        ({"optimizer": "sgd2012", "nesterov": True}, "sgd2012 has no Nesterov form"),
        ({"optimizer": "adam"}, "optimizer cannot be 'adam'; it must be one of sgd, sgd2012, muon"),
        (
            {"lr_changes": [{"epoch": 2, "lr": 0.1}], "schedule": "cosine"},
            "but --schedule cosine sets it too",
        ),
        ({"layer_weight_decay": [{"layers": [], "weight_decay": 1}]}, "needs layers and a finite weight_decay"),
        ({"layer_weight_decay": [{"layers": ["fc4"], "weight_decay": -1}]}, "of at least 0"),
        ({"max_drops": -1}, "The setting max_drops .* must be at least 0"),
        ({"order": "sorted"}, "order cannot be 'sorted'; it must be one of shuffled, fixed"),
        ({"lr_changes": {"epoch": 2}}, r'lr_changes cannot be {"epoch": 2}: expected a list'),
        ({"lr_changes": [3]}, r"lr_changes cannot be 3 at \[0\]: expected an object"),
        ({"lr_changes": [{"lr": 0.1}]}, r"lr_changes lacks the field epoch at \[0\]"),
        (
            {"lr_changes": [{"epoch": 2, "rate": 1}]},
            "There is no key 'rate' in the setting lr_changes; choose one of epoch, layers",
        ),
        (
            {"lr_changes": [{"epoch": 2.5, "lr": 1}]},
            r"lr_changes cannot be 2.5 at \[0\]\.epoch: expected an integer",
        ),
        (
            {"lr_changes": [{"epoch": 2, "lr": "low"}]},
            r"lr_changes cannot be 'low' at \[0\]\.lr: expected a number or null",
        ),
        (
            {"lr_changes": [{"epoch": 2, "layers": "conv1"}]},
            r"lr_changes cannot be 'conv1' at \[0\]\.layers: expected a list",
        ),
        (
            {"lr_changes": [{"epoch": 2, "layers": [1]}]},
            r"lr_changes cannot be 1 at \[0\]\.layers\[0\]: expected a text",
        ),
    ],
)
def test_invalid_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message) as error:
        with_settings(Recipe(), settings)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            [{"epoch": 0, "lr": 1}],
            "The entry of lr_changes for epoch 0 comes before the first epoch; count",
        ),
        (
            [{"epoch": 5, "lr": 1}, {"epoch": 4, "lr": 1}],
            "The entry of lr_changes for epoch 4 follows one for epoch 5",
        ),
        (
            [{"epoch": 2, "layers": ["conv1"]}],
            "The entry of lr_changes for epoch 2 changes nothing; give it lr",
        ),
        ([{"epoch": 2, "lr": -1}], "sets lr to -1.0; it must be finite and not negative"),
        ([{"epoch": 2, "pca_noise": float("nan")}], "sets pca_noise to nan"),
    ],
)
def test_invalid_lr_changes_are_refused(changes, message):
    with pytest.raises(UserError, match=message) as error:
        with_settings(Recipe().replace(schedule="constant"), {"lr_changes": changes})
    assert "\n" not in str(error.value)


def test_files_that_are_not_recipes_are_refused(tmp_path):
    path = tmp_path / "recipe.json"
    with pytest.raises(UserError, match="cannot be read"):
        read_recipe(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        read_recipe(path)
    path.write_text("[1]")
    with pytest.raises(UserError, match="must be a JSON object"):
        read_recipe(path)
    path.write_text(json.dumps({"learning_rate": 1}))
    with pytest.raises(UserError, match=r"no setting 'learning_rate' in .*recipe.json"):
        read_recipe(path)


def test_find_recipe_takes_names_and_folders(tmp_path):
    assert find_recipe("cifar10") == named_recipe("cifar10")
    assert find_recipe(str(tmp_path)).data.path == tmp_path
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        find_recipe("cifar01")
    with pytest.raises(UserError, match="no folder or archive pets/cats"):
        find_recipe("pets/cats")


def test_tutorial_recipes_match_their_sources():
    def values(recipe, names):
        settings = named_recipe(recipe).as_dict()
        return tuple(settings[name] for name in names.split())

    seed = "cifar10-seed"
    assert values(seed, "epochs lr momentum weight_decay") == (100, 0.01, 0.9, 5e-4)
    assert values(seed, "schedule lr_step_size lr_gamma") == ("step", 30, 0.1)
    assert values(seed, "crop padding flip init batch_size") == ("pad", 4, True, "kaiming", None)
    assert values(seed, "mean std") == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    d2l = "fashion-mnist-d2l"
    assert values(d2l, "arch lr momentum weight_decay") == ("d2l", 0.01, 0.0, 0.0)
    assert values(d2l, "epochs batch_size init schedule") == (10, 128, "xavier", "constant")
    vision = "imagenet-torchvision"
    assert values(vision, "epochs batch_size lr weight_decay") == (90, 256, 0.01, 1e-4)
    assert values(vision, "crop crop_pct image_size flip") == ("resized", 224 / 256, 224, True)


def test_values_are_json_or_strings():
    given = ["padding_mode=reflect", "clip-norm=1", "mean=[0.5, 0.5, 0.5]", "nesterov=true"]
    assert parse_settings(given) == {
        "padding_mode": "reflect", "clip_norm": 1, "mean": [0.5, 0.5, 0.5], "nesterov": True,
    }  # fmt: skip


def test_missing_values_and_unknown_settings_are_refused(capsys, tmp_path):
    with pytest.raises(UserError, match="write NAME=VALUE"):
        parse_settings(["padding"])
    assert run(["train", "digits", "--set", "paddin=3", "--out", str(tmp_path / "out")]) == 2
    assert "did you mean 'padding'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations_are_parsed_to_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten m", "-3m", "m", "", "1d", "nanm"])
def test_invalid_durations_are_refused(text):
    with pytest.raises(UserError, match="must be a time such as"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "interval"),
    [("500", (500, None)), ("1", (1, None)), ("5m", (None, 300)), (None, (None, None))],
)
def test_intervals_are_parsed_to_steps_or_seconds(text, interval):
    assert parse_interval(text) == interval


@pytest.mark.parametrize("text", ["0", "-5", "5.5", "five", "", "0m", "٣"])
def test_invalid_intervals_are_refused(text):
    with pytest.raises(
        UserError,
        match="--checkpoint-every must be a number of steps such as 500, or a time such as",
    ):
        parse_interval(text)


# ── settings that follow from the data ────────────────────────────────────────────────────────────


def chosen(images, classes=10):
    return choose_settings(named_recipe("folder"), images, classes)[0]


def test_settings_for_fifty_images_and_for_half_a_million():
    few, many = chosen(50), chosen(500_000)
    assert few.schedule.epochs > many.schedule.epochs
    assert few.optimization.batch_size < many.optimization.batch_size == 256
    assert few.optimization.lr < many.optimization.lr == 0.1
    assert few.model.dropout > many.model.dropout
    assert few.auto_fields == ()


def test_random_weights_learn_by_muon_and_trained_ones_by_sgd():
    scratch = chosen(500_000)
    o = scratch.optimization
    assert (o.optimizer, o.kernel_lr_mult, o.bias_lr_mult, o.label_smoothing) == ("muon", 0.5, 4.0, 0.2)
    assert (scratch.augmentation.alternate_flip, scratch.schedule.pct_start) == (True, 0.1)
    trained = choose_settings(with_settings(named_recipe("folder"), {"weights": "run"}), 500_000, 10)[0]
    assert (trained.optimization.optimizer, trained.optimization.batch_size, trained.optimization.lr) == (
        "sgd",
        128,
        0.1,
    )
    given = choose_settings(with_settings(named_recipe("folder"), {"optimizer": "sgd", "pct_start": 0.2}), 50, 5)[0]
    assert (given.optimization.optimizer, given.schedule.pct_start) == ("sgd", 0.2)


def test_given_settings_are_kept():
    recipe, sentence = choose_settings(with_settings(named_recipe("folder"), {"epochs": 3, "batch_size": 7}), 50, 5)
    assert (recipe.schedule.epochs, recipe.optimization.batch_size) == (3, 7)
    # it follows the batch size even if that is given
    assert recipe.optimization.lr < named_recipe("folder").optimization.lr
    assert choose_settings(with_settings(named_recipe("folder"), {"lr": 0.3}), 50, 5)[0].optimization.lr == 0.3
    assert "epochs" not in sentence
    assert "dropout 0.5" in sentence


def test_other_recipes_are_not_changed():
    for name in ("digits", "cifar10", "imagenet-2012"):
        assert choose_settings(named_recipe(name), 50, 5) == (named_recipe(name), "")


@pytest.mark.parametrize("side", [32, 224])
def test_augmentation_levels_set_the_recipe(side):
    recipe = named_recipe("folder").replace(jitter=(0.3, 0.3, 0.3))
    assert apply_augmentation_level(recipe, side) == recipe
    none = apply_augmentation_level(recipe.replace(augment="none", cutmix=1.0, rotate=5.0), side).augmentation
    assert (none.crop, none.flip, none.jitter, none.rotate, none.cutmix) == (
        "none",
        False,
        (0, 0, 0),
        0,
        0,
    )
    light, strong = (apply_augmentation_level(recipe.replace(augment=level), side) for level in ("light", "strong"))
    assert light.augmentation.jitter < strong.augmentation.jitter
    assert apply_augmentation_level(light, side) == light


def test_small_images_are_shifted_and_large_ones_cropped():
    small, large = (augmentation_settings("medium", side) for side in (64, 224))
    assert (small["crop"], small["padding"]) == ("pad", 8)
    assert (large["crop"], large["scale"]) == ("resized", (0.35, 1.0))
    assert augmentation_settings("light", 64)["padding"] < small["padding"]
    assert augmentation_settings("light", 224)["scale"] > large["scale"]


@pytest.mark.parametrize("level", ["none", "light", "medium", "strong"])
def test_every_augmentation_level_is_valid(level):
    with_settings(Recipe(), augmentation_settings(level, 64))


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
@pytest.mark.parametrize("name", ["imagenet-torchvision", "imagenet-2012"])
def test_learning_rates_scale_with_the_batch_size(rule, factor, name):
    """Those of weights, of biases and in lr_changes, also after further settings are changed."""
    own = named_recipe(name)
    recipe = with_settings(own, {"batch_size": 4 * own.optimization.batch_size, "scale_lr": rule})
    recipe = with_settings(recipe, {"seed": 3})
    for step in (0, 5000, 60_000):
        scaled, plain = schedule_at(recipe, step, 1000), schedule_at(own, step, 1000)
        assert (scaled.lr, scaled.bias_lr) == pytest.approx((factor * plain.lr, factor * plain.bias_lr))
        assert scaled.layer_rates == pytest.approx({key: factor * rate for key, rate in plain.layer_rates.items()})
    assert with_settings(Recipe(), json.loads(recipe.to_json())) == recipe  # a rerun does not scale twice


def test_lr_scaling_is_described():
    recipe = with_settings(named_recipe("imagenet-torchvision"), {"batch_size": 1024, "scale_lr": "linear"})
    assert describe_lr_scaling(recipe).startswith(
        "The learning rate is 0.01 for batches of 256 and, by the linear rule, 0.04 for batches of 1024, from the first"
    )
    assert "after a warmup from 0 over 5 epochs" in describe_lr_scaling(recipe.replace(warmup=5.0))
    assert describe_lr_scaling(recipe.replace(batch_size=256)) == ""
    assert describe_lr_scaling(named_recipe("cifar10")) == ""
    seed = with_settings(named_recipe("cifar10-seed"), {"batch_size": 64, "scale_lr": "sqrt"})
    with pytest.raises(UserError, match="lr_batch=128"):
        describe_lr_scaling(seed)
    assert seed.replace(lr_batch=256).lr_factor == 0.5


def test_a_chosen_learning_rate_is_not_scaled_again():
    recipe, _ = choose_settings(
        with_settings(named_recipe("folder"), {"batch_size": 32, "scale_lr": "linear"}), 5000, 10
    )
    assert recipe.lr_factor == 1.0
    assert recipe.optimization.lr == 0.0354


def test_another_network_does_not_keep_the_changes_to_layers_of_the_recipe():
    fast = named_recipe("cifar10-fast")
    assert fast.model.spec_edits == ("half-hidden",)
    assert with_settings(fast, {"arch": "paper"}).model.spec_edits == ()
    assert with_settings(fast, {"weights": "tiny"}).model.spec_edits == ()
    assert with_settings(fast, {"weights": "none", "width": 0.5}).model.spec_edits == ("half-hidden",)
    assert with_settings(fast, {"arch": "paper", "spec_edits": ["half-hidden"]}).model.spec_edits == ("half-hidden",)
