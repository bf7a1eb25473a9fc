"""A look at a data set before training: what is in it, what is wrong with it, and the command that trains on it.

`check` reads class folders, archives of them, a table of labels, and the layouts of CIFAR-10 and Fashion-MNIST. It
asks nothing of them that would keep it from listing everything at once; whether they can be learnt from is then judged
by the same rules as in training (`folders.scan`), whose sentence becomes the verdict. Every picture is looked at once,
by processes on all cores.
"""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from alexnet.data.quality.inspect import ImageInfo


@dataclass
class Findings:
    """What `check` found. Lists of pictures are indices into `names`."""

    data: Path
    """What was given: a folder, an archive, or where the labels lie."""
    root: Path
    """The folder that the names start from: of an archive, where it was unpacked."""
    labels_file: Path | None
    recipe: str
    """The recipe that reads it: folder, cifar10 or fashion-mnist."""
    names: list[str]
    labels: list[str]
    """The class of each picture; empty where it lies in none."""
    splits: list[str]
    """train, val or test of each picture; `all` where the data is not divided."""
    order: Sequence[str]
    """The classes in the order of their numbers."""
    seen: list[ImageInfo] = field(default_factory=list, repr=False)
    pixels: torch.Tensor | None = field(default=None, repr=False)
    """uint8 N×C×H×W of data sets that are no files."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(Name, reason) of what cannot be read, rows of a table and folders included."""
    exact: list[list[int]] = field(default_factory=list)
    """Groups of pictures that are the same to the byte."""
    near: list[tuple[int, int]] = field(default_factory=list)
    """Pairs that look the same and are not the same to the byte."""
    warnings: list[str] = field(default_factory=list)
    """What should be mended, a sentence each."""
    notes: list[str] = field(default_factory=list)
    """What is good to know, a sentence each."""
    blocking_error: str | None = None
    """Why it cannot be trained on as it is: the sentence that training would say."""

    @property
    def classes(self) -> dict[str, int]:
        """Pictures of each class, unreadable ones included, the classes in the order of their numbers."""
        counts = Counter(self.labels)
        return {label: counts[label] for label in self.order}

    @property
    def by_split(self) -> dict[str, dict[str, int]]:
        """The same for each split."""
        counts = Counter(zip(self.splits, self.labels, strict=True))
        present = [split for split in ("all", "train", "val", "test") if split in set(self.splits)]
        return {s: {label: counts[s, label] for label in self.classes if counts[s, label]} for s in present}

    @property
    def good(self) -> list[int]:
        """The pictures that can be read."""
        return [i for i, looked in enumerate(self.seen) if looked.reason is None]

    @property
    def unusual(self) -> list[int]:
        """The pictures that can be read and have something unusual."""
        return [i for i, looked in enumerate(self.seen) if looked.oddities]

    @property
    def duplicates(self) -> list[tuple[int, int]]:
        """Pairs: the first of each group with every other of it, then those that only look the same."""
        return [(group[0], other) for group in self.exact for other in group[1:]] + self.near

    def crossing(self, of: Sequence[str]) -> list[tuple[int, int]]:
        """The pairs of duplicates that differ in `of`: `labels` or `splits`."""
        chained = [pair for group in self.exact for pair in itertools.pairwise(group)]
        return [(a, b) for a, b in chained + self.near if of[a] != of[b]]

    @property
    def command(self) -> str:
        """What trains on this data."""
        words = ["alexnet", "train", self.recipe]
        if self.labels_file is None or self.data != self.labels_file.parent:
            words += ["--data", str(self.data)]
        if self.labels_file is not None:
            words += ["--labels", str(self.labels_file)]
        return shlex.join(words + ["--skip-bad"] * any(looked.reason for looked in self.seen))

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.blocking_error:
            return f"This cannot be trained on yet: {self.blocking_error}"
        if self.bad or self.warnings:
            return "This can be trained on; the warnings say what would make it better."
        return "This can be trained on as it is."

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of DESIGN.md, and more."""
        good = [self.seen[i] for i in self.good]

        def named(pairs: Sequence[tuple[int, int]]) -> list[list[str]]:
            return [[self.names[a], self.names[b]] for a, b in pairs]

        return {
            "data": str(self.data),
            "images": len(self.names),
            "readable": len(good),
            "classes": self.classes,
            "splits": self.by_split,
            "bad": [{"path": name, "reason": reason} for name, reason in self.bad],
            "suspicious": [{"path": self.names[i], "reason": "; ".join(self.seen[i].oddities)} for i in self.unusual],
            "duplicates": named(self.duplicates),
            "near_duplicates": named(self.near),
            "across_splits": named(self.crossing(self.splits)),
            "across_classes": named(self.crossing(self.labels)),
            "width": min_median_max([looked.width for looked in good]),
            "height": min_median_max([looked.height for looked in good]),
            "aspect": min_median_max([looked.width / looked.height for looked in good]),
            "modes": dict(Counter(looked.mode for looked in good).most_common()),
            "formats": dict(Counter(looked.format for looked in good if looked.format).most_common()),
            "turned": sum(looked.turned for looked in good),
            "warnings": self.warnings,
            "notes": self.notes,
            "trainable": self.blocking_error is None,
            "verdict": self.verdict,
            "command": self.command,
        }


def min_median_max(values: Sequence[float]) -> list[float] | None:
    """Least, median and greatest; None of nothing."""
    return [round(v, 3) for v in (min(values), statistics.median(values), max(values))] if values else None


# ─── What is to be said of a data set that was looked at: why training would refuse it, and what should be mended.

FEW = 20
"""Pictures of a class for training, below which it is too small to be learnt from scratch."""
UNEVEN = 5.0
"""Times as many pictures in the largest class as in the smallest: more is an imbalance."""


def refusal(found: Findings) -> str | None:
    """Why training refuses what is left without the pictures that cannot be read."""
    good = found.good
    if not good:
        return f"none of its {len(found.names)} pictures can be read."
    learnt = Counter(found.labels[i] for i in good if found.splits[i] in ("train", "all"))
    present = {label for label, split in zip(found.labels, found.splits, strict=True) if split in ("train", "all")}
    if empty := sorted(label for label in present if not learnt[label]):
        return f"no picture of the class '{empty[0]}' can be read; replace them or remove the class."
    if "all" in found.splits and max(learnt.values()) < 2:
        return "it has one picture a class, which leaves none to validate on; add more."
    return None


def collect_warnings(found: Findings) -> None:
    """The warnings, the gravest first."""
    first: list[str] = []
    unreadable = sum(looked.reason is not None for looked in found.seen)
    if unreadable:
        first.append(f"{unreadable} of {len(found.names)} pictures cannot be read; --skip-bad trains without them.")
    if leaks := found.crossing(found.splits):
        a, b = leaks[0]
        first.append(
            f"Duplicates across splits: {counted(len(leaks), 'pair')}, such as {found.names[a]} and {found.names[b]}; "
            "what was learnt is then tested, and the result too good."
        )
    if torn := found.crossing(found.labels):
        a, b = torn[0]
        first.append(
            f"Duplicates with two labels: {counted(len(torn), 'pair')}, such as {found.names[a]} and {found.names[b]}; "
            "one of the labels is wrong, or they only look the same."
        )
    copies = sum(len(group) - 1 for group in found.exact)
    if copies or found.near:
        first.append(
            f"Duplicates in all: {counted(copies, 'copy', 'copies')} to the byte and {counted(len(found.near), 'pair')}"
            " that look the same; each copy counts twice in what is learnt."
        )
    first += [_alike(spellings) for spellings in alike_labels(found.classes)]
    first += _sizes_of_classes(found)
    if found.unusual:
        kinds = Counter(kind for i in found.unusual for kind in found.seen[i].oddities)
        shown = "; ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in kinds.most_common(6))
        first.append(f"Readable but unusual: {counted(len(found.unusual), 'picture')}; {shown}.")
    found.warnings[:0] = first
    if turned := sum(looked.turned for looked in found.seen):
        found.notes.append(f"Stored turned or mirrored, and put upright as EXIF says: {counted(turned, 'picture')}.")
    names = list(found.classes)
    if all(name.isascii() and name.isdigit() for name in names) and names != sorted(names, key=int):
        found.notes.append(
            f"The classes are called by numbers and are put in the order of texts: {', '.join(names[:4])}."
        )


def counted(n: int, one: str, many: str = "") -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def alike_labels(classes: dict[str, int]) -> list[list[str]]:
    """Groups of labels that differ only by case or space, the commonest spelling first."""
    groups: dict[str, list[str]] = {}
    for label in classes:
        groups.setdefault(" ".join(label.split()).casefold(), []).append(label)
    return [sorted(group, key=lambda label: -classes[label]) for group in groups.values() if len(group) > 1]


def _alike(spellings: list[str]) -> str:
    shown = " and ".join(map(repr, spellings))
    return f"The labels {shown} differ only by case or space; if they mean the same, give them one name."


def _sizes_of_classes(found: Findings) -> list[str]:
    counts = Counter(
        label for label, split in zip(found.labels, found.splits, strict=True) if label and split in ("train", "all")
    )
    if len(counts) < 2:
        return []
    said = []
    ordered = counts.most_common()
    small = [label for label, n in reversed(ordered) if n < FEW]
    if small:
        said.append(
            f"Classes with fewer than {FEW} pictures to learn from: {len(small)} of {len(counts)}, such as "
            f"'{small[0]}' with {counts[small[0]]}; add pictures, or leave these classes out."
        )
    (most, largest), (least, smallest) = ordered[0], ordered[-1]
    if largest > UNEVEN * smallest:
        said.append(
            f"The classes are uneven: '{most}' has {largest} pictures and '{least}' {smallest}; a network that always "
            f"said '{most}' would be right in {largest / sum(counts.values()):.0%} of the cases."
        )
    return said
