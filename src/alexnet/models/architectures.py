"""Every network called AlexNet, as data: `ARCHITECTURES`.

Six networks are called AlexNet in the wild, and tutorials add more; they differ in a few numbers, all listed here.
The 26 % and 18 % networks that its author's program trained on CIFAR-10 stand beside them.
"The paper" is Krizhevsky, Sutskever and Hinton, NIPS 2012; "the 2012 code" is the authors' own, released as
computerhistory/AlexNet-Source-Code, whose layers-145.cfg is the network behind the published error rates. LRN alphas
follow torch (divided by the window size), so the paper's printed 1e-4 is 5e-4 here. This module does not import torch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from alexnet.errors import UserError, unknown_name
from alexnet.models.initial_weights import INITS
from alexnet.models.spec import (
    AlexNetSpec,
    ConvSpec,
    ImageTooSmall,
    LRNSpec,
    half,
    layers,
    minimal_image_size,
)

# ── networks ──────────────────────────────────────────────────────────────────────────────────────

PAPER_LRN = LRNSpec(size=5, alpha=5e-4, beta=0.75, k=2.0, towers=2)
CODE_LRN = LRNSpec(size=5, alpha=1e-4, beta=0.75, k=2.0, towers=2)
CAFFE_LRN = LRNSpec(size=5, alpha=1e-4, beta=0.75, k=1.0, towers=1)  # also torch's defaults

_ACT_POOL = ("act", "pool")
_ACT_LRN_POOL = ("act", "lrn", "pool")
_ACT_POOL_LRN = ("act", "pool", "lrn")

# 224 pixels are three short of 55 windows at stride 4; `ceil` pads them with zeros, as the 2012 code does.
_INVERTED_DROPOUT = (
    "Dropout doubles the kept units in training instead of halving all units at test time: equivalent, with the "
    "weights of the next layer halved."
)
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
        "The paper states no padding for conv1, so 224 pixels would give 54 positions; three rows and columns of zeros "
        "at the bottom and right give the 55 of the 2012 code.",
        _INVERTED_DROPOUT,
    ),
)

_CODE2012 = replace(
    _PAPER,
    name="code2012",
    title="The network behind the published results (run 145 of the 2012 code)",
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
        "conv1 is normalized and pooled before its ReLU, and conv5 is pooled before its ReLU.",
        "LRN divides alpha by the window size of 5, a fifth of the printed strength.",
        "A spatial response norm over 5×5 pixels follows conv2's LRN.",
        "The initial weights of conv3, conv4 and conv5 have a standard deviation of 0.03 instead of 0.01.",
        _INVERTED_DROPOUT,
    ),
)

_HALF = replace(
    half(_CODE2012),
    name="half",
    title="A single tower, the paper's comparison for two GPUs",
    source="computerhistory/AlexNet-Source-Code, layers/layers-145-half.cfg; paper, section 3.2",
    departures=(
        "One tower; conv5 keeps 256 channels and the fully connected layers keep 4096 units, so the parameter count is "
        "close to that of two towers.",
        *_CODE2012.departures,
    ),
)

_PAPER_SIX = replace(
    _CODE2012,
    name="paper-six",
    title="Six convolutions, the network that the paper pretrained on all of ImageNet (run 146)",
    source="computerhistory/AlexNet-Source-Code, layers/layers-146-2012-2011.cfg; paper, section 6.1",
    convs=(*_CODE2012.convs, ConvSpec(256, 3, padding=1)),
    init="paper-six",
    departures=(
        "A sixth convolution after the last pooling layer reads both towers, as section 6.1 describes it.",
        *(d.replace("conv3, conv4 and conv5 have", "conv3 to conv6 have") for d in _CODE2012.departures),
    ),
)

_CUDA_CONVNET2 = replace(
    _CODE2012,
    name="cuda-convnet2",
    title="The one-GPU network of 2014 that torchvision's widths come from",
    source="akrizhevsky/cuda-convnet2, layers/layers-imagenet-1gpu.cfg; Krizhevsky, arXiv 1404.5997",
    convs=(
        ConvSpec(64, 11, stride=4, ceil=True, stages=("lrn", "pool", "act")),
        ConvSpec(192, 5, padding=2, stages=_ACT_LRN_POOL),
        ConvSpec(384, 3, padding=1),
        ConvSpec(256, 3, padding=1),
        ConvSpec(256, 3, padding=1, stages=("pool", "act")),
    ),
    lrn=replace(CODE_LRN, towers=1),
    init="cuda-convnet2",
    departures=(
        "Widths 64-192-384-256-256 and one tower.",
        *(d for d in _CODE2012.departures if not d.startswith("A spatial")),
        "The initial biases of the last layer are -7 instead of 0.",
    ),
)

_ONE_TOWER = replace(
    _PAPER,
    name="one-tower",
    title="The merged 96-256-384-384-256 network shown in tutorials",
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
        "No towers: every filter of conv2, conv4 and conv5 reads all channels, adding 1.4 million parameters.",
        "LRN windows cross the boundary where the towers would be split.",
        "conv1 is padded by 2 on all sides.",
    ),
)

_TORCHVISION = AlexNetSpec(
    name="torchvision",
    title="torchvision.models.alexnet: the 2014 one-GPU widths, no LRN",
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
        "PyTorch's default initial weights.",
    ),
)

_TORCHVISION_LRN = replace(
    _TORCHVISION,
    name="torchvision-lrn",
    title="torchvision's network with LRN after each pooling layer",
    source="tutorial 000, docs/tutorials.md",
    convs=tuple(replace(c, stages=_ACT_POOL_LRN) if "pool" in c.stages else c for c in _TORCHVISION.convs),
    norm="lrn",
    lrn=CAFFE_LRN,
    adaptive_pool=None,
    departures=(
        "LRN follows pooling instead of preceding it, and also follows pool5.",
        "LRN uses k = 1, PyTorch's default, instead of 2, and a fifth of the printed alpha.",
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
        "PyTorch's default initial weights.",
    ),
)

_CAFFE = replace(
    _PAPER,
    name="caffe",
    title="BVLC's AlexNet for Caffe",
    source="BVLC/caffe, models/bvlc_alexnet/train_val.prototxt",
    # Caffe rounds pooled sizes up, which changes nothing at 227.
    convs=tuple(replace(c, ceil=False, pool_ceil="pool" in c.stages) for c in _PAPER.convs),
    image_size=227,
    lrn=CAFFE_LRN,
    init="caffe",
    departures=(
        "227×227 images without padding in conv1.",
        "LRN runs over all channels, across the towers, with k = 1 and a fifth of the printed alpha.",
        "Initial biases are 0.1 instead of 1.",
        "The initial weights of fc6 and fc7 have a standard deviation of 0.005.",
    ),
)

_CAFFENET = replace(
    _CAFFE,
    name="caffenet",
    title="BVLC's CaffeNet, which pools before it normalizes",
    source="BVLC/caffe, models/bvlc_reference_caffenet/train_val.prototxt",
    convs=tuple(replace(c, stages=_ACT_POOL_LRN) if "lrn" in c.stages else c for c in _CAFFE.convs),
    init="caffenet",
    departures=(
        "Pooling comes before LRN.",
        *_CAFFE.departures[:2],
        "The initial weights of fc6 and fc7 have a standard deviation of 0.005.",
    ),
)

_D2L = replace(
    _SEED_MERGED,
    name="d2l",
    title="Dive into Deep Learning's AlexNet for Fashion-MNIST",
    source="d2l.ai, section 8.1, its PyTorch code",
    convs=(replace(_SEED_MERGED.convs[0], padding=1), *_SEED_MERGED.convs[1:]),
    hidden=(4096, 4096),
    dropout=0.5,
    dropout_position="after",
    num_classes=10,
    in_channels=1,
    init="xavier",
    departures=(
        "One channel and ten classes.",
        "No towers and no LRN.",
        "conv1 is padded by 1: 54→26→12→5 pixels instead of 55→27→13→6, so fc6 reads 6400 values, not 9216.",
        "Xavier initial weights.",
    ),
)

_D2L_UNPADDED = replace(
    _D2L,
    name="d2l-unpadded",
    title="The same without the padding of conv1, as a tutorial prints it",
    source="tutorial 004, docs/tutorials.md; the book's MXNet and TensorFlow code",
    convs=(replace(_D2L.convs[0], padding=0), *_D2L.convs[1:]),
    departures=(
        *_D2L.departures[:2],
        "conv1 is not padded, which gives the same 54→26→12→5 pixels as the book's padding of 1: weights of one load "
        "into the other, and the logits differ.",
        "Xavier initial weights.",
    ),
    repair="As printed it is not valid Python: 'net ==' compares instead of assigning, and commas are missing after "
    "two pooling layers; with both fixed, the layers are as the tutorial intends.",
)

_CIFAR = replace(
    _TORCHVISION,
    name="cifar",
    title="AlexNet's layers for 32×32 images",
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
        "conv1 is 5×5 with stride 2 and padding 2 instead of 11×11 with stride 4, and pooled sizes round up: "
        "16→8→4→2 pixels.",
        "Widths 64-192-384-256-256 and one tower, from the 2014 one-GPU network.",
        "No LRN.",
        "Dropout comes before fc6 and fc7 instead of after them.",
        "Kaiming initial weights in the convolutions.",
    ),
    repair="With the tutorial's 11×11 stride-4 conv1, 32 pixels shrink to 7, 3, 3 and 1, and the last pooling layer "
    "raises an error; a 5×5 stride-2 conv1 and pooled sizes rounded up leave the 2×2 that its fc6 expects.",
)

_CIFAR_TOWERS = replace(
    _CIFAR,
    name="cifar-towers",
    title="The 32×32 network with two towers and LRN, for testing the paper's claims on small data",
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
        "Kaiming initial weights in the convolutions.",
    ),
    repair="",
)

_LENET = AlexNetSpec(
    name="lenet",
    title="LeNet-5 as built in tutorials: sigmoids and average pooling",
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
    departures=(
        "A different network: two convolutions, sigmoids, 2×2 average pooling, no dropout, 28×28 gray images.",
    ),
)

# Pooled sizes round up, and an average covers only existing pixels (cuda-convnet's AvgPooler). The newer copy of the
# 18 % network has the first ReLU after max pooling, which gives the same values.
_CONVNET_26 = AlexNetSpec(
    name="convnet-26",
    title="cuda-convnet's network for CIFAR-10 with 26 % error",
    source="computerhistory/AlexNet-Source-Code, example-layers/layers-80sec.cfg",
    convs=(
        ConvSpec(32, 5, padding=2, stages=_ACT_POOL, pool_ceil=True),
        ConvSpec(32, 5, padding=2, stages=_ACT_POOL, pool="avg", pool_ceil=True),
        ConvSpec(64, 5, padding=2, stages=_ACT_POOL, pool="avg", pool_ceil=True),
    ),
    hidden=(64,),
    dropout=0.0,
    num_classes=10,
    image_size=32,
    init="convnet-26",
    departures=(
        "A different network, by the paper's author: three 5×5 convolutions for 32×32 images, average pooling after "
        "the second and third, one hidden layer of 64 units, no dropout, no LRN.",
    ),
)

_CONVNET_18 = replace(
    _CONVNET_26,
    name="convnet-18",
    title="cuda-convnet's network for CIFAR-10 with 18 % error",
    source="computerhistory/AlexNet-Source-Code, example-layers/layers-18pct.cfg and layers-cifar/layers-18pct.cfg",
    convs=(
        *(replace(c, stages=("act", "pool", "rnorm")) for c in _CONVNET_26.convs[:2]),
        _CONVNET_26.convs[2],
    ),
    hidden=(),
    norm="lrn",
    spatial_norm=LRNSpec(size=3, alpha=5e-5, beta=0.75, k=1.0),
    init="convnet-18",
    departures=(
        "A different network, by the paper's author: three 5×5 convolutions for 32×32 images, average pooling after "
        "the second and third, no hidden layer, no dropout.",
        "A response norm over 3×3 pixels of each channel, instead of LRN, follows the first two pooling layers.",
    ),
)

ARCHITECTURES: dict[str, AlexNetSpec] = {
    spec.name: spec
    for spec in (
        *(_PAPER, _CODE2012, _HALF, _PAPER_SIX, _CUDA_CONVNET2),  # the authors' own
        *(_ONE_TOWER, _TORCHVISION, _TORCHVISION_LRN, _SEED_MERGED, _CAFFE, _CAFFENET),
        *(_D2L, _D2L_UNPADDED, _CIFAR, _CIFAR_TOWERS, _CONVNET_26, _CONVNET_18, _LENET),
    )
}

TORCHVISION = "torchvision/"
"""Prefix of the names of torchvision's classifiers; see `torchvision_models.py`."""

