"""What a training run does, as data: one frozen dataclass, written to `recipe.json` and read back.

`Flags` are the settings that the command line offers; the text under each field is its help. `Recipe` adds what a
recipe fixes (augmentation, preprocessing, the shape of the schedule), which is changed by editing `recipe.json`.
No torch here, so that `alexnet train --help` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from alexnet.errors import UserError
from alexnet.training.config_parsing import convert_all, interval_of, seconds_of
from alexnet.training.manual_schedule import ScheduleChange, check_changes

Schedule = Literal["constant", "step", "plateau", "cosine", "one-cycle"]
DAY = 86_400
SCHEDULES: tuple[str, ...] = get_args(Schedule)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The settings that `alexnet train` offers."""

    data: Path | None = None
    """Where the pictures are: a folder, or a zip or tar archive of one. The embedded digits need none."""
    labels: Path | None = None
    """A CSV or Parquet file with the columns path and label (and split, if it divides them), in place of class folders;
    paths start from --data, or from its own folder."""
    arch: str = "auto"
    """Architecture, as in 'alexnet arch'; auto fits the size of your pictures. torchvision/NAME is any classifier of
    torchvision, such as torchvision/resnet18, with random weights."""
    image_size: int | None = None
    """Side of the square that the network reads, in pixels; unless given the architecture's own, and for
    torchvision/NAME 32, 64 or 224, whichever fits the pictures."""
    num_classes: int | None = None
    """Refuse data with another number of classes than this."""
    norm: Literal["auto", "lrn", "batch", "none"] = "auto"
    """Normalisation; auto is the architecture's own."""
    init: str = "auto"
    """Initial weights: paper, code2012, caffe, caffenet, kaiming, xavier, torch; auto is the architecture's own."""
    width: float = 1.0
    """Scale all channel counts and hidden units by this."""
    weights: str | None = None
    """Start from a trained network: a run folder, a checkpoint folder, or torchvision:IMAGENET1K_V1. It brings its
    architecture and preprocessing; the last layer is new where the classes are other ones."""
    freeze: str = "auto"
    """Layers that keep the weights they start with: none, features (all but the last), or names such as conv1-conv5 or
    conv1,conv2. auto, with --weights: features for up to 50 pictures a class, the convolutions for up to 500, else
    none."""
    epochs: int = 10
    """Passes over the training images."""
    time_budget: str | None = None
    """Choose the number of epochs so that the whole run takes so long: 90s, 10m, 1.5h."""
    early_stop: int = 0
    """Stop after this many epochs without a better validation figure; 0 never does."""
    limit_steps: int | None = None
    """Stop after this many optimizer steps in all, as at the end of an epoch."""
    checkpoint_every: str | None = "10m"
    """Save within an epoch too, after so many steps (500) or so much time (90s, 10m, 1.5h); None: at its end alone."""
    batch_size: int | None = 128
    """Images an optimizer step, over all processes and accumulated parts; None is 32 on a CPU and 128 elsewhere."""
    accumulate: int = 1
    """Compute each batch in this many parts, to save memory."""
    lr: float = 0.01
    """Learning rate, at its highest."""
    schedule: Schedule = "cosine"
    """How the learning rate changes."""
    warmup: float = 0.0
    """Epochs in which the rate rises linearly from 0."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty."""
    balance: bool = False
    """Weigh each class's share of the loss as if all had as many images."""
    augment: Literal["auto", "none", "light", "medium", "strong"] = "auto"
    """How much training pictures are changed; auto is the recipe's own. augmented.png in the run folder shows it."""
    mixup: float = 0.0
    """Alpha of MixUp; 0 is off."""
    cutmix: float = 0.0
    """Alpha of CutMix; 0 is off."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of convolutions and products; auto measures which is faster."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to compute."""
    compile: bool = False
    """Run the network through torch.compile."""
    parallel: Literal["auto", "none", "data", "towers"] = "auto"
    """How processes started by torchrun share the work; data: each takes its part of every batch; towers: two of them,
    each with one tower of the network; auto is data."""
    workers: int | None = None
    """Processes that read pictures; chosen from the machine unless given."""
    seed: int = 0
    """Seed of the split, the initial weights, the order and every augmentation."""
    skip_bad: bool = False
    """Train without the files that cannot be read, and list them in bad_files.csv."""
    tensorboard: bool = False
    """Write the curves for TensorBoard too, into the run folder; needs the package tensorboard."""


