"""Dataset types: images on disk, images in memory, and a dataset with its splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from alexnet.data.transforms import EvalTransform

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")

RawImage = Path | bytes | np.ndarray
"""An image file, its bytes, or its pixels, uint8 H×W×C."""

SplitRows = list[tuple[str, str]]
"""Rows (image name, split) of `split.csv`."""


@dataclass(frozen=True)
class ImageFiles:
    """Images on disk, decoded when needed."""

    root: Path
    """The folder that `names` are relative to."""
    names: list[str]
    """Paths below `root`, with / as separator on every system."""
    targets: torch.Tensor
    """Class indices, int64 (N,)."""

    verified: ClassVar[bool] = False
    """Whether checksums protect the images, which then need no check before training."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]

    def raw(self, i: int) -> RawImage:
        """Return image `i` as stored, a source for `decode_image`. Raises `UserError`."""
        return self.root / self.names[i]

    def describe(self, i: int) -> str:
        """Return the name of image `i` for messages."""
        return str(self.root / self.names[i])

    def check(self, preprocess: EvalTransform) -> None:
        """Raise `UserError` if these images cannot be read with `preprocess`; files always can."""

    def take(self, indices: np.ndarray) -> ImageFiles:
        """Return the images at `indices`, in that order."""
        import torch

        return ImageFiles(self.root, [self.names[i] for i in indices], self.targets[torch.as_tensor(indices)])


@dataclass(frozen=True)
class ImageArrays:
    """Decoded images in memory."""

    images: torch.Tensor
    """uint8 N×C×H×W."""
    targets: torch.Tensor
    """Class indices, int64 (N,)."""
    names: list[str]
    """Path below the data folder, or split/number for images that have no file."""
    eval_ready: bool = False
    """Whether the images are already resized and cropped for evaluation, and must not be resized again."""

    def __len__(self) -> int:
        return len(self.targets)

    def raw(self, i: int) -> np.ndarray:
        """Return the pixels of one image, uint8 H×W×C."""
        return self.images[i].permute(1, 2, 0).numpy()

    def take(self, indices: np.ndarray) -> ImageArrays:
        """Return the images at `indices`, in that order."""
        import torch

        index, names = torch.as_tensor(indices), [self.names[i] for i in indices]
        return replace(self, images=self.images[index], targets=self.targets[index], names=names)


@dataclass(frozen=True)
class ImageDataset:
    """A dataset with its classes and splits."""

    name: str
    classes: tuple[str, ...]
    """Class names; targets are indices into it."""
    splits: Mapping[str, ImageArrays | ImageFiles]
    """train, val and test, as far as they exist; `all` for evaluation data without splits."""
    channels: int
    """1 for gray datasets, 3 for RGB; files are decoded to it."""
    held_out: tuple[str, ...] = ()
    """The splits that were held out of train rather than predefined."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Unreadable files that were left out: (name, reason)."""
    notes: list[str] = field(default_factory=list)
    """Sentences to show the user."""

    @property
    def files(self) -> dict[str, ImageFiles]:
        """The splits that are not in memory."""
        return {split: part for split, part in self.splits.items() if isinstance(part, ImageFiles)}

    @property
    def arrays(self) -> dict[str, ImageArrays]:
        """The splits that are in memory."""
        return {split: part for split, part in self.splits.items() if isinstance(part, ImageArrays)}

    @property
    def split_rows(self) -> SplitRows:
        """The rows of split.csv, to pass to `load_dataset` as `split`; empty if the dataset came with its splits."""
        recorded = ("train", *self.held_out) if self.held_out else ()
        return [(name, split) for split in recorded for name in self.splits[split].names]


def list_first(names: Sequence[str]) -> str:
    """Join the first ten of `names`, with "..." if there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def order_splits(splits: Mapping[str, ImageArrays | ImageFiles]) -> dict[str, ImageArrays | ImageFiles]:
    """Return the splits in the order train, val, test, all."""
    return {split: splits[split] for split in (*SPLITS, "all") if split in splits}
