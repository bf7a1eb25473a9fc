"""What is to be said of a data set that was looked at: why training would refuse it, and what should be mended."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alexnet.data.check import Findings

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


def judge(found: Findings) -> None:
    """The warnings, the gravest first."""
    first: list[str] = []
    unreadable = sum(looked.reason is not None for looked in found.seen)
    if unreadable:
        first.append(f"{unreadable} of {len(found.names)} pictures cannot be read; --skip-bad trains without them.")
    if leaks := found.across(found.splits):
        a, b = leaks[0]
        first.append(
            f"Duplicates across splits: {counted(len(leaks), 'pair')}, such as {found.names[a]} and {found.names[b]}; "
            "what was learnt is then tested, and the result too good."
        )
    if torn := found.across(found.labels):
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
    if found.odd:
        kinds = Counter(kind for i in found.odd for kind in found.seen[i].oddities)
        shown = "; ".join(f"{kind} ({n})" if n > 1 else kind for kind, n in kinds.most_common(6))
        first.append(f"Readable but unusual: {counted(len(found.odd), 'picture')}; {shown}.")
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
