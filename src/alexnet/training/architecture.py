"""The network that a recipe names, or that the images and the machine suggest."""

from __future__ import annotations

from dataclasses import replace

import torch

from alexnet.data.dataset import ImageDataset
from alexnet.data.statistics import median_short_side
from alexnet.device import Precision
from alexnet.errors import UserError
from alexnet.models.architectures import TORCHVISION
from alexnet.models.model import Spec, specify
from alexnet.models.spec import AlexNetSpec, apply_modifications, layers
from alexnet.progress import Progress
from alexnet.training.recipe import Recipe, check_layers, parse_duration
from alexnet.training.speed import images_per_second

SMALL_SIDE = 128  # pixels up to which a network for small images is chosen
LONG_WIDTH, LONG_EDITS = 0.5, ("half-hidden",)  # of a network of small images that is trained for long
LONG_EPOCHS = 40  # from which on that pays, as far as measured (docs/performance/cifar10.md)
LONG_IMAGES = 20_000  # training images, likewise
LONG_SECONDS = 120  # of a time budget, from which on it is worth measuring whether they fit
USABLE = 0.85  # share of a time budget that goes to forward and backward passes


def build_spec(recipe: Recipe, num_classes: int, channels: int | None) -> Spec:
    """Return the network that `recipe` names; `channels` defaults to the architecture's own. Raises `UserError`."""
    model = recipe.model
    base = specify(
        model.arch,
        num_classes=num_classes,
        in_channels=channels,
        image_size=None if model.spec_edits else model.image_size,
        norm=None if model.norm == "auto" else model.norm,
        activation=None if model.activation == "auto" else model.activation,
        init=None if model.init == "auto" else model.init,
        dropout=model.dropout,
        width=model.width,
    )
    if not isinstance(base, AlexNetSpec):
        changed = any(change.layers for change in recipe.schedule.lr_changes)
        if model.spec_edits or changed or recipe.optimization.layer_weight_decay:
            raise UserError(
                f"'{base.name}' is built by torchvision: spec_edits, lr_changes of single layers and "
                "layer_weight_decay work for AlexNets only; leave them out."
            )
        return base
    if model.spec_edits and model.image_size is not None:  # a modified network may accept smaller images
        base = replace(base, image_size=model.image_size)
    spec = apply_modifications(base, model.spec_edits)
    if recipe.schedule.lr_changes or recipe.optimization.layer_weight_decay:
        check_layers(recipe, spec.name, (layer.name for layer in layers(spec) if layer.parameters))
    return spec


def choose_architecture(
    recipe: Recipe, dataset: ImageDataset, device: torch.device, precision: Precision, progress: Progress
) -> tuple[Recipe, bool]:
    """Choose what `recipe` leaves open of architecture, image size and width, and say so.

    Up to 128 pixels this is the 32-pixel network: the stride of 4 and the three pools of the
    224-pixel ones would leave nothing. On a CPU it has half the width, which trains almost four
    times as fast (CIFAR-10 on two cores: 1,210 images/s instead of 312), or a quarter at 64 pixels,
    which cost four times as much as 32, unless there is a time budget that trains half for long.

    Return the recipe, and whether there is.
    """
    model, long = recipe.model, False
    side = model.image_size or choose_image_size(dataset)
    if model.arch != "auto":
        return (recipe.replace(image_size=side) if model.arch.startswith(TORCHVISION) else recipe), long
    recipe = recipe.replace(arch="cifar" if side <= SMALL_SIDE else "torchvision", image_size=side)
    if device.type == "cpu" and model.width == 1:
        recipe = recipe.replace(width=0.5)
        if 48 < side <= SMALL_SIDE:
            wide = recipe.replace(width=LONG_WIDTH, spec_edits=model.spec_edits or LONG_EDITS)
            long = _fits_long_training(wide, dataset, device, precision, progress)
            recipe = wide if long else recipe.replace(width=0.25)
    width = f", width {recipe.model.width:g}" if recipe.model.width != 1 else ""
    reason = "size of the images" + " and the time budget" * long
    progress.log(
        f"Architecture '{recipe.model.arch}' at {side}×{side}{width}, chosen by the {reason}; --arch and --image-size "
        "override it."
    )
    return recipe, long


def choose_image_size(dataset: ImageDataset) -> int:
    """Return 32, 64 or 224 pixels, by the median short side of the images."""
    side = int(median_short_side(dataset.splits["train"]) or 224)
    return 32 if side <= 48 else 64 if side <= 100 else 224


def _fits_long_training(
    recipe: Recipe, dataset: ImageDataset, device: torch.device, precision: Precision, progress: Progress
) -> bool:
    """Return whether the time budget of `recipe` trains its network for `LONG_EPOCHS`, by the speed measured here."""
    images, budget = len(dataset.splits["train"]), recipe.schedule.time_budget
    seconds = parse_duration(budget) if budget else 0.0
    if seconds < LONG_SECONDS or images < LONG_IMAGES:
        return False
    progress(0, 1, "measuring the speed of training")
    spec = build_spec(recipe, len(dataset.classes), dataset.channels)
    speed = images_per_second(spec, device, precision, recipe.run.threads)
    return USABLE * seconds * speed >= LONG_EPOCHS * images
