"""The paper's colour noise: pictures brightened and tinted along the directions in which colours vary most.

Added to normalised pictures, after their mean is subtracted, since it needs neither rounding nor clipping there. The
basis is ImageNet's, or measured on the training pictures by `statistics.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from alexnet import runtime
from alexnet.errors import UserError


@dataclass(frozen=True)
class ColourBasis:
    """The principal colours of a data set's RGB pixels. Raises `UserError` for what cannot be one."""

    std: tuple[float, ...]
    """Standard deviation of the pixels along each of the three, the largest first, in levels of 0…255."""
    vectors: tuple[float, ...]
    """Nine numbers: the unit RGB vectors of the three, one after the other."""

    def __post_init__(self) -> None:
        numbers = (*self.std, *self.vectors)
        if (len(self.std), len(self.vectors)) != (3, 9) or not np.isfinite(numbers).all() or min(self.std) < 0:
            raise UserError(
                "A colour basis is three deviations, none negative, and nine numbers, the three RGB vectors one after "
                f"the other, not {self.std} and {self.vectors}."
            )


IMAGENET_BASIS = ColourBasis(
    (121.78, 37.09, 19.72), (-0.5635, -0.5762, -0.5920, -0.7126, -0.0235, 0.7012, 0.4180, -0.8170, 0.3973)
)
"""ImageNet's, from the files that cuda-convnet2 publishes (`make-data/input_meta`), to two and four places."""


def colour_noise(
    x: torch.Tensor,
    ids: Sequence[int] | np.ndarray | torch.Tensor,
    epoch: int,
    seed: int,
    basis: ColourBasis,
    strength: float,
    *,
    std: Sequence[float],
    divide: bool = False,
) -> torch.Tensor:
    """The paper's PCA noise (section 4.1), added in place to normalised pictures and returned: float N×3×H×W.

    To each picture `strength`·Σ zᵢσᵢpᵢ, one colour for all its pixels, with z from N(0, 1). The σᵢ are standard
    deviations, as in the 2012 code; the paper's text says eigenvalues. `std` is what `normalise` divided by, as
    fractions of 1. `divide` then divides all by 1 + `strength`, as that code does. At strength 0 nothing happens.
    """
    if strength == 0:
        return x
    sample_ids = ids.numpy(force=True) if isinstance(ids, torch.Tensor) else ids
    uniform = np.maximum(runtime.draws(seed, epoch, sample_ids, "colour noise", 3), 2.0**-54)  # 0 would be -∞
    z = torch.special.ndtri(torch.from_numpy(uniform)).numpy()  # N×3
    axes = np.asarray(basis.std)[:, None] * np.reshape(basis.vectors, (3, 3))  # σᵢpᵢ, in levels of 0…255
    shrink = 1 / (1 + strength) if divide else 1.0
    colours = (z[:, :, None] * axes).sum(axis=1) * (strength * shrink / 255) / np.asarray(std)  # N×3
    if divide:
        x.mul_(shrink)
    return x.add_(torch.tensor(colours, dtype=x.dtype).to(x.device, non_blocking=True)[:, :, None, None])
