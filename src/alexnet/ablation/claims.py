"""`CLAIMS`: what the paper and others claim about AlexNet's parts, each as a comparison of two trainings.

A claim is data: recipe settings with and without the part; `ablate.py` trains both. Differences are "with minus
without" in top-1 accuracy, so a positive one supports the part; claims about speed count the epochs saved. The paper's
figures are top-1 / top-5 error on ILSVRC unless stated otherwise; "log" is what the parameter files of the 2012 code
record of their runs. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alexnet.errors import unknown_name
from alexnet.models.architectures import ARCHITECTURES
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


@dataclass(frozen=True)
class Claim:
    """A comparison, the statement it tests, and what others measured."""

    name: str
    statement: str
    source: str
    published: str
    """What the source reports, and the log of the 2012 code if it has such a run."""
    part: Arm
    without: Arm
    measure: Literal["top1", "epochs"] = "top1"
    """`epochs` counts the epochs until the training error falls to 25 %, as in figure 1 of the paper."""


def _times(setting: str, factor: float) -> Callable[[Recipe], Any]:
    return lambda recipe: recipe.as_dict()[setting] * factor


def _towers(**settings: Any) -> dict[str, Any]:
    """Return settings for a network with two towers: the base's if it has them, else `cifar-towers` with LRN.

    `cifar-towers` keeps the base's width, image size and epochs. Without batch norm it learns within a few epochs only
    with an initialization other than N(0, .01), half the learning rate, and gradient clipping.
    """
    small = {
        "arch": "cifar-towers", "norm": "lrn", "init": "xavier", "clip_norm": 5.0, "dropout": 0.0,
        "width": lambda r: r.model.width, "image_size": lambda r: r.model.image_size, "lr": _times("lr", 0.5),
    }  # fmt: skip
    return {**{key: _unless_towers(key, value) for key, value in small.items()}, **settings}


def _unless_towers(setting: str, value: Any) -> Callable[[Recipe], Any]:
    def choose(recipe: Recipe) -> Any:
        spec = ARCHITECTURES.get(recipe.model.arch)
        if spec is not None and any(conv.groups > 1 for conv in spec.convs):
            return recipe.as_dict()[setting]
        return value(recipe) if callable(value) else value

    return choose


# Figure 1: no regularization, a constant learning rate, and for each activation the rate that suits it best.
_FIGURE_1 = {
    "norm": "none", "init": "xavier", "crop": "none", "flip": False, "label_smoothing": 0.0, "dropout": 0.0,
    "weight_decay": 0.0, "schedule": "constant", "nesterov": False, "clip_norm": 5.0,
}  # fmt: skip


def _figure_1(activation: str, factor: float) -> dict[str, Any]:
    return {**_FIGURE_1, "activation": activation, "lr": _times("lr", factor)}


CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "relu-vs-tanh", "ReLUs reach a training error of 25 % in fewer epochs than tanh units.",
            "paper, section 3.1 and figure 1", "six times fewer epochs (CIFAR-10, four convolutions)",
            Arm("ReLU", _figure_1("relu", 0.2)), Arm("tanh", _figure_1("tanh", 0.2)), "epochs",
        ),
        Claim(
            "relu-vs-sigmoid", "ReLUs reach a training error of 25 % in fewer epochs than sigmoid units.",
            "tutorial 001, which attributes it to the paper (the paper compares with tanh)", "no figure",
            Arm("ReLU", _figure_1("relu", 0.2)), Arm("sigmoid", _figure_1("sigmoid", 0.2)), "epochs",
        ),
        Claim(
            "lrn", "Local response normalization helps.",
            "paper, section 3.3", "1.4 / 1.2 points of error; log: run 148 +1.4 / +1.2; on CIFAR-10 13 % to 11 %",
            Arm("LRN", _towers()), Arm("no normalization", _towers(norm="none")),
        ),
        Claim(
            "overlapping-pool", "Overlapping 3×3 pooling is better than non-overlapping 2×2 pooling.",
            "paper, section 3.4", ".4 / .3 points of error; log: run 147 +.4 / +.3",
            Arm("3×3, stride 2"), Arm("2×2, stride 2", {"spec_edits": ("plain-pool",)}),
        ),
        Claim(
            "max-vs-average-pool", "Max pooling is better than average pooling.",
            "the paper uses max pooling (section 3.4), LeNet average pooling", "no figure",
            Arm("maximum"), Arm("average", {"spec_edits": ("average-pool",)}),
        ),
        Claim(
            "momentum", "Momentum .9 is better than none at ten times the learning rate, the same long-run step.",
            "paper, section 5, uses .9", "no figure",
            Arm("momentum .9", {"momentum": 0.9, "nesterov": False}),
            Arm("no momentum", {"momentum": 0.0, "nesterov": False, "lr": _times("lr", 10)}),
        ),
        Claim(
            "weight-decay", "Weight decay of 5e-4 is needed to learn, not only to reduce overfitting.",
            "paper, section 5", "\"it reduces the model's training error\", no figure",
            Arm("5e-4", {"weight_decay": 5e-4}), Arm("0", {"weight_decay": 0.0}),
        ),
        Claim(  # LeNet's sigmoids need ten times the learning rate; .5 was the best of .05, .2 and .5 over three epochs
            "lenet", "AlexNet's layers are better than LeNet-5's on the same data.",
            "tutorials 003 and 004", "no figure",
            Arm("AlexNet"), Arm("LeNet-5", {
                "arch": "lenet", "norm": "none", "width": 1.0, "image_size": lambda r: r.model.image_size, "lr": 0.5,
            }),
        ),
        Claim(
            "learned-features", "Learned features are better than hand-crafted ones (HOG and a linear SVM).",
            "paper, section 1 and table 1", "37.5 / 17.0 error against 45.7 / 25.7 of SIFT and Fisher vectors",
            Arm("AlexNet"), Arm("HOG + linear SVM", kind="hog"),
        ),
        Claim(
            "dropout", "Dropout of .5 in fc6 and fc7 reduces overfitting.",
            "paper, section 4.2", "\"substantial overfitting\" without it, no figure",
            Arm("dropout .5", _towers(dropout=0.5)), Arm("no dropout", _towers(dropout=0.0)),
        ),
        Claim(
            "augmentation", "Random crops and flips of the training images reduce overfitting.",
            "paper, section 4.1", "\"substantial overfitting\" without it, no figure",
            Arm("crop and flip"), Arm("unchanged images", {"crop": "none", "flip": False}),
        ),
        Claim(
            "pca-noise", "Noise along the principal components of color helps.",
            "paper, section 4.1", "over 1 point of top-1 error",
            Arm("PCA noise .1", {"pca_noise": 0.1}), Arm("no color noise", {"pca_noise": 0.0}),
        ),
        Claim(
            "two-towers", "Two towers are better than one tower with half the channels and as many parameters.",
            "paper, section 3.2", "1.7 / 1.2 points of error; log: run 145-half +1.7 / +1.2",
            Arm("two towers", _towers()), Arm("one tower", _towers(spec_edits=("half",))),
        ),
        Claim(
            "tower-talk", "Towers that are connected in conv3 are better than towers that are not.",
            "paper, section 3.2 (no figure)", "log: run 150, which disconnects fc6 and fc7 too, +1.2 / +1.1",
            Arm("conv3 reads both", _towers()), Arm("conv3 reads one", _towers(spec_edits=("silent-towers",))),
        ),
        Claim(
            "ten-crop", "Averaging ten views is better than testing the center crop alone.",
            "paper, section 4.1", "39.0 / 18.3 error with one view, 37.5 / 17.0 with ten; log: the same",
            Arm("ten views", kind="ten-crop"), Arm("one view"),
        ),
        Claim(
            "init", "Kaiming initialization learns faster than the paper's N(0, .01).",
            "He et al. 2015 against the paper, section 5", "no figure for AlexNet",
            Arm("Kaiming", _towers(init="kaiming")), Arm("N(0, .01)", _towers(init="paper")),
        ),
        Claim(
            "batchnorm", "Batch norm is better than local response normalization, which it replaced.",
            "Ioffe and Szegedy 2015, for another network", "no figure for AlexNet",
            Arm("batch norm", _towers(norm="batch")), Arm("LRN", _towers()),
        ),
        Claim(
            "depth", "Every middle convolution matters: without conv4 the network is worse.",
            "paper, section 7", "about 2 points of top-1 error for any middle layer",
            Arm("five convolutions"), Arm("without conv4", {"spec_edits": ("without-conv4",)}),
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
