"""The forms that a data set takes here: pictures on disk, pictures in memory, and a whole set in its splits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from alexnet.data.transforms import EvalTransform

if TYPE_CHECKING:
    import torch

RawImage = Path | bytes | np.ndarray
"""A picture's file, the bytes of one, or its pixels, uint8 H×W×C."""

SplitRows = list[tuple[str, str]]
"""Rows (file name, split), as `split.csv` keeps them."""


@dataclass(frozen=True)
class ImageFiles:
    """Pictures on disk, decoded when they are needed."""

    root: Path
    """The folder that the names start from."""
    names: list[str]
    """Paths below `root`, with / between folders on every system."""
    targets: torch.Tensor
    """Class numbers, int64 of shape (N,)."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        return [self.root / name for name in self.names]

    def raw(self, i: int) -> RawImage:
        """Picture `i` in the form that it is kept in, which `images.decode` reads. Raises `UserError`."""
        return self.root / self.names[i]

    def describe(self, i: int) -> str:
        """What picture `i` is called in a sentence for the user."""
        return str(self.root / self.names[i])

    def check(self, preprocess: EvalTransform) -> None:
        """Raise `UserError` if these pictures cannot be brought into the form that `preprocess` asks for."""

    def take(self, indices: np.ndarray) -> ImageFiles:
        """Those at `indices`, in that order."""
        import torch

        return ImageFiles(self.root, [self.names[i] for i in indices], self.targets[torch.as_tensor(indices)])


@dataclass(frozen=True)
class ImageArrays:
    """Decoded pictures."""

    images: torch.Tensor
    """uint8 N×C×H×W."""
    targets: torch.Tensor
    """Class numbers, int64 of shape (N,)."""
    names: list[str]
    """What each is called: its path below the data folder, or split/number where there are no files."""
    eval_ready: bool = False
    """Whether the pictures were cut for evaluation as they were read, and must not be resized once more."""

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: np.ndarray) -> ImageArrays:
        """Those at `indices`, in that order."""
        import torch

        index, names = torch.as_tensor(indices), [self.names[i] for i in indices]
        return replace(self, images=self.images[index], targets=self.targets[index], names=names)


@dataclass(frozen=True)
class ImageDataset:
    """A data set, ready to train on."""

    name: str
    classes: tuple[str, ...]
    """Class names; a target is an index here."""
    splits: dict[str, ImageArrays | ImageFiles]
    """train, always; val and test where they exist."""
    channels: int
    """1 for grey data sets, 3 for RGB; files are decoded to either."""
    held_out: tuple[str, ...] = ()
    """The splits that were held out of train here and not given by the data set."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """Files that were left out because they cannot be read: (name, reason)."""
    notes: list[str] = field(default_factory=list)
    """Sentences that the user should see."""

    @property
    def split_rows(self) -> SplitRows:
        """What to write to split.csv, and give back as `split` to have this division again; empty where the data
        set came divided."""
        mine = ("train", *self.held_out) if self.held_out else ()
        return [(name, split) for split in mine for name in self.splits[split].names]
