"""The trainer's own step on random images, without a dataset or a run, for benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import torch

from alexnet.data.dataset import ImageArrays, ImageDataset
from alexnet.data.loader import BatchLoader
from alexnet.data.transforms import EvalTransform
from alexnet.device import pick_device, pick_precision
from alexnet.models.model import build
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.optim import schedule_at
from alexnet.training.recipe import Recipe, with_settings
from alexnet.training.setup import TrainSetup, build_augment, build_spec
from alexnet.training.step import TrainStep

BATCHES = 4  # in memory, used in turn


def synthetic_step(
    arch: str,
    *,
    image_size: int | None = None,
    batch_size: int,
    precision: str = "auto",
    num_classes: int = 1000,
    settings: Mapping[str, Any] | None = None,
) -> Callable[[], None]:
    """Return a function that takes one optimizer step of `arch` on `batch_size` random uint8 images in memory.

    The step is that of a run: gather, random crop from 1/7 larger images (256 for 224), flip, normalize, forward,
    backward, update. `settings` are recipe fields (`norm`, `compile`, `device` …). On a GPU the function returns before
    the work is done. Raises `UserError` as `train` does.
    """
    values = {"arch": arch, "image_size": image_size, "batch_size": batch_size, "precision": precision}
    recipe = with_settings(Recipe().replace(crop="random", flip=True), {**values, **(settings or {})})
    device = pick_device(recipe.run.device)
    spec = build_spec(recipe, num_classes, channels=None)
    channels, size = spec.in_channels, spec.image_size
    side = size + size // 7
    generator = torch.Generator().manual_seed(recipe.run.seed)
    n = BATCHES * batch_size
    images = torch.randint(256, (n, channels, side, side), dtype=torch.uint8, generator=generator)
    targets = torch.randint(num_classes, (n,), generator=generator)
    arrays = ImageArrays(images.to(device), targets.to(device), [str(i) for i in range(n)])
    preprocess = EvalTransform(size, side, channels, (0.5,) * channels, (0.25,) * channels)
    augment = build_augment(recipe.augmentation)
    batches = BatchLoader(arrays, preprocess, augment, batch_size=batch_size, shuffle=True, seed=recipe.run.seed)
    setup = TrainSetup(
        recipe, spec, preprocess, augment,
        ImageDataset("synthetic", tuple(map(str, range(num_classes))), {"train": arrays}, channels),
        batches, {}, device, pick_precision(recipe.run.precision, device), SingleProcess(),
    )  # fmt: skip
    torch.manual_seed(recipe.run.seed)
    train_step = TrainStep(setup, build(spec).train())
    numbered = enumerate(batch for epoch in count() for batch in batches.batches(epoch))

    def step() -> None:
        number, batch = next(numbered)
        train_step(batch, number // BATCHES, number, schedule_at(recipe, number, BATCHES))

    return step
