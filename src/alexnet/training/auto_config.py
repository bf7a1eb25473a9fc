"""Settings chosen by the size of the data: epochs, batch size, learning rate, augmentation and dropout.

A recipe lists in `auto_fields` what is chosen here; a setting that the user gives is
never changed. The choices are recorded in `recipe.json` and logged with their reason.
"""

from __future__ import annotations

import math
from typing import Any

from alexnet.errors import UserError
from alexnet.models.architectures import TORCHVISION
from alexnet.training.recipe import Recipe

SAMPLES = 500_000  # images, repetitions included, that a small network is trained on
EPOCHS = (8, 60)
MIN_STEPS = 60  # optimizer steps per epoch, unless that needs a batch below BATCH_SIZES[0]
BATCH_SIZES = (8, 128)
SMALL = 100  # pixels: images up to this size are shifted, as is usual for CIFAR; larger ones are cropped and resized


def choose_settings(recipe: Recipe, images: int, classes: int) -> tuple[Recipe, str]:
    """Return `recipe` with its `auto_fields` chosen for so many training images, and a sentence ("" if it has none)."""
    chosen: dict[str, Any] = {}
    log = []
    if "epochs" in recipe.auto_fields:
        chosen["epochs"] = min(max(round(SAMPLES / images), EPOCHS[0]), EPOCHS[1])
        log.append(f"{chosen['epochs']} epochs")
    if "batch_size" in recipe.auto_fields:
        power = 2 ** max(round(math.log2(max(images / MIN_STEPS, 1))), 0)
        chosen["batch_size"] = min(max(power, BATCH_SIZES[0]), BATCH_SIZES[1])
        log.append(f"batch size {chosen['batch_size']}")
    if "lr" in recipe.auto_fields:
        batch_size = chosen.get("batch_size", recipe.optimization.batch_size) or BATCH_SIZES[1]
        scale = math.sqrt(batch_size / BATCH_SIZES[1])  # small batches: noisier gradients
        chosen["lr"] = round(recipe.optimization.lr * scale, 4)
        chosen["lr_batch"] = batch_size
        log.append(f"learning rate {chosen['lr']:g}")
    per_class = images / classes
    if "augment" in recipe.auto_fields:
        chosen["augment"] = "medium" if per_class < 3000 else "light"
        log.append(f"{chosen['augment']} augmentation")
    if "dropout" in recipe.auto_fields and not recipe.model.arch.startswith(TORCHVISION):
        chosen["dropout"] = 0.5 if per_class < 200 else 0.2 if per_class < 2000 else 0.0
        log.append(f"dropout {chosen['dropout']:g}")
    if not chosen:
        return recipe, ""
    sentence = (
        f"Chosen for {images:,} training images, {per_class:,.0f} per class: {', '.join(log)}; flags override them."
    )
    return recipe.replace(auto_fields=(), **chosen), sentence


def augmentation_settings(level: str, side: int) -> dict[str, Any]:
    """Return the settings that `--augment level` stands for, for a network with side×side inputs.

    Small images are shifted by a share of their side; larger ones get random resized crops, as
    is usual for ImageNet. Resizing small images too would cost as much as training on them.
    """
    settings: dict[str, Any] = {"flip": level != "none", "jitter": (0.0, 0.0, 0.0), "rotate": 0.0}
    if level == "none":
        return {**settings, "crop": "none", "mixup": 0.0, "cutmix": 0.0, "pca_noise": 0.0}
    if side <= SMALL and level != "strong":
        share = {"light": 16, "medium": 8}[level]
        return {**settings, "crop": "pad", "padding": side // share, "padding_mode": "zeros"}
    scale, jitter = {"light": (0.6, 0.1), "medium": (0.35, 0.2), "strong": (0.2, 0.4)}[level]
    settings |= {"crop": "resized", "scale": (scale, 1.0), "jitter": (jitter,) * 3}
    return settings if level != "strong" else {**settings, "rotate": 10.0}


def apply_augmentation_level(recipe: Recipe, side: int) -> Recipe:
    """Return `recipe` with the settings that its `augment` stands for; `augment` itself is kept for the report."""
    level = recipe.augmentation.level
    return recipe if level == "auto" else recipe.replace(**augmentation_settings(level, side))


def describe_lr_scaling(recipe: Recipe) -> str:
    """Return a sentence on how the learning rate follows the batch size; "" where it stays as it is.

    Raises `UserError` if the recipe has no batch size to scale from.
    """
    o = recipe.optimization
    if o.scale_lr != "none" and o.lr_batch is None:
        raise UserError(
            f"The setting scale_lr={o.scale_lr} needs the batch size that the learning rate is meant for, which "
            "this recipe does not have; add --set lr_batch=128."
        )
    if recipe.lr_factor == 1:
        return ""
    if recipe.schedule.warmup:
        when = f"after a warmup from 0 over {recipe.schedule.warmup:g} epochs (--warmup)"
    elif recipe.schedule.kind == "one-cycle":
        when = "at the peak of the cycle"
    else:
        when = "from the first step (a scaled rate usually gets a warmup of five epochs: --warmup 5)"
    return (
        f"The learning rate is {o.lr:g} for batches of {o.lr_batch} and, by the {o.scale_lr} rule, "
        f"{o.lr * recipe.lr_factor:g} for batches of {o.batch_size}, {when}."
    )
