"""What computer vision did before: histograms of oriented gradients and a linear support vector machine.

Both from libraries (Dalal and Triggs' HOG from scikit-image, liblinear's SVM from scikit-learn), on the pictures and
the split that a recipe gives to its network.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from alexnet.data.dataset import ImageArrays
from alexnet.data.datasets import decode_files, load_dataset
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.training.recipe import Recipe

CELLS = 8  # along a side: cells of 4×4 pixels for pictures of 32×32
PENALTIES = (0.01, 0.1)  # liblinear's C, chosen on the val split


def hog_svm(recipe: Recipe) -> float:
    """Top-1 of HOG features and a linear SVM, on test where there is one, else on val.

    The penalty is chosen on val, and the machine is trained on the training split alone, as the network is. Pictures
    are resized to the recipe's image size. Raises `UserError` where scikit-image is not installed.
    """
    from sklearn.svm import LinearSVC

    source = load_dataset(
        recipe.dataset, recipe.data, labels=recipe.labels, seed=recipe.seed, skip_bad=recipe.skip_bad,
        hold_out=recipe.validate_on == "val",
    )  # fmt: skip
    known = _features(recipe.dataset, recipe.data, recipe.labels, recipe.skip_bad, recipe.image_size or 32)
    features = {name: np.stack([known[n] for n in part.names]) for name, part in source.splits.items()}
    targets = {name: part.targets.numpy() for name, part in source.splits.items()}
    machines = [LinearSVC(C=c, dual=True, random_state=recipe.seed) for c in PENALTIES]
    for machine in machines:
        machine.fit(features["train"], targets["train"])
    best = max(machines, key=lambda m: m.score(features[recipe.validate_on], targets[recipe.validate_on]))
    reported = "test" if "test" in features else recipe.validate_on
    return float(best.score(features[reported], targets[reported]))


@functools.lru_cache(maxsize=1)  # seeds divide the same pictures differently
def _features(name: str, data: Path | None, labels: Path | None, skip_bad: bool, size: int) -> dict[str, np.ndarray]:
    """The features of every picture of a data set, by the picture's name."""
    source = load_dataset(name, data, labels=labels, skip_bad=skip_bad, hold_out=False)
    channels = source.channels
    preprocess = EvalTransform(size=size, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    found: dict[str, np.ndarray] = {}
    for part in source.splits.values():
        pictures = part if isinstance(part, ImageArrays) else decode_files(part, preprocess)
        images = pictures.images if pictures.eval_ready else preprocess.resize_batch(pictures.images)
        rows = hog_features(images.permute(0, 2, 3, 1).numpy())
        found |= zip(pictures.names, rows, strict=True)
    return found


def hog_features(images: np.ndarray) -> np.ndarray:
    """uint8 N×H×W×C → float32 N×features: nine orientations, CELLS×CELLS cells, normalised in blocks of 2×2."""
    try:
        from skimage.feature import hog
    except ModuleNotFoundError:
        raise UserError("HOG features need scikit-image; install it with: pip install scikit-image.") from None
    cell = images.shape[1] // CELLS
    return np.stack([
        hog(image, 9, (cell, cell), (2, 2), block_norm="L2-Hys", channel_axis=-1).astype(np.float32)
        for image in images
    ])  # fmt: skip
