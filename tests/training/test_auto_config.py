"""What is chosen from the data grows and shrinks with it, and never overrides what was given."""

import json
from dataclasses import replace

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


def chosen(pictures, classes=10):
    return choose_settings(named_recipe("folder"), pictures, classes)[0]


def test_fifty_pictures_and_half_a_million():
    few, many = chosen(50), chosen(500_000)
    assert few.epochs > many.epochs
    assert few.batch_size < many.batch_size == 128
    assert few.lr < many.lr == 0.1
    assert few.dropout > many.dropout
    assert few.auto_fields == ()


def test_what_is_given_stays():
    recipe, sentence = choose_settings(with_settings(named_recipe("folder"), {"epochs": 3, "batch_size": 7}), 50, 5)
    assert (recipe.epochs, recipe.batch_size) == (3, 7)
    assert recipe.lr < named_recipe("folder").lr  # it goes with the batch, whoever chose that
    assert choose_settings(with_settings(named_recipe("folder"), {"lr": 0.3}), 50, 5)[0].lr == 0.3
    assert "epochs" not in sentence
    assert "dropout 0.5" in sentence


def test_other_recipes_are_left_alone():
    for name in ("digits", "cifar10", "imagenet-2012"):
        assert choose_settings(named_recipe(name), 50, 5) == (named_recipe(name), "")


@pytest.mark.parametrize("side", [32, 224])
def test_levels_of_augmentation_are_what_is_then_trained_with(side):
    recipe = replace(named_recipe("folder"), jitter=(0.3, 0.3, 0.3))
    assert apply_augmentation_level(recipe, side) == recipe
    none = apply_augmentation_level(replace(recipe, augment="none", cutmix=1.0, rotate=5.0), side)
    assert (none.crop, none.flip, none.jitter, none.rotate, none.cutmix) == ("none", False, (0, 0, 0), 0, 0)
    light, strong = (apply_augmentation_level(replace(recipe, augment=level), side) for level in ("light", "strong"))
    assert light.jitter < strong.jitter
    assert apply_augmentation_level(light, side) == light


def test_small_pictures_are_moved_and_large_ones_cut_out():
    small, large = (augmentation_settings("medium", side) for side in (64, 224))
    assert (small["crop"], small["padding"]) == ("pad", 8)
    assert (large["crop"], large["scale"]) == ("resized", (0.35, 1.0))
    assert augmentation_settings("light", 64)["padding"] < small["padding"]
    assert augmentation_settings("light", 224)["scale"] > large["scale"]


@pytest.mark.parametrize("level", ["none", "light", "medium", "strong"])
def test_every_level_is_a_recipe(level):
    with_settings(Recipe(), augmentation_settings(level, 64))


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)])
@pytest.mark.parametrize("name", ["imagenet-torchvision", "imagenet-2012"])
def test_rates_follow_the_batch_size_by_the_rule_that_is_asked_for(rule, factor, name):
    """All of them: of weights, of biases, and those that a schedule sets by hand; also after a change of a change."""
    own = named_recipe(name)
    recipe = with_settings(own, {"batch_size": 4 * own.batch_size, "scale_lr": rule})
    recipe = with_settings(recipe, {"seed": 3})
    for step in (0, 5000, 60_000):
        ours, theirs = schedule_at(recipe, step, 1000), schedule_at(own, step, 1000)
        assert (ours.lr, ours.bias_lr) == pytest.approx((factor * theirs.lr, factor * theirs.bias_lr))
        assert ours.layer_rates == pytest.approx({key: factor * rate for key, rate in theirs.layer_rates.items()})
    assert with_settings(Recipe(), json.loads(recipe.to_json())) == recipe  # run again, it is not scaled twice


def test_what_the_rule_makes_of_the_rate_is_said():
    recipe = with_settings(named_recipe("imagenet-torchvision"), {"batch_size": 1024, "scale_lr": "linear"})
    (sentence,) = describe_lr_scaling(recipe)
    assert "is 0.01 for batches of 256 and by the linear rule 0.04 for 1024, from the first step" in sentence
    assert "after a rise from 0 over 5 epochs" in describe_lr_scaling(replace(recipe, warmup=5.0))[0]
    assert describe_lr_scaling(replace(recipe, batch_size=256)) == []
    assert describe_lr_scaling(named_recipe("cifar10")) == []
    seed = with_settings(named_recipe("cifar10-seed"), {"batch_size": 64, "scale_lr": "sqrt"})
    with pytest.raises(UserError, match="lr_batch=128"):
        describe_lr_scaling(seed)
    assert replace(seed, lr_batch=256).lr_factor == 0.5


def test_a_rate_that_is_fitted_to_the_batch_is_not_scaled_once_more():
    recipe, _ = choose_settings(
        with_settings(named_recipe("folder"), {"batch_size": 32, "scale_lr": "linear"}), 5000, 10
    )
    assert recipe.lr_factor == 1.0
    assert recipe.lr == 0.05