@dataclass(frozen=True, kw_only=True)
class Recipe(Flags):
    """Everything needed to run it again. The first half is `Flags`; this half is fixed by the named recipe."""

    name: str = "digits"
    """The name that the run folder gets."""
    dataset: str = "digits"
    """The data set: digits, cifar10, fashion-mnist, imagenet or folder."""
    validate_on: Literal["val", "test"] = "val"
    """The split reported each epoch. `val` also chooses the best checkpoint; `test` is for benchmarks that follow a
    peer's protocol: nothing is chosen by it and the last checkpoint is the result."""
    dropout: float | None = None
    """Probability of dropping a unit of fc6 or fc7; the architecture's own where None."""

    auto_fields: tuple[str, ...] = ()
    """Settings that are chosen from the data in place of what stands here, unless somebody gives them."""
    activation: Literal["auto", "relu", "tanh", "sigmoid"] = "auto"
    """Activation function; auto is the architecture's own."""
    backbone_lr_mult: float = 0.1
    """With `weights`: the learning rate of the layers that they brought, as a share of that of a new last layer."""
    spec_edits: tuple[str, ...] = ()
    """Changes to the network by name, as in models/modifications.py: "average-pool", "without-conv4" …"""

    optimizer: Literal["sgd", "sgd2012"] = "sgd"
    """`sgd2012` keeps the learning rate inside the velocity, so that a drop does not slow what moves already."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """How the learning rates follow the batch size: as its quotient by `lr_batch`, or as the root of that."""
    lr_batch: int | None = None
    """The batch size that `lr` is meant for; the recipe's own where somebody gives another."""
    dist_timeout: float = 120.0
    """Seconds after which a process that does not answer the others is taken for lost."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all weights together."""
    channels_last: bool = True
    """Keep images and weights in the memory order that convolutions like best."""
    nesterov: bool = False
    """Nesterov's form of momentum."""
    dropout_2012: bool = False
    """Start and update the layers after dropout as the 2012 code does, whose training did not scale what it kept."""
    bias_lr_mult: float = 1.0
    """Learning rate of the biases as a multiple of that of the weights: 2 in Caffe (its lr_mult) and in 2012."""
    decay_biases: bool = True
    """Apply weight decay to biases and normalisation weights too, as a plain SGD over all parameters does."""
    lr_step_size: int = 30
    """`step`: epochs between drops."""
    lr_gamma: float = 0.1
    """`step` and `plateau`: factor of a drop."""
    patience: int = 5
    """`plateau`: epochs without a better validation figure before a drop."""
    plateau_on: Literal["loss", "error"] = "loss"
    """`plateau`: that figure. The paper's is the error (section 5), here of top-1."""
    lr_changes: tuple[ScheduleChange, ...] = ()
    """`constant`: rates and colour noise set by hand at the start of some epochs, by epoch."""
    final_lr_ratio: float = 0.0
    """`cosine` and `one-cycle`: the last rate as a share of the highest."""
    pct_start: float = 0.25
    """`one-cycle`: share of all steps at which the rate is highest."""

    crop_pct: float = 1.0
    """Side of the evaluation's central crop as a share of the resized picture's short side: .875 is 224 of 256."""
    mean: tuple[float, ...] | None = None
    """Per channel, fractions of 1, subtracted; measured on the training images where None."""
    std: tuple[float, ...] | None = None
    """Per channel, fractions of 1, divided by; measured on the training images where None."""
    mean_image: str = "none"
    """Subtract a mean of each pixel instead of each channel: none; own, that of the training images; or the path of a
    .npy file of 3×S×S or S×S×3 levels of 0 to 255, RGB, S being the side that pictures are resized to."""
    squash: bool = False
    """Resize both sides and so ignore the aspect ratio, as Caffe's warp to 256×256 does."""
    crop: Literal["none", "pad", "random", "resized"] = "none"
    """Training crop: padded by `padding` then random; random from the resized square; or random resized."""
    padding: int = 4
    """`pad`: pixels added on each side."""
    padding_mode: Literal["zeros", "reflect"] = "zeros"
    """`pad`: what they are."""
    crop_group: int = 1
    """Images in a row that share one random crop and flip; 32 as the 2012 code did."""
    scale: tuple[float, float] = (0.08, 1.0)
    """`resized`: area of the crop as a share of the picture's."""
    flip: bool = False
    """Mirror half of the training images."""
    rotate: float = 0.0
    """Largest rotation in degrees, either way."""
    jitter: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Brightness, contrast and saturation change by up to this share."""
    pca_noise: float = 0.0
    """Strength of the colour noise along the principal components of RGB: .1 in the paper (section 4.1), 0 is off."""
    pca_basis: Literal["imagenet", "own"] = "own"
    """The principal colours that the noise is made of: ImageNet's, or those of the training images."""
    pca_std: tuple[float, ...] | None = None
    """Deviations along the three principal colours, in levels of 0 to 255; from `pca_basis` where None."""
    pca_vectors: tuple[float, ...] | None = None
    """The three principal colours, RGB, one after the other; from `pca_basis` where None."""
    pca_divide: bool = False
    """Divide the training images by 1 + `pca_noise` after it, as the 2012 code does."""

    keep_checkpoints: int = 2
    """How many of the newest checkpoints are kept, beside the best."""
    in_memory: bool | None = None
    """Keep the decoded pictures in memory; None: where they fit, which is then recorded, for crops taken from the files
    differ in the last digits."""
    deterministic: bool = False
    """On a GPU, compute with such algorithms alone as give the same bits each time; a CPU does so anyway."""

    def __post_init__(self) -> None:
        _check_numbers(self)

    @property
    def noisy(self) -> bool:
        """Whether any epoch has colour noise."""
        return any((self.pca_noise, *(change.pca_noise for change in self.lr_changes)))

    @property
    def lr_factor(self) -> float:
        """What `scale_lr` multiplies every learning rate by."""
        if self.scale_lr == "none" or self.lr_batch is None or self.batch_size is None:
            return 1.0
        larger = self.batch_size / self.lr_batch
        return larger if self.scale_lr == "linear" else larger**0.5

    def to_json(self) -> str:
        """The recipe as it stands in `recipe.json`."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)


FLAG_NAMES = tuple(f.name for f in dataclasses.fields(Flags))


def flags_of(recipe: Recipe) -> Flags:
    """The half of `recipe` that the command line offers."""
    return Flags(**{name: getattr(recipe, name) for name in FLAG_NAMES})


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a `recipe.json`. Raises `UserError` on anything that is not one."""
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
    """`recipe` with the named settings changed, each checked against its declared type.

    What is given is no longer `fitted` to the data. Another architecture comes as it is, with its own image size,
    width, norm, activation, initial weights and dropout, unless these are named too: `cifar10 --arch paper` is the
    paper's network, not a thinned one.
    """
    if type(values.get("checkpoint_every")) is int:  # as --set checkpoint_every=500 reads
        values = {**values, "checkpoint_every": str(values["checkpoint_every"])}
    if values.get("arch", recipe.arch) != recipe.arch:
        plain = Recipe()
        of_arch = ("image_size", "width", "norm", "activation", "init", "dropout")
        recipe = dataclasses.replace(recipe, **{name: getattr(plain, name) for name in of_arch})
    changed = dataclasses.replace(recipe, **convert_all(Recipe, values, "", where))
    if "auto_fields" in values:  # a whole recipe.json
        return changed
    lr_batch = changed.lr_batch or recipe.batch_size
    fitted = tuple(name for name in changed.auto_fields if name not in values)
    return dataclasses.replace(changed, auto_fields=fitted, lr_batch=lr_batch)


