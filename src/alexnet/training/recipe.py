"""All settings of a training run, as one frozen dataclass that is written to `recipe.json` and read back.

`Flags` are the settings that are flags of `alexnet train`; the text under each field is its help. `Recipe`
adds those that a recipe fixes (augmentation, preprocessing, details of the schedule), which `--set
NAME=VALUE` or an edited `recipe.json` changes. Needs no torch, so that `alexnet train --help` is fast.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alexnet.errors import UserError
from alexnet.training.config_parsing import convert_fields, parse_duration, parse_interval
from alexnet.training.manual_schedule import ScheduleChange, check_changes

Schedule = Literal["constant", "step", "plateau", "cosine", "one-cycle"]
DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The settings that are flags of `alexnet train`."""

    data: Path | None = None
    """Folder of images, or a zip or tar archive of one. The embedded digits need none."""
    labels: Path | None = None
    """CSV or Parquet file with columns path and label (and optionally split) that
    replaces class folders; paths are relative to --data, or to the file's own folder."""
    arch: str = "auto"
    """Architecture, as listed by 'alexnet arch'; auto chooses by the size of the images.
    torchvision/NAME is any torchvision classifier, such as torchvision/resnet18, with random weights."""
    image_size: int | None = None
    """Side of the square network input, in pixels. Default: the architecture's own, and
    for torchvision/NAME 32, 64 or 224 by the size of the images."""
    num_classes: int | None = None
    """Expected number of classes; data with any other number is rejected."""
    norm: Literal["auto", "lrn", "batch", "none"] = "auto"
    """Normalization layers; auto is the architecture's own."""
    init: str = "auto"
    """Initialization: paper, code2012, caffe, caffenet, kaiming, xavier or torch; auto is the architecture's own."""
    width: float = 1.0
    """Factor for the number of channels and hidden units of every layer."""
    weights: str | None = None
    """Pretrained model to start from: a run folder, a checkpoint folder, or torchvision:IMAGENET1K_V1.
    Its architecture and preprocessing are used; the last layer is new if the classes differ."""
    freeze: str = "auto"
    """Layers that are not trained: none, features (all but the last), convolutions, or names such as conv1-conv5 or
    conv1,conv2. auto, with --weights: features for up to 50 images per class, convolutions for up to 500, else none."""
    epochs: int = 10
    """Passes over the training images."""
    time_budget: str | None = None
    """Total time of the run, such as 90s, 10m or 1.5h; sets the number of epochs."""
    early_stop: int = 0
    """Stop after this many epochs without a better validation result; 0 disables it."""
    limit_steps: int | None = None
    """Stop after this many optimizer steps in total, then evaluate as at the end of an epoch."""
    checkpoint_every: str | None = "10m"
    """Also save a checkpoint within an epoch, every so many steps (500) or at this
    interval (90s, 10m, 1.5h); None saves only at the end of each epoch."""
    batch_size: int | None = 128
    """Images per optimizer step, over all processes and accumulated parts; None is 32 on a CPU and 128 on a GPU."""
    accumulate: int = 1
    """Split each batch into this many forward and backward passes, to save memory."""
    lr: float = 0.01
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Learning rate schedule."""
    warmup: float = 0.0
    """Epochs of linear warmup from 0."""
    momentum: float = 0.9
    """Momentum of SGD, from 0 to below 1."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    balance: bool = False
    """Weight the loss of each class inversely to its number of images."""
    augment: Literal["auto", "none", "light", "medium", "strong"] = "auto"
    """Strength of data augmentation; auto is the recipe's own. augmented.png in the run folder shows its effect."""
    mixup: float = 0.0
    """MixUp alpha; 0 disables it."""
    cutmix: float = 0.0
    """CutMix alpha; 0 disables it."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of convolutions and matrix products; auto measures which is fastest."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Device to train on."""
    compile: bool = False
    """Compile the model with torch.compile."""
    parallel: Literal["auto", "none", "data", "towers"] = "auto"
    """How processes started by torchrun share the work. data: each takes a part of every
    batch; towers: two processes, each with one tower of the network; auto is data."""
    workers: int | None = None
    """Data-loading processes. Default: chosen by the machine."""
    seed: int = 0
    """Seed of the split, the initialization, the order of the images and the augmentation."""
    skip_bad: bool = False
    """Skip unreadable images and list them in bad_files.csv."""
    tensorboard: bool = False
    """Also write TensorBoard files to the run folder; needs the package tensorboard."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Flags):
    """All settings of a run: the flags, and those that a recipe fixes."""

    name: str = "digits"
    """Name of the recipe, used in the name of the run folder."""
    dataset: str = "digits"
    """Dataset: digits, cifar10, fashion-mnist, imagenet or folder."""
    validate_on: Literal["val", "test"] = "val"
    """Split evaluated after each epoch. `val` also selects the best checkpoint. `test` is for benchmarks
    that follow a published protocol: it selects nothing, and the last checkpoint is the result."""
    dropout: float | None = None
    """Dropout probability of fc6 and fc7, from 0 to below 1; None is the architecture's own."""

    auto_fields: tuple[str, ...] = ()
    """Settings that are chosen by the data (see auto_config.py) unless the user gives them."""
    activation: Literal["auto", "relu", "tanh", "sigmoid"] = "auto"
    """Activation function; auto is the architecture's own."""
    backbone_lr_mult: float = 0.1
    """With `weights`: learning rate of the pretrained layers as a multiple of that of a new last layer."""
    spec_edits: tuple[str, ...] = ()
    """Named changes to the network, from models/modifications.py: "average-pool", "without-conv4", …"""

    optimizer: Literal["sgd", "sgd2012"] = "sgd"
    """`sgd2012` keeps the learning rate inside the velocity, so a drop of the rate does not shrink the velocity."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """Scale the learning rates by batch_size / lr_batch, or by its square root."""
    lr_batch: int | None = None
    """Batch size that `lr` is meant for; None is the recipe's own batch size."""
    dist_timeout: float = 120.0
    """Seconds after which a process that does not respond to the others is considered lost."""
    label_smoothing: float = 0.0
    """Share of each target that is spread evenly over all classes."""
    clip_norm: float | None = None
    """Maximum norm of the gradient over all parameters; None does not clip."""
    channels_last: bool = True
    """Store images and weights in the channels-last memory format, in which convolutions are fastest."""
    nesterov: bool = False
    """Use Nesterov momentum."""
    dropout_2012: bool = False
    """Start and update the layers after dropout as the 2012 code does, which did not scale kept units in training."""
    bias_lr_mult: float = 1.0
    """Learning rate of the biases as a multiple of that of the weights: 2 in Caffe (its lr_mult) and in 2012."""
    decay_biases: bool = True
    """Also apply weight decay to biases and normalization weights, as plain SGD over all parameters does."""
    lr_step_size: int = 30
    """`step`: epochs between drops."""
    lr_gamma: float = 0.1
    """`step` and `plateau`: factor of each drop."""
    patience: int = 5
    """`plateau`: epochs without improvement before a drop."""
    plateau_on: Literal["loss", "error"] = "loss"
    """`plateau`: validation metric that must improve. The paper uses the error (section 5), here of top-1."""
    lr_changes: tuple[ScheduleChange, ...] = ()
    """`constant`: learning rates and PCA noise set by hand at the start of given epochs, sorted by epoch."""
    final_lr_ratio: float = 0.0
    """`cosine` and `one-cycle`: last learning rate as a share of the peak."""
    pct_start: float = 0.25
    """`one-cycle`: share of all steps before the peak."""

    crop_pct: float = 1.0
    """Evaluation: side of the center crop as a share of the resized image's short side; .875 is 224 of 256."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel to subtract, from 0 to 1; None measures it on the training images."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel to divide by, from 0 to 1; None measures it on the training images."""
    mean_image: str = "none"
    """Subtract a mean image instead of a mean of each channel: none; own, measured on the training images; or the
    path of a .npy file of 3×S×S or S×S×3 RGB values from 0 to 255, where S is the side that images are resized to."""
    squash: bool = False
    """Resize width and height independently, ignoring the aspect ratio, as Caffe's warp to 256×256 does."""
    crop: Literal["none", "pad", "random", "resized"] = "none"
    """Training crop: `pad` adds `padding` and crops at random; `random` crops the
    resized square; `resized` is a random resized crop."""
    padding: int = 4
    """`pad`: pixels added on each side."""
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    """`pad`: their values."""
    crop_group: int = 1
    """Consecutive images that share one random crop and flip; 32 in the 2012 code."""
    scale: tuple[float, float] = (0.08, 1.0)
    """`resized`: range of the crop's area as a share of the image's."""
    flip: bool = False
    """Flip half of the training images horizontally."""
    rotate: float = 0.0
    """Maximum rotation in degrees, in either direction."""
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Maximum relative change of brightness, contrast and saturation."""
    pca_noise: float = 0.0
    """Standard deviation of the noise along the principal components of RGB: .1 in the
    paper (section 4.1); 0 disables it."""
    pca_basis: Literal["imagenet", "own"] = "own"
    """Principal components of the noise: ImageNet's, or those of the training images."""
    pca_std: tuple[float, ...] | None = None
    """Standard deviations along the three components, in levels from 0 to 255; None takes them from `pca_basis`."""
    pca_vectors: tuple[float, ...] | None = None
    """The three components, RGB, one after the other; None takes them from `pca_basis`."""
    pca_divide: bool = False
    """Divide the training images by 1 + `pca_noise` after the noise, as the 2012 code does."""

    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, in addition to the best."""
    in_memory: bool | None = None
    """Keep the decoded images in memory. None does so if they fit and records the
    choice, because random crops taken from files differ in the last digits."""
    deterministic: bool = False
    """On a GPU, use only deterministic algorithms; on a CPU training is always deterministic."""

    def __post_init__(self) -> None:
        _validate(self)

    @property
    def uses_pca_noise(self) -> bool:
        """Whether any epoch uses PCA noise."""
        return any((self.pca_noise, *(change.pca_noise for change in self.lr_changes)))

    @property
    def lr_factor(self) -> float:
        """The factor of all learning rates that `scale_lr` stands for."""
        if self.scale_lr == "none" or self.lr_batch is None or self.batch_size is None:
            return 1.0
        ratio = self.batch_size / self.lr_batch
        return ratio if self.scale_lr == "linear" else ratio**0.5

    def to_json(self) -> str:
        """Return the content of `recipe.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)


FLAG_NAMES = tuple(f.name for f in dataclasses.fields(Flags))


def flags_of(recipe: Recipe) -> Flags:
    """Return the part of `recipe` that has flags."""
    return Flags(**{name: getattr(recipe, name) for name in FLAG_NAMES})


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


def with_settings(recipe: Recipe, values: dict[str, Any], where: str = "") -> Recipe:
    """Return `recipe` with the given settings, each checked against its declared type. Raises `UserError`.

    A setting that is given is removed from `auto_fields`. A different architecture comes with its own image
    size, width, norm, activation, initialization and dropout unless they are given too: `cifar10 --arch paper`
    is the paper's network, not a narrower one. `where` follows a setting's name in errors, such as " in --set".
    """
    if type(values.get("checkpoint_every")) is int:  # from --set checkpoint_every=500
        values = {**values, "checkpoint_every": str(values["checkpoint_every"])}
    if values.get("arch", recipe.arch) != recipe.arch:
        defaults = Recipe()
        of_arch = ("image_size", "width", "norm", "activation", "init", "dropout")
        recipe = dataclasses.replace(recipe, **{name: getattr(defaults, name) for name in of_arch})
    changed = dataclasses.replace(recipe, **convert_fields(Recipe, values, "", where))
    if "auto_fields" in values:  # a complete recipe.json
        return changed
    auto_fields = tuple(name for name in changed.auto_fields if name not in values)
    return dataclasses.replace(changed, auto_fields=auto_fields, lr_batch=changed.lr_batch or recipe.batch_size)


def _validate(r: Recipe) -> None:
    """Raise `UserError` for values out of range and for combinations that contradict each other."""
    positive = {"epochs", "limit_steps", "batch_size", "accumulate", "image_size", "width", "clip_norm", "lr_step_size"}
    positive |= {"crop_group", "keep_checkpoints", "lr_batch", "dist_timeout"}
    at_least_0 = {"lr", "warmup", "weight_decay", "mixup", "cutmix", "padding", "rotate", "patience", "workers"}
    at_least_0 |= {"bias_lr_mult", "pca_noise", "early_stop", "backbone_lr_mult"}
    below_1 = {"momentum", "label_smoothing", "dropout", "pct_start", "final_lr_ratio"}
    for name in sorted(positive | at_least_0 | below_1):
        value = getattr(r, name)
        if value is None:
            continue
        label = "--" + name.replace("_", "-") if name in FLAG_NAMES else f"The setting {name} (--set {name}=…)"
        if value != value or abs(value) == float("inf"):
            raise UserError(f"{label} must be a finite number, not {value}.")
        if name in positive and value <= 0:
            raise UserError(f"{label} must be greater than 0, not {value}.")
        if name in at_least_0 and value < 0:
            raise UserError(f"{label} must not be negative, but is {value}.")
        if name in below_1 and not 0 <= value < 1:
            raise UserError(f"{label} must be at least 0 and less than 1, not {value}.")
    if r.dist_timeout > DAY:
        raise UserError(f"The setting dist_timeout must be at most {DAY} seconds (a day), not {r.dist_timeout}.")
    if r.batch_size is not None and r.accumulate > r.batch_size:
        raise UserError(f"--accumulate {r.accumulate} cannot be larger than --batch-size {r.batch_size}.")
    if r.time_budget is not None:
        parse_duration(r.time_budget)
    parse_interval(r.checkpoint_every)
    if r.early_stop and r.validate_on == "test":
        raise UserError("--early-stop would select by the test images, which this recipe validates on; leave it out.")
    if r.weights and (r.spec_edits or r.dropout_2012):
        raise UserError("--weights brings its own network; leave it out, or unset spec_edits and dropout_2012.")
    if r.num_classes is not None and r.num_classes < 2:
        raise UserError(f"--num-classes must be at least 2, not {r.num_classes}.")
    if r.nesterov and r.momentum == 0:
        raise UserError("Nesterov momentum needs --momentum greater than 0; give --set nesterov=false otherwise.")
    if r.nesterov and r.optimizer == "sgd2012":
        raise UserError("The optimizer sgd2012 has no Nesterov form; set nesterov to false, or optimizer to sgd.")
    if r.lr_changes and r.schedule != "constant":
        raise UserError(
            f"The recipe's lr_changes set the learning rate by hand, but --schedule {r.schedule} sets it too; choose "
            "--schedule constant, or a recipe without lr_changes."
        )
    check_changes(r.lr_changes)
    if not 0 < r.crop_pct <= 1:
        raise UserError(f"The setting crop_pct must be a share of the image's side, up to 1, not {r.crop_pct}.")
    if r.schedule == "one-cycle" and r.warmup:
        raise UserError("--schedule one-cycle includes a warmup; leave out --warmup, or use --schedule cosine.")
    if r.schedule == "plateau" and r.validate_on == "test":
        raise UserError(
            "--schedule plateau would tune the learning rate on the test images, which this recipe validates on; "
            "choose another schedule."
        )
    if not (r.scale and 0 < r.scale[0] <= r.scale[1]):
        raise UserError(f"The setting scale must be two shares of the image's area, the smaller first, not {r.scale}.")
