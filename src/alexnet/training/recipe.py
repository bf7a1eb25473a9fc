"""All settings of a training run: a frozen `Recipe` that is written to `recipe.json` and read back.

`settings.py` defines the settings; here they are put together, checked against each other, changed by flat name,
read from what a user gives (JSON, NAME=VALUE, durations), and completed: a recipe lists in `auto_fields` what
`choose_settings` chooses by the number of images, except what the user gives. Needs no torch, so that `alexnet train
--help` is fast.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from alexnet.errors import UserError, unknown_name
from alexnet.files import check_data_exists, check_labels_exist, convert, printable
from alexnet.models.architectures import TORCHVISION, architecture
from alexnet.training.settings import (
    AugmentationSettings,
    DataSettings,
    ModelSettings,
    OptimizationSettings,
    RunSettings,
    ScheduleChange,
    ScheduleSettings,
    Setting,
    all_settings,
    setting,
)

TINY = "tiny"  # what --weights calls the pretrained network of this package
PUBLISHED = re.compile(r"DEFAULT|IMAGENET\w+")  # names of weights in torchvision
SAMPLES = 500_000  # images, repetitions included, that a small network is trained on
EPOCHS = (8, 60)
MIN_STEPS = 60  # optimizer steps per epoch, unless that needs a batch below BATCH_SIZES[0]
BATCH_SIZES = (8, 128)  # the larger one, for which `lr` is meant, is twice as large from random weights
FROM_SCRATCH = {
    "optimizer": "muon", "kernel_lr_mult": 0.5, "bias_lr_mult": 4.0, "pct_start": 0.1, "label_smoothing": 0.2,
    "alternate_flip": True,
}  # fmt: skip
"""What teaches random weights most per epoch (docs/performance/cifar10.md), where a recipe leaves it open."""
LONG = {"label_smoothing": 0.0, "kernel_lr_mult": 0.8, "cutmix": 1.0}
"""What teaches a wide network more in a long training, there."""
LONG_LR = 0.06
SMALL = 100  # pixels: images up to this size are shifted, as is usual for CIFAR; larger ones are cropped and resized


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of a run, in groups. Raises `UserError` if they contradict each other."""

    name: str = setting("digits", "Name of the recipe, used in the name of the run folder.", on_resume="fixed")
    auto_fields: tuple[str, ...] = setting((), "Settings that are chosen by the data unless the user gives them.")
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    optimization: OptimizationSettings = OptimizationSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    run: RunSettings = RunSettings()

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def uses_pca_noise(self) -> bool:
        """Whether any epoch uses PCA noise."""
        return any((self.augmentation.pca_noise, *(change.pca_noise for change in self.schedule.lr_changes)))

    @property
    def lr_factor(self) -> float:
        """The factor of all learning rates that `scale_lr` stands for."""
        o = self.optimization
        if o.scale_lr == "none" or o.lr_batch is None or o.batch_size is None:
            return 1.0
        ratio = o.batch_size / o.lr_batch
        return ratio if o.scale_lr == "linear" else ratio**0.5

    @property
    def run_name(self) -> str:
        """What the run folder is named after: the recipe, or the folder, archive or table of the user's own images."""
        source = self.data.path or self.data.labels
        if self.name != "folder" or source is None:
            return self.name
        name = printable(source.absolute().name)
        if not source.is_dir():
            name = re.sub(r"(\.tar)?\.\w+$", "", name)
        return re.sub(r"[^\w.-]+", "-", name).strip(".-")[:60] or self.name

    def as_dict(self) -> dict[str, Any]:
        """Return all settings by flat name."""
        groups = {"": self, **vars(self)}
        return {name: getattr(groups[known.group], known.field) for name, known in SETTINGS.items()}

    def to_json(self) -> str:
        """Return the content of `recipe.json`: a flat object of all settings."""
        return json.dumps(self.as_dict(), indent=2, default=lambda v: str(v) if isinstance(v, Path) else vars(v))

    def replace(self, **changes: Any) -> Recipe:
        """Return the recipe with the settings in `changes`, by flat name, whose types are not checked."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            known = find_setting(name)
            groups.setdefault(known.group, {})[known.field] = value
        own = groups.pop("", {})
        return dataclasses.replace(
            self, **own, **{name: dataclasses.replace(getattr(self, name), **new) for name, new in groups.items()}
        )


SETTINGS = all_settings(Recipe)
"""All settings by the flat names that users see."""


def find_setting(name: str, where: str = "") -> Setting:
    """Return the setting with the flat `name`. Raises `UserError` with the nearest names if there is none."""
    if name not in SETTINGS:
        raise unknown_name("setting", name, SETTINGS, where)
    return SETTINGS[name]


def with_settings(recipe: Recipe, values: dict[str, Any], where: str = "") -> Recipe:
    """Return `recipe` with the given settings, each converted to its declared type. Raises `UserError`.

    A setting that is given is removed from `auto_fields`. A different architecture comes with its own image
    size, width, norm, activation, initialization, dropout and layers unless they are given too: `cifar10 --arch paper`
    is the paper's network, not a narrower one. Weights come with their own layers. A number of epochs or a time
    replaces the steps that an earlier run planned for its time budget. `where` follows a setting's name in errors,
    such as " in --set".
    """
    if type(values.get("checkpoint_every")) is int:  # from --set checkpoint_every=500
        values = {**values, "checkpoint_every": str(values["checkpoint_every"])}
    if values.get("weights") == "none":
        values = {**values, "weights": None}
    if values.get("arch", recipe.model.arch) != recipe.model.arch:
        of_arch = ("image_size", "width", "norm", "activation", "init", "dropout", "spec_edits")
        recipe = recipe.replace(**{name: SETTINGS[name].default for name in of_arch})
    if values.get("weights"):  # which bring their own network
        recipe = recipe.replace(spec_edits=())
    if "auto_fields" not in values:  # not a complete recipe.json
        if values.get("time_budget") and values.get("limit_steps"):
            raise UserError("--time-budget sets the number of steps, as --limit-steps does; leave out one of them.")
        if recipe.schedule.time_budget and ("epochs" in values or "time_budget" in values):
            recipe = recipe.replace(limit_steps=None, time_budget=None)
    changed = recipe.replace(**{name: _convert(name, value, where) for name, value in values.items()})
    if "auto_fields" in values:  # a complete recipe.json
        return changed
    auto_fields = tuple(name for name in changed.auto_fields if name not in values)
    lr_batch = changed.optimization.lr_batch or recipe.optimization.batch_size
    return changed.replace(auto_fields=auto_fields, lr_batch=lr_batch)


def _convert(name: str, value: Any, where: str) -> Any:
    kind = find_setting(name, where).kind
    if get_origin(kind) is Literal and value not in get_args(kind):
        options = ", ".join(get_args(kind))
        raise UserError(f"The setting {name}{where} cannot be {value!r}; it must be one of {options}.")
    return convert(value, kind, f"The setting {name}{where}")


def read_recipe(path: str | Path) -> Recipe:
    """Load a `recipe.json`. Raises `UserError` if it is none."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"The recipe {path} is not JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"The recipe {path} must be a JSON object of settings, not a {type(values).__name__}.")
    return with_settings(Recipe(), values, where=f" in {path}")