def _check_numbers(r: Recipe) -> None:
    """Refuse numbers that no training can use, naming the flag."""
    positive = {"epochs", "limit_steps", "batch_size", "accumulate", "image_size", "width", "clip_norm", "lr_step_size"}
    positive |= {"crop_group", "keep_checkpoints", "lr_batch", "dist_timeout"}
    at_least_0 = {"lr", "warmup", "weight_decay", "mixup", "cutmix", "padding", "rotate", "patience", "workers"}
    at_least_0 |= {"bias_lr_mult", "pca_noise", "early_stop", "backbone_lr_mult"}
    shares = {"momentum", "label_smoothing", "dropout", "pct_start", "final_lr_ratio"}
    for name in sorted(positive | at_least_0 | shares):
        value = getattr(r, name)
        if value is None:
            continue
        flag = "--" + name.replace("_", "-")
        if value != value or abs(value) == float("inf"):
            raise UserError(f"{flag} must be a finite number, not {value}.")
        if name in positive and value <= 0:
            raise UserError(f"{flag} must be greater than 0, not {value}.")
        if name in at_least_0 and value < 0:
            raise UserError(f"{flag} must not be negative, but is {value}.")
        if name in shares and not 0 <= value < 1:
            raise UserError(f"{flag} must be at least 0 and less than 1, not {value}.")
    if r.dist_timeout > DAY:
        raise UserError(f"The setting dist_timeout must be at most {DAY} seconds, a day, not {r.dist_timeout}.")
    if r.batch_size is not None and r.accumulate > r.batch_size:
        raise UserError(f"--accumulate {r.accumulate} cannot be larger than --batch-size {r.batch_size}.")
    if r.time_budget is not None:
        seconds_of(r.time_budget)
    interval_of(r.checkpoint_every)
    if r.early_stop and r.validate_on == "test":
        raise UserError("--early-stop would choose by the test images, which this recipe validates on.")
    if r.weights and (r.spec_edits or r.dropout_2012):
        raise UserError("--weights brings a network as it is; this recipe changes its own (spec_edits, dropout_2012).")
    if r.num_classes is not None and r.num_classes < 2:
        raise UserError(f"--num-classes must be at least 2, not {r.num_classes}.")
    if r.nesterov and r.momentum == 0:
        raise UserError("Nesterov momentum needs --momentum greater than 0.")
    if r.nesterov and r.optimizer == "sgd2012":
        raise UserError("The optimizer sgd2012 has no Nesterov form; set nesterov to false, or optimizer to sgd.")
    if r.lr_changes and r.schedule != "constant":
        raise UserError(
            f"The recipe's changes set the learning rate by hand, which --schedule {r.schedule} does by itself; "
            "choose --schedule constant, or a recipe without changes."
        )
    check_changes(r.lr_changes)
    if not 0 < r.crop_pct <= 1:
        raise UserError(f"The setting crop_pct must be a share of the picture's side, not {r.crop_pct}.")
    if r.schedule == "one-cycle" and r.warmup:
        raise UserError("--schedule one-cycle rises from 0 by itself; leave --warmup out, or use cosine.")
    if r.schedule == "plateau" and r.validate_on == "test":
        raise UserError("--schedule plateau would tune the rate on the test images, which this recipe validates on.")
    if not (r.scale and 0 < r.scale[0] <= r.scale[1]):
        raise UserError(f"The setting scale must be two shares of the picture, the smaller first, not {r.scale}.")
