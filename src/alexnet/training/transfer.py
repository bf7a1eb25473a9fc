"""Transfer learning: weights and preprocessing of a trained network, a new head, and the choice of frozen layers.

With few images the convolutions of a trained network are better than any that could be learned from these images, so
only a linear classifier on its features is trained. With more images the other layers are trained too, at a lower rate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alexnet.data.dataset import ImageDataset
from alexnet.data.deep import UNMEASURED
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError, unknown_name
from alexnet.models.model import Network, Spec
from alexnet.models.spec import AlexNetSpec
from alexnet.progress import Progress
from alexnet.runtimes.engines import LoadedModel
from alexnet.training.recipe import Recipe

HEAD_ONLY_MAX, FROZEN_CONVS_MAX = 50, 500  # images per class up to which --freeze auto does so
CHOSEN_BY_WEIGHTS = ("arch", "image_size", "width", "dropout", "mean", "std", "mean_image", "backbone_lr_mult")
"""The settings that `init_from_pretrained` takes from the trained network."""


def init_from_pretrained(
    pretrained: LoadedModel, recipe: Recipe, dataset: ImageDataset, progress: Progress
) -> tuple[Recipe, tuple[Spec, EvalTransform]]:
    """Return the recipe of a run that starts from `pretrained`, its network's specification and its preprocessing.

    Raises `UserError` if the images have another number of channels.
    """
    spec = replace(pretrained.model.spec, num_classes=len(dataset.classes))
    if recipe.model.dropout is not None and isinstance(spec, AlexNetSpec):
        spec = replace(spec, dropout=recipe.model.dropout)
    preprocess = pretrained.preprocess
    if preprocess.channels != dataset.channels:
        fix = "convert the images" if dataset.arrays else f"give --in-channels {preprocess.channels}"
        raise UserError(
            f"--weights {recipe.model.weights} takes {_color_mode(preprocess.channels)} images, and these are "
            f"{_color_mode(dataset.channels)}; {fix}, or leave out --weights."
        )
    frozen, reason = choose_frozen_layers(recipe.model.freeze, len(dataset.splits["train"]), len(dataset.classes))
    new_head = pretrained.classes != dataset.classes
    progress.log(
        f"Starting from {recipe.model.weights}: '{spec.name}' at {spec.image_size}×{spec.image_size}"
        + (f", with a new last layer for {len(dataset.classes)} classes" if new_head else "")
        + (f"; frozen: {frozen}" if frozen != "none" else "; all layers are trained")
        + (f" ({reason}; --freeze overrides this)." if reason else ".")
    )
    path = str(recipe.model.weights)
    if pretrained.checkpoint is not None:
        path = str((pretrained.run.path if pretrained.run else pretrained.checkpoint).absolute())
    elif Path(path).is_file():
        path = str(Path(path).absolute())
    settings: dict[str, Any] = {
        "arch": spec.name,
        "image_size": spec.image_size,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }
    if preprocess.mean_image is not None:
        settings["mean_image"] = "own"
    if isinstance(spec, AlexNetSpec):
        settings |= {"width": spec.width, "dropout": spec.dropout}
    own_range = replace(preprocess, value_range=UNMEASURED)  # of the new images
    lr_mult = recipe.optimization.backbone_lr_mult if new_head else 1.0
    return recipe.replace(weights=path, freeze=frozen, backbone_lr_mult=lr_mult, **settings), (spec, own_range)


def _color_mode(channels: int) -> str:
    return {1: "grayscale", 3: "color"}.get(channels, f"{channels}-channel")


@torch.no_grad()
def load_backbone(model: Network, pretrained: LoadedModel, classes: tuple[str, ...]) -> None:
    """Copy the weights of `pretrained` into `model`, except those of the last layer if the classes differ."""
    head = weighted_layers(model)[-1]
    new_head = classes != pretrained.classes
    fresh = {name: value for name, value in model.state_dict().items() if new_head and name.startswith(f"{head}.")}
    model.load_state_dict({**pretrained.model.state_dict(), **fresh})


def weighted_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that have weights, in order: conv1 … fc8, with any batch norm."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def choose_frozen_layers(freeze: str, images: int, classes: int) -> tuple[str, str]:
    """Return `--freeze`, with auto decided by the number of training images, and the reason (or "")."""
    if freeze != "auto":
        return freeze, ""
    per_class = images / classes
    if per_class <= HEAD_ONLY_MAX:
        return "features", f"{per_class:.0f} images per class are enough only for a linear classifier on features"
    if per_class <= FROZEN_CONVS_MAX:
        return "convolutions", f"{per_class:.0f} images per class are too few to improve trained convolutions"
    return "none", f"{per_class:.0f} images per class are enough to train all layers further"


def freeze(model: nn.Module, which: str) -> list[nn.Module]:
    """Freeze the layers that `which` names (see `freeze` in `settings.py`) and return the modules to keep in eval mode.

    These are all modules up to the last frozen layer, so batch norm uses its running averages and
    dropout is off. Raises `UserError` for an unknown layer, and if no layer is left to train.
    """
    frozen = frozen_layers(model, which)
    if not frozen:
        return []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] not in frozen)
    modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    last = max(i for i, (name, _) in enumerate(modules) if name in frozen)
    return [module for _, module in modules[: last + 1]]


def frozen_layers(model: nn.Module, which: str) -> list[str]:
    """Return the names of the layers with weights that `which` names, in order. Raises `UserError`."""
    names = weighted_layers(model)
    if which in ("none", "auto"):
        return []
    if which in ("features", "convolutions"):
        found = names[:-1]
        if which == "convolutions":
            linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            found = [name for name in found if name not in linear]
        return found
    indices: set[int] = set()
    for part in which.split(","):
        ends = [end.strip() for end in part.split("-")]
        for end in ends:
            if end not in names:
                raise unknown_name("layer to freeze", end, [*names, "features", "none"])
        first, last = names.index(ends[0]), names.index(ends[-1])
        if len(ends) > 2 or last < first:
            raise UserError(f"--freeze {part} is not a range of layers; write the first before the last: conv1-conv5.")
        indices |= set(range(first, last + 1))
    while names[max(indices) + 1 :] and f"norm{names[max(indices)][-1]}" == names[max(indices) + 1]:
        indices.add(max(indices) + 1)  # the batch norm of the last convolution belongs to it
    if len(indices) == len(names):
        raise UserError(f"--freeze {which} leaves no layer to train; leave out at least {names[-1]}.")
    return [names[i] for i in sorted(indices)]