CALLED_ALEXNET = ("paper", "code2012", "torchvision", "caffe", "caffenet", "d2l", "cifar")
"""What a user who asks for AlexNet may mean."""

# ── selection ─────────────────────────────────────────────────────────────────────────────────────


def architecture(name: str, **settings: Any) -> AlexNetSpec:
    """Return the architecture called `name`, with the given fields of `AlexNetSpec` in place of its own, unless None.

    `image_size` is the side in pixels, `dropout` a probability in [0, 1), `width` scales channels and hidden units.
    `norm` is "lrn" (its own, or the paper's on conv1 and conv2 if it has none), "batch" (batch norm after each
    convolution instead) or "none". Raises `UserError` on an unknown name or an invalid number, and `ImageTooSmall`,
    suggesting another architecture, if images of the given size are too small.
    """
    if name.lower() == "alexnet":
        listed = ", ".join(f"'{known}' ({ARCHITECTURES[known].title})" for known in CALLED_ALEXNET)
        raise UserError(
            f"There is no architecture '{name}'; choose what you mean: {listed}, or another that 'alexnet arch' lists."
        )
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", name, ARCHITECTURES)
    given = {key: value for key, value in settings.items() if value is not None}
    if given.get("init", "torch") not in INITS:
        raise unknown_name("init", given["init"], INITS)
    spec = ARCHITECTURES[name]
    if given.get("norm") == "lrn" and spec.norm != "lrn":  # the paper's, within its towers if it has any
        convs = tuple(replace(c, stages=_ACT_LRN_POOL) if n < 2 else c for n, c in enumerate(spec.convs))
        spec = replace(spec, convs=convs, lrn=replace(PAPER_LRN, towers=max(c.groups for c in convs)))
    spec = replace(spec, **given)
    if "image_size" in given:
        try:
            layers(spec)
        except ImageTooSmall as error:
            other = nearest_that_fits(spec.image_size)
            advice = f" or an architecture made for such sizes, such as '{other}'." if other else "."
            raise ImageTooSmall(str(error).removesuffix(".") + advice, error.minimal) from None
    return spec


def nearest_that_fits(image_size: int) -> str | None:
    """Return the architecture whose own size is nearest to `image_size` among those that accept it, or None."""
    fit = [spec for spec in ARCHITECTURES.values() if minimal_image_size(spec) <= image_size]
    return min(fit, key=lambda spec: abs(spec.image_size - image_size)).name if fit else None
