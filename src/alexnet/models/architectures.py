"""Every network that bears the name, as data: `ARCHITECTURES`, and `INITS`, the initial weights they start from.

Six networks are called AlexNet in the wild, and the tutorials add more; what sets them apart is a few numbers, all of
them here. "Paper" is Krizhevsky, Sutskever and Hinton, NIPS 2012; "the 2012 code" is the authors' own, released as
computerhistory/AlexNet-Source-Code, of which layers-145.cfg is the network that gave the published error. Alphas of
LRN have torch's meaning (divided by the window's size), so that the paper's printed 1e-4 stands here as 5e-4.
No torch in this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from alexnet.errors import unknown_name
from alexnet.models.spec import ACTIVATIONS, NORMS, AlexNetSpec, ConvSpec, LRNSpec, minimal_image_size

# ── initial weights ───────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Initialization:
    """How a network's numbers are drawn before training.

    `conv` and `linear` name the rule for weights: "normal" (mean 0), "kaiming" (normal, fan-out, for ReLU), "xavier"
    (uniform) or "torch" (its default). `stds` and `biases` are the exceptions to `std` and `bias`, by the layer's
    name; "hidden" means every fully connected layer but the last. A bias of None is torch's default.
    """

    title: str
    conv: str
    linear: str
    std: float = 0.01
    stds: Mapping[str, float] = field(default_factory=dict)
    bias: float | None = 0.0
    biases: Mapping[str, float] = field(default_factory=dict)


def _excited(bias: float) -> dict[str, float]:
    """Biases that give the ReLUs of these layers positive inputs from the start (paper, section 5)."""
    return {"conv2": bias, "conv4": bias, "conv5": bias, "hidden": bias}


_LATE = {"conv3": 0.03, "conv4": 0.03, "conv5": 0.03}
_SMALL = {"hidden": 0.005}

INITS: dict[str, Initialization] = {
    "paper": Initialization("paper, section 5: N(0, .01), biases 1 or 0", "normal", "normal", biases=_excited(1.0)),
    "code2012": Initialization(
        "layers-145.cfg: conv3-5 .03, else as paper", "normal", "normal", stds=_LATE, biases=_excited(1.0)
    ),
    "caffe": Initialization(
        "bvlc_alexnet: fc6-7 .005, biases .1 or 0", "normal", "normal", stds=_SMALL, biases=_excited(0.1)
    ),
    "caffenet": Initialization(
        "CaffeNet: fc6-7 .005, biases 1 or 0", "normal", "normal", stds=_SMALL, biases=_excited(1.0)
    ),
    "kaiming": Initialization("tutorial 002: Kaiming convolutions, N(0, .01) matrices, biases 0", "kaiming", "normal"),
    "xavier": Initialization("d2l: Xavier uniform weights, torch's biases", "xavier", "xavier", bias=None),
    "torch": Initialization("torch's defaults", "torch", "torch", bias=None),
}

# ── networks ──────────────────────────────────────────────────────────────────────────────────────────────────────

PAPER_LRN = LRNSpec(size=5, alpha=5e-4, beta=0.75, k=2.0, towers=2)
CODE_LRN = LRNSpec(size=5, alpha=1e-4, beta=0.75, k=2.0, towers=2)
CAFFE_LRN = LRNSpec(size=5, alpha=1e-4, beta=0.75, k=1.0, towers=1)  # and torch's own defaults

_ACT_POOL = ("act", "pool")
_ACT_LRN_POOL = ("act", "lrn", "pool")
_ACT_POOL_LRN = ("act", "pool", "lrn")

# 224 pixels are three short of 55 steps of 4; `ceil` adds them as zeros, as the 2012 code does.
_PAPER = AlexNetSpec(
    name="paper",
    title="NIPS 2012 as printed: two towers, LRN before overlapping pools",
    source="Krizhevsky, Sutskever, Hinton, NIPS 2012, sections 3 to 5",
    convs=(
        ConvSpec(96, 11, stride=4, ceil=True, stages=_ACT_LRN_POOL),
        ConvSpec(256, 5, padding=2, groups=2, stages=_ACT_LRN_POOL),
        ConvSpec(384, 3, padding=1),
        ConvSpec(384, 3, padding=1, groups=2),
        ConvSpec(256, 3, padding=1, groups=2, stages=_ACT_POOL),
    ),
    norm="lrn",
    lrn=PAPER_LRN,
    departures=(
        "The paper prints no padding for conv1, and 224 gives 54 whole steps; three columns and rows of zeros at the "
        "right and bottom give the 55 of its code.",
        "Dropout doubles what it keeps in training instead of halving everything in testing: the same network, with "
        "the weights of the next layer halved.",
    ),
)

_CODE2012 = replace(
    _PAPER,
    name="code2012",
    title="What produced the published numbers (run 145 of the 2012 code)",
    source="computerhistory/AlexNet-Source-Code, layers/layers-145.cfg",
    convs=(
        ConvSpec(96, 11, stride=4, ceil=True, stages=("lrn", "pool", "act")),
        ConvSpec(256, 5, padding=2, groups=2, stages=("act", "lrn", "rnorm", "pool")),
        ConvSpec(384, 3, padding=1),
        ConvSpec(384, 3, padding=1, groups=2),
        ConvSpec(256, 3, padding=1, groups=2, stages=("pool", "act")),
    ),
    lrn=CODE_LRN,
    init="code2012",
    departures=(
        "conv1 is normalised and pooled before its ReLU, and conv5 pooled before its ReLU.",
        "LRN divides alpha by the window's 5 channels: a fifth of the printed strength.",
        "A second, spatial response norm over 5×5 pixels follows conv2's LRN.",
        "Weights of conv3, conv4 and conv5 start with a deviation of .03 instead of .01.",
        "Dropout doubles what it keeps in training instead of halving everything in testing: the same network, with "
        "the weights of the next layer halved.",
    ),
)

_HALF = replace(
    _CODE2012,
    name="half",
    title="One of the towers alone, which the paper compares with",
    source="computerhistory/AlexNet-Source-Code, layers/layers-145-half.cfg; paper, section 3.2",
    convs=tuple(
        replace(conv, out_channels=channels, groups=1)
        for conv, channels in zip(_CODE2012.convs, (48, 128, 192, 192, 256), strict=True)
    ),
    lrn=replace(CODE_LRN, towers=1),
    departures=(
        "One tower; conv5 keeps 256 channels and the fully connected layers 4096 units, so that the number of "
        "parameters is nearly that of two towers.",
        *_CODE2012.departures,
    ),
)

_ONE_TOWER = replace(
    _PAPER,
    name="one-tower",
    title="The merged 96-256-384-384-256 network of the tutorials' tables",
    source="the tables of tutorials 001 and 002, docs/tutorials.md",
    convs=(
        ConvSpec(96, 11, stride=4, padding=2, stages=_ACT_LRN_POOL),
        ConvSpec(256, 5, padding=2, stages=_ACT_LRN_POOL),
        ConvSpec(384, 3, padding=1),
        ConvSpec(384, 3, padding=1),
        ConvSpec(256, 3, padding=1, stages=_ACT_POOL),
    ),
    lrn=replace(PAPER_LRN, towers=1),
    departures=(
        "No towers: every filter of conv2, conv4 and conv5 reads all channels, 1.4 million parameters more.",
        "LRN windows run across the place where the towers would part.",
        "conv1 is padded by 2 on all sides.",
    ),
)

_TORCHVISION = AlexNetSpec(
    name="torchvision",
    title="torchvision.models.alexnet: the one-GPU widths of 2014 without LRN",
    source="pytorch/vision, torchvision/models/alexnet.py; Krizhevsky, arXiv 1404.5997",
    convs=(
        ConvSpec(64, 11, stride=4, padding=2, stages=_ACT_POOL),
        ConvSpec(192, 5, padding=2, stages=_ACT_POOL),
        ConvSpec(384, 3, padding=1),
        ConvSpec(256, 3, padding=1),
        ConvSpec(256, 3, padding=1, stages=_ACT_POOL),
    ),
    dropout_position="before",
    init="torch",
    adaptive_pool=6,
    departures=(
        "Widths 64-192-384-256-256 and one tower, from the 2014 one-GPU network.",
        "No LRN.",
        "Dropout comes before fc6 and fc7 instead of after them.",
        "conv1 is padded by 2 on all sides.",
        "Torch's default initial weights.",
    ),
)

_TORCHVISION_LRN = replace(
    _TORCHVISION,
    name="torchvision-lrn",
    title="torchvision's network with LRN after each pool",
    source="tutorial 000, docs/tutorials.md",
    convs=tuple(replace(c, stages=_ACT_POOL_LRN) if "pool" in c.stages else c for c in _TORCHVISION.convs),
    norm="lrn",
    lrn=CAFFE_LRN,
    adaptive_pool=None,
    departures=(
        "LRN follows the pools instead of preceding them, and pool5 has one too.",
        "LRN's k is 1, torch's default, instead of 2, and its alpha a fifth of the printed one.",
        *(d for d in _TORCHVISION.departures if d != "No LRN."),
    ),
)

_SEED_MERGED = replace(
    _ONE_TOWER,
    name="seed-merged",
    title="A tutorial's merged network with 2048 hidden units",
    source="tutorial 001, docs/tutorials.md",
    convs=tuple(replace(c, stages=tuple(s for s in c.stages if s != "lrn")) for c in _ONE_TOWER.convs),
    hidden=(2048, 2048),
    dropout=0.2,
    dropout_position="before",
    norm="none",
    init="torch",
    departures=(
        "No towers, and 2048 hidden units instead of 4096: less than half of the parameters.",
        "No LRN.",
        "Dropout of .2 before fc6 and fc7 instead of .5 after them.",
        "conv1 is padded by 2 on all sides.",
        "Torch's default initial weights.",
    ),
)

_CAFFE = replace(
    _PAPER,
    name="caffe",
    title="BVLC's AlexNet for Caffe",
    source="BVLC/caffe, models/bvlc_alexnet/train_val.prototxt",
    # Caffe rounds the size of pools up; at 227 that changes nothing.
    convs=tuple(replace(c, ceil=False, pool_ceil="pool" in c.stages) for c in _PAPER.convs),
    image_size=227,
    lrn=CAFFE_LRN,
    init="caffe",
    departures=(
        "Images of 227×227 and no padding.",
        "LRN runs over all channels, across the towers, with k 1 and a fifth of the printed alpha.",
        "Biases start at .1 instead of 1, and weights of fc6 and fc7 with a deviation of .005.",
    ),
)

_CAFFENET = replace(
    _CAFFE,
    name="caffenet",
    title="BVLC's CaffeNet, which pools before it normalises",
    source="BVLC/caffe, models/bvlc_reference_caffenet/train_val.prototxt",
    convs=tuple(replace(c, stages=_ACT_POOL_LRN) if "lrn" in c.stages else c for c in _CAFFE.convs),
    init="caffenet",
    departures=(
        "Pools come before LRN.",
        *_CAFFE.departures[:2],
        "Weights of fc6 and fc7 start with a deviation of .005.",
    ),
)

_D2L = replace(
    _SEED_MERGED,
    name="d2l",
    title="Dive into Deep Learning's AlexNet for Fashion-MNIST",
    source="d2l.ai, section 8.1, as tutorial 004 has it, docs/tutorials.md",
    convs=(replace(_SEED_MERGED.convs[0], padding=0), *_SEED_MERGED.convs[1:]),
    hidden=(4096, 4096),
    dropout=0.5,
    dropout_position="after",
    num_classes=10,
    in_channels=1,
    init="xavier",
    departures=(
        "One channel and ten classes.",
        "No towers and no LRN.",
        "conv1 is not padded: 54→26→12→5 pixels instead of 55→27→13→6, so fc6 reads 6400 values, not 9216.",
        "Xavier initial weights.",
    ),
    repair="As printed it is not Python: 'net ==' compares instead of assigning, and commas are missing after two "
    "pools; with these put right the layers are as the tutorial means them.",
)

_CIFAR = replace(
    _TORCHVISION,
    name="cifar",
    title="AlexNet's layers for images of 32×32",
    source="tutorial 002, docs/tutorials.md, repaired",
    convs=tuple(
        replace(c, pool_ceil="pool" in c.stages)
        for c in (ConvSpec(64, 5, stride=2, padding=2, stages=_ACT_POOL), *_TORCHVISION.convs[1:])
    ),
    num_classes=10,
    image_size=32,
    init="kaiming",
    adaptive_pool=None,
    departures=(
        "conv1 is 5×5 with stride 2 and padding 2 instead of 11×11 with stride 4, and pools round their size up: "
        "16→8→4→2 pixels.",
        "Widths 64-192-384-256-256 and one tower, from the 2014 one-GPU network.",
        "No LRN.",
        "Dropout comes before fc6 and fc7 instead of after them.",
        "Kaiming initial weights for the convolutions.",
    ),
    repair="With the tutorial's 11×11 stride-4 conv1, 32 pixels shrink to 7, 3, 3 and 1, and its last pool raises an "
    "error; a 5×5 stride-2 conv1 and pools that round up leave the 2×2 that its fc6 expects.",
)

_CIFAR_TOWERS = replace(
    _CIFAR,
    name="cifar-towers",
    title="The network for 32×32 as two towers with LRN, to try the paper's claims on small data",
    source="ours, from tutorial 002 repaired and the paper's sections 3.2 to 3.5 and 4.2",
    convs=tuple(
        replace(c, groups=groups, stages=_ACT_LRN_POOL if n < 2 else c.stages)
        for n, (c, groups) in enumerate(zip(_CIFAR.convs, (1, 2, 1, 2, 2), strict=True))
    ),
    dropout_position="after",
    norm="lrn",
    lrn=PAPER_LRN,
    departures=(
        _CIFAR.departures[0],
        "Widths 64-192-384-256-256, from the 2014 one-GPU network.",
        "Kaiming initial weights for the convolutions.",
    ),
    repair="",
)

_LENET = AlexNetSpec(
    name="lenet",
    title="LeNet-5 as tutorials build it: sigmoids and average pools",
    source="LeCun, Bottou, Bengio, Haffner, Proc. IEEE 1998, figure 2, in the form of d2l.ai, section 7.6",
    convs=(
        ConvSpec(6, 5, padding=2, stages=_ACT_POOL, pool="avg", pool_kernel=2),
        ConvSpec(16, 5, stages=_ACT_POOL, pool="avg", pool_kernel=2),
    ),
    hidden=(120, 84),
    dropout=0.0,
    num_classes=10,
    in_channels=1,
    image_size=28,
    activation="sigmoid",
    init="xavier",
    departures=("Another network: two convolutions, sigmoids, average pools of 2×2, no dropout, 28×28 grey images.",),
)

_AUTHORS = (_PAPER, _CODE2012, _HALF)
_OTHERS = (
    _ONE_TOWER,
    _TORCHVISION,
    _TORCHVISION_LRN,
    _SEED_MERGED,
    _CAFFE,
    _CAFFENET,
    _D2L,
    _CIFAR,
    _CIFAR_TOWERS,
    _LENET,
)

ARCHITECTURES: dict[str, AlexNetSpec] = {spec.name: spec for spec in (*_AUTHORS, *_OTHERS)}

TORCHVISION = "torchvision/"
"""What the names of torchvision's classifiers start with; see `foreign.py`."""

