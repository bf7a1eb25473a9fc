"""Every setting of a training run, in the groups of a `Recipe`. Each is defined here and nowhere else.

A field carries, as plain data, its help, its limits, whether it is a flag of `alexnet train`, and whether a resumed
run may change it. Flags, help, checks, `recipe.json` and the rule for resuming follow from that. Users see flat names,
as in `--lr`, `--set padding=4` or `train("digits", lr=0.1)`; code reads `recipe.optimization.lr`. Needs no torch.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from alexnet.errors import UserError
from alexnet.text import TextOptions


@dataclass(frozen=True)
class Setting:
    """What a field says of itself, and where it stands in a `Recipe`."""

    help: str
    default: Any
    flag: bool = False
    """Whether it is a flag of `alexnet train`; any other is given as --set NAME=VALUE."""
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None
    """Limits of a number, which then must be finite. None, where the type has it, is always allowed."""
    on_resume: Literal["free", "force", "fixed"] = "force"
    """Whether a resumed run may change it: freely, as that leaves the experiment as it is (although device, compile
    and in_memory can change last digits); only with --force; or never, as it already determines the network, the
    split, the order of the images or the number of epochs."""
    name: str = ""
    """The flat name that users see. `all_settings` completes this and what follows."""
    group: str = ""
    """The group of the recipe that it stands in; "" for those of the recipe itself."""
    field: str = ""
    """The name of its field there."""
    kind: Any = None
    """Its declared type."""

    @property
    def label(self) -> str:
        """How errors refer to it."""
        return f"--{self.name.replace('_', '-')}" if self.flag else f"The setting {self.name} (--set {self.name}=…)"

    def as_argument(self, value: Any) -> str:
        """Return the setting as a flag, or as NAME=VALUE for --set if it has none."""
        if not self.flag:
            return f"{self.name}={value}"
        name = self.name.replace("_", "-")
        if isinstance(value, tuple):
            return f"--{name}={','.join(f'{number:g}' for number in value)}"
        return f"--{name} {value}" if not isinstance(value, bool) else f"--{name}" if value else f"--no-{name}"

    def check(self, value: Any) -> None:
        """Raise `UserError` for a number outside the limits."""
        limits = [
            (f"{text} {bound}", satisfies(value, bound))
            for text, bound, satisfies in (
                ("greater than", self.above, operator.gt),
                ("at least", self.minimum, operator.ge),
                ("less than", self.below, operator.lt),
                ("at most", self.maximum, operator.le),
            )
            if bound is not None and value is not None
        ]
        if limits and not math.isfinite(value):
            raise UserError(f"{self.label} must be a finite number, not {value}.")
        if not all(satisfied for _, satisfied in limits):
            raise UserError(f"{self.label} must be {' and '.join(text for text, _ in limits)}, not {value}.")


def setting(default: Any, help: str, **properties: Any) -> Any:
    """Return a dataclass field with a `default` and the other `properties` of a `Setting`.

    `name` is the flat name where it differs from the field's.
    """
    return dataclasses.field(default=default, metadata={"setting": Setting(help, default, **properties)})


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The network and its initial weights."""

    arch: str = setting(
        "auto", flag=True, on_resume="fixed",
        help="Architecture, as listed by 'alexnet arch'; auto chooses by the size of the images. torchvision/NAME "
        "is any torchvision classifier, such as torchvision/resnet18; its weights are random without --weights.",
    )  # fmt: skip
    image_size: int | None = setting(
        None, flag=True, above=0, on_resume="fixed",
        help="Side of the square network input, in pixels. Default: the architecture's own, and for "
        "torchvision/NAME 32, 64 or 224 by the size of the images.",
    )  # fmt: skip
    in_channels: int | None = setting(
        None, flag=True, minimum=1, maximum=3, on_resume="fixed",
        help="Channels of the network's input: 1 reads image files as grayscale, 3 as color. Default: 3 for files, "
        "else those of the dataset.",
    )  # fmt: skip
    width: float = setting(
        1.0, "Factor for the number of channels and hidden units of every layer.", flag=True, above=0, on_resume="fixed"
    )
    norm: Literal["auto", "lrn", "batch", "none"] = setting(
        "auto", "Normalization layers; auto is the architecture's own.", flag=True, on_resume="fixed"
    )
    activation: Literal["auto", "relu", "tanh", "sigmoid"] = setting(
        "auto", "Activation function; auto is the architecture's own.", on_resume="fixed"
    )
    dropout: float | None = setting(
        None, minimum=0, below=1, on_resume="fixed",
        help="Dropout probability of fc6 and fc7, from 0 to below 1; null is the architecture's own.",
    )  # fmt: skip
    spec_edits: tuple[str, ...] = setting(
        (), on_resume="fixed",
        help="Named changes to the network, from models/spec.py: average-pool, without-conv4, …",
    )  # fmt: skip
    init: str = setting(
        "auto", flag=True, on_resume="fixed",
        help="Initialization: paper, paper-gain, code2012, paper-six, cuda-convnet2, convnet-26, convnet-18, caffe, "
        "caffenet, kaiming, xavier or torch; auto is the architecture's own.",
    )  # fmt: skip
    weights: str | None = setting(
        None, flag=True, on_resume="fixed",
        help="Pretrained model to start from: a run folder, a checkpoint folder, a file of weights (.pth, whose "
        "architecture --arch names), tiny for the small network of this package, or DEFAULT for the best weights that "
        "torchvision publishes for --arch torchvision/NAME; none is random weights. Its architecture and preprocessing "
        "are used; the last layer is new if the classes differ. A folder with fewer than 200 color images per class, "
        "or up to 1,000 that are small, starts from tiny unless a network is chosen.",
    )  # fmt: skip
    freeze: str = setting(
        "auto", flag=True, on_resume="fixed",
        help="Layers that are not trained: none, features (all but the last), convolutions, or names such as "
        "conv1-conv5 or conv1,conv2. auto, with --weights: features for up to 50 images per class, "
        "convolutions for up to 500, else none.",
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Images, labels, and how images become the input of the network."""

    dataset: str = setting(
        "digits", "Dataset: digits, mnist, cifar10, fashion-mnist, imagenet or folder.", on_resume="fixed"
    )
    path: Path | None = setting(
        None, name="data", flag=True, on_resume="free",
        help="Folder of images, or a zip or tar archive of one. The embedded digits need none.",
    )  # fmt: skip
    labels: Path | None = setting(
        None, flag=True, on_resume="free",
        help="CSV, JSON Lines or Parquet file with columns path and label (and optionally split) that replaces "
        "class folders; paths are relative to --data, or to the file's own folder.",
    )  # fmt: skip
    encoding: str | None = setting(
        None, flag=True, on_resume="free",
        help="Encoding of tables and names that are not UTF-8, such as gb18030. Default: the one that fits, if only "
        "one does.",
    )  # fmt: skip
    columns: str | None = setting(
        None, flag=True, on_resume="free",
        help="Columns of the table of labels, such as path=id,label=breed. Default: found by their names.",
    )  # fmt: skip
    num_classes: int | None = setting(
        None, flag=True, minimum=2, on_resume="free",
        help="Expected number of classes; data with any other number is rejected.",
    )  # fmt: skip
    validate_on: Literal["val", "test"] = setting(
        "val", on_resume="fixed",
        help="Split evaluated after each epoch. val also selects the best checkpoint. test is for benchmarks that "
        "follow a published protocol: it selects nothing, and the last checkpoint is the result.",
    )  # fmt: skip
    skip_bad: bool = setting(
        False, "Skip unreadable images and classes without readable ones, and list them in bad_files.csv.", flag=True
    )
    crop_pct: float = setting(
        1.0, above=0, maximum=1, on_resume="fixed",
        help="Evaluation: side of the center crop as a share of the resized image's short side; .875 is 224 of "
        "256.",
    )  # fmt: skip
    squash: bool = setting(
        False, on_resume="fixed",
        help="Resize width and height independently, ignoring the aspect ratio, as Caffe's warp to 256×256 does.",
    )  # fmt: skip
    mean: tuple[float, ...] | None = setting(
        None, on_resume="fixed",
        help="Mean of each channel to subtract, from 0 to 1; null measures it on the training images.",
    )  # fmt: skip
    std: tuple[float, ...] | None = setting(
        None, on_resume="fixed",
        help="Standard deviation of each channel to divide by, from 0 to 1; null measures it on the training "
        "images.",
    )  # fmt: skip
    mean_image: str = setting(
        "none", on_resume="fixed",
        help="Subtract a mean image instead of a mean of each channel: none; own, measured on the training images; "
        "imagenet, of ImageNet's training images at 256×256; or the path of a .npy file of 3×S×S or S×S×3 RGB values "
        "from 0 to 255, where S is the side that images are resized to.",
    )  # fmt: skip
    value_range: tuple[float, float] | None = setting(
        None, flag=True, on_resume="fixed",
        help="The values that become black and white in images of more than 8 bits, such as 0,4095 for 12 bits or "
        "--value-range=-1000,3000; those beyond are clipped. Default: measured on the training images.",
    )  # fmt: skip
    order: Literal["shuffled", "fixed"] = setting(
        "shuffled", on_resume="fixed",
        help="Order of the training images: shuffled anew for each epoch, or fixed, one shuffle for all epochs, so "
        "that every epoch has the same batches, as in 2012.",
    )  # fmt: skip
    workers: int | None = setting(
        None, "Data-loading processes. Default: chosen by the machine.", flag=True, minimum=0, on_resume="free"
    )
    in_memory: bool | None = setting(
        None, on_resume="free",
        help="Keep the decoded images in memory. null does so if they fit and records the choice, because random "
        "crops taken from files differ in the last digits.",
    )  # fmt: skip

    @property
    def text(self) -> TextOptions:
        """How names and the table of labels are read. Raises `UserError`."""
        return TextOptions(encoding=self.encoding, columns=self.columns)


@dataclass(frozen=True, kw_only=True)
class AugmentationSettings:
    """Random changes of the training images."""

    level: Literal["auto", "none", "light", "medium", "strong"] = setting(
        "auto", name="augment", flag=True,
        help="Strength of data augmentation; auto is the recipe's own. augmented.png in the run folder shows its "
        "effect.",
    )  # fmt: skip
    mixup: float = setting(0.0, "MixUp alpha; 0 disables it.", flag=True, minimum=0)
    cutmix: float = setting(0.0, "CutMix alpha; 0 disables it.", flag=True, minimum=0)
    crop: Literal["none", "pad", "random", "resized"] = setting(
        "none",
        help="Training crop: pad adds padding and crops at random; random crops the resized square; resized is a "
        "random resized crop.",
    )  # fmt: skip
    padding: int = setting(4, "crop pad: pixels added on each side.", minimum=0)
    padding_mode: Literal["zeros", "reflect"] = setting("zeros", "crop pad: their values.")
    scale: tuple[float, float] = setting(
        (0.08, 1.0), "crop resized: range of the crop's area as a share of the image's."
    )
    crop_group: int = setting(
        1, "Consecutive images that share one random crop and flip; 32 in the 2012 code.", above=0
    )
    flip: bool = setting(False, "Flip half of the training images horizontally.")
    alternate_flip: bool = setting(
        False,
        "With flip: choose at random in the first epoch only, then flip each image in every other epoch.",
    )
    rotate: float = setting(0.0, "Maximum rotation in degrees, in either direction.", minimum=0)
    jitter: tuple[float, float, float] = setting(
        (0.0, 0.0, 0.0), "Maximum relative change of brightness, contrast and saturation."
    )
    pca_noise: float = setting(
        0.0, minimum=0,
        help="Standard deviation of the noise along the principal components of RGB: .1 in the paper (section "
        "4.1); 0 disables it.",
    )  # fmt: skip
    pca_basis: Literal["imagenet", "own"] = setting(
        "own", "Principal components of the noise: ImageNet's, or those of the training images."
    )
    pca_std: tuple[float, ...] | None = setting(
        None, "Standard deviations along the three components, in levels from 0 to 255; null takes them from pca_basis."
    )
    pca_vectors: tuple[float, ...] | None = setting(
        None, "The three components, RGB, one after the other; null takes them from pca_basis."
    )
    pca_divide: bool = setting(
        False, "Divide the training images by 1 + pca_noise after the noise, as the 2012 code does."
    )


@dataclass(frozen=True)
class LayerWeightDecay:
    """The weight decay of single layers, in place of the setting `weight_decay`."""

    layers: tuple[str, ...]
    """Named as by 'alexnet arch NAME'."""
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class OptimizationSettings:
    """Batches, loss and optimizer."""

    batch_size: int | None = setting(
        128, flag=True, above=0, on_resume="fixed",
        help="Images per optimizer step, over all processes and accumulated parts; null is 32 on a CPU and 128 on "
        "a GPU.",
    )  # fmt: skip
    accumulate: int = setting(
        1, "Split each batch into this many forward and backward passes, to save memory.", flag=True, above=0
    )
    lr: float = setting(0.01, "Peak learning rate.", flag=True, minimum=0)
    optimizer: Literal["sgd", "sgd2012", "muon"] = setting(
        "sgd", on_resume="fixed",
        help="sgd2012 keeps the learning rate inside the velocity, so a drop of the rate does not shrink the "
        "velocity; muon makes the momentum of each convolution's kernel orthogonal and keeps the kernel's norm, "
        "without weight decay, and is sgd for the other layers.",
    )  # fmt: skip
    kernel_lr_mult: float = setting(
        1.0, minimum=0,
        help="optimizer muon: learning rate of the convolutions' kernels, the length of a step relative to the "
        "kernel's, as a multiple of lr.",
    )  # fmt: skip
    momentum: float = setting(0.9, "Momentum of SGD, from 0 to below 1.", flag=True, minimum=0, below=1)
    nesterov: bool = setting(False, "Use Nesterov momentum.")
    weight_decay: float = setting(5e-4, "L2 penalty.", flag=True, minimum=0)
    layer_weight_decay: tuple[LayerWeightDecay, ...] = setting(
        (), "L2 penalties of single layers, such as 1 for the last layer of convnet-18."
    )
    decay_biases: bool = setting(
        True, "Also apply weight decay to biases and normalization weights, as plain SGD over all parameters does."
    )
    bias_lr_mult: float = setting(
        1.0, minimum=0,
        help="Learning rate of the biases as a multiple of that of the weights: 2 in Caffe (its lr_mult) and in "
        "2012.",
    )  # fmt: skip
    backbone_lr_mult: float = setting(
        0.1, minimum=0, on_resume="fixed",
        help="With weights: learning rate of the pretrained layers as a multiple of that of a new last layer.",
    )  # fmt: skip
    scale_lr: Literal["none", "linear", "sqrt"] = setting(
        "none", "Scale the learning rates by batch_size / lr_batch, or by its square root."
    )
    lr_batch: int | None = setting(
        None, "Batch size that lr is meant for; null is the recipe's own batch size.", above=0
    )
    balance: bool = setting(False, "Weight the loss of each class inversely to its number of images.", flag=True)
    label_smoothing: float = setting(
        0.0, "Share of each target that is spread evenly over all classes.", minimum=0, below=1
    )
    clip_norm: float | None = setting(
        None, "Maximum norm of the gradient over all parameters; null does not clip.", above=0
    )
    dropout_2012: bool = setting(
        False, on_resume="fixed",
        help="Start and update the layers after dropout as the 2012 code does, which did not scale kept units in "
        "training.",
    )  # fmt: skip


@dataclass(frozen=True)
class ScheduleChange:
    """Values that hold from the start of `epoch` until a later change. None leaves a value as it is.

    In 2012 rates were lowered, layers frozen and the color noise switched off by stopping the program and restarting it
    with other settings. Epochs count from 1, as in `metrics.jsonl`. Rates are absolute, not factors; a rate of 0
    freezes. If two changes have the same epoch, the later one in the list wins.
    """

    epoch: int
    layers: tuple[str, ...] = ()
    """The layers that `lr` and `bias_lr` apply to, named as by 'alexnet arch NAME'; empty: all."""
    lr: float | None = None
    """Learning rate of the weights. Biases keep theirs."""
    bias_lr: float | None = None
    """Learning rate of the biases and of the weights of normalization layers."""
    pca_noise: float | None = None
    """Strength of the PCA noise, independent of `layers`."""

    @property
    def rates(self) -> dict[str, float]:
        """The learning rates it sets, by kind of parameter: "weights" and "biases"."""
        return {kind: r for kind, r in (("weights", self.lr), ("biases", self.bias_lr)) if r is not None}


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """Length of the training, and the learning rate over it."""

    epochs: int = setting(10, "Passes over the training images.", flag=True, above=0)
    time_budget: str | None = setting(
        None, flag=True, on_resume="fixed",
        help="Time of the whole command, such as 90s, 10m or 1.5h, from its start to the report; sets epochs and "
        "limit_steps.",
    )  # fmt: skip
    early_stop: int = setting(
        0, "Stop after this many epochs without a better validation result; 0 disables it.", flag=True, minimum=0
    )
    stop_error: float = setting(
        0.0, minimum=0, below=1,
        help="Stop after the epoch whose training error, its mean, is at most this share, as a race to 25 % does; 0 "
        "disables it.",
    )  # fmt: skip
    limit_steps: int | None = setting(
        None, flag=True, above=0,
        help="Stop after this many optimizer steps in total, then evaluate as at the end of an epoch.",
    )  # fmt: skip
    kind: Literal["constant", "step", "plateau", "cosine", "one-cycle"] = setting(
        "cosine", "Learning rate schedule.", name="schedule", flag=True
    )
    warmup: float = setting(0.0, "Epochs of linear warmup from 0.", flag=True, minimum=0)
    lr_step_size: int = setting(30, "schedule step: epochs between drops.", above=0)
    lr_gamma: float = setting(0.1, "schedule step and plateau: factor of each drop.")
    patience: int = setting(5, "schedule plateau: epochs without improvement before a drop.", minimum=0)
    plateau_on: Literal["loss", "error"] = setting(
        "loss",
        help="schedule plateau: validation metric that must improve. The paper uses the error (section 5), here of "
        "top-1.",
    )  # fmt: skip
    max_drops: int | None = setting(
        None, minimum=0,
        help="schedule plateau: drops of the rate after which training ends at the next plateau: 3 in the paper "
        "(section 5); null never ends it.",
    )  # fmt: skip
    lr_changes: tuple[ScheduleChange, ...] = setting(
        (), "schedule constant: learning rates and PCA noise set by hand at the start of given epochs, sorted by epoch."
    )
    final_lr_ratio: float = setting(
        0.0, "schedule cosine and one-cycle: last learning rate as a share of the peak.", minimum=0, below=1
    )
    pct_start: float = setting(0.25, "schedule one-cycle: share of all steps before the peak.", minimum=0, below=1)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The machine, checkpoints and logs."""

    seed: int = setting(
        0, flag=True, on_resume="fixed",
        help="Seed of the split, the initialization, the order of the images and the augmentation.",
    )  # fmt: skip
    device: Literal["auto", "cpu", "cuda", "mps"] = setting("auto", "Device to train on.", flag=True, on_resume="free")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = setting(
        "auto", "Number format of convolutions and matrix products; auto measures which is fastest.", flag=True
    )
    threads: int | None = setting(
        None, flag=True, above=0, maximum=1024, on_resume="free",
        help="Threads to compute with on a CPU. Default: OMP_NUM_THREADS, else one per core, or fewer where that is "
        "measured to be faster because other programs use the cores.",
    )  # fmt: skip
    compile: bool = setting(False, "Compile the model with torch.compile.", flag=True, on_resume="free")
    parallel: Literal["auto", "none", "data", "towers"] = setting(
        "auto", flag=True, on_resume="free",
        help="How processes started by torchrun share the work. data: each takes a part of every batch; towers: "
        "two processes, each with one tower of the network; auto is data.",
    )  # fmt: skip
    dist_timeout: float = setting(
        120.0, above=0, maximum=86_400, on_resume="free",
        help="Seconds, up to a day, after which a process that does not respond to the others is considered lost.",
    )  # fmt: skip
    channels_last: bool = setting(
        True, "Store images and weights in the channels-last memory format, in which convolutions are fastest."
    )
    deterministic: bool = setting(
        False, on_resume="free",
        help="On a GPU, use only deterministic algorithms; on a CPU training is always deterministic.",
    )  # fmt: skip
    checkpoint_every: str | None = setting(
        "10m", flag=True, on_resume="free",
        help="Also save a checkpoint within an epoch, every so many steps (500) or at this interval (90s, 10m, "
        "1.5h); None saves only at the end of each epoch.",
    )  # fmt: skip
    keep_checkpoints: int = setting(
        2, "Number of newest checkpoints to keep, in addition to the best.", above=0, on_resume="free"
    )
    tensorboard: bool = setting(
        False, flag=True, on_resume="free",
        help="Also write TensorBoard files to the run folder; needs the package tensorboard.",
    )  # fmt: skip


def all_settings(recipe: type) -> dict[str, Setting]:
    """Return the settings in the fields of the dataclass `recipe` and of its groups, by flat name."""
    found = {}
    hints = get_type_hints(recipe)
    groups = {"": recipe} | {name: kind for name, kind in hints.items() if dataclasses.is_dataclass(kind)}
    for group, owner in groups.items():
        for field in dataclasses.fields(owner):
            if "setting" in field.metadata:
                known: Setting = field.metadata["setting"]
                found[known.name or field.name] = dataclasses.replace(
                    known, name=known.name or field.name, group=group, field=field.name,
                    kind=get_type_hints(owner)[field.name],
                )  # fmt: skip
    return found
