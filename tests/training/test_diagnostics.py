"""Alarms, dead ReLUs, and the grid of augmented images."""

import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.messages.translator import Translator
from alexnet.models.layers import LocalResponseNorm, lrn_denominators
from alexnet.models.model import create_model
from alexnet.training.diagnostics import all_alarms, dead_relus, find_alarms, lrn_warning, save_image_grid
from alexnet.training.recipe import Recipe

RECIPE = Recipe().replace(lr=0.1, norm="batch")
HEALTHY = ([2.0, 1.5, 1.2, 1.0, 0.9], [1.9, 1.5, 1.3, 1.2, 1.19])


def make_rows(train_losses, val_losses, **last):
    rows = [
        {"epoch": i + 1, "step": 100 * (i + 1), "train_loss": t, "val_loss": v, "top1": 1 - v / 3, "waiting": 0.0,
         "dead": {}}
        for i, (t, v) in enumerate(zip(train_losses, val_losses, strict=True))
    ]  # fmt: skip
    rows[-1].update(last)
    return rows


def alarm_kinds(rows):
    return [kind for kind, _ in find_alarms(rows, RECIPE, 10)]


def test_a_healthy_run_raises_no_alarm():
    assert alarm_kinds(make_rows(*HEALTHY)) == []


@pytest.mark.parametrize(
    ("kind", "rows", "text"),
    [
        ("stuck", make_rows([math.log(10)], [math.log(10)]), "nothing is being learned"),
        ("rate", make_rows([1.0, 1.3], [1.0, 1.3]), "too high; try --lr 0.033"),
        (
            "overfitting",
            make_rows([2, 1.5, 1, 0.8, 0.6, 0.5, 0.4], [2, 1.5, 1.6, 1.7, 1.8, 1.7, 1.9]),
            "Since epoch 2 the validation loss rises (1.500 to 1.900) and top-1 falls (50.0% to 36.7%)",
        ),
        (
            "dead",
            make_rows(*HEALTHY, dead={"relu1": 0.1, "relu6": 0.75}),
            "75% of the channels of relu6",
        ),
        ("waiting", make_rows(*HEALTHY, waiting=0.5), "waits for images 50% of the time"),
    ],
)
def test_each_alarm_is_raised(kind, rows, text):
    assert alarm_kinds(rows) == [kind]
    assert text in find_alarms(rows, RECIPE, 10)[0][1]
    for other in (RECIPE, RECIPE.replace(augment="strong", norm="none")):
        alarm = find_alarms(rows, other, 10)[0][1]
        assert not re.search("[a-z]{3,} [a-z]{3,} ", Translator("zh").sentence(alarm).split("--")[0]), "in English"


def test_a_few_worse_epochs_are_not_overfitting():
    assert alarm_kinds(make_rows([2, 1.5, 1.2, 1.0], [2, 1.5, 1.6, 1.4])) == []
    assert alarm_kinds(make_rows([2, 1.5, 1.4, 1.3, 1.2], [2, 1.5, 1.6, 1.7, 1.8])) == []


def test_a_rising_loss_at_the_same_accuracy_is_not_overfitting():
    rows = make_rows([2, 1, 0.5, 0.2, 0.1, 0.05, 0.04], [2, 0.03, 0.04, 0.05, 0.04, 0.06, 0.05])
    assert alarm_kinds([row | {"top1": 1 - 0.004 * (i % 2)} for i, row in enumerate(rows)]) == []


def test_an_alarm_is_withdrawn_by_a_later_better_epoch():
    losses = [2, 1.5, 1.6, 1.7, 1.8, 1.7, 1.9], [2, 1.5, 1, 0.8, 0.6, 0.5, 0.4]
    (alarm,) = all_alarms(make_rows(losses[1], losses[0]), RECIPE, 10)
    assert (alarm["kind"], alarm["epoch"], alarm["withdrawn"]) == ("overfitting", 7, None)
    (alarm,) = all_alarms(make_rows([*losses[1], 0.3, 0.3], [*losses[0], 1.6, 1.4]), RECIPE, 10)
    assert (alarm["epoch"], alarm["withdrawn"]) == (7, 9)
    (alarm,) = all_alarms(make_rows([1.0, 0.9], [1.0, 0.9], dead={"relu6": 0.75}), RECIPE, 10)
    assert alarm["withdrawn"] is None


