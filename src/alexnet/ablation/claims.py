"""`CLAIMS`: what the paper and others claim about AlexNet's parts, each as a comparison of two trainings.

A claim is data: recipe settings with and without the part; `ablate.py` trains both and measures what the source of the
claim speaks of. The paper's figures are top-1 / top-5 error on ILSVRC unless stated otherwise; "log" is what the
parameter files of the 2012 code record of their runs. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alexnet.errors import unknown_name
from alexnet.training.recipe import Recipe

Settings = Mapping[str, Any]
"""Recipe settings; a function is called with the base recipe."""


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison."""

    name: str
    settings: Settings = field(default_factory=dict)
    kind: Literal["train", "ten-crop", "hog"] = "train"
    """`ten-crop` tests the trained network on ten views; `hog` trains a linear SVM on HOG features instead."""
    other_seeds: bool = False
    """Use different seeds from the other arm, to compare a network with itself."""
    rates: tuple[float, ...] = ()
    """Learning rates of which the one that learns fastest is used, chosen on a seed that is not among the tested."""


@dataclass(frozen=True)
class Claim:
    """A comparison, the statement it tests, and what others measured."""

    name: str
    statement: str
    source: str
    published: str
    """What the source reports."""
    part: Arm
    without: Arm
    measure: Literal["top1", "train_error", "gap", "epochs"] = "top1"
    """What the source speaks of: test accuracy; the error on the training images as they are, without augmentation or
    dropout; the gap between the accuracies on these and on the test images; or the epochs until the training error
    falls to 25 %, as in figure 1 of the paper."""
    log: str = ""
    """What the 2012 code's parameter files record of such a run, if there is one."""
    points: float | None = None
    """The published difference in points of top-1, to be read against the spread of sister runs."""
    needs_color: bool = False


def _times(setting: str, factor: float) -> Callable[[Recipe], Any]:
    return lambda recipe: recipe.as_dict()[setting] * factor


def _edit(name: str) -> Settings:
    return {"spec_edits": lambda recipe: (*recipe.model.spec_edits, name)}


RATE_GRID = (0.004, 0.016, 0.064, 0.256)
RACE_LENGTH = 3  # times the base's epochs; a run ends when it reaches the target

# Figure 1: a network of four layers on CIFAR-10, no regularization of any kind, and for each unit the learning rate
# that suits it best. Inputs have unit variance and weights are Xavier's, which suit all three units.
_FIGURE_1: Settings = {
    "spec_edits": ("four-layers",), "width": 1.0, "norm": "none", "init": "xavier", "std": None, "dropout": 0.0,
    "crop": "none", "flip": False, "pca_noise": 0.0, "label_smoothing": 0.0, "weight_decay": 0.0,
    "schedule": "constant", "nesterov": False, "epochs": _times("epochs", RACE_LENGTH), "stop_error": 0.25,
}  # fmt: skip


def _racer(name: str) -> Arm:
    return Arm(name, {**_FIGURE_1, "activation": name.lower()}, rates=RATE_GRID)


# Each rule on the scale that it was made for: Kaiming's on inputs of unit variance; the paper's on levels of 0 to 255
# and with the gain of its wide layers, without which a narrow network does not learn. LRN acts on one of these scales
# only, so neither arm has it, and each has the learning rate that suits it best.
INIT_RATES = (0.001, 0.003, 0.01, 0.03)

# Sigmoids need a higher learning rate than the base's, inputs of unit variance, and no weight decay or dropout.
_LENET: Settings = {
    "arch": "lenet", "norm": "none", "spec_edits": (), "width": 1.0, "image_size": lambda r: r.model.image_size,
    "init": "xavier", "std": None, "dropout": 0.0,
}  # fmt: skip

