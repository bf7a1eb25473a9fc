"""One step: class weights, gradient accumulation, and inputs shown as images."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from alexnet.data.augment import augment
from alexnet.models.model import build
from alexnet.progress import Silent
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import TrainSetup, class_weights, prepare_training
from alexnet.training.step import TrainStep
from helpers import make_image, make_image_folder

SMALL = {"arch": "cifar", "image_size": 32, "width": 0.125, "norm": "none", "precision": "fp32", "device": "cpu",
         "workers": 0, "dropout": 0.0, "batch_size": 16}  # fmt: skip


@pytest.fixture
def imbalanced(tmp_path: Path) -> Path:
    """Sixteen images of one class and eight of another."""
    root = make_image_folder(tmp_path / "imbalanced", classes=("many", "few"))
    for n in range(8):
        make_image(root / "many" / f"more{n}.jpg", 0, 900 + n)
    return root


def make_step(data: Path, **settings) -> tuple[TrainStep, TrainSetup]:
    setup = prepare_training(with_settings(named_recipe("folder"), {"data": data, **SMALL, **settings}), Silent())
    torch.manual_seed(0)
    return TrainStep(setup, build(setup.spec)), setup


def test_class_weights_are_inverse_to_class_sizes_and_one_on_average():
    weights = class_weights(torch.tensor([0, 0, 0, 1]), 3)  # the third class is empty
    assert weights[:2].tolist() == pytest.approx([2 / 3, 2.0])
    assert weights[[0, 0, 0, 1]].mean() == pytest.approx(1.0)


def test_the_loss_with_class_weights_is_the_weighted_mean(imbalanced):
    step, setup = make_step(imbalanced, balance=True, augment="none", label_smoothing=0.0)
    batch = next(iter(setup.train.batches(0)))
    x = setup.preprocess.normalize(batch.images)
    step.train()
    weights = class_weights(setup.dataset.splits["train"].targets, 2)[batch.targets]
    expected = (F.cross_entropy(step.model(x), batch.targets, reduction="none") * weights).mean()
    loss, _ = step(batch, 0, 0, schedule_at(setup.recipe, 0, 1))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_accumulation_with_class_weights_takes_the_same_step(imbalanced):
    weights = []
    for accumulate in (1, 3):
        step, setup = make_step(imbalanced, balance=True, accumulate=accumulate)
        step.train()
        step(next(iter(setup.train.batches(0))), 0, 0, schedule_at(setup.recipe, 0, 1))
        weights.append(step.model.state_dict())
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], atol=1e-6), name


def test_denormalized_inputs_are_the_augmented_images(imbalanced):
    step, setup = make_step(imbalanced, augment="light")
    batch = next(iter(setup.train.batches(0)))
    expected = augment(batch.images, batch.ids, 0, 0, setup.augment, 32)
    images = step.denormalized_inputs(batch, 0, schedule_at(setup.recipe, 0, 1))
    assert images.dtype == torch.uint8
    assert (images.int() - expected.int()).abs().max() <= 1