def parse_settings(given: Iterable[str]) -> dict[str, Any]:
    """Parse texts such as `padding_mode=reflect` or `mean=[0.5,0.5,0.5]`; values are JSON or plain words.

    Raises `UserError`.
    """
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--set {text} has no value; write NAME=VALUE, such as --set padding_mode=reflect.")
        try:
            found[name.strip().replace("-", "_")] = json.loads(value)
        except ValueError:
            found[name.strip().replace("-", "_")] = value
    return found


def parse_duration(text: str, complaint: str = "--time-budget must be a time") -> float:
    """Return the seconds in a time such as 90s, 10m or 1.5h. Raises `UserError` that starts with `complaint`."""
    units = {"s": 1, "m": 60, "h": 3600}
    try:
        seconds = float(text[:-1]) * units[text[-1:]]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UserError(f"{complaint} such as 90s, 10m or 1.5h, not '{text}'.")
    return seconds


def parse_interval(text: str | None) -> tuple[int | None, float | None]:
    """Parse `--checkpoint-every` as (steps, seconds), of which at most one is not None. Raises `UserError`."""
    if text is None:
        return None, None
    if text.isascii() and text.isdecimal() and int(text):
        return int(text), None
    return None, parse_duration(text, "--checkpoint-every must be a number of steps such as 500, or a time")


