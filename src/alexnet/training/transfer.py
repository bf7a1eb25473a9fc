"""Starting from a trained network: its layers, its preprocessing, a new head, and which layers stay as they are.

With few pictures the convolutions of a trained network are better than any that these pictures could teach: then only
a linear classifier on its features is trained. With more, the rest follows, at a smaller rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from alexnet.data.dataset import ImageDataset
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError, unknown_name
from alexnet.models.model import Network, Spec
from alexnet.models.spec import AlexNetSpec
from alexnet.runtimes.loaded_model import LoadedModel
from alexnet.training.progress import Progress
from alexnet.training.recipe import Recipe

FEW, SOME = 50, 500  # pictures a class: up to FEW the head alone is trained, up to SOME the convolutions stay


def init_from_pretrained(
    start: LoadedModel, recipe: Recipe, source: ImageDataset, report: Progress
) -> tuple[Recipe, tuple[Spec, EvalTransform]]:
    """The recipe of a run that starts from the network `start`, the specification of its network and its
    preprocessing. Raises `UserError` where the pictures have other channels."""
    spec = replace(start.model.spec, num_classes=len(source.classes))
    if recipe.dropout is not None and isinstance(spec, AlexNetSpec):
        spec = replace(spec, dropout=recipe.dropout)
    preprocess = start.preprocess
    if preprocess.channels != source.channels:
        raise UserError(
            f"--weights {recipe.weights} reads {_colours(preprocess.channels)} pictures and these are "
            f"{_colours(source.channels)}; train it on such ones, or start without --weights."
        )
    frozen, why = choose_frozen_layers(recipe.freeze, len(source.splits["train"]), len(source.classes))
    new_head = start.classes != source.classes
    report.log(
        f"Starting from {recipe.weights}: '{spec.name}' at {spec.image_size}×{spec.image_size}"
        + (f", a new last layer for {len(source.classes)} classes" if new_head else "")
        + (f"; frozen: {frozen}" if frozen != "none" else "; all layers are trained")
        + (f" ({why}; --freeze says otherwise)." if why else ".")
    )
    path = recipe.weights
    if start.checkpoint is not None:
        path = str((start.run.path if start.run else start.checkpoint).absolute())
    given: dict[str, Any] = {
        "arch": spec.name,
        "image_size": spec.image_size,
        "mean": preprocess.mean,
        "std": preprocess.std,
    }
    if preprocess.mean_image is not None:
        given["mean_image"] = "own"
    if isinstance(spec, AlexNetSpec):
        given |= {"width": spec.width, "dropout": spec.dropout}
    rate = recipe.backbone_lr_mult if new_head else 1.0
    return replace(recipe, weights=path, freeze=frozen, backbone_lr_mult=rate, **given), (spec, preprocess)


def _colours(channels: int) -> str:
    return {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")


@torch.no_grad()
def load_backbone(model: Network, start: LoadedModel, classes: tuple[str, ...]) -> bool:
    """Copy the weights of `start` into `model`, but for the last layer where the classes are other ones: that keeps its
    fresh weights. Whether the last layer is new."""
    new_head = classes != start.classes
    head = weighted_layers(model)[-1]
    weights = start.model.state_dict()
    kept = {name: value for name, value in model.state_dict().items() if new_head and name.startswith(f"{head}.")}
    model.load_state_dict({**weights, **kept})
    return new_head


def weighted_layers(model: nn.Module) -> list[str]:
    """The names of the layers that have weights, in order: conv1 … fc8, with batch norm where there is some."""
    return list(dict.fromkeys(name.rpartition(".")[0] for name, _ in model.named_parameters()))


def choose_frozen_layers(wanted: str, pictures: int, classes: int) -> tuple[str, str]:
    """`--freeze` with auto decided by the number of training pictures, and why."""
    if wanted != "auto":
        return wanted, ""
    each = pictures / classes
    if each <= FEW:
        return "features", f"{each:.0f} pictures a class are too few to teach more than a linear classifier on features"
    if each <= SOME:
        return "convolutions", f"{each:.0f} pictures a class are too few to improve trained convolutions"
    return "none", f"{each:.0f} pictures a class are enough to train all layers further"


def freeze(model: nn.Module, which: str) -> list[nn.Module]:
    """Keep the layers that `which` names (see `Flags.freeze`) as they are, and everything before the last of them as
    in use: batch norm with its averages, no dropout. Returns the modules that are not to be put into training mode.
    Raises `UserError` for a layer that is not there, and where nothing is left to train."""
    frozen = frozen_layers(model, which)
    if not frozen:
        return []
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0] not in frozen)
    modules = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    last = max(i for i, (name, _) in enumerate(modules) if name in frozen)
    return [module for _, module in modules[: last + 1]]


def frozen_layers(model: nn.Module, which: str) -> list[str]:
    """The layers with weights that `which` names, in order."""
    names = weighted_layers(model)
    if which in ("none", "auto"):
        return []
    if which in ("features", "convolutions"):
        found = names[:-1]
        if which == "convolutions":
            linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            found = [name for name in found if name not in linear]
        return found
    places: set[int] = set()
    for part in which.split(","):
        ends = [end.strip() for end in part.split("-")]
        for end in ends:
            if end not in names:
                raise unknown_name("layer to freeze", end, [*names, "features", "none"])
        first, last = names.index(ends[0]), names.index(ends[-1])
        if len(ends) > 2 or last < first:
            raise UserError(f"--freeze {part} is no range of layers; write the first before the last: conv1-conv5.")
        places |= set(range(first, last + 1))
    while names[max(places) + 1 :] and f"norm{names[max(places)][-1]}" == names[max(places) + 1]:
        places.add(max(places) + 1)  # the batch norm of the last convolution belongs to it
    if len(places) == len(names):
        raise UserError(f"--freeze {which} leaves no layer to train; leave out at least {names[-1]}.")
    return [names[i] for i in sorted(places)]
