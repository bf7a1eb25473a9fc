"""One step: classes that count alike, parts that add up, and the pictures as the network reads them."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from alexnet.data.augment import augment
from alexnet.models.model import build
from alexnet.training.optim import schedule_at
from alexnet.training.progress import Silent
from alexnet.training.recipe import with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import TrainSetup, class_weights, prepare_training
from alexnet.training.step import TrainStep
from helpers import make_image, make_image_folder

SMALL = {"arch": "cifar", "image_size": 32, "width": 0.125, "norm": "none", "precision": "fp32", "device": "cpu",
         "workers": 0, "dropout": 0.0, "batch_size": 16}  # fmt: skip


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Sixteen pictures of one class and eight of another."""
    root = make_image_folder(tmp_path / "uneven", classes=("many", "few"))
    for n in range(8):
        make_image(root / "many" / f"more{n}.jpg", 0, 900 + n)
    return root


def stepped(data: Path, **settings) -> tuple[TrainStep, TrainSetup]:
    prepared = prepare_training(with_settings(named_recipe("folder"), {"data": data, **SMALL, **settings}), Silent())
    torch.manual_seed(0)
    return TrainStep(prepared, build(prepared.spec)), prepared


def test_a_picture_of_a_small_class_counts_more_and_all_count_one_on_average():
    weights = class_weights(torch.tensor([0, 0, 0, 1]), 3)  # of the third class there is none
    assert weights[:2].tolist() == pytest.approx([2 / 3, 2.0])
    assert weights[[0, 0, 0, 1]].mean() == pytest.approx(1.0)


def test_the_balanced_loss_is_the_weighted_mean(uneven):
    step, prepared = stepped(uneven, balance=True, augment="none", label_smoothing=0.0)
    batch = next(iter(prepared.train.batches(0)))
    x = prepared.preprocess.normalize(batch.images)
    step.train()
    weights = class_weights(prepared.dataset.splits["train"].targets, 2)[batch.targets]
    wanted = (F.cross_entropy(step.model(x), batch.targets, reduction="none") * weights).mean()
    loss, _ = step(batch, 0, 0, schedule_at(prepared.recipe, 0, 1))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_parts_of_a_balanced_batch_add_up(uneven):
    found = []
    for parts in (1, 3):
        step, prepared = stepped(uneven, balance=True, accumulate=parts)
        step.train()
        step(next(iter(prepared.train.batches(0))), 0, 0, schedule_at(prepared.recipe, 0, 1))
        found.append(step.model.state_dict())
    for name, whole in found[0].items():
        assert torch.allclose(whole, found[1][name], atol=1e-6), name


def test_what_is_shown_is_what_is_read(uneven):
    step, prepared = stepped(uneven, augment="light")
    batch = next(iter(prepared.train.batches(0)))
    wanted = augment(batch.images, batch.ids, 0, 0, prepared.augment, 32)
    shown = step.denormalized_inputs(batch, 0, schedule_at(prepared.recipe, 0, 1))
    assert shown.dtype == torch.uint8
    assert (shown.int() - wanted.int()).abs().max() <= 1