# In the order in which `alexnet ablate all` tests them.
CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "lrn", "Local response normalization helps.",
            "paper, section 3.3", "1.4 / 1.2 points of error; on CIFAR-10 13 % to 11 %",
            Arm("LRN", {"norm": "lrn"}), Arm("no normalization", {"norm": "none"}),
            log="run 148, which leaves out the spatial norm too: +1.37 / +1.15", points=1.37,
        ),
        Claim(
            "batchnorm", "Batch norm is better than local response normalization, which it replaced.",
            "Ioffe and Szegedy 2015, for another network", "no figure for AlexNet",
            Arm("batch norm", {"norm": "batch"}), Arm("LRN", {"norm": "lrn"}),
        ),
        Claim(
            "dropout", "Dropout of .5 in fc6 and fc7 reduces overfitting.",
            "paper, section 4.2", "\"substantial overfitting\" without it, no figure",
            Arm("dropout .5", {"dropout": 0.5}), Arm("no dropout", {"dropout": 0.0}), "gap",
        ),
        Claim(
            "augmentation", "Random crops and flips of the training images reduce overfitting.",
            "paper, section 4.1", "\"substantial overfitting\" without it, no figure",
            Arm("crop and flip"), Arm("unchanged images", {"crop": "none", "flip": False}), "gap",
        ),
        Claim(
            "two-towers", "Two towers are better than one tower with half the channels and as many parameters.",
            "paper, section 3.2", "1.7 / 1.2 points of error",
            Arm("two towers"), Arm("one tower", _edit("half")),
            log="run 145-half: +1.70 / +1.23", points=1.70,
        ),
        Claim(
            "overlapping-pool", "Overlapping 3×3 pooling is better than non-overlapping 2×2 pooling.",
            "paper, section 3.4", ".4 / .3 points of error",
            Arm("3×3, stride 2"), Arm("2×2, stride 2", _edit("plain-pool")),
            log="run 147, whose noise is never switched off: +.39 / +.30", points=0.39,
        ),
        Claim(
            "relu-vs-tanh", "ReLUs reach a training error of 25 % in fewer epochs than tanh units.",
            "paper, section 3.1 and figure 1", "six times fewer epochs (CIFAR-10, four layers)",
            _racer("ReLU"), _racer("tanh"), "epochs",
        ),
        Claim(
            "init", "Kaiming's initial weights are better than the paper's N(0, .01).",
            "He et al. 2015 against the paper, section 5", "no figure for AlexNet",
            Arm("Kaiming", {"init": "kaiming", "std": None, "norm": "none"}, rates=INIT_RATES),
            Arm("N(0, .01)", {"init": "paper-gain", "norm": "none"}, rates=INIT_RATES),
        ),
        Claim(
            "tower-talk", "Towers that are connected in conv3 are better than towers that are not.",
            "paper, section 3.2 (no figure)", "no figure",
            Arm("conv3 reads both"), Arm("conv3 reads one", _edit("silent-towers")),
            log="run 150, which disconnects fc6 and fc7 too: +1.16 / +1.12", points=1.16,
        ),
        Claim(
            "pca-noise", "Noise along the principal components of color helps.",
            "paper, section 4.1", "over 1 point of top-1 error",
            Arm("PCA noise .1", {"pca_noise": 0.1}), Arm("no color noise", {"pca_noise": 0.0}),
            points=1.0, needs_color=True,
        ),
        Claim(
            "max-vs-average-pool", "Max pooling is better than average pooling.",
            "the paper uses max pooling (section 3.4), LeNet average pooling", "no figure",
            Arm("maximum"), Arm("average", _edit("average-pool")),
        ),
        Claim(
            "momentum", "Momentum .9 is better than none at ten times the learning rate, the same long-run step.",
            "paper, section 5, uses .9", "no figure",
            Arm("momentum .9", {"momentum": 0.9, "nesterov": False}),
            Arm("no momentum", {"momentum": 0.0, "nesterov": False, "lr": _times("lr", 10)}),
        ),
        Claim(
            "weight-decay", "Weight decay of 5e-4 reduces the training error, not only overfitting.",
            "paper, section 5", "\"it reduces the model's training error\", no figure",
            Arm("5e-4", {"weight_decay": 5e-4}), Arm("0", {"weight_decay": 0.0}), "train_error",
        ),
        Claim(
            "depth", "Every middle convolution matters: without conv4 the network is worse.",
            "paper, section 7", "about 2 points of top-1 error for any middle layer",
            Arm("five convolutions"), Arm("without conv4", _edit("without-conv4")), points=2.0,
        ),
        Claim(
            "ten-crop", "Averaging ten views is better than testing the center crop alone.",
            "paper, section 4.1", "39.0 / 18.3 error with one view, 37.5 / 17.0 with ten (ILSVRC-10)",
            Arm("ten views", kind="ten-crop"), Arm("one view"),
            log="run 145-2010: .390247 / .182953 to .374727 / .169987", points=1.55,
        ),
        Claim(
            "relu-vs-sigmoid", "ReLUs reach a training error of 25 % in fewer epochs than sigmoid units.",
            "tutorial 001, which attributes it to the paper (the paper compares with tanh)", "no figure",
            _racer("ReLU"), _racer("sigmoid"), "epochs",
        ),
        Claim(
            "lenet", "AlexNet's layers are better than LeNet-5's on the same data.",
            "tutorials 003 and 004", "no figure",
            Arm("AlexNet"), Arm("LeNet-5", _LENET, rates=RATE_GRID),
        ),
        Claim(
            "learned-features", "Learned features are better than hand-crafted ones (HOG and a linear SVM).",
            "paper, section 1 and table 1", "37.5 / 17.0 error against 45.7 / 25.7 of SIFT and Fisher vectors",
            Arm("AlexNet"), Arm("HOG + linear SVM", kind="hog"), points=8.2,
        ),
        Claim(
            "nothing", "The base differs from itself with other seeds: a check that none is found.",
            "this project", "0",
            Arm("base"), Arm("base, other seeds", other_seeds=True),
        ),
    )
}  # fmt: skip


def find_claim(name: str) -> Claim:
    """Return the claim `name`. Raises `UserError` with the closest names if there is none."""
    if name not in CLAIMS:
        raise unknown_name("claim", name, CLAIMS)
    return CLAIMS[name]
