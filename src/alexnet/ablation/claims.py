"""What the paper and its readers claim of AlexNet's parts, each as a comparison of two trainings: `CLAIMS`.

A claim is data: settings with the part and without it, on top of one base recipe. `ablate.py` runs them. Differences
are always "with minus without" in top-1 accuracy, so that a positive one speaks for the part; the claims about speed
count epochs saved instead. Figures of the paper are top-1 / top-5 error on ILSVRC unless said; "the log" is what the
2012 code's parameter files record of their runs. No torch here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from alexnet.errors import unknown_name
from alexnet.models.architectures import ARCHITECTURES
from alexnet.training.recipe import Recipe

Settings = Mapping[str, Any]
"""Recipe settings; a value that is a function gets the base recipe."""


@dataclass(frozen=True)
class Arm:
    """One side of a comparison."""

    name: str
    settings: Settings = field(default_factory=dict)
    kind: Literal["train", "ten-crop", "hog"] = "train"
    """`ten-crop` tests the trained network on ten views; `hog` trains no network but a linear SVM on HOG features."""
    other_seeds: bool = False
    """Use seeds that the other arm does not: for comparing a network with itself."""


@dataclass(frozen=True)
class Claim:
    """A comparison, what it should show, and what others measured."""

    name: str
    says: str
    source: str
    figure: str
    """What the source reports, and the log of the 2012 code where it has a run of it."""
    part: Arm
    without: Arm
    measure: Literal["top1", "epochs"] = "top1"
    """`epochs` counts those until the training error falls to 25 %, as figure 1 of the paper does."""


def _times(setting: str, factor: float) -> Callable[[Recipe], float]:
    return lambda recipe: getattr(recipe, setting) * factor


def _towers(**settings: Any) -> dict[str, Any]:
    """The paper's own kind of network: the base's where it has two towers, else `cifar-towers` with LRN.

    The latter keeps the width, size and length of the base. Without batch norm it needs another start than N(0, .01) to
    learn within a few epochs, half the rate, and a bounded gradient.
    """
    small = {
        "arch": "cifar-towers", "norm": "lrn", "init": "xavier", "clip_norm": 5.0, "dropout": 0.0,
        "width": lambda r: r.width, "image_size": lambda r: r.image_size, "lr": _times("lr", 0.5),
    }  # fmt: skip
    return {**{key: _unless_towers(key, value) for key, value in small.items()}, **settings}


def _unless_towers(setting: str, value: Any) -> Callable[[Recipe], Any]:
    def choose(recipe: Recipe) -> Any:
        spec = ARCHITECTURES.get(recipe.arch)
        if spec is not None and any(conv.groups > 1 for conv in spec.convs):
            return getattr(recipe, setting)
        return value(recipe) if callable(value) else value

    return choose


# Figure 1: no regularisation of any kind, a constant rate, and for each unit the rate that suits it best.
_RACE = {
    "norm": "none", "init": "xavier", "crop": "none", "flip": False, "label_smoothing": 0.0, "dropout": 0.0,
    "weight_decay": 0.0, "schedule": "constant", "nesterov": False, "clip_norm": 5.0,
}  # fmt: skip


def _race(activation: str, share: float) -> dict[str, Any]:
    return {**_RACE, "activation": activation, "lr": _times("lr", share)}


CLAIMS: dict[str, Claim] = {
    claim.name: claim
    for claim in (
        Claim(
            "relu-vs-tanh", "ReLUs reach a training error of 25 % in fewer epochs than tanh units.",
            "paper, section 3.1 and figure 1", "six times fewer epochs (CIFAR-10, four convolutions)",
            Arm("ReLU", _race("relu", 0.2)), Arm("tanh", _race("tanh", 0.2)), "epochs",
        ),
        Claim(
            "relu-vs-sigmoid", "ReLUs reach a training error of 25 % in fewer epochs than sigmoid units.",
            "tutorial 001, which ascribes it to the paper (which compares with tanh)", "no figure",
            Arm("ReLU", _race("relu", 0.2)), Arm("sigmoid", _race("sigmoid", 0.2)), "epochs",
        ),
        Claim(
            "lrn", "Local response normalisation helps.",
            "paper, section 3.3", "1.4 / 1.2 points of error; log: run 148 +1.4 / +1.2; on CIFAR-10 13 % to 11 %",
            Arm("LRN", _towers()), Arm("no normalisation", _towers(norm="none")),
        ),
        Claim(
            "overlapping-pool", "Pools of 3×3 that overlap are better than pools of 2×2 that do not.",
            "paper, section 3.4", ".4 / .3 points of error; log: run 147 +.4 / +.3",
            Arm("3×3, stride 2"), Arm("2×2, stride 2", {"spec_edits": ("plain-pool",)}),
        ),
        Claim(
            "max-vs-average-pool", "Pooling the maximum is better than pooling the average.",
            "the paper pools maxima (section 3.4); LeNet pooled averages", "no figure",
            Arm("maximum"), Arm("average", {"spec_edits": ("average-pool",)}),
        ),
        Claim(
            "momentum", "Momentum .9 is better than none at ten times the rate, which moves as far in the long run.",
            "paper, section 5, uses .9", "no figure",
            Arm("momentum .9", {"momentum": 0.9, "nesterov": False}),
            Arm("no momentum", {"momentum": 0.0, "nesterov": False, "lr": _times("lr", 10)}),
        ),
        Claim(
            "weight-decay", "Weight decay of 5e-4 is needed to learn, not only against overfitting.",
            "paper, section 5", "\"it reduces the model's training error\", no figure",
            Arm("5e-4", {"weight_decay": 5e-4}), Arm("0", {"weight_decay": 0.0}),
        ),
        Claim(  # LeNet's sigmoids want a rate ten times as high; .5 was the best of .05, .2 and .5 over three epochs
            "lenet", "AlexNet's layers are better than LeNet-5's on the same data.",
            "tutorials 003 and 004", "no figure",
            Arm("AlexNet"), Arm("LeNet-5", {
                "arch": "lenet", "norm": "none", "width": 1.0, "image_size": lambda r: r.image_size, "lr": 0.5,
            }),
        ),
        Claim(
            "learned-features", "Learned features are better than hand-made ones (HOG and a linear SVM).",
            "paper, section 1 and table 1", "37.5 / 17.0 error against 45.7 / 25.7 of SIFT and Fisher vectors",
            Arm("AlexNet"), Arm("HOG + linear SVM", kind="hog"),
        ),
        Claim(
            "dropout", "Dropout of .5 in fc6 and fc7 reduces overfitting.",
            "paper, section 4.2", "\"substantial overfitting\" without it, no figure",
            Arm("dropout .5", _towers(dropout=0.5)), Arm("no dropout", _towers(dropout=0.0)),
        ),
        Claim(
            "augmentation", "Moving and mirroring the training pictures reduces overfitting.",
            "paper, section 4.1", "\"substantial overfitting\" without it, no figure",
            Arm("crop and flip"), Arm("pictures as they are", {"crop": "none", "flip": False}),
        ),
        Claim(
            "pca-noise", "Noise along the principal components of colour helps.",
            "paper, section 4.1", "over 1 point of top-1 error",
            Arm("PCA noise .1", {"pca_noise": 0.1}), Arm("no colour noise", {"pca_noise": 0.0}),
        ),
        Claim(
            "two-towers", "Two towers are better than one tower of half the channels with as many parameters.",
            "paper, section 3.2", "1.7 / 1.2 points of error; log: run 145-half +1.7 / +1.2",
            Arm("two towers", _towers()), Arm("one tower", _towers(spec_edits=("half",))),
        ),
        Claim(
            "tower-talk", "Towers that read each other's maps in conv3 are better than towers that do not.",
            "paper, section 3.2, describes it", "log: run 150, where fc6 and fc7 are silent too, +1.2 / +1.1",
            Arm("conv3 reads both", _towers()), Arm("conv3 reads one", _towers(spec_edits=("silent-towers",))),
        ),
        Claim(
            "ten-crop", "Averaging ten views is better than testing the centre alone.",
            "paper, section 4.1", "39.0 / 18.3 error with one view, 37.5 / 17.0 with ten; log: the same",
            Arm("ten views", kind="ten-crop"), Arm("one view"),
        ),
        Claim(
            "init", "Kaiming's initial weights learn faster than the paper's N(0, .01).",
            "He et al. 2015 against the paper, section 5", "no figure for AlexNet",
            Arm("Kaiming", _towers(init="kaiming")), Arm("N(0, .01)", _towers(init="paper")),
        ),
        Claim(
            "batchnorm", "Batch norm is better than local response normalisation, which it replaced.",
            "Ioffe and Szegedy 2015, for another network", "no figure for AlexNet",
            Arm("batch norm", _towers(norm="batch")), Arm("LRN", _towers()),
        ),
        Claim(
            "depth", "Each middle convolution counts: without conv4 the network is worse.",
            "paper, section 7", "about 2 points of top-1 error for any middle layer",
            Arm("five convolutions"), Arm("without conv4", {"spec_edits": ("without-conv4",)}),
        ),
        Claim(
            "nothing", "The base differs from itself with other seeds: a check of the method, which must not find it.",
            "ours", "0",
            Arm("base"), Arm("base, other seeds", other_seeds=True),
        ),
    )
}  # fmt: skip


def find_claim(name: str) -> Claim:
    """The claim called `name`. Raises `UserError` with the nearest names if there is none."""
    if name not in CLAIMS:
        raise unknown_name("claim", name, CLAIMS)
    return CLAIMS[name]
