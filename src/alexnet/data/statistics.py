"""Statistics of the training images: mean and standard deviation per channel, the mean image, the color PCA.

The mean image and the color covariance are sums over all pixels of all images, accumulated batch by batch. Pixels are
integers, so the sums are exact (float64 up to 2⁵³; all of ImageNet at 256 pixels, if white, is 5.5·10¹⁵) and do not
depend on batches or workers.
"""

from __future__ import annotations

import contextlib
import statistics
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from alexnet import rng
from alexnet.data.augment import Augment, ColorPCA
from alexnet.data.dataset import ImageArrays, ImageFiles
from alexnet.data.decode import BadImage, image_size
from alexnet.data.in_memory import decode_files
from alexnet.data.loader import BatchLoader
from alexnet.data.shards.reader import PackedImages
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.progress import Progress

SAMPLE_SIZE = 1000  # files sampled for mean and standard deviation if the images stay on disk
BATCH_SIZE = 32  # 50 MB of float64 at 256 pixels


@dataclass(frozen=True)
class Statistics:
    """Averages over a training set."""

    mean_image: torch.Tensor
    """float32 C×resize_side×resize_side, fractions of 1."""
    covariance: np.ndarray
    """Of the channels of all pixels: float64 C×C, in squared levels of 0…255."""


def compute_statistics(
    part: ImageArrays | ImageFiles, geometry: EvalTransform, *, workers: int = 0, progress: Progress | None = None
) -> Statistics:
    """Compute the mean image and color covariance of all images of `part`, as squares of `geometry.resize_side`.

    For a complete packed dataset they are read from its pack.json. Raises `BadImage` for an unreadable file.
    """
    if isinstance(part, PackedImages) and (known := _packed_statistics(part, geometry)) is not None:
        return known
    square = replace(geometry, size=geometry.resize_side)
    batches = BatchLoader(part, square, batch_size=BATCH_SIZE, workers=workers)
    channels, side, done = square.channels, square.size, 0
    total = torch.zeros(channels, side, side, dtype=torch.float64)
    products = torch.zeros(channels, channels, dtype=torch.float64)
    for batch in batches.batches(0):
        pixels = batch.images.cpu().double()
        total += pixels.sum(dim=0)
        flat = pixels.transpose(0, 1).flatten(1)  # C×(N·side·side)
        products += flat @ flat.T
        done += len(pixels)
        if progress:
            progress(done, len(part), "measuring colors")
    mean = total.mean(dim=(1, 2)) / done
    covariance = products / (done * side * side) - torch.outer(mean, mean)
    return Statistics((total / (255 * done)).float(), covariance.numpy())


def _packed_statistics(part: PackedImages, geometry: EvalTransform) -> Statistics | None:
    """Return the statistics computed when `part` was packed, if it is complete and has the same geometry."""
    stored, format = part.statistics(), part.shards.format
    if stored is None or geometry.squash:
        return None
    if (format.side, format.channels) != (geometry.resize_side, geometry.channels):
        return None
    mean_image, covariance = stored
    return Statistics(torch.from_numpy(mean_image / 255).float(), covariance)


def color_pca(covariance: np.ndarray) -> ColorPCA:
    """Return the eigenvectors of a 3×3 covariance in levels of 0…255 and the standard deviations, largest first.

    The sign of an eigenvector is arbitrary; here its largest component is positive. Values are rounded to be equal on
    all machines. Raises `UserError` for gray images.
    """
    variances, columns = np.linalg.eigh(covariance)
    std = np.sqrt(np.maximum(variances[::-1], 0))
    vectors = columns.T[::-1]
    vectors = vectors * np.sign(np.take_along_axis(vectors, np.abs(vectors).argmax(1)[:, None], 1))
    if std[1] <= 0.01 * std[0]:
        raise UserError(
            "The color PCA of gray images has one direction only (standard deviations of "
            f"{std[0]:.2f}, {std[1]:.2f} and {std[2]:.2f} levels along the components); set pca_basis to "
            "imagenet, or pca_noise to 0."
        )
    return ColorPCA(tuple(round(float(s), 4) for s in std), tuple(round(float(v), 6) for v in vectors.flatten()))


def mean_and_std(
    part: ImageArrays | ImageFiles, geometry: EvalTransform, seed: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation per channel, as fractions of 1 to four places.

    Uses all pixels of images in memory, or of `SAMPLE_SIZE` files decoded to the same squares that would be kept in
    memory.
    """
    if isinstance(part, ImageFiles):
        chosen = rng.permutation(seed, 0, len(part))[:SAMPLE_SIZE]
        part = decode_files(part.take(np.sort(chosen)), geometry, Augment())
    channels = part.images.shape[1]
    # histograms are exact and need no float copy of the data
    counts = torch.stack([torch.bincount(part.images[:, c].flatten(), minlength=256) for c in range(channels)]).numpy()
    levels = np.arange(256) / 255
    mean = counts @ levels / counts.sum(axis=1)
    variance = counts @ levels**2 / counts.sum(axis=1) - mean**2
    std = np.sqrt(np.maximum(variance, 1e-6))  # zero for images of a single color
    return tuple(round(float(m), 4) for m in mean), tuple(round(float(s), 4) for s in std)


def median_short_side(part: ImageArrays | ImageFiles, samples: int = SAMPLE_SIZE) -> float | None:
    """Return the median short side in pixels of `samples` images, evenly spaced, from their headers; None if none of
    these can be read."""
    if isinstance(part, ImageArrays):
        return min(part.images.shape[-2:])
    sides = []
    for i in np.unique(np.linspace(0, len(part) - 1, min(samples, len(part))).astype(int)).tolist():
        with contextlib.suppress(BadImage):
            sides.append(min(image_size(part.raw(i))))
    return statistics.median(sides) if sides else None


IMAGENET_MEAN_IMAGE = Path(__file__).with_name("imagenet_mean.npy")
"""Mean of ImageNet's training images, float16 3×256×256, RGB, levels of 0…255: `data_mean` of cuda-convnet2's
make-data/input_meta (Apache-2.0), rounded to a sixteenth of a level, above 128 to an eighth."""


def read_mean_image(path: str | Path, geometry: EvalTransform) -> torch.Tensor:
    """Read a mean image from a .npy file: C×S×S or S×S×C, RGB, levels of 0…255, S = `geometry.resize_side`, to float32
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
            f"The mean image {path} is {'×'.join(map(str, values.shape))}, and these images are "
            f"{channels}×{side}×{side}; give one computed from images of that size, or set mean_image to own."
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and 1 < high <= 255):  # NaN fails too
        raise UserError(
            f"The mean image {path} holds values from {low:g} to {high:g}; they must be levels from 0 to 255."
        )
    return torch.from_numpy(values.astype(np.float32) / 255)
