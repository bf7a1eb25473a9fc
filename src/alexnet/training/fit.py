"""Settings that follow from the data: how long to train on 50 pictures and how long on 500,000, in which batches.

A recipe lists in `fitted` what it leaves to be chosen here; what a user gives is never touched. What is chosen stands
in `recipe.json` and is said with its reason.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from alexnet.networks.architectures import TORCHVISION
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
    if "epochs" in recipe.fitted:
        chosen["epochs"] = min(max(round(SEEN / pictures), EPOCHS[0]), EPOCHS[1])
        reasons.append(f"{chosen['epochs']} epochs")
    if "batch_size" in recipe.fitted:
        power = 2 ** max(round(math.log2(max(pictures / STEPS, 1))), 0)
        chosen["batch_size"] = min(max(power, BATCHES[0]), BATCHES[1])
        reasons.append(f"batches of {chosen['batch_size']}")
    if "lr" in recipe.fitted:
        batch = chosen.get("batch_size", recipe.batch_size) or BATCHES[1]
        chosen["lr"] = round(recipe.lr * math.sqrt(batch / BATCHES[1]), 4)  # smaller batches have noisier gradients
        reasons.append(f"a learning rate of {chosen['lr']:g}")
    each = pictures / classes
    if "augment" in recipe.fitted:
        chosen["augment"] = "medium" if each < 2000 else "light"
        reasons.append(f"{chosen['augment']} augmentation")
    if "dropout" in recipe.fitted and not recipe.arch.startswith(TORCHVISION):
        chosen["dropout"] = 0.5 if each < 200 else 0.2 if each < 2000 else 0.0
        reasons.append(f"dropout {chosen['dropout']:g}")
    if not chosen:
        return recipe, ""
    sentence = (
        f"For {pictures:,} training pictures, {each:,.0f} a class: {', '.join(reasons)}; your own flags come first."
    )
    return replace(recipe, fitted=(), **chosen), sentence


AUGMENTATIONS: dict[str, dict[str, Any]] = {
    "none": {"crop": "none", "flip": False, "mixup": 0.0, "cutmix": 0.0, "colour_noise": 0.0},
    "light": {"crop": "resized", "scale": (0.6, 1.0), "flip": True, "jitter": (0.1, 0.1, 0.1)},
    "medium": {"crop": "resized", "scale": (0.35, 1.0), "flip": True, "jitter": (0.2, 0.2, 0.2)},
    "strong": {"crop": "resized", "scale": (0.2, 1.0), "flip": True, "jitter": (0.4, 0.4, 0.4), "rotate": 10.0},
}  # fmt: skip
"""What `--augment` sets. What is not named stays the recipe's, but for jitter and rotation, which are then off."""


def augmented(recipe: Recipe) -> Recipe:
    """`recipe` with the settings that its `augment` stands for; the word itself stays, for the report."""
    if recipe.augment == "auto":
        return recipe
    return replace(recipe, **{"jitter": (0.0, 0.0, 0.0), "rotate": 0.0, **AUGMENTATIONS[recipe.augment]})
