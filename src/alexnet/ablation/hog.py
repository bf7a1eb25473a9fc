"""The baseline without a network: scikit-image's HOG of Dalal and Triggs, scikit-learn's linear SVM."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from alexnet.data.dataset import ImageDataset
from alexnet.data.datasets import load_dataset
from alexnet.data.deep import ValueRange
from alexnet.data.in_memory import decode_splits, without_bad_files
from alexnet.data.transforms import EvalTransform
from alexnet.data.value_range import find_value_range
from alexnet.errors import missing_package
from alexnet.text import TextOptions
from alexnet.training.recipe import Recipe

HOG_CELLS = 8  # per side: cells of 4×4 pixels in images of 32×32
SVM_PENALTIES = (0.01, 0.1)  # liblinear's C, chosen on the val split


def hog_svm(recipe: Recipe) -> tuple[float, int, int]:
    """Return the top-1 accuracy of a linear SVM on HOG features, on test if there is such a split, else on val, with
    the number of classes and of images there.

    C is chosen on val; the SVM is trained on the training split alone, as the network is. Images are resized to the
    recipe's image size. Raises `UserError` if scikit-image is not installed.
    """
    from sklearn.svm import LinearSVC

    data = recipe.data
    by_name, bad = extract_features(
        data.dataset, data.path, data.labels, data.text, data.skip_bad, recipe.model.image_size or 32, data.value_range
    )
    dataset = load_dataset(
        data.dataset, data.path, labels=data.labels, text=data.text, seed=recipe.run.seed, bad=bad,
        hold_out=data.validate_on == "val",
    )  # fmt: skip
    features = {name: np.stack([by_name[n] for n in part.names]) for name, part in dataset.splits.items()}
    targets = {name: part.targets.numpy() for name, part in dataset.splits.items()}
    svms = [LinearSVC(C=c, dual=True, random_state=recipe.run.seed) for c in SVM_PENALTIES]
    for svm in svms:
        svm.fit(features["train"], targets["train"])
    best = max(svms, key=lambda svm: svm.score(features[recipe.data.validate_on], targets[recipe.data.validate_on]))
    reported = "test" if "test" in features else recipe.data.validate_on
    top1 = float(best.score(features[reported], targets[reported]))
    return top1, len(dataset.classes), len(targets[reported])


@functools.lru_cache(maxsize=1)  # seeds only change the split
def extract_features(
    name: str,
    data: Path | None,
    labels: Path | None,
    text: TextOptions,
    skip_bad: bool,
    size: int,
    value_range: ValueRange | None,
) -> tuple[dict[str, np.ndarray], list[tuple[str, str]]]:
    """Return the features of every image of a dataset, by the image's name, and the unreadable files.

    Images of more than 8 bits are scaled from `value_range`, or from what is measured, as for the network.
    """

    def load(bad: list[tuple[str, str]]) -> tuple[ImageDataset, EvalTransform]:
        dataset = load_dataset(name, data, labels=labels, text=text, bad=bad, hold_out=False)
        zeros, ones = (0.0,) * dataset.channels, (1.0,) * dataset.channels
        deep = find_value_range(dataset, value_range)
        preprocess = EvalTransform(
            size=size, channels=dataset.channels, mean=zeros, std=ones, value_range=deep.value_range if deep else None
        )
        return decode_splits(dataset, preprocess), preprocess

    dataset, preprocess = without_bad_files(load, skip_bad)
    features: dict[str, np.ndarray] = {}
    for arrays in dataset.arrays.values():
        images = arrays.images if arrays.eval_ready else preprocess.resize_batch(arrays.images)
        rows = hog_features(images.permute(0, 2, 3, 1).numpy())
        features |= zip(arrays.names, rows, strict=True)
    return features, dataset.bad


def hog_features(images: np.ndarray) -> np.ndarray:
    """Return HOG features, float32 N×F, of uint8 images N×H×W×C: 9 orientations, blocks of 2×2 cells."""
    try:
        from skimage.feature import hog
    except ModuleNotFoundError:
        raise missing_package("The claim on HOG features", "scikit-image", "ablate") from None
    cell = images.shape[1] // HOG_CELLS
    return np.stack([
        hog(image, 9, (cell, cell), (2, 2), block_norm="L2-Hys", channel_axis=-1).astype(np.float32)
        for image in images
    ])  # fmt: skip
