"""The range of values of a data set whose images have more than 8 bits, found on its training images.

All values of all training images are counted, so that few pixels decide nothing: at each end at
most one value in 10,000, or one per image of fewer pixels, may be beyond. Files of unsigned
integers use 0 to 2ⁿ − 1 for the smallest n that suffices, as their camera had n bits; others use
what the counts say, to a part in 128.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from alexnet.data.dataset import ImageDataset, RawImage
from alexnet.data.decode import BadImage, map_in_threads, open_image
from alexnet.data.deep import ValueRange, is_deep, load_values
from alexnet.errors import UserError
from alexnet.progress import Progress

_BEYOND = 1e-4  # share of all values that may be beyond the range at each end
_MAX_BEYOND = 0.01  # of images of fewer than 100 pixels, with one value per image


class Measured(NamedTuple):
    """The values of one deep image."""

    kind: str
    smallest: float
    largest: float
    bins: np.ndarray
    """The bins that hold values, uint16, ascending."""
    counts: np.ndarray
    """Number of values in each, uint32."""


@dataclass(frozen=True)
class FoundRange:
    """The range of a data set, and how its images fit it."""

    value_range: ValueRange
    images: int
    """All images that were looked at."""
    kinds: Counter[str]
    """Number of deep images of each kind."""
    beyond: int
    """Deep images with values beyond the range."""
    given: bool = False

    @property
    def sentence(self) -> str:
        """What to tell the user."""
        deep = self.kinds.total()
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in self.kinds.most_common())
        low, high = self.value_range
        source = "as given" if self.given else "measured on the training images; --value-range LO,HI overrides it"
        text = (
            f"{deep:,} of {self.images:,} images have more than 8 bits ({kinds}): {low:g} to {high:g} becomes 0 to "
            f"255, {source}."
        )
        if self.beyond:
            text += f" {self.beyond:,} of them have values beyond this range, which are clipped."
        if len(self.kinds) > 1:
            text += " One range may not suit several kinds of files; convert them to one kind."
        return text

    def to_dict(self) -> dict[str, object]:
        """Return the JSON document."""
        return {"range": list(self.value_range), "images": self.kinds.total(), "beyond": self.beyond}


class RangeFinder:
    """Collects the values of the images of a data set, one after the other: the range is that of
    the training images, or of the others if no training image is deep."""

    def __init__(self) -> None:
        self._images = 0
        self._extremes: list[tuple[float, float]] = []
        self._kinds = {True: Counter[str](), False: Counter[str]()}  # of training images, and of others
        self._counts = {train: np.zeros(1 << 16, dtype=np.int64) for train in (True, False)}

    def add(self, image: Measured | None, train: bool = True) -> None:
        """Count an image, None if it is not deep."""
        self._images += 1
        if image is not None:
            self._extremes.append((image.smallest, image.largest))
            self._kinds[train][image.kind] += 1
            self._counts[train][image.bins] += image.counts

    def result(self, given: ValueRange | None = None) -> FoundRange | None:
        """Return the range, unless it is `given`; None if no image is deep."""
        if not self._extremes:
            return None
        low, high = given or self._measured_range()
        beyond = sum(smallest < low or largest > high for smallest, largest in self._extremes)
        kinds = self._kinds[True] + self._kinds[False]
        return FoundRange((low, high), self._images, kinds, beyond, given is not None)

    def _measured_range(self) -> ValueRange:
        train = bool(self._kinds[True])
        kinds, counts = self._kinds[train], self._counts[train]
        cumulative = np.cumsum(counts)
        total = int(cumulative[-1])
        allowed = min(max(_BEYOND * total, kinds.total()), _MAX_BEYOND * total)
        last = int(np.flatnonzero(total - cumulative <= allowed)[0])
        if all(kind.endswith("unsigned") for kind in kinds):
            return 0.0, float(2 ** max(1, int(_lower_edge(last)).bit_length()) - 1)
        first = int(np.flatnonzero(cumulative - counts <= allowed)[-1])
        return _lower_edge(first), _lower_edge(last + 1)


def find_value_range(
    dataset: ImageDataset, given: ValueRange | None = None, progress: Progress | None = None
) -> FoundRange | None:
    """Measure the deep images of `dataset`, and find their range unless it is `given`; None if no image is deep.

    Unreadable images are left to those who read them.
    """
    finder = RangeFinder()
    parts = [(split, part) for split, part in dataset.files.items() if not part.verified]  # packed images have 8 bits
    sources = [(split, part, i) for split, part in parts for i in range(len(part))]
    found = map_in_threads(lambda file: measure_image(file[1].raw(file[2])), sources, progress, "measuring values")
    for (split, *_), image in zip(sources, found, strict=True):
        finder.add(image, split == "train")
    return finder.result(given)


def measure_image(source: RawImage) -> Measured | None:
    """Return the values of a deep image; None for others and for what cannot be read."""
    if isinstance(source, np.ndarray):
        return None
    try:
        with open_image(source) as (image, _):
            if not is_deep(image):
                return None
            deep = load_values(image)
    except BadImage:
        return None
    values = deep.values.ravel()
    counts = np.bincount(_bins(values), minlength=1 << 16)
    used = np.flatnonzero(counts)
    return Measured(
        deep.kind, float(values.min()), float(values.max()), used.astype(np.uint16), counts[used].astype(np.uint32)
    )


def range_of(image: Measured) -> ValueRange:
    """Return the range of a single image."""
    finder = RangeFinder()
    finder.add(image)
    found = finder.result()
    assert found is not None
    return found.value_range


def parse_value_range(text: str) -> ValueRange:
    """Return the range written as LO,HI. Raises `UserError`."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = 0.0
    if not (np.isfinite([low, high]).all() and low < high):
        raise UserError(f"--value-range {text} is not a range; give two numbers, such as 0,4095.")
    return low, high


def describe_clipped(count: int, value_range: ValueRange | None) -> str:
    """Return a sentence on `count` images with values beyond the range of a network's training images."""
    low, high = value_range or (0, 255)
    images = "1 image has" if count == 1 else f"{count:,} images have"
    return f"{images} values beyond {low:g} to {high:g}, the range of the training images; they were clipped."


# Bins are the float32 numbers that begin with the same 16 bits: sign, exponent and 7 bits of the fraction. So they are
# fine for any unit, and none holds integers of different length.


def _bins(values: np.ndarray) -> np.ndarray:
    """Return the bin of each value, int64, in ascending order of the values."""
    bits = values.astype(np.float32).view(np.uint32)
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))  # as floats compare
    return (ordered >> 16).astype(np.int64)


def _lower_edge(number: int) -> float:
    """Return the smallest value of a bin."""
    ordered = np.array([number << 16], dtype=np.uint32)
    bits = np.where(ordered >> 31, ordered & np.uint32(0x7FFFFFFF), ~ordered)
    return float(bits.astype(np.uint32).view(np.float32)[0])