def _validate(r: Recipe) -> None:
    """Raise `UserError` for values out of range and for combinations that contradict each other."""
    for name, value in r.as_dict().items():
        SETTINGS[name].check(value)
    o, s = r.optimization, r.schedule
    if o.batch_size is not None and o.accumulate > o.batch_size:
        raise UserError(f"--accumulate {o.accumulate} cannot be larger than --batch-size {o.batch_size}.")
    if s.time_budget is not None:
        parse_duration(s.time_budget)
    parse_interval(r.run.checkpoint_every)
    _ = r.data.text  # raises for an unknown encoding or column
    if s.early_stop and r.data.validate_on == "test":
        raise UserError("--early-stop would select by the test images, which this recipe validates on; leave it out.")
    if r.model.weights and (r.model.spec_edits or o.dropout_2012):
        raise UserError("--weights brings its own network; leave it out, or unset spec_edits and dropout_2012.")
    if o.nesterov and o.momentum == 0:
        raise UserError("Nesterov momentum needs --momentum greater than 0; give --set nesterov=false otherwise.")
    if o.nesterov and o.optimizer == "sgd2012":
        raise UserError("The optimizer sgd2012 has no Nesterov form; set nesterov to false, or optimizer to sgd.")
    if s.lr_changes and s.kind != "constant":
        raise UserError(
            f"The recipe's lr_changes set the learning rate by hand, but --schedule {s.kind} sets it too; choose "
            "--schedule constant, or a recipe without lr_changes."
        )
    _check_changes(s.lr_changes)
    for entry in o.layer_weight_decay:
        if not (entry.layers and 0 <= entry.weight_decay < math.inf):
            raise UserError(
                "An entry of layer_weight_decay needs layers and a finite weight_decay of at least 0, not "
                f"{vars(entry)}."
            )
    if s.kind == "one-cycle" and s.warmup:
        raise UserError("--schedule one-cycle includes a warmup; leave out --warmup, or use --schedule cosine.")
    if s.kind == "plateau" and r.data.validate_on == "test":
        raise UserError(
            "--schedule plateau would tune the learning rate on the test images, which this recipe validates on; "
            "choose another schedule."
        )
    if r.data.value_range is not None and not r.data.value_range[0] < r.data.value_range[1]:
        raise UserError(f"The setting value_range must be two numbers, the smaller first, not {r.data.value_range}.")
    scale = r.augmentation.scale
    if not 0 < scale[0] <= scale[1]:
        raise UserError(f"The setting scale must be two shares of the image's area, the smaller first, not {scale}.")


def _check_changes(changes: Sequence[ScheduleChange]) -> None:
    """Raise `UserError` for changes that are out of order, empty or out of range."""
    before = 1
    for change in changes:
        name = f"The entry of lr_changes for epoch {change.epoch}"
        if change.epoch < 1:
            raise UserError(f"{name} comes before the first epoch; count epochs from 1.")
        if change.epoch < before:
            raise UserError(f"{name} follows one for epoch {before}; sort the list by epoch.")
        before = change.epoch
        values = {"lr": change.lr, "bias_lr": change.bias_lr, "pca_noise": change.pca_noise}
        given = {key: value for key, value in values.items() if value is not None}
        if not given:
            raise UserError(f"{name} changes nothing; give it lr, bias_lr or pca_noise.")
        for key, value in given.items():
            if not 0 <= value < math.inf:
                raise UserError(f"{name} sets {key} to {value}; it must be finite and not negative.")


