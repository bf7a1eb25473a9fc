"""What is measured on the training pictures: each channel's mean and deviation, the mean image, the principal colours.

The mean image and the covariance of the colours are sums over every pixel of every picture, taken in one pass that
holds a batch at a time. Pixels are whole numbers, so that the sums are exact (in float64 up to 2⁵³: all of ImageNet
at 256 pixels, were it white, is 5.5·10¹⁵) and do not depend on batches or workers.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from alexnet import rng
from alexnet.data.augment import Augment, ColorPCA
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.datasets import decode_files
from alexnet.data.loader import BatchLoader, FromFiles, InMemory
from alexnet.data.shards.reader import PackedImages
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError

SAMPLE_SIZE = 1000  # files that mean and deviation are measured on where the pictures stay on disk
BATCH_SIZE = 32  # 50 MB of float64 at 256 pixels

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Statistics:
    """Sums over a training set, divided."""

    mean_image: torch.Tensor
    """float32 C×square×square, fractions of 1."""
    covariance: np.ndarray
    """Of the pixels' channels: float64 C×C, in levels of 0…255, squared."""


def compute_statistics(
    part: ImageArrays | ImageFiles, geometry: EvalTransform, *, workers: int = 0, progress: Progress | None = None
) -> Statistics:
    """The mean image and the colours' covariance of all pictures of `part`, as squares of `geometry.square`.

    Of a whole packed data set they stand in its pack.json. Raises `BadImage` for a file that cannot be read.
    """
    if isinstance(part, PackedImages) and (known := _packed_statistics(part, geometry)) is not None:
        return known
    whole = replace(geometry, size=geometry.resize_side)
    batches: BatchLoader
    if isinstance(part, ImageFiles):
        batches = FromFiles(part, whole, batch_size=BATCH_SIZE, workers=workers)
    else:
        batches = InMemory(part, whole, batch_size=BATCH_SIZE)
    channels, side, done = whole.channels, whole.size, 0
    total = torch.zeros(channels, side, side, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    for batch in batches.batches(0):
        pixels = batch.images.cpu().double()
        total += pixels.sum(dim=0)
        flat = pixels.transpose(0, 1).flatten(1)  # C×(N·side·side)
        products += flat @ flat.T
        done += len(pixels)
        if progress:
            progress(done, len(part), "measuring colours")
    mean = total.mean(dim=(1, 2)) / done
    covariance = products / (done * side * side) - torch.outer(mean, mean)
    return Statistics((total / (255 * done)).float(), covariance.numpy())


def _packed_statistics(part: PackedImages, geometry: EvalTransform) -> Statistics | None:
    """What was summed when these pictures were packed, if it was all of these, as these squares."""
    found, form = part.statistics(), part.shards.format
    if found is None or (form.side, form.channels, geometry.squash) != (geometry.resize_side, geometry.channels, False):
        return None
    mean_image, covariance = found
    return Statistics(torch.from_numpy(mean_image / 255).float(), covariance)


def color_pca(covariance: np.ndarray) -> ColorPCA:
    """The eigenvectors of a 3×3 covariance in levels of 0…255, and the deviations along them, the largest first.

    An eigenvector may point either way; here its largest component is positive. Rounded, so that machines agree.
    Raises `UserError` where there are no colours to find.
    """
    variances, columns = np.linalg.eigh(covariance)
    std = np.sqrt(np.maximum(variances[::-1], 0))
    vectors = columns.T[::-1]
    vectors = vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1))
    if std[1] <= 0.01 * std[0]:
        raise UserError(
            "A basis from grey data has one direction only (the training pictures deviate by "
            f"{std[0]:.2f}, {std[1]:.2f} and {std[2]:.2f} levels along their principal colours); set pca_basis to "
            "imagenet, or pca_noise to 0."
        )
    return ColorPCA(tuple(round(float(s), 4) for s in std), tuple(round(float(v), 6) for v in vectors.flatten()))


def mean_and_std(
    part: ImageArrays | ImageFiles, geometry: EvalTransform, seed: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel over all pixels of the training images (of `SAMPLED` of them where they stay on disk), as fractions
    of 1 to four places. Of files it is the squares that crops are cut from, as they would be kept in memory: so a run
    learns from the same numbers either way."""
    if isinstance(part, ImageFiles):
        chosen = rng.permutation(seed, 0, len(part))[:SAMPLE_SIZE]
        part = decode_files(part.take(np.sort(chosen)), geometry, Augment())
    channels = part.images.shape[1]
    # Histograms are exact and need no float copy of the data.
    counts = np.stack([np.bincount(part.images[:, c].flatten().numpy(), minlength=256) for c in range(channels)])
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    variance = counts @ levels**2 / counts.sum(axis=1) - mean**2
    std = np.sqrt(np.maximum(variance, 1e-6))  # pictures of one colour have none
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def read_mean_image(path: str | Path, geometry: EvalTransform) -> torch.Tensor:
    """The mean image in a .npy file: C×S×S or S×S×C, RGB, levels of 0…255, S being `geometry.square` → float32
    C×S×S in fractions of 1. Raises `UserError` for anything else."""
    channels, side = geometry.channels, geometry.resize_side
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)  # mapped: a header may promise any size
    except OSError as error:
        raise UserError(f"The mean image {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"The mean image {path} is not an array of numbers that numpy.save wrote.") from error
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "uif":
        raise UserError(f"The mean image {path} is not an array of numbers that numpy.save wrote.")
    if values.shape == (side, side, channels):
        values = values.transpose(2, 0, 1)
    if values.shape != (channels, side, side):
        raise UserError(
            f"The mean image {path} is {'×'.join(map(str, values.shape))}, and these pictures are "
            f"{channels}×{side}×{side}; give one that was computed from such pictures, or set mean_image to own."
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and 1 < high <= 255):  # NaN fails too
        raise UserError(
            f"The mean image {path} holds values from {low:g} to {high:g}; they must be levels of 0 to 255."
        )
    return torch.from_numpy(values.astype(np.float32) / 255)
