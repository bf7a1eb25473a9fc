"""The recipes that ship, each a function whose docstring says what it is, from where, and what it was measured to give.

`alexnet train NAME` starts one; any flag after the name changes it.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path

from alexnet.errors import UserError, unknown_name
from alexnet.training.manual_schedule import SCHEDULE_145
from alexnet.training.recipe import Recipe, read_recipe

# Over all pixels of the training sets, as fractions of 1.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
FASHION_MEAN, FASHION_STD = (0.2860,), (0.3530,)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def digits() -> Recipe:
    """The embedded handwritten digits: no download, for a first look and for checking an installation.

    1,797 real digits from scikit-learn, enlarged to 32×32; a `cifar` network of half the width. Measured on two cores
    without bfloat16: test top-1 99.55 % (mean of 5 seeds, deviation 0.48 %, 269 images), val 99.85 %, 34 to 42 s.
    """
    return Recipe(
        name="digits", dataset="digits", arch="cifar", norm="batch", width=0.5, image_size=32,
        epochs=20, batch_size=64, lr=0.05, schedule="one-cycle", nesterov=True, decay_biases=False,
        label_smoothing=0.1, dropout=0.2, crop="pad", padding=3, rotate=10.0,
    )  # fmt: skip


def cifar10() -> Recipe:
    """CIFAR-10 in minutes on a laptop's processor: the 32×32 AlexNet with batch norm and a one-cycle schedule.

    Half the width, which trains at 1,210 images/s here instead of 312. Measured on two cores without
    bfloat16, on CIFAR-10 re-encoded as JPEG, one seed: test top-1 79.82 %, val 79.52 %, 8 min 44 s.
    """
    return Recipe(
        name="cifar10", dataset="cifar10", arch="cifar", norm="batch",
        width=0.5, epochs=10, batch_size=128, lr=0.1, schedule="one-cycle", nesterov=True, decay_biases=False,
        label_smoothing=0.1, dropout=0.0, crop="pad", padding=2, padding_mode="reflect", flip=True,
        mean=CIFAR10_MEAN, std=CIFAR10_STD,
    )  # fmt: skip


def cifar10_fast() -> Recipe:
    """CIFAR-10 to 78 % in the shortest time on two cores: `cifar10` at a quarter of the width, on all training images,
    in batches of 256, which take an eighth less time than those of 128.

    Validated on the test images, as speed runs are, and nothing is chosen by them: the last network counts.
    Measured there without bfloat16 on CIFAR-10 re-encoded as JPEG, three seeds: test top-1 78.63 % (78.57 to 78.71)
    after 178 s (170 to 184), validation after each epoch counted, reading the data not.
    """
    return dataclasses.replace(
        cifar10(), name="cifar10-fast", validate_on="test", width=0.25, epochs=14, batch_size=256, lr=0.2
    )


def cifar10_best() -> Recipe:
    """CIFAR-10 as well as five convolutions and three fully connected layers can: `cifar10` at its full width, on
    pictures enlarged to 64×64, which doubles the resolution of every layer, for 100 epochs with CutMix.

    For a GPU: not run yet.
    """
    return dataclasses.replace(
        cifar10(), name="cifar10-best", width=1.0, image_size=64, padding=4, epochs=100, cutmix=1.0, dropout=0.2
    )


def ablation() -> Recipe:
    """What `alexnet ablate` starts from: pictures of 32×32 in class folders, `cifar10` at a quarter of the width.

    Small enough that ten trainings fit into half an hour on two cores. Measured there without bfloat16 on CIFAR-10
    re-encoded as JPEG: test top-1 75.79 % (mean of 5 seeds, deviation .29 %), 2 min 15 s (one seed).
    """
    return dataclasses.replace(
        cifar10(), name="ablation", dataset="folder", width=0.25, epochs=8, image_size=32, mean=None, std=None
    )


def cifar10_seed() -> Recipe:
    """CIFAR-10 as a widespread tutorial trains it (its network repaired, which could not run; see docs/tutorials.md).

    100 epochs of SGD at .01 with momentum .9 and weight decay 5e-4, divided by 10 every 30; Kaiming fan-out
    convolutions and N(0, .01) linear layers; crop with padding 4 and flip; its mean and its (too small) deviation.
    Batch 128, and 32 on a CPU, as it advises.
    It claims 75 to 80 % and validates on the test images, so nothing is chosen by them here: the last network counts.
    """
    return Recipe(
        name="cifar10-seed", dataset="cifar10", arch="cifar", init="kaiming", validate_on="test",
        epochs=100, batch_size=None, lr=0.01, schedule="step", lr_step_size=30, lr_gamma=0.1, momentum=0.9,
        weight_decay=5e-4, crop="pad", padding=4, flip=True,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),
    )  # fmt: skip


def fashion_mnist() -> Recipe:
    """Fashion-MNIST on a laptop's processor: the 32×32 AlexNet with batch norm and a one-cycle schedule.

    Measured on two cores without bfloat16, one seed: test top-1 92.85 % (ten views 93.07 %), val 93.07 %; 28 epochs of
    54 to 61 s. With `--epochs 7` it takes 7 minutes (91.75 %, measured with dropout .2 and flips alone).
    """
    return Recipe(
        name="fashion-mnist", dataset="fashion-mnist", arch="cifar", norm="batch", image_size=32, width=0.5,
        epochs=28, batch_size=128, lr=0.1, schedule="one-cycle", nesterov=True, decay_biases=False,
        label_smoothing=0.1, dropout=0.0, crop="pad", padding=2, flip=True,
        mean=FASHION_MEAN, std=FASHION_STD,
    )  # fmt: skip


def fashion_mnist_d2l() -> Recipe:
    """Fashion-MNIST as the d2l book and its copies train it: enlarged to 224×224, plain SGD.

    Learning rate .01 without momentum or weight decay, Xavier-uniform weights as its library sets them, batch 128,
    10 epochs, no augmentation, pixels from 0 to 1. Validated on the test images, where the book reports 88.3 %.
    """
    return Recipe(
        name="fashion-mnist-d2l", dataset="fashion-mnist", arch="d2l", init="xavier", validate_on="test",
        epochs=10, batch_size=128, lr=0.01, schedule="constant", momentum=0.0, weight_decay=0.0,
        mean=(0.0,), std=(1.0,),
    )  # fmt: skip


def imagenet_torchvision() -> Recipe:
    """ImageNet as torchvision's reference scripts train their `alexnet`: expected 56.522 % top-1, 79.066 % top-5.

    90 epochs, batch 256 (32 on each of 8 GPUs), SGD at .01 with momentum .9 and weight decay 1e-4, divided by 10
    every 30; random resized crops of 224 and flips; evaluation on the central 224 of a short side of 256.
    Run here: 5 steps on 50 classes of Tiny-ImageNet. Its 90 epochs would take 41 days on two cores (32.5 images/s).
    """
    return Recipe(
        name="imagenet-torchvision", dataset="imagenet", arch="torchvision", image_size=224, crop_pct=0.875,
        epochs=90, batch_size=256, lr=0.01, schedule="step", lr_step_size=30, lr_gamma=0.1, momentum=0.9,
        weight_decay=1e-4, crop="resized", flip=True, mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip


def imagenet_2012() -> Recipe:
    """ImageNet as the run that gave the published figures: run 145 of the 2012 code, its layers-145.cfg, its
    layer-params-145.cfg and its data provider. Expected: 40.7 % top-1 and 18.2 % top-5 error with ten views.

    The network `code2012`; short side to 256, centre 256, random 224 and mirror image for each picture (with --set
    crop_group=32 one for each 32, as it had them); per-pixel mean image; colour noise on the published basis, divided
    by 1.1; SGD with the rate inside the velocity, .01 for weights and .02 for biases, which do not decay; dropout that
    leaves what it keeps unscaled; and the changes made by hand at epochs 25, 51, 67, 72 and 79. It was stopped at epoch
    91.
    Run here: 20 steps on 200 photographs. Its 90 epochs would take 97 days on two cores (13.8 images/s).
    """
    return Recipe(
        name="imagenet-2012", dataset="imagenet", arch="code2012", image_size=224, crop_pct=224 / 256,
        epochs=90, batch_size=128, lr=0.01, schedule="constant", lr_changes=SCHEDULE_145, optimizer="sgd2012",
        momentum=0.9, weight_decay=5e-4, bias_lr_mult=2.0, decay_biases=False, dropout_2012=True,
        crop="random", flip=True, mean_image="own", std=(1 / 255,) * 3,
        pca_noise=0.1, pca_basis="imagenet", pca_divide=True,
    )  # fmt: skip


def imagenet_paper() -> Recipe:
    """ImageNet as the paper prints it (sections 3 to 5): the network `paper`, one rate for all layers, divided by 10
    when the validation error stops improving, colour noise on the training set's own basis.

    The paper does not say how long it waits for an improvement (here 5 epochs), nor that biases do not decay (here
    all weights do). Expected: the same 40.7 / 18.2 % error, though nobody published this very network's.
    Run here: 20 steps on 200 photographs. Its 90 epochs would take 85 days on two cores (15.6 images/s).
    """
    return Recipe(
        name="imagenet-paper", dataset="imagenet", arch="paper", image_size=224, crop_pct=224 / 256,
        epochs=90, batch_size=128, lr=0.01, schedule="plateau", plateau_on="error", patience=5, lr_gamma=0.1,
        optimizer="sgd2012", momentum=0.9, weight_decay=5e-4, dropout_2012=True, crop="random", flip=True,
        mean_image="own", std=(1 / 255,) * 3, pca_noise=0.1, pca_basis="own",
    )  # fmt: skip


def imagenet_caffe() -> Recipe:
    """ImageNet as BVLC's bvlc_alexnet for Caffe (its solver.prototxt and train_val.prototxt). Expected: 57.1 % top-1
    and 80.2 % top-5 accuracy on the centre.

    The network `caffe`; pictures stretched to 256×256, random 227 and mirror image; mean image; batch 256; .01 for
    weights and .02 for biases, which do not decay, divided by 10 each 100,000 steps (20 epochs) of 450,000. Caffe's
    SGD keeps the rate inside the velocity too. Caffe subtracts its mean image where the crop was cut, here always its
    centre is used.
    Run here: 20 steps on 200 photographs. Its 90 epochs would take 86 days on two cores (15.6 images/s).
    """
    return Recipe(
        name="imagenet-caffe", dataset="imagenet", arch="caffe", image_size=227, crop_pct=227 / 256, squash=True,
        epochs=90, batch_size=256, lr=0.01, schedule="step", lr_step_size=20, lr_gamma=0.1, optimizer="sgd2012",
        momentum=0.9, weight_decay=5e-4, bias_lr_mult=2.0, decay_biases=False, crop="random", flip=True,
        mean_image="own", std=(1 / 255,) * 3,
    )  # fmt: skip


def folder() -> Recipe:
    """Your own pictures, one folder a class. Architecture, image size and width fit pictures and machine unless
    given with --arch; epochs, batch size, rate, augmentation and dropout fit the number of pictures unless given.

    With a few dozen pictures a class start from a trained network instead: --weights RUN.
    """
    return Recipe(
        name="folder", dataset="folder", norm="batch",
        epochs=20, batch_size=128, lr=0.1, schedule="one-cycle", nesterov=True, decay_biases=False,
        label_smoothing=0.1, crop="resized", scale=(0.35, 1.0), flip=True,
        auto_fields=("epochs", "batch_size", "lr", "augment", "dropout"),
    )  # fmt: skip


RECIPES: dict[str, Callable[[], Recipe]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        digits, cifar10, cifar10_fast, cifar10_best, ablation, cifar10_seed, fashion_mnist, fashion_mnist_d2l,
        imagenet_torchvision, imagenet_2012, imagenet_paper, imagenet_caffe, folder,
    )
}  # fmt: skip


def named_recipe(name: str) -> Recipe:
    """The recipe called `name`. Raises `UserError` with the nearest names if there is none."""
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    return RECIPES[name]()


def find_recipe(given: str) -> Recipe:
    """What the word after `alexnet train` names: a recipe, a `recipe.json`, or a folder of pictures or an archive."""
    path = Path(given)
    if given in RECIPES:
        return named_recipe(given)
    if path.suffix == ".json":
        return read_recipe(path)
    if path.exists():
        return dataclasses.replace(named_recipe("folder"), data=path)
    if "/" in given or "\\" in given:
        raise UserError(f"There is no folder of pictures {given}; give the name of one, or of a recipe.")
    raise unknown_name("recipe or folder", given, RECIPES)


def describe(name: str) -> str:
    """What the recipe's docstring says."""
    return inspect.getdoc(RECIPES[name]) or ""
