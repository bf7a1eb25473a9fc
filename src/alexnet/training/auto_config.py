"""Settings that follow from the data: how long to train on 50 pictures and how long on 500,000, in which batches.

A recipe lists in `fitted` what it leaves to be chosen here; what a user gives is never touched. What is chosen stands
in `recipe.json` and is said with its reason.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from alexnet.errors import UserError
from alexnet.models.architectures import TORCHVISION
from alexnet.training.recipe import Recipe

SEEN = 500_000  # pictures, repeated ones counted, that a small network is shown
EPOCHS = (8, 60)
STEPS = 60  # optimizer steps an epoch has at least, where the batch can be small enough
BATCHES = (8, 128)


def fit(recipe: Recipe, pictures: int, classes: int) -> tuple[Recipe, str]:
    """`recipe` with its `fitted` settings chosen for so many training pictures, and a sentence; empty where there was
    nothing to choose."""
    chosen: dict[str, Any] = {}
    reasons = []
    if "epochs" in recipe.auto_fields:
        chosen["epochs"] = min(max(round(SEEN / pictures), EPOCHS[0]), EPOCHS[1])
        reasons.append(f"{chosen['epochs']} epochs")
    if "batch_size" in recipe.auto_fields:
        power = 2 ** max(round(math.log2(max(pictures / STEPS, 1))), 0)
        chosen["batch_size"] = min(max(power, BATCHES[0]), BATCHES[1])
        reasons.append(f"batches of {chosen['batch_size']}")
    if "lr" in recipe.auto_fields:
        batch = chosen.get("batch_size", recipe.batch_size) or BATCHES[1]
        chosen["lr"] = round(recipe.lr * math.sqrt(batch / BATCHES[1]), 4)  # smaller batches have noisier gradients
        chosen["lr_batch"] = batch
        reasons.append(f"a learning rate of {chosen['lr']:g}")
    each = pictures / classes
    if "augment" in recipe.auto_fields:
        chosen["augment"] = "medium" if each < 3000 else "light"
        reasons.append(f"{chosen['augment']} augmentation")
    if "dropout" in recipe.auto_fields and not recipe.arch.startswith(TORCHVISION):
        chosen["dropout"] = 0.5 if each < 200 else 0.2 if each < 2000 else 0.0
        reasons.append(f"dropout {chosen['dropout']:g}")
    if not chosen:
        return recipe, ""
    sentence = (
        f"For {pictures:,} training pictures, {each:,.0f} a class: {', '.join(reasons)}; your own flags come first."
    )
    return replace(recipe, auto_fields=(), **chosen), sentence


SMALL = 100  # pixels: pictures up to this are kept whole and moved, as is usual for CIFAR


def augmentation(level: str, side: int) -> dict[str, Any]:
    """The settings that the `level` of `--augment` stands for, for a network that reads side×side pictures.

    Small pictures are moved by a share of their side; larger ones are cut out and resized, as is usual for ImageNet.
    Resizing small ones too would cost as much as training on them does.
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


def augmented(recipe: Recipe, side: int) -> Recipe:
    """`recipe` with the settings that its `augment` stands for; the word itself stays, for the report."""
    return recipe if recipe.augment == "auto" else replace(recipe, **augmentation(recipe.augment, side))


def scaled(recipe: Recipe) -> list[str]:
    """A sentence on how the rates follow the batch size, where they do and it is not the recipe's own. Raises
    `UserError` where there is no size to compare with."""
    if recipe.scale_lr != "none" and recipe.lr_batch is None:
        raise UserError(
            f"scale_lr={recipe.scale_lr} needs the batch size that the rate is meant for, and this recipe has none of "
            "its own; add --set lr_batch=128."
        )
    if recipe.lr_factor == 1:
        return []
    if recipe.warmup:
        rise = f"after a rise from 0 over {recipe.warmup:g} epochs (--warmup)"
    elif recipe.schedule == "one-cycle":
        rise = "at the top of its cycle"
    else:
        rise = "from the first step (--warmup 5 would let it rise over five epochs, as is usual for rates so scaled)"
    return [
        f"The learning rate is {recipe.lr:g} for batches of {recipe.lr_batch} and by the {recipe.scale_lr} rule "
        f"{recipe.lr * recipe.lr_factor:g} for {recipe.batch_size}, {rise}."
    ]