def check_names(recipe: Recipe) -> None:
    """Raise `UserError` for an architecture or data that do not exist, as far as that takes no torch."""
    arch = recipe.model.arch
    if arch != "auto" and not arch.startswith(TORCHVISION):
        architecture(arch)
    if recipe.data.dataset != "digits":
        check_data_exists(recipe.data.path)
        check_labels_exist(recipe.data.labels)


def check_layers(recipe: Recipe, network: str, layers: Iterable[str]) -> None:
    """Raise `UserError` for a setting of a layer that is not in `layers`, those of `network` that have weights."""
    known = list(layers)
    named = [(f"lr_changes for epoch {change.epoch}", change.layers) for change in recipe.schedule.lr_changes]
    named += [("layer_weight_decay", entry.layers) for entry in recipe.optimization.layer_weight_decay]
    for where, given in named:
        for layer in given:
            if layer not in known:
                raise UserError(
                    f"The entry of {where} names the layer '{layer}', which '{network}' does not have; choose from "
                    f"{', '.join(known)}."
                )


# ── settings that follow from the data ────────────────────────────────────────────────────────────


def choose_settings(recipe: Recipe, images: int, classes: int, long: bool = False) -> tuple[Recipe, str]:
    """Return `recipe` with its `auto_fields` chosen for so many training images, and a sentence ("" if it has none).

    `long`: for a wide network and a time budget of many epochs.
    """
    chosen: dict[str, Any] = {}
    log = []
    largest = BATCH_SIZES[1] * (1 if recipe.model.weights else 2)
    if "epochs" in recipe.auto_fields:
        chosen["epochs"] = min(max(round(SAMPLES / images), EPOCHS[0]), EPOCHS[1])
        if recipe.schedule.time_budget is None:  # which replaces them
            log.append(f"{chosen['epochs']} epochs")
    if "batch_size" in recipe.auto_fields:
        power = 2 ** max(round(math.log2(max(images / MIN_STEPS, 1))), 0)
        chosen["batch_size"] = min(max(power, BATCH_SIZES[0]), largest)
        log.append(f"batch size {chosen['batch_size']}")
    if "lr" in recipe.auto_fields:
        batch_size = chosen.get("batch_size", recipe.optimization.batch_size) or largest
        scale = math.sqrt(batch_size / largest)  # small batches: noisier gradients
        chosen["lr"] = round((LONG_LR if long else recipe.optimization.lr) * scale, 4)
        chosen["lr_batch"] = batch_size
        log.append(f"learning rate {chosen['lr']:g}")
    if not recipe.model.weights:
        settings = FROM_SCRATCH | (LONG if long else {})
        chosen |= {name: value for name, value in settings.items() if name in recipe.auto_fields}
        if "augment" not in recipe.auto_fields or recipe.augmentation.mixup:  # no CutMix beside what the user gave
            chosen.pop("cutmix", None)
    per_class = images / classes
    if "augment" in recipe.auto_fields:
        chosen["augment"] = "medium" if per_class < 3000 else "light"
        log.append(f"{chosen['augment']} augmentation" + " with CutMix" * bool(chosen.get("cutmix")))
    if "dropout" in recipe.auto_fields and not recipe.model.arch.startswith(TORCHVISION):
        chosen["dropout"] = 0.5 if per_class < 200 else 0.2 if per_class < 2000 else 0.0
        log.append(f"dropout {chosen['dropout']:g}")
    if not chosen:
        return recipe, ""
    sentence = (
        f"Chosen for {images:,} training images, {per_class:,.0f} per class: {', '.join(log)}; what you set overrides "
        "them."
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
