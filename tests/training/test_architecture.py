"""The network that is chosen by the images and the time, at speeds of the test rather than this machine's."""

import pytest
import torch

from alexnet.data.dataset import ImageArrays, ImageDataset
from alexnet.device import Precision
from alexnet.models.model import Spec, specify
from alexnet.progress import Silent
from alexnet.training import architecture
from alexnet.training.architecture import choose_architecture
from alexnet.training.recipe import Recipe, choose_settings, with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.speed import images_per_second

CPU = torch.device("cpu")
FP32 = Precision("fp32", "")


def dataset(images: int, side: int) -> ImageDataset:
    """Return so many images of 50 classes, which take no memory."""
    pixels = torch.zeros(1, dtype=torch.uint8).expand(images, 3, side, side)
    part = ImageArrays(pixels, torch.zeros(1, dtype=torch.int64).expand(images), [])
    return ImageDataset("many", tuple(map(str, range(50))), {"train": part}, channels=3)


@pytest.fixture
def measured(monkeypatch) -> list[Spec]:
    """Let every network train 1,000 images per second; return those whose speed was asked for."""
    specs: list[Spec] = []

    def speed(spec, *_):
        specs.append(spec)
        return 1000.0

    monkeypatch.setattr(architecture, "images_per_second", speed)
    return specs


def choose(images: int, side: int, **settings) -> Recipe:
    recipe = with_settings(named_recipe("folder"), settings)
    recipe, long = choose_architecture(recipe, dataset(images, side), CPU, FP32, Silent())
    return choose_settings(recipe, images, 50, long)[0]


def test_a_time_budget_of_forty_epochs_buys_a_wider_network_and_cutmix(measured):
    recipe = choose(25_000, 64, time_budget="20m")
    assert (recipe.model.arch, recipe.model.image_size, recipe.model.width) == ("cifar", 64, 0.5)
    assert recipe.model.spec_edits == ("half-hidden",)
    o = recipe.optimization
    assert (o.lr, o.label_smoothing, o.kernel_lr_mult, recipe.augmentation.cutmix) == (0.06, 0, 0.8, 1.0)
    (spec,) = measured
    assert (spec.width, spec.image_size, spec.num_classes, spec.norm) == (0.5, 64, 50, "batch")


@pytest.mark.parametrize(
    ("images", "side", "settings", "width"),
    [
        (25_000, 64, {}, 0.25),
        (25_000, 64, {"epochs": 100}, 0.25),
        (25_000, 64, {"time_budget": "19m"}, 0.25),  # .85 of it are 38.8 epochs
        (25_000, 64, {"time_budget": "100s"}, 0.25),
        (10_000, 64, {"time_budget": "1h"}, 0.25),
        (25_000, 32, {"time_budget": "1h"}, 0.5),
        (25_000, 224, {"time_budget": "24h"}, 0.5),
        (25_000, 64, {"time_budget": "1h", "width": 0.375}, 0.375),
        (25_000, 64, {"time_budget": "1h", "arch": "cifar", "width": 0.25}, 0.25),
    ],
)
def test_without_the_time_or_the_choice_nothing_changes(measured, images, side, settings, width):
    recipe = choose(images, side, **settings)
    assert (recipe.model.width, recipe.model.spec_edits) == (width, ())
    assert (recipe.optimization.label_smoothing, recipe.augmentation.cutmix) == (0.2, 0)
    assert len(measured) == (settings == {"time_budget": "19m"})


def test_given_settings_win_over_those_of_long_trainings(measured):
    recipe = choose(25_000, 64, time_budget="1h", augment="light", lr=0.2, label_smoothing=0.05)
    o = recipe.optimization
    assert (o.lr, o.label_smoothing, o.kernel_lr_mult, recipe.augmentation.cutmix) == (0.2, 0.05, 0.8, 0)
    assert choose(25_000, 64, time_budget="1h", mixup=0.2).augmentation.cutmix == 0
    assert choose(25_000, 64, time_budget="1h", cutmix=0.5).augmentation.cutmix == 0.5


def test_speed_is_measured_without_a_trace():
    spec = specify("cifar", num_classes=3, in_channels=3, image_size=32, norm="batch", width=0.125)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert images_per_second(spec, CPU, FP32, threads=1) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