# ── choosing one ──────────────────────────────────────────────────────────────────────────────────────────────────


def architecture(
    name: str,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    norm: str | None = None,
    activation: str | None = None,
    init: str | None = None,
    dropout: float | None = None,
    width: float | None = None,
) -> AlexNetSpec:
    """The architecture called `name` with what is given put in place of its own.

    `image_size` is the side in pixels, `dropout` a probability in [0, 1), `width` scales channels and hidden units.
    `norm` is "lrn" (its own, or the paper's on conv1 and conv2 where it has none), "batch" (batch norm after each
    convolution, nothing else) or "none". Raises `UserError` on an unknown name or an impossible number; whether the
    images are large enough is checked by `spec.layers`.
    """
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", name, ARCHITECTURES)
    for kind, value, known in (("norm", norm, NORMS), ("activation", activation, ACTIVATIONS), ("init", init, INITS)):
        if value is not None and value not in known:
            raise unknown_name(kind, value, known)
    spec = ARCHITECTURES[name]
    if norm == "lrn" and spec.norm != "lrn":
        spec = _with_lrn(spec)
    given: dict[str, Any] = {
        "num_classes": num_classes,
        "in_channels": in_channels,
        "image_size": image_size,
        "norm": norm,
        "activation": activation,
        "init": init,
        "dropout": dropout,
        "width": width,
    }
    return replace(spec, **{key: value for key, value in given.items() if value is not None})


def _with_lrn(spec: AlexNetSpec) -> AlexNetSpec:
    """`spec` with the paper's LRN between activation and pool of conv1 and conv2, inside its towers if it has any."""
    convs = tuple(replace(c, stages=_ACT_LRN_POOL) if n < 2 else c for n, c in enumerate(spec.convs))
    return replace(spec, convs=convs, norm="lrn", lrn=replace(PAPER_LRN, towers=max(c.groups for c in convs)))


def nearest_that_fits(image_size: int) -> str | None:
    """The architecture made for the size nearest to `image_size` among those that take it; None if none does."""
    fit = [spec for spec in ARCHITECTURES.values() if minimal_image_size(spec) <= image_size]
    return min(fit, key=lambda spec: abs(spec.image_size - image_size)).name if fit else None
