"""Transfer learning: weights and preprocessing of a trained network, a new head, and the choice of frozen layers.

With few images the convolutions of a trained network are better than any that could be learned from these images, so
only a linear classifier on its features is trained. With more images the other layers are trained too, at a lower rate.
Folders with few images start from the small network in `tiny/`, which is part of the package.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.data.dataset import ImageDataset
from alexnet.data.deep import UNMEASURED
from alexnet.data.loader import BatchLoader
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError, unknown_name
from alexnet.inference.evaluate import run_networks
from alexnet.models.model import Network, Spec
from alexnet.models.spec import AlexNetSpec
from alexnet.progress import Progress
from alexnet.runtimes.engines import LoadedModel
from alexnet.training.architecture import choose_image_size
from alexnet.training.recipe import TINY, Recipe
from alexnet.training.settings import ModelSettings

TINY_FOLDER = Path(__file__).with_name(TINY)  # a checkpoint folder; its README.md describes the network
TINY_MAX = 200  # images per class below which a folder starts from it
TINY_MAX_SMALL = (
    1000  # likewise if they are 64×64 or smaller, and no more than HEAD_IMAGES (docs/performance/transfer.md)
)
TINY_HEAD_ONLY_MAX = 30  # images per class up to which only its last layer is trained (docs/performance/transfer.md)
TINY_LIMITS = (TINY_HEAD_ONLY_MAX, TINY_HEAD_ONLY_MAX)  # see `choose_frozen_layers`
TINY_SETTINGS = {"epochs": 15, "lr": 0.01, "backbone_lr_mult": 1.0, "optimizer": "muon", "kernel_lr_mult": 1.0}
"""What suits training from it, where the recipe leaves it open."""
TINY_HEAD_LR = 0.0001  # instead, where only its last layer is trained: .001 undoes a point or two of what was fitted
HEAD_IMAGES = 20_000  # training images up to which the new last layer is fitted before training: it takes seconds
HEAD_C = 0.01  # scikit-learn's C: the inverse of the L2 penalty on the weights, for features of unit variance
HEAD_ONLY_MAX, FROZEN_CONVS_MAX = 50, 500  # images per class up to which --freeze auto does so
CHOSEN_BY_WEIGHTS = ("arch", "image_size", "width", "dropout", "mean", "std", "mean_image", "backbone_lr_mult")
"""The settings that `init_from_pretrained` takes from the trained network."""


def starts_from_tiny(recipe: Recipe, dataset: ImageDataset) -> bool:
    """Return whether a training that names no weights starts from `tiny`: few color images, or not many small ones, and
    a network that is left to the package."""
    given = recipe.model
    ours = ModelSettings(norm=given.norm, dropout=given.dropout, freeze=given.freeze, in_channels=given.in_channels)
    few = dataset.images_per_class < TINY_MAX
    if TINY_MAX <= dataset.images_per_class <= TINY_MAX_SMALL and len(dataset.splits["train"]) <= HEAD_IMAGES:
        few = choose_image_size(dataset) <= 64
    return (
        "weights" in recipe.auto_fields
        and given == ours
        and given.norm in ("auto", "batch")
        and (recipe.data.mean, recipe.data.std, recipe.data.mean_image) == (None, None, "none")
        and dataset.channels == 3
        and few
    )


def choose_tiny_settings(recipe: Recipe, per_class: float) -> Recipe:
    """Return `recipe` with the settings for so many training images per class that it leaves open."""
    frozen, _ = choose_frozen_layers(recipe.model.freeze, per_class, TINY_LIMITS)
    settings = TINY_SETTINGS | ({"lr": TINY_HEAD_LR} if frozen == "features" else {})
    chosen = {name: value for name, value in settings.items() if name in recipe.auto_fields}
    rest = tuple(name for name in recipe.auto_fields if name not in chosen)
    return recipe.replace(auto_fields=rest, **chosen)


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
    limits = TINY_LIMITS if pretrained.checkpoint == TINY_FOLDER else (HEAD_ONLY_MAX, FROZEN_CONVS_MAX)
    frozen, reason = choose_frozen_layers(recipe.model.freeze, dataset.images_per_class, limits)
    new_head = pretrained.classes != dataset.classes
    progress.log(
        f"Starting from {recipe.model.weights}: '{spec.name}' at {spec.image_size}×{spec.image_size}"
        + (f", with a new last layer for {len(dataset.classes)} classes" if new_head else "")
        + (f"; frozen: {frozen}" if frozen != "none" else "; all layers are trained")
        + (f" ({reason}; --freeze overrides this)." if reason else ".")
    )
    path = str(recipe.model.weights)
    if pretrained.checkpoint == TINY_FOLDER:
        path = TINY  # on other machines it lies elsewhere
    elif pretrained.checkpoint is not None:
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


@torch.no_grad()
def fit_last_layer(model: Network, batches: BatchLoader, device: torch.device, *, from_fc6: bool = False) -> None:
    """Set the last layer of `model` to a linear classifier of its features for the images of `batches`, not augmented.

    By logistic regression, which needs seconds where training needs minutes. With `from_fc6`, for a network whose fc7
    has as many outputs as inputs and ReLU, the features are the outputs of fc6: fc7 becomes the identity, which ReLU
    leaves as it is. Classes without an image get the bias of one image in a million.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    head = model.get_submodule(weighted_layers(model)[-1])
    assert isinstance(head, nn.Linear), "see `can_fit_last_layer`"
    if from_fc6:
        fc7 = model.get_submodule("fc7")
        assert isinstance(fc7, nn.Linear)
        fc7.weight.copy_(torch.eye(fc7.in_features))
        fc7.bias.zero_()
    inputs: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0].flatten(1).float().cpu()))
    try:
        (outputs,) = run_networks([(model, batches.preprocess)], batches, device)
    finally:
        hook.remove()
    features = torch.cat(inputs)
    # One scale for all: a unit that is nearly always 0 here would get a huge weight by its own, and augmented images
    # make it fire.
    mean, scale = features.mean(dim=0), features.std(dim=0).square().mean().sqrt().clamp(min=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # training continues from there
        found = LogisticRegression(C=HEAD_C, max_iter=200).fit(((features - mean) / scale).numpy(), outputs.targets)
    weight, bias = torch.from_numpy(found.coef_).float(), torch.from_numpy(found.intercept_).float()
    if len(found.classes_) == 2:  # scikit-learn stores one row: the logit of the second class
        weight, bias = torch.cat([-weight / 2, weight / 2]), torch.cat([-bias / 2, bias / 2])
    weight /= scale
    head.weight.zero_()
    head.bias.fill_(math.log(1e-6))
    seen = torch.from_numpy(found.classes_)
    head.weight[seen] = weight.to(device)
    head.bias[seen] = (bias - weight @ mean).to(device)


def fits_from_fc6(pretrained: LoadedModel, frozen: str) -> bool:
    """Return whether `fit_last_layer` takes the outputs of fc6. In the network of the package they serve other classes
    better than those of fc7, but are a worse start for training all layers (docs/performance/transfer.md)."""
    return pretrained.checkpoint == TINY_FOLDER and frozen == "features"


def can_fit_last_layer(model: Network, pretrained: LoadedModel | None, dataset: ImageDataset) -> bool:
    """Return whether training begins with `fit_last_layer`: a new linear layer, and no more than `HEAD_IMAGES`."""
    if pretrained is None or pretrained.classes == dataset.classes or len(dataset.splits["train"]) > HEAD_IMAGES:
        return False
    return isinstance(model.get_submodule(weighted_layers(model)[-1]), nn.Linear)


def weighted_layers(model: nn.Module) -> list[str]:
    """Return the names of the layers that have weights, in order: conv1 … fc8, with any batch norm."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def choose_frozen_layers(
    freeze: str, per_class: float, limits: tuple[int, int] = (HEAD_ONLY_MAX, FROZEN_CONVS_MAX)
) -> tuple[str, str]:
    """Return `--freeze`, with auto decided by the training images per class, and the reason (or "").

    `limits` are the largest numbers for which all layers but the last, or the convolutions, are frozen.
    """
    if freeze != "auto":
        return freeze, ""
    if per_class <= limits[0]:
        return "features", f"{per_class:.0f} images per class are enough only for a linear classifier on features"
    if per_class <= limits[1]:
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
