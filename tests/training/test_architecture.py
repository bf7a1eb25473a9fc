"""The network that is chosen by the images and the time, at speeds of the test rather than this machine's."""

import pytest
import torch

from alexnet.data.dataset import ImageArrays, ImageDataset
from alexnet.device import Precision
from alexnet.models.model import specify
from alexnet.progress import Silent
from alexnet.training import architecture
from alexnet.training.architecture import choose_architecture
from alexnet.training.recipe import Recipe, choose_settings, with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.speed import images_per_second

CPU = torch.device("cpu")
FP32 = Precision("fp32", "")
SPEEDS = {0.25: 2000.0, 0.375: 1400.0, 0.5: 1000.0, 0.75: 500.0, 1.0: 250.0}  # images per second by width


def dataset(images: int, side: int) -> ImageDataset:
    """Return so many images of 50 classes, which take no memory."""
    pixels = torch.zeros(1, dtype=torch.uint8).expand(images, 3, side, side)
    part = ImageArrays(pixels, torch.zeros(1, dtype=torch.int64).expand(images), [])
    return ImageDataset("many", tuple(map(str, range(50))), {"train": part}, channels=3)


@pytest.fixture
def timed(monkeypatch) -> list[float]:
    """Replace the measurement of speed; return the widths that were measured, in order."""
    widths: list[float] = []

    def speed(spec, *_):
        widths.append(spec.width)
        return SPEEDS[spec.width]

    monkeypatch.setattr(architecture, "images_per_second", speed)
    return widths


def choose(images: int, side: int, **settings) -> tuple[Recipe, int | None]:
    recipe = with_settings(named_recipe("folder"), settings)
    recipe, epochs = choose_architecture(recipe, dataset(images, side), CPU, FP32, Silent())
    return choose_settings(recipe, images, 50, epochs)[0], epochs


@pytest.mark.parametrize(
    ("budget", "width", "epochs", "measured"),
    [
        ("10m", 0.25, 40, [0.25, 0.375]),
        ("16m", 0.375, 45, [0.25, 0.375, 0.5]),
        ("20m", 0.5, 40, [0.25, 0.375, 0.5, 0.75]),
        ("2h", 1.0, 61, [0.25, 0.375, 0.5, 0.75, 1.0]),
    ],
)
def test_a_time_budget_buys_width_while_forty_epochs_fit(timed, budget, width, epochs, measured):
    recipe, fitting = choose(25_000, 64, time_budget=budget)
    assert (recipe.model.arch, recipe.model.image_size, recipe.model.width) == ("cifar", 64, width)
    assert (fitting, timed) == (epochs, measured)
    o = recipe.optimization
    assert (o.lr, o.label_smoothing, o.kernel_lr_mult, recipe.augmentation.cutmix) == (0.06, 0, 0.8, 1.0)


def test_a_short_time_is_spent_on_the_smallest_network(timed):
    recipe, fitting = choose(25_000, 64, time_budget="5m")
    assert (recipe.model.width, fitting, timed) == (0.25, 20, [0.25, 0.375])
    assert (recipe.optimization.label_smoothing, recipe.augmentation.cutmix) == (0.2, 0)


@pytest.mark.parametrize(
    ("side", "settings", "width"),
    [
        (64, {}, 0.25),
        (64, {"time_budget": "30s"}, 0.25),  # measuring would take a part of it
        (32, {"epochs": 100}, 0.5),
        (224, {"time_budget": "24h"}, 0.5),  # not tried for larger images
        (64, {"time_budget": "24h", "width": 0.375}, 0.375),
        (64, {"time_budget": "24h", "arch": "cifar", "width": 0.25}, 0.25),
    ],
)
def test_without_a_time_budget_or_with_a_given_network_the_width_is_not_widened(timed, side, settings, width):
    recipe, fitting = choose(25_000, side, **settings)
    assert recipe.model.width == width
    assert (fitting is None) == (settings.get("time_budget") in (None, "30s"))
    assert len(timed) == (fitting is not None)


def test_few_images_are_not_trained_for_long(timed):
    """Forty epochs of a thousand images are few steps, however long each epoch could be repeated."""
    assert choose(1_000, 64, time_budget="1m")[0].augmentation.cutmix == 0
    assert choose(1_000, 64, epochs=60)[0].augmentation.cutmix == 0


def test_given_settings_win_over_those_of_long_trainings(timed):
    recipe, _ = choose(25_000, 64, time_budget="1h", augment="light", lr=0.2, label_smoothing=0.05)
    o = recipe.optimization
    assert (o.lr, o.label_smoothing, o.kernel_lr_mult, recipe.augmentation.cutmix) == (0.2, 0.05, 0.8, 0)
    assert choose(25_000, 64, epochs=40, mixup=0.2)[0].augmentation.cutmix == 0
    assert choose(25_000, 64, epochs=40, cutmix=0.5)[0].augmentation.cutmix == 0.5
    assert choose(25_000, 64, epochs=40, weights="run")[0].augmentation.cutmix == 0


def test_speed_is_measured_without_a_trace():
    spec = specify("cifar", num_classes=3, in_channels=3, image_size=32, norm="batch", width=0.125)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    assert images_per_second(spec, 3, CPU, FP32, threads=1) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
