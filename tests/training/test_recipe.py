import dataclasses
import json
from pathlib import Path

import pytest

from alexnet.errors import UserError
from alexnet.training.manual_schedule import SCHEDULE_145, ScheduleChange
from alexnet.training.recipe import FLAG_NAMES, Recipe, flags_of, read_recipe, with_settings
from alexnet.training.recipes import RECIPES, describe, find_recipe, named_recipe


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_round_trips_through_json(name, tmp_path):
    recipe = named_recipe(name)
    assert recipe.name == name
    path = tmp_path / "recipe.json"
    path.write_text(recipe.to_json())
    assert read_recipe(path) == recipe
    assert describe(name)


def test_a_recipe_with_a_path_round_trips_through_json(tmp_path):
    recipe = dataclasses.replace(named_recipe("folder"), data=Path("/some/where"), limit_steps=3, mean=(0.1, 0.2, 0.3))
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert read_recipe(tmp_path / "recipe.json") == recipe


def test_lr_changes_round_trip_through_json(tmp_path):
    recipe = Recipe(
        schedule="constant", optimizer="sgd2012", plateau_on="error", bias_lr_mult=2.0, pca_noise=0.1,
        lr_changes=SCHEDULE_145,
    )  # fmt: skip
    (tmp_path / "recipe.json").write_text(recipe.to_json())
    assert read_recipe(tmp_path / "recipe.json") == recipe
    short = [{"epoch": 2, "layers": ["conv1"], "lr": 1}, ScheduleChange(3, bias_lr=0.5)]
    changed = with_settings(Recipe(), {"schedule": "constant", "lr_changes": short})
    assert changed.lr_changes == (
        ScheduleChange(2, ("conv1",), lr=1.0),
        ScheduleChange(3, bias_lr=0.5),
    )


def test_flags_are_part_of_the_recipe():
    flags = flags_of(named_recipe("cifar10"))
    assert set(FLAG_NAMES) == {f.name for f in dataclasses.fields(flags)}
    assert flags.epochs == named_recipe("cifar10").epochs


def test_settings_are_converted_to_their_types():
    base = Recipe()
    assert with_settings(base, {"lr": 1}).lr == 1.0
    assert with_settings(base, {"data": "x"}).data == Path("x")
    assert with_settings(base, {"scale": [0.5, 1]}).scale == (0.5, 1.0)
    assert with_settings(base, {"mean": None, "clip_norm": 2}).clip_norm == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochz": 3}, "no setting 'epochz'; did you mean 'epochs'"),
        ({"epochs": "three"}, "epochs cannot be 'three'; it must be an integer"),
        ({"epochs": 2.5}, "it must be an integer"),
        ({"epochs": True}, "it must be an integer"),
        ({"compile": 1}, "it must be true or false"),
        ({"schedule": "stair"}, "one of constant, step"),
        ({"scale": [0.5]}, "a list of numbers"),
        ({"mean": "grey"}, "a list of numbers or null"),
        ({"epochs": 0}, "--epochs must be greater than 0"),
        ({"batch_size": -1}, "--batch-size must be greater than 0"),
        ({"lr": -0.1}, "--lr must not be negative"),
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
        ({"pca_noise": -0.1}, r"The setting pca_noise \(--set pca_noise=…\) must not be negative"),
        ({"pca_basis": "gray"}, "one of imagenet, own"),
        ({"crop_pct": 1.5}, "crop_pct must be a share"),
        ({"schedule": "one-cycle", "warmup": 1}, "one-cycle includes a warmup"),
        (
            {"schedule": "plateau", "validate_on": "test"},
            "would tune the learning rate on the test images",
        ),
        ({"mean": [0.1, "x"]}, r"mean\[1\] cannot be 'x'; it must be a number"),
        ({"bias_lr_mult": -1}, "The setting bias_lr_mult .* must not be negative"),
        ({"pca_noise": float("inf")}, "The setting pca_noise .* must be a finite number"),
        ({"optimizer": "sgd2012", "nesterov": True}, "sgd2012 has no Nesterov form"),
        ({"optimizer": "adam"}, "optimizer cannot be 'adam'; it must be one of sgd, sgd2012"),
        (
            {"lr_changes": [{"epoch": 2, "lr": 0.1}], "schedule": "cosine"},
            "but --schedule cosine sets it too",
        ),
        ({"lr_changes": {"epoch": 2}}, "it must be a list of changes"),
        ({"lr_changes": [3]}, r"lr_changes\[0\] cannot be 3; it must be an object with an epoch"),
        ({"lr_changes": [{"lr": 0.1}]}, "it must be an object with an epoch"),
        ({"lr_changes": [{"epoch": 2, "rate": 1}]}, r"There is no setting 'lr_changes\[0\]\.rate'"),
        (
            {"lr_changes": [{"epoch": 2.5, "lr": 1}]},
            r"lr_changes\[0\]\.epoch cannot be 2.5; it must be an integer",
        ),
        (
            {"lr_changes": [{"epoch": 2, "lr": "low"}]},
            r"lr_changes\[0\]\.lr cannot be 'low'; it must be a number or null",
        ),
        (
            {"lr_changes": [{"epoch": 2, "layers": "conv1"}]},
            "layers cannot be 'conv1'; it must be a list of strings",
        ),
        (
            {"lr_changes": [{"epoch": 2, "layers": [1]}]},
            r"layers\[0\] cannot be 1; it must be a string",
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
        with_settings(Recipe(schedule="constant"), {"lr_changes": changes})
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
    assert find_recipe(str(tmp_path)).data == tmp_path
    with pytest.raises(UserError, match="did you mean 'cifar10'"):
        find_recipe("cifar01")
    with pytest.raises(UserError, match="no folder of images pets/cats"):
        find_recipe("pets/cats")


def test_tutorial_recipes_match_their_sources():
    seed = named_recipe("cifar10-seed")
    assert (seed.epochs, seed.lr, seed.momentum, seed.weight_decay) == (100, 0.01, 0.9, 5e-4)
    assert (seed.schedule, seed.lr_step_size, seed.lr_gamma) == ("step", 30, 0.1)
    assert (seed.crop, seed.padding, seed.flip, seed.init, seed.batch_size) == (
        "pad",
        4,
        True,
        "kaiming",
        None,
    )
    assert seed.mean == (0.4914, 0.4822, 0.4465)
    assert seed.std == (0.2023, 0.1994, 0.2010)
    d2l = named_recipe("fashion-mnist-d2l")
    assert (d2l.arch, d2l.lr, d2l.momentum, d2l.weight_decay) == ("d2l", 0.01, 0.0, 0.0)
    assert (d2l.epochs, d2l.batch_size, d2l.init, d2l.schedule) == (10, 128, "xavier", "constant")
    vision = named_recipe("imagenet-torchvision")
    assert (vision.epochs, vision.batch_size, vision.lr, vision.weight_decay) == (
        90,
        256,
        0.01,
        1e-4,
    )
    assert (vision.crop, vision.crop_pct, vision.image_size, vision.flip) == (
        "resized",
        224 / 256,
        224,
        True,
    )
