"""The recipes that ship, each a function whose docstring gives source, command, and measured time and accuracy.

`alexnet train NAME --data DIR` trains one (the digits need no data); flags after the name override its settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from pathlib import Path

from alexnet.errors import unknown_name
from alexnet.files import check_data_exists
from alexnet.training.recipe import FROM_SCRATCH, Recipe, read_recipe
from alexnet.training.settings import (
    AugmentationSettings,
    DataSettings,
    LayerWeightDecay,
    ModelSettings,
    OptimizationSettings,
    RunSettings,
    ScheduleChange,
    ScheduleSettings,
)

# Per channel, over all pixels of the training sets, from 0 to 1.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LEVELS = (1 / 255,) * 3  # as a standard deviation: inputs are levels of 0 to 255 minus the mean

# The run of the paper's single network, from the comments in the released code's layers/layer-params-145.cfg: weights
# start at .01, PCA noise at .1, and training ends at epoch 91. Biases stay at .02; at the end those of conv1 are frozen
# together with its weights.
SCHEDULE_145 = (
    ScheduleChange(25, lr=1e-3),
    ScheduleChange(51, lr=1e-4),
    ScheduleChange(67, ("conv1",), lr=1e-5, pca_noise=0.0),
    ScheduleChange(72, ("conv1",), lr=0.0, bias_lr=0.0),
    ScheduleChange(79, lr=1e-5),
    ScheduleChange(79, ("conv1",), lr=0.0, bias_lr=0.0),
)

# The same run, continued later: .001 again (conv1 remains frozen) and the noise back on. It ended in epoch 135.
SCHEDULE_145_CONTINUED = (
    *SCHEDULE_145,
    ScheduleChange(91, lr=1e-3, pca_noise=0.1),
    ScheduleChange(91, ("conv1",), lr=0.0),
    ScheduleChange(107, lr=1e-4),
    ScheduleChange(107, ("conv1",), lr=0.0),
    ScheduleChange(124, lr=1e-5, pca_noise=0.0),
    ScheduleChange(124, ("conv1",), lr=0.0),
)


def digits() -> Recipe:
    """The embedded handwritten digits, without a download: for a first try and to check an installation.

    1,797 digits from scikit-learn, enlarged to 32×32; a `cifar` network of half the width. `alexnet train` takes 17 s
    on two cores with bfloat16, 20 s in float32, and gives test top-1 99.70 and 99.55 % (5 seeds each, standard
    deviations .31 and .41; 269 images), validation 99.63 and 99.70 %. 20 epochs give 99.70 %, too (bfloat16, 5 seeds).
    """
    return Recipe(
        name="digits",
        model=ModelSettings(arch="cifar", norm="batch", width=0.5, image_size=32, dropout=0.2),
        data=DataSettings(dataset="digits"),
        augmentation=AugmentationSettings(crop="pad", padding=3, rotate=10.0),
        optimization=OptimizationSettings(
            batch_size=64, lr=0.05, nesterov=True, decay_biases=False, label_smoothing=0.1
        ),
        schedule=ScheduleSettings(epochs=10, kind="one-cycle"),
    )


def cifar10() -> Recipe:
    """CIFAR-10 in minutes on a laptop CPU: the 32×32 AlexNet with batch norm and a one-cycle schedule.

    Half the width, which trains at 1,210 images/s instead of 312. `alexnet train
    cifar10 --data DIR` takes 8 min 44 s on two cores without bfloat16 (CIFAR-10
    re-encoded as JPEG, one seed) and gives test top-1 79.82 %, validation 79.52 %.
    """
    return Recipe(
        name="cifar10",
        model=ModelSettings(arch="cifar", norm="batch", width=0.5, dropout=0.0),
        data=DataSettings(dataset="cifar10", mean=CIFAR10_MEAN, std=CIFAR10_STD),
        augmentation=AugmentationSettings(crop="pad", padding=2, padding_mode="reflect", flip=True),
        optimization=OptimizationSettings(
            batch_size=128, lr=0.1, nesterov=True, decay_biases=False, label_smoothing=0.1
        ),
        schedule=ScheduleSettings(epochs=10, kind="one-cycle"),
    )


def cifar10_fast() -> Recipe:
    """CIFAR-10 to 78 % in the shortest time on two cores: `cifar10` at 3/8 of the width, on all training images.

    Few epochs, each of which teaches more: Muon for the convolutions, flips that alternate by epoch, and biases that
    learn four times as fast; and 768 hidden units, which is enough. It validates on the test images, as speed runs
    do; nothing is selected by them, and the last network is the result. `alexnet train cifar10-fast --data DIR` takes
    60 s (55 to 63, four runs) on two cores with bfloat16, including validation but not reading the data (CIFAR-10
    re-encoded as JPEG), and gives test top-1 78.31 % (eleven seeds, 77.90 to 78.75).
    """
    return cifar10().replace(
        name="cifar10-fast", validate_on="test", width=0.375, spec_edits=("half-hidden",), epochs=4, batch_size=256,
        optimizer="muon", lr=0.1, kernel_lr_mult=0.5, bias_lr_mult=4.0, pct_start=0.1, label_smoothing=0.2,
        alternate_flip=True,
    )  # fmt: skip


def cifar10_best() -> Recipe:
    """CIFAR-10 as accurately as five convolutions and three linear layers allow: `cifar10` at full width.

    100 epochs. Images are enlarged to 64×64, which doubles the resolution of every layer, and mixed
    by CutMix. `alexnet train cifar10-best --data DIR` needs a GPU and has not been measured yet.
    """
    return cifar10().replace(
        name="cifar10-best", width=1.0, image_size=64, padding=4, epochs=100, cutmix=1.0, dropout=0.2
    )


def ablation() -> Recipe:
    """The bench of `alexnet ablate`: AlexNet in kind, small enough to train dozens of times on two cores.

    Two towers, LRN, overlapping pools, dropout, SGD with momentum and a rate that drops in a step; no batch norm,
    label smoothing or one-cycle. 32×32 images in class folders, as levels of 0 to 255 minus their mean, which is the
    scale that LRN's constants are made for; these are those of the authors' own CIFAR-10 network.
    """
    return Recipe(
        name="ablation",
        model=ModelSettings(
            arch="cifar-towers", norm="lrn", spec_edits=("cifar-lrn", "half-hidden"), width=0.5, image_size=32,
            dropout=0.5, init="xavier",
        ),
        data=DataSettings(dataset="folder", std=LEVELS),
        augmentation=AugmentationSettings(crop="pad", padding=2, padding_mode="reflect", flip=True),
        optimization=OptimizationSettings(batch_size=128, lr=0.003, bias_lr_mult=2.0, decay_biases=False),
        schedule=ScheduleSettings(epochs=12, kind="step", lr_step_size=8, lr_gamma=0.1),
        run=RunSettings(precision="fp32"),  # auto may choose another for the other arm
    )  # fmt: skip


def cifar10_seed() -> Recipe:
    """CIFAR-10 as a widely copied tutorial trains it, its network repaired (it could not run; see docs/tutorials.md).

    100 epochs of SGD at .01 with momentum .9 and weight decay 5e-4, divided by 10 every 30; Kaiming fan-out
    for convolutions and N(0, .01) for linear layers; crop with padding 4 and flip; its mean and its (too
    small) standard deviation; batch 128, or 32 on a CPU, as it advises. The tutorial claims 75 to 80 % and
    validates on the test images, so nothing is selected by them here, and the last network is the result.
    """
    return Recipe(
        name="cifar10-seed",
        model=ModelSettings(arch="cifar", init="kaiming"),
        data=DataSettings(
            dataset="cifar10", validate_on="test", mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)
        ),
        augmentation=AugmentationSettings(crop="pad", padding=4, flip=True),
        optimization=OptimizationSettings(batch_size=None, lr=0.01, momentum=0.9, weight_decay=5e-4),
        schedule=ScheduleSettings(epochs=100, kind="step", lr_step_size=30, lr_gamma=0.1),
    )


def convnet_26() -> Recipe:
    """CIFAR-10 as the network of Krizhevsky's cuda-convnet that reached 26 % error in 80 seconds, without augmentation.

    After example-layers/layers-80sec.cfg and layer-params-80sec.cfg of the 2012 code: mean image, levels of 0 to 255,
    batches of 128 in a fixed order, rates .001 for weights and .002 for biases inside the velocity, weight decay .004
    and .03 in the two linear layers. Those files name no number of epochs; 10, the last 2 at a tenth of the rates, are
    those of Caffe's copy (examples/cifar10/cifar10_quick). Order and initial weights are drawn by this package.
    """
    return Recipe(
        name="convnet-26",
        model=ModelSettings(arch="convnet-26"),
        data=DataSettings(
            dataset="cifar10", validate_on="test", mean_image="own", std=(1 / 255,) * 3, order="fixed"
        ),
        optimization=OptimizationSettings(
            batch_size=128, lr=0.001, optimizer="sgd2012", momentum=0.9, weight_decay=0.004,
            layer_weight_decay=(LayerWeightDecay(("fc4", "fc5"), 0.03),), bias_lr_mult=2.0, decay_biases=False,
        ),
        schedule=ScheduleSettings(
            epochs=10, kind="constant", lr_changes=(ScheduleChange(9, lr=1e-4, bias_lr=2e-4),)
        ),
    )  # fmt: skip


def convnet_18() -> Recipe:
    """CIFAR-10 as the network of Krizhevsky's cuda-convnet that reached 18 % error in 20 minutes, without augmentation.

    As `convnet-26`, after example-layers/layers-18pct.cfg and layer-params-18pct.cfg (layers-cifar/ has the same
    network and rates), with weight decay 1 in its only linear layer. The rates are divided by 10 after 120 epochs and
    again 10 later, as those files say; that training ends another 10 later is Caffe's choice (cifar10_full).
    """
    return convnet_26().replace(
        name="convnet-18",
        arch="convnet-18",
        layer_weight_decay=(LayerWeightDecay(("fc4",), 1.0),),
        epochs=140,
        lr_changes=(ScheduleChange(121, lr=1e-4, bias_lr=2e-4), ScheduleChange(131, lr=1e-5, bias_lr=2e-5)),
    )


def fashion_mnist() -> Recipe:
    """Fashion-MNIST on a laptop CPU: the 32×32 AlexNet with batch norm and a one-cycle schedule.

    `alexnet train fashion-mnist --data DIR` takes 28 epochs of 54 to 61 s on two cores without
    bfloat16 (one seed) and gives test top-1 92.85 % (ten views: 93.07 %), validation 93.07 %.
    With `--epochs 7` it takes 7 minutes (91.75 %, measured with dropout .2 and flips only).
    """
    return Recipe(
        name="fashion-mnist",
        model=ModelSettings(arch="cifar", norm="batch", image_size=32, width=0.5, dropout=0.0),
        data=DataSettings(dataset="fashion-mnist", mean=FASHION_MEAN, std=FASHION_STD),
        augmentation=AugmentationSettings(crop="pad", padding=2, flip=True),
        optimization=OptimizationSettings(
            batch_size=128, lr=0.1, nesterov=True, decay_biases=False, label_smoothing=0.1
        ),
        schedule=ScheduleSettings(epochs=28, kind="one-cycle"),
    )


def mnist() -> Recipe:
    """MNIST's handwritten digits on a laptop CPU: the network of `fashion-mnist`, without flips, 10 epochs.

    `alexnet train mnist --data DIR`; without --data they are downloaded. KMNIST and other IDX files of
    28×28 pixels are trained on the same way. Mean and standard deviation are measured. Its result has
    not been measured yet.
    """
    return fashion_mnist().replace(name="mnist", dataset="mnist", flip=False, mean=None, std=None, epochs=10)


def fashion_mnist_d2l() -> Recipe:
    """Fashion-MNIST as in the PyTorch code of the book "Dive into Deep Learning" (d2l.ai): 224×224, plain SGD.

    Learning rate .01 without momentum or weight decay, Xavier-uniform weights as its library sets them, batch 128,
    10 epochs, no augmentation, pixels from 0 to 1. It validates on the test images, as the book does. Tutorial 004
    copies it without the padding of conv1: `--arch d2l-unpadded`.
    """
    return Recipe(
        name="fashion-mnist-d2l",
        model=ModelSettings(arch="d2l", init="xavier"),
        data=DataSettings(dataset="fashion-mnist", validate_on="test", mean=(0.0,), std=(1.0,)),
        optimization=OptimizationSettings(batch_size=128, lr=0.01, momentum=0.0, weight_decay=0.0),
        schedule=ScheduleSettings(epochs=10, kind="constant"),
    )


def imagenet_torchvision() -> Recipe:
    """ImageNet as torchvision's reference scripts train their `alexnet`: expected 56.522 % top-1, 79.066 % top-5.

    90 epochs, batch 256 (32 on each of 8 GPUs), SGD at .01 with momentum .9 and weight decay 1e-4, divided by 10
    every 30; random resized crops of 224 and flips; evaluation on the center 224 of a short side of 256. Tried
    here for 5 steps on 50 classes of Tiny-ImageNet; 90 epochs would take 41 days on two cores (32.5 images/s).
    """
    return Recipe(
        name="imagenet-torchvision",
        model=ModelSettings(arch="torchvision", image_size=224),
        data=DataSettings(dataset="imagenet", crop_pct=0.875, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        augmentation=AugmentationSettings(crop="resized", flip=True),
        optimization=OptimizationSettings(batch_size=256, lr=0.01, momentum=0.9, weight_decay=1e-4),
        schedule=ScheduleSettings(epochs=90, kind="step", lr_step_size=30, lr_gamma=0.1),
    )


def imagenet_2012() -> Recipe:
    """ImageNet as run 145 of the 2012 code, which gave the published result: 40.7 / 18.2 % error with ten views.

    After layers-145.cfg, layer-params-145.cfg and the data provider; the error is top-1 and top-5. The network
    `code2012`; short side resized to 256, center 256; one fixed order of batches; a random crop of 224 and flip for
    every 32 images; ImageNet's mean image and PCA noise on its basis, both as cuda-convnet2 published them, then
    division by 1.1; SGD with the rate inside the velocity, .01 for weights and .02 for biases, which do not decay;
    dropout that does not scale kept units; and the manual changes at epochs 25, 51, 67, 72 and 79. The original was
    stopped in epoch 91. Its order is not known, and its images were JPEGs encoded again at 256×256. Tried here for 20
    steps on 200 photographs; 90 epochs would take 97 days on two cores (13.8 images/s).
    """
    return Recipe(
        name="imagenet-2012",
        model=ModelSettings(arch="code2012", image_size=224),
        data=DataSettings(
            dataset="imagenet", crop_pct=224 / 256, mean_image="imagenet", std=(1 / 255,) * 3, order="fixed"
        ),
        augmentation=AugmentationSettings(
            crop="random", crop_group=32, flip=True, pca_noise=0.1, pca_basis="imagenet", pca_divide=True
        ),
        optimization=OptimizationSettings(
            batch_size=128, lr=0.01, optimizer="sgd2012", momentum=0.9, weight_decay=5e-4,
            bias_lr_mult=2.0, decay_biases=False, dropout_2012=True,
        ),
        schedule=ScheduleSettings(epochs=90, kind="constant", lr_changes=SCHEDULE_145),
    )  # fmt: skip


def imagenet_2012_continued() -> Recipe:
    """ImageNet as run 145 with the 44 epochs that its author added later, better than published: 40.25 / 17.99 % error.

    `imagenet-2012`, then from epoch 91 the rate .001 again and the noise back at .1; .0001 from epoch 107; .00001
    without noise from epoch 124; conv1 remains frozen (layer-params-145.cfg). The original was stopped in epoch 135.
    Tried here only as `imagenet-2012`, with which it begins.
    """
    return imagenet_2012().replace(name="imagenet-2012-continued", epochs=134, lr_changes=SCHEDULE_145_CONTINUED)


def imagenet_paper() -> Recipe:
    """ImageNet as the paper describes it (sections 3 to 5), with the network `paper`.

    One learning rate for all layers, divided by 10 when the validation error stops improving, and an end at the next
    plateau after three such drops, or after 90 epochs; PCA noise on the training set's own basis. The paper does not
    specify how long to wait for an improvement (here 5 epochs), nor that biases do not decay (here all parameters do).
    Expected: the same 40.7 / 18.2 % error, although none has been published for this exact network. Tried here for 20
    steps on 200 photographs; 90 epochs would take 85 days on two cores (15.6 images/s).
    """
    return Recipe(
        name="imagenet-paper",
        model=ModelSettings(arch="paper", image_size=224),
        data=DataSettings(dataset="imagenet", crop_pct=224 / 256, mean_image="own", std=(1 / 255,) * 3),
        augmentation=AugmentationSettings(crop="random", flip=True, pca_noise=0.1, pca_basis="own"),
        optimization=OptimizationSettings(
            batch_size=128, lr=0.01, optimizer="sgd2012", momentum=0.9, weight_decay=5e-4, dropout_2012=True
        ),
        schedule=ScheduleSettings(epochs=90, kind="plateau", plateau_on="error", patience=5, lr_gamma=0.1, max_drops=3),
    )


def imagenet_caffe() -> Recipe:
    """ImageNet as BVLC's bvlc_alexnet for Caffe: expected 57.1 % top-1, 80.2 % top-5 on the center crop.

    After its solver.prototxt and train_val.prototxt. The network `caffe`; images squashed to 256×256, random
    crop of 227 and flip; mean image; batch 256; .01 for weights and .02 for biases, which do not decay, divided
    by 10 every 100,000 steps (20 epochs) of 450,000. Caffe's SGD also keeps the rate inside the velocity. Caffe
    subtracts the mean image at the position of the crop; here it is always the center of the mean image. Tried
    here for 20 steps on 200 photographs; 90 epochs would take 86 days on two cores (15.6 images/s).
    """
    return Recipe(
        name="imagenet-caffe",
        model=ModelSettings(arch="caffe", image_size=227),
        data=DataSettings(dataset="imagenet", crop_pct=227 / 256, squash=True, mean_image="own", std=(1 / 255,) * 3),
        augmentation=AugmentationSettings(crop="random", flip=True),
        optimization=OptimizationSettings(
            batch_size=256, lr=0.01, optimizer="sgd2012", momentum=0.9, weight_decay=5e-4,
            bias_lr_mult=2.0, decay_biases=False,
        ),
        schedule=ScheduleSettings(epochs=90, kind="step", lr_step_size=20, lr_gamma=0.1),
    )  # fmt: skip


def folder() -> Recipe:
    """Your own images, one folder per class.

    Architecture, image size and width are chosen by the images, the machine and the time budget; epochs, batch size,
    learning rate, augmentation and dropout by the number of images. Flags override each of them.

    With fewer than 200 color images per class, or up to 1,000 small ones, training starts from a small network of this
    package: first a linear classifier on its features, within seconds, then, from 30 per class on, all layers.
    --weights names another start.
    """
    return Recipe(
        name="folder",
        auto_fields=(
            "epochs",
            "batch_size",
            "lr",
            "lr_batch",
            "augment",
            "dropout",
            "weights",
            "backbone_lr_mult",
            *FROM_SCRATCH,
            "cutmix",
        ),
        model=ModelSettings(norm="batch"),
        data=DataSettings(dataset="folder"),
        augmentation=AugmentationSettings(crop="resized", scale=(0.35, 1.0), flip=True),
        optimization=OptimizationSettings(
            batch_size=128, lr=0.1, nesterov=True, decay_biases=False, label_smoothing=0.1
        ),
        schedule=ScheduleSettings(epochs=20, kind="one-cycle"),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        digits, cifar10, cifar10_fast, cifar10_best, ablation, cifar10_seed, convnet_26, convnet_18,
        fashion_mnist, fashion_mnist_d2l, mnist, imagenet_torchvision, imagenet_2012, imagenet_2012_continued,
        imagenet_paper, imagenet_caffe, folder,
    )
}  # fmt: skip


def named_recipe(name: str) -> Recipe:
    """Return the recipe called `name`. Raises `UserError` with the nearest names if there is none."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()


def find_recipe(given: str) -> Recipe:
    """Return what the argument of `alexnet train` names: a recipe, a recipe.json, or a folder or archive of images."""
    path = Path(given)
    if given in RECIPES:
        return named_recipe(given)
    if path.suffix == ".json":
        return read_recipe(path)
    if path.exists():
        return named_recipe("folder").replace(data=path)
    if "/" in given or "\\" in given:
        check_data_exists(path)
    raise unknown_name("recipe or folder", given, RECIPES)


def default_recipe(settings: Iterable[str]) -> str:
    """Return the recipe of a training that names none: for own images if `settings` name them, else the digits."""
    return "folder" if {"data", "labels"} & set(settings) else "digits"


def describe(name: str) -> str:
    """Return the docstring of a recipe."""
    return inspect.getdoc(RECIPES[name]) or ""