def test_a_slow_first_epoch_is_not_stuck_if_validation_is_better():
    assert alarm_kinds(make_rows([math.log(10)], [2.0])) == []


def test_a_long_run_is_not_called_stuck_in_its_first_epochs():
    rows = make_rows([math.log(10)] * 4, [math.log(10)] * 4)
    for epochs, kinds in ((80, ["stuck"]), (81, [])):
        assert [kind for kind, _ in find_alarms(rows, RECIPE.replace(epochs=epochs), 10)] == kinds


def test_stuck_advice_fits_the_network():
    rows = make_rows([math.log(10)], [math.log(10)])
    assert "--norm batch" in find_alarms(rows, Recipe().replace(lr=0.1), 10)[0][1]
    assert "--norm batch" not in find_alarms(rows, RECIPE, 10)[0][1]


def test_channels_with_a_bias_far_below_zero_are_dead():
    model = create_model("cifar", width=0.125).train()
    images = torch.randn(8, 3, 32, 32)
    assert dead_relus(model, images)["relu1"] == 0
    with torch.no_grad():
        model.conv1.bias[:4] = -1e3
    fractions = dead_relus(model, images)
    assert fractions["relu1"] == 4 / len(model.conv1.bias)
    assert set(fractions) == {"relu1", "relu2", "relu3", "relu4", "relu5", "relu6", "relu7"}
    assert model.training


def test_dead_relus_are_not_counted_in_torchvision_networks():
    assert dead_relus(create_model("torchvision/resnet18", num_classes=2, image_size=32), torch.zeros(1)) == {}


def test_lrn_is_a_constant_unless_pixels_are_of_0_to_255():
    """On 0 to 1 its denominator is k^beta; on 0 to 255 it is not."""
    torch.manual_seed(0)
    model = create_model("cifar-towers", num_classes=3, width=0.25)
    images = torch.rand(4, 3, 32, 32)
    warning = lrn_warning(model, images)
    assert "multiplication by a constant" in warning
    assert "--std 0.00392" in warning
    assert "this grows if the weights do" in lrn_warning(model, images * 25)
    found = lrn_denominators(model, images)
    assert list(found) == ["lrn1", "lrn2"]
    assert found["lrn1"].mean().item() == pytest.approx(2**0.75, rel=0.001)
    assert lrn_warning(model, images * 255) == ""
    assert model.training
    assert lrn_warning(create_model("cifar", num_classes=3, width=0.25), images) == ""


def test_denominators_are_those_of_the_forward_pass():
    torch.manual_seed(0)
    for towers in (1, 2):
        norm, x = LocalResponseNorm(5, 1e-3, 0.75, 2.0, towers), torch.randn(2, 16, 3, 3) * 100
        torch.testing.assert_close(norm(x), x / norm.denominators(x))


def test_the_image_grid_enlarges_small_images_and_keeps_their_colors(tmp_path):
    images = torch.zeros(9, 3, 32, 32, dtype=torch.uint8)
    images[8, 0] = 200
    save_image_grid(tmp_path / "a.png", images)
    with Image.open(tmp_path / "a.png") as grid:
        pixels = np.asarray(grid)
    step = 32 * 4 + 4
    assert pixels.shape == (2 * step + 4, 8 * step + 4, 3)
    assert pixels[step + 10, 10].tolist() == [200, 0, 0]
    assert pixels[10, 10].tolist() == [0, 0, 0]
    assert pixels[step + 10, step + 10].tolist() == [255, 255, 255]


def test_the_image_grid_accepts_gray_images(tmp_path):
    save_image_grid(tmp_path / "a.png", torch.full((1, 1, 224, 224), 7, dtype=torch.uint8))
    with Image.open(tmp_path / "a.png") as grid:
        assert grid.getpixel((5, 5)) == (7, 7, 7)
