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
from alexnet.training.recipe import Recipe, check_layers, is_long, parse_duration
from alexnet.training.speed import images_per_second

WIDTHS = (0.25, 0.375, 0.5, 0.75, 1.0)
SMALL_SIDE = 128  # pixels up to which a network for small images is chosen
TRIAL_BUDGET_S = 60.0  # time budget from which on speed is measured, which takes seconds
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
) -> tuple[Recipe, int | None]:
    """Choose what `recipe` leaves open of architecture, image size and width, and say so.

    Up to 128 pixels this is the 32-pixel network: the stride of 4 and the three pools of the
    224-pixel ones would leave nothing. On a CPU it has half the width, which trains almost four
    times as fast (CIFAR-10 on two cores: 1,210 images/s instead of 312), or a quarter at 64 pixels,
    which cost four times as much as 32; with a time budget, the largest width that has time to learn.

    Return the recipe and the epochs that fit its time budget, by the speed measured (None: no budget, or too short
    to measure).
    """
    model, chosen = recipe.model, recipe.model.arch == "auto"
    side = model.image_size or _choose_image_size(dataset)
    if chosen:
        width = model.width
        if device.type == "cpu" and width == 1:
            width = 0.25 if 48 < side <= SMALL_SIDE else 0.5
        recipe = recipe.replace(arch="cifar" if side <= SMALL_SIDE else "torchvision", image_size=side, width=width)
    elif model.arch.startswith(TORCHVISION):
        recipe = recipe.replace(image_size=side)
    budget = parse_duration(recipe.schedule.time_budget) if recipe.schedule.time_budget else 0.0
    epochs = None
    if budget >= TRIAL_BUDGET_S:
        progress(0, 1, "measuring the speed of training")
        may_widen = chosen and model.width == 1 and side <= SMALL_SIDE
        recipe, epochs = _choose_width(recipe, dataset, budget, device, precision, may_widen)
    if chosen:
        narrowed = f", width {recipe.model.width:g}" if recipe.model.width != 1 else ""
        reason = "size of the images" + " and the time budget" * (epochs is not None)
        progress.log(
            f"Architecture '{recipe.model.arch}' at {side}×{side}{narrowed}, chosen by the {reason}; --arch and "
            "--image-size override it."
        )
    return recipe, epochs


def _choose_image_size(dataset: ImageDataset) -> int:
    """Return 32, 64 or 224 pixels, by the median short side of the images."""
    side = int(median_short_side(dataset.splits["train"]) or 224)
    return 32 if side <= 48 else 64 if side <= 100 else 224


def _choose_width(
    recipe: Recipe, dataset: ImageDataset, budget: float, device: torch.device, precision: Precision, may_widen: bool
) -> tuple[Recipe, int]:
    """Return `recipe` and the epochs that fit `budget` seconds; if it `may_widen`, with the largest width that is still
    trained for long (see `is_long`), if there is one."""
    images = len(dataset.splits["train"])

    def count_epochs(recipe: Recipe) -> int:
        spec = build_spec(recipe, len(dataset.classes), dataset.channels)
        speed = images_per_second(spec, dataset.channels, device, precision, recipe.run.threads)
        return int(USABLE * budget * speed / images)

    epochs = count_epochs(recipe)
    for width in WIDTHS:
        if not may_widen or width <= recipe.model.width:
            continue
        wider = recipe.replace(width=width)
        fitting = count_epochs(wider)
        if not is_long(fitting, images):
            break
        recipe, epochs = wider, fitting
    return recipe, epochs
