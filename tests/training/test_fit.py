"""What is chosen from the data grows and shrinks with it, and never overrides what was given."""

from dataclasses import replace

import pytest

from alexnet.training.fit import AUGMENTATIONS, augmented, fit
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


def test_levels_of_augmentation_are_what_is_then_trained_with():
    recipe = replace(named_recipe("folder"), jitter=(0.3, 0.3, 0.3))
    assert augmented(recipe) == recipe
    none = augmented(replace(recipe, augment="none", cutmix=1.0, rotate=5.0))
    assert (none.crop, none.flip, none.jitter, none.rotate, none.cutmix) == ("none", False, (0, 0, 0), 0, 0)
    light, strong = (augmented(replace(recipe, augment=level)) for level in ("light", "strong"))
    assert light.scale > strong.scale
    assert light.jitter < strong.jitter
    assert augmented(light) == light


@pytest.mark.parametrize("level", AUGMENTATIONS)
def test_every_level_is_a_recipe(level):
    with_settings(Recipe(), AUGMENTATIONS[level])
