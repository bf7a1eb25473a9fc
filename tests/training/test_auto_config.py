"""Settings chosen by the data scale with it and never override given ones."""

import json

import pytest

from alexnet.errors import UserError
from alexnet.training.auto_config import (
    apply_augmentation_level,
    augmentation_settings,
    choose_settings,
    describe_lr_scaling,
)
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import Recipe, with_settings
from alexnet.training.recipes import named_recipe


def chosen(images, classes=10):
    return choose_settings(named_recipe("folder"), images, classes)[0]


def test_settings_for_fifty_images_and_for_half_a_million():
    few, many = chosen(50), chosen(500_000)
    assert few.schedule.epochs > many.schedule.epochs
    assert few.optimization.batch_size < many.optimization.batch_size == 128
    assert few.optimization.lr < many.optimization.lr == 0.1
    assert few.model.dropout > many.model.dropout
    assert few.auto_fields == ()


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
    assert recipe.optimization.lr == 0.05
