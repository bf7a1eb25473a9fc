"""What is chosen from the data grows and shrinks with it, and never overrides what was given."""

from dataclasses import replace

import pytest

from alexnet.training.fit import augmentation, augmented, fit
from alexnet.training.recipe import Recipe, with_settings
from alexnet.training.recipes import named_recipe


def chosen(pictures, classes=10):
    return fit(named_recipe("folder"), pictures, classes)[0]


def test_fifty_pictures_and_half_a_million():
    few, many = chosen(50), chosen(500_000)
    assert few.epochs > many.epochs
    assert few.batch_size < many.batch_size == 128
    assert few.lr < many.lr == 0.1
    assert few.dropout > many.dropout
    assert few.fitted == ()


def test_what_is_given_stays():
    recipe, sentence = fit(with_settings(named_recipe("folder"), {"epochs": 3, "batch_size": 7}), 50, 5)
    assert (recipe.epochs, recipe.batch_size) == (3, 7)
    assert recipe.lr < named_recipe("folder").lr  # it goes with the batch, whoever chose that
    assert fit(with_settings(named_recipe("folder"), {"lr": 0.3}), 50, 5)[0].lr == 0.3
    assert "epochs" not in sentence
    assert "dropout 0.5" in sentence


def test_other_recipes_are_left_alone():
    for name in ("digits", "cifar10", "imagenet-2012"):
        assert fit(named_recipe(name), 50, 5) == (named_recipe(name), "")


@pytest.mark.parametrize("side", [32, 224])
def test_levels_of_augmentation_are_what_is_then_trained_with(side):
    recipe = replace(named_recipe("folder"), jitter=(0.3, 0.3, 0.3))
    assert augmented(recipe, side) == recipe
    none = augmented(replace(recipe, augment="none", cutmix=1.0, rotate=5.0), side)
    assert (none.crop, none.flip, none.jitter, none.rotate, none.cutmix) == ("none", False, (0, 0, 0), 0, 0)
    light, strong = (augmented(replace(recipe, augment=level), side) for level in ("light", "strong"))
    assert light.jitter < strong.jitter
    assert augmented(light, side) == light


def test_small_pictures_are_moved_and_large_ones_cut_out():
    small, large = (augmentation("medium", side) for side in (64, 224))
    assert (small["crop"], small["padding"]) == ("pad", 8)
    assert (large["crop"], large["scale"]) == ("resized", (0.35, 1.0))
    assert augmentation("light", 64)["padding"] < small["padding"]
    assert augmentation("light", 224)["scale"] > large["scale"]


@pytest.mark.parametrize("level", ["none", "light", "medium", "strong"])
def test_every_level_is_a_recipe(level):
    with_settings(Recipe(), augmentation(level, 64))
