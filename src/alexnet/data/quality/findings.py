"""The results of `alexnet check`: contents, defects, warnings, verdict, training command, and their JSON document.

The results are filled in by `check.py`. Errors that would stop training are those of
`image_folder`, which training raises too, and of `find_blocking_error`; warnings are written here.
"""

from __future__ import annotations

import itertools
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.data.dataset import EMPTY_FOLDER
from alexnet.data.decode import NEEDS_HEIF
from alexnet.data.quality.inspect import ImageInfo
from alexnet.data.value_range import FoundRange
from alexnet.text import BY_CONTENT, TextOptions, join_lines

if TYPE_CHECKING:
    import torch

MIN_CLASS_SIZE = 20
"""Training images below which a class is too small to be learned from scratch."""
MAX_IMBALANCE = 5.0
"""Ratio of the largest to the smallest class above which a warning is issued."""


FEW_IMAGES = 100
"""Training images per class below which pretrained weights are better than training from scratch."""
PRETRAINED = ("--arch", "torchvision/mobilenet_v3_small", "--weights", "DEFAULT")
"""Arguments of `alexnet train` that start from pretrained weights."""

MAX_NAMES = 3
"""Names that are listed of the files that cannot be read for one reason."""
MAX_SHOWN = 10
"""In a notebook: of the largest and of the smallest classes."""


@dataclass(frozen=True)
class Proposal:
    """Commands to run one after the other."""

    introduction: str
    """A sentence; empty if none is needed."""
    commands: list[str]


@dataclass(repr=False)
class Findings:
    """Results of checking a dataset. Lists of images are indices into `names`."""

    data: Path
    """The given path: a folder, an archive, or the folder of the label table."""
    root: Path
    """The folder that `names` are relative to; for an archive, where it was extracted."""
    labels_file: Path | None
    recipe: str
    """The recipe that trains on it: folder, cifar10, mnist or fashion-mnist."""
    names: list[str]
    labels: list[str]
    """The class of each image; empty if it has none."""
    splits: list[str]
    """train, val or test for each image; `all` if the dataset has no splits."""
    class_order: Sequence[str]
    """The classes in the order of their indices."""
    infos: list[ImageInfo] = field(default_factory=list)
    pixels: torch.Tensor | None = field(default=None)
    """uint8 N×C×H×W for datasets that are not files."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(Name, reason) of everything unreadable, including table rows and folders."""
    exact: list[list[int]] = field(default_factory=list)
    """Groups of byte-identical images."""
    near: list[tuple[int, int]] = field(default_factory=list)
    """Pairs of near duplicates that are not byte-identical."""
    warnings: list[str] = field(default_factory=list)
    """Problems that should be fixed, a sentence each."""
    notes: list[str] = field(default_factory=list)
    """Further information, a sentence each."""
    value_range: FoundRange | None = None
    """Of the images of more than 8 bits."""
    mendable: bool = False
    """Whether `check --fix` leaves out or merges something, and writes a copy that can be trained on."""
    blocking_error: str | None = None
    """Why the dataset cannot be trained on as it is: the message that training would give."""
    text: TextOptions = BY_CONTENT
    """How names and the table were read."""
    lang: str = "en"
    """The language in which it displays itself in a notebook, en or zh; the values stay in English."""

    @property
    def classes(self) -> dict[str, int]:
        """Images per class, including unreadable ones, in class order."""
        counts = Counter(self.labels)
        return {label: counts[label] for label in self.class_order}

    @property
    def present(self) -> dict[str, int]:
        """The classes that have images."""
        return {label: n for label, n in self.classes.items() if n}

    @property
    def by_reason(self) -> dict[str, list[str]]:
        """Names of what is unreadable by reason: HEIC, which a package reads, first, then the most frequent reasons.
        Class folders without images are not among them."""
        groups: dict[str, list[str]] = {}
        for name, reason in self.bad:
            if reason != EMPTY_FOLDER:
                groups.setdefault(reason, []).append(name)
        return dict(sorted(groups.items(), key=lambda group: (group[0] != NEEDS_HEIF, -len(group[1]))))

    @property
    def by_split(self) -> dict[str, dict[str, int]]:
        """Images per class for each split."""
        counts = Counter(zip(self.splits, self.labels, strict=True))
        present = [split for split in ("all", "train", "val", "test") if split in set(self.splits)]
        return {s: {label: counts[s, label] for label in self.classes if counts[s, label]} for s in present}

    @property
    def readable(self) -> list[int]:
        """The readable images."""
        return [i for i, info in enumerate(self.infos) if info.reason is None]

    @property
    def unusual(self) -> list[int]:
        """The readable images with anomalies."""
        return [i for i, info in enumerate(self.infos) if info.anomalies]

    @property
    def duplicates(self) -> list[tuple[int, int]]:
        """Pairs: the first image of each exact group with each other member, then the near duplicates."""
        return [(group[0], other) for group in self.exact for other in group[1:]] + self.near

    def duplicates_across(self, values: Sequence[str]) -> list[tuple[int, int]]:
        """Return the pairs of duplicates that differ in `values`: `labels` or `splits`."""
        chained = [pair for group in self.exact for pair in itertools.pairwise(group)]
        return [(a, b) for a, b in chained + self.near if values[a] != values[b]]

    @property
    def contradictions(self) -> list[tuple[int, int]]:
        """Pairs of duplicates that differ in both split and label, one for each image that has such copies."""
        found = [next(filter(self.differ_in_both, itertools.combinations(group, 2)), None) for group in self._distinct]
        return [pair for pair in found if pair] + list(filter(self.differ_in_both, self.near))

    @property
    def _distinct(self) -> list[list[int]]:
        """The exact groups, reduced to the first image of each split and label."""
        return [
            list({(self.splits[i], self.labels[i]): i for i in reversed(group)}.values())[::-1] for group in self.exact
        ]

    def differ_in_both(self, pair: tuple[int, int]) -> bool:
        """Return whether two images differ in split and in label."""
        a, b = pair
        return self.splits[a] != self.splits[b] and self.labels[a] != self.labels[b]

    @property
    def command(self) -> str | None:
        """The command that trains on this dataset; None if training would refuse."""
        return self._training_command() if self.blocking_error is None else None

    def _training_command(self, *more: str) -> str:
        data = (
            [] if self.labels_file is not None and self.data == self.labels_file.parent else ["--data", str(self.data)]
        )
        return self._command("train", self.recipe, *data, *["--skip-bad"] * bool(self.bad), *more)

    @property
    def images_per_class(self) -> float:
        """Readable training images per class."""
        counts = self.count_training(self.readable)
        return sum(counts.values()) / max(1, len(counts))

    def count_training(self, images: Iterable[int]) -> Counter[str]:
        """Return the number of training images among `images`, given as indices, by class."""
        return Counter(self.labels[i] for i in images if self.splits[i] in ("train", "all"))

    @property
    def has_few(self) -> bool:
        """Whether these are so few that pretrained weights are better than training from scratch."""
        return self.recipe == "folder" and self.images_per_class < FEW_IMAGES

    def proposals(self, fixed: Path | None = None) -> list[Proposal]:
        """Return what to do next, the best first; `fixed` is the cleaned copy if it has been written."""
        found = []
        if fixed is not None:
            trains = self.mendable or self.blocking_error is None
            train = shlex.join(["alexnet", "train", str(fixed)]) if trains else None
            pretrained = shlex.join(["alexnet", "train", str(fixed), *PRETRAINED])
        else:
            train, pretrained = self.command, self._training_command(*PRETRAINED)
        if train and self.has_few:
            few = (
                f"About {self.images_per_class:.0f} training images per class are few for training from scratch. "
                "Fine-tuning pretrained weights works better with so little data:"
            )
            found.append(Proposal(few, [pretrained]))
        if train:
            found.append(Proposal("Or from scratch:" if found else "", [train]))
        if fixed is None and self.fix_command:
            commands = [self.fix_command, shlex.join(["alexnet", "train", str(self._fixed_folder)])]
            start = "Or write" if found else "Write"
            found.append(Proposal(f"{start} a cleaned copy first, then train on it:", commands))
        return found

    @property
    def fix_command(self) -> str | None:
        """The command that writes a cleaned copy beside the dataset; None if that would mend nothing."""
        if not self.mendable:
            return None
        return self._command("check", str(self.data), "--fix", str(self._fixed_folder))

    @property
    def _fixed_folder(self) -> Path:
        data = self.data if self.data.name else self.data.resolve()
        return data.with_name(f"{data.name.split('.')[0]}-clean")

    def _command(self, *words: str) -> str:
        """Return the command with the flags that say how the dataset is read."""
        labels = ["--labels", str(self.labels_file)] if self.labels_file is not None else []
        text = [f"--{name}={value}" for name, value in vars(self.text).items() if value is not None]
        return shlex.join(["alexnet", *words, *labels, *text])

    @property
    def verdict(self) -> str:
        """Whether the dataset can be trained on, in one sentence."""
        if self.blocking_error:
            return f"Not ready for training: {self.blocking_error}"
        if self.bad or self.warnings:
            return "Ready for training; see the warnings for possible improvements."
        return "Ready for training."

    def __repr__(self) -> str:
        return f"{self.data}: {len(self.names):,} images, {len(self.present):,} classes. {self.verdict}"

    def _repr_html_(self) -> str:
        """Show the classes, largest first, and below them what is wrong; long lists are cut."""
        from alexnet.calls import as_keywords
        from alexnet.messages.translator import Translator
        from alexnet.notebook.display import render_table

        translate = Translator(self.lang)
        comma = translate("comma")
        counts = sorted(self.present.items(), key=lambda row: -row[1])
        shown = counts if len(counts) <= 2 * MAX_SHOWN else counts[:MAX_SHOWN] + counts[-MAX_SHOWN:]
        rows = [(name, f"{n:,}", f"{n / len(self.names):.1%}") for name, n in shown]
        notes = [translate("check_classes_omitted", n=len(counts) - len(shown))] if len(shown) < len(counts) else []
        notes += [
            translate(
                "check_reason", n=len(names), reason=translate.sentence(reason), names=comma.join(first_names(names))
            )
            for reason, names in self.by_reason.items()
        ]
        title = translate("check_summary", data=self.data, images=len(self.names), classes=len(counts))
        sentences = map(translate.sentence, [*self.warnings, *self.notes, self.verdict])
        note = join_lines(*notes, *(as_keywords(sentence, self.lang) for sentence in sentences))
        head = (translate("class"), translate("images"), translate("check_share"), "")
        return render_table(title, rows, head, bars=True, note=note)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet check`."""
        good = [self.infos[i] for i in self.readable]

        def name_pairs(pairs: Sequence[tuple[int, int]]) -> list[list[str]]:
            return [[self.names[a], self.names[b]] for a, b in pairs]

        return {
            "data": str(self.data),
            "images": len(self.names),
            "readable": len(good),
            "classes": self.classes,
            "splits": self.by_split,
            "bad": [{"path": name, "reason": reason} for name, reason in self.bad],
            "suspicious": [{"path": self.names[i], "reason": "; ".join(self.infos[i].anomalies)} for i in self.unusual],
            "duplicates": name_pairs(self.duplicates),
            "near_duplicates": name_pairs(self.near),
            "across_splits": name_pairs(self.duplicates_across(self.splits)),
            "across_classes": name_pairs(self.duplicates_across(self.labels)),
            "width": min_median_max([info.width for info in good]),
            "height": min_median_max([info.height for info in good]),
            "aspect": min_median_max([info.width / info.height for info in good]),
            "modes": dict(Counter(info.mode for info in good).most_common()),
            "formats": dict(Counter(info.format for info in good if info.format).most_common()),
            "turned": sum(info.turned for info in good),
            **({"value_range": self.value_range.to_dict()} if self.value_range else {}),
            "warnings": self.warnings,
            "notes": self.notes,
            "trainable": self.blocking_error is None,
            "verdict": self.verdict,
            "command": self.command,
            "fix_command": self.fix_command,
        }


def min_median_max(values: Sequence[float]) -> list[float] | None:
    """Return minimum, median and maximum, or None if there are no values."""
    return [round(v, 3) for v in (min(values), statistics.median(values), max(values))] if values else None


# ── errors and warnings ───────────────────────────────────────────────────────────────────────────


def find_blocking_error(found: Findings) -> str | None:
    """Return why training cannot start on the readable images of the dataset, or None."""
    good = found.readable
    if not good:
        return f"none of its {len(found.names):,} images can be read."
    readable = found.count_training(good)
    if len(readable) < 2 and (empty := _unreadable_classes(found)):
        return f"no image of the class '{empty[0]}' can be read, and a classifier needs two classes; replace them."
    if "all" in found.splits and max(readable.values()) < 2:
        return "it has one image per class, which leaves none for validation; add more."
    return None


def _unreadable_classes(found: Findings) -> list[str]:
    """Return the classes that have training images, of which none can be read."""
    training, readable = map(found.count_training, (range(len(found.labels)), found.readable))
    return sorted(training.keys() - readable.keys())


def collect_warnings(found: Findings) -> None:
    """Fill `found.warnings`, most severe first, and `found.notes`."""
    warnings: list[str] = []
    if heic := found.by_reason.get(NEEDS_HEIF):
        warnings.append(
            f"HEIC: {pluralize(len(heic), 'image')}; after 'pip install pillow-heif' every command reads HEIC; "
            "otherwise convert to JPEG."
        )
    unreadable = sum(info.reason is not None for info in found.infos)
    if unreadable:
        warnings.append(f"Unreadable: {unreadable:,} of {len(found.names):,} images; --skip-bad trains without them.")
    if empty := [name for name, reason in found.bad if reason == EMPTY_FOLDER]:
        warnings.append(f"Class folders without images: {', '.join(empty[:10])}; --skip-bad trains without them.")
    if empty := _unreadable_classes(found):
        warnings.append(
            f"Classes without readable training images: {', '.join(empty[:10])}; --skip-bad trains without them."
        )
    if both := found.contradictions:
        a, b = both[0]
        warnings.append(
            f"Duplicates across splits with two labels: {pluralize(len(both), 'image')}, such as {found.names[a]} and "
            f"{found.names[b]}; train/test leakage, and one label is wrong, or the images only look the same."
        )
    if leaks := [pair for pair in found.duplicates_across(found.splits) if not found.differ_in_both(pair)]:
        a, b = leaks[0]
        warnings.append(
            f"Duplicates across splits: {pluralize(len(leaks), 'pair')}, such as {found.names[a]} and {found.names[b]};"
            " train/test leakage: accuracy will be overestimated."
        )
    if conflicts := [pair for pair in found.duplicates_across(found.labels) if not found.differ_in_both(pair)]:
        a, b = conflicts[0]
        warnings.append(
            f"Duplicates with two labels: {pluralize(len(conflicts), 'pair')}, such as {found.names[a]} and "
            f"{found.names[b]}; one label is wrong, or the images only look the same."
        )
    copies = sum(len(group) - 1 for group in found.exact)
    if copies or found.near:
        warnings.append(
            f"Duplicates in total: {pluralize(copies, 'exact copy', 'exact copies')} and "
            f"{pluralize(len(found.near), 'near-duplicate pair')}; each copy is weighted twice in training."
        )
    warnings += [
        f"The labels {' and '.join(map(repr, spellings))} differ only in case or spacing; if they mean the same, merge "
        "them."
        for spellings in similar_labels(found.classes)
    ]
    warnings += _check_class_sizes(found)
    if found.unusual:
        kinds = Counter(kind for i in found.unusual for kind in found.infos[i].anomalies)
        shown = "; ".join(f"{kind} ({n:,})" if n > 1 else kind for kind, n in kinds.most_common(6))
        warnings.append(f"Readable but unusual: {pluralize(len(found.unusual), 'image')}; {shown}.")
    found.warnings[:0] = warnings
    if turned := sum(info.turned for info in found.infos):
        found.notes.append(f"Rotated or mirrored as their EXIF orientation requests: {pluralize(turned, 'image')}.")
    if found.value_range:
        found.notes.append(found.value_range.sentence)
    names = list(found.classes)
    if all(name.isascii() and name.isdigit() for name in names) and names != sorted(names, key=int):
        found.notes.append(f"The class names are numbers and are sorted as text: {', '.join(names[:4])}.")


def first_names(names: list[str]) -> list[str]:
    """Return the first of `names`, and an ellipsis if there are more."""
    return [*names[:MAX_NAMES], *["…"] * (len(names) > MAX_NAMES)]


def pluralize(n: int, singular: str, plural: str = "") -> str:
    """Return the number with its noun: '1 image', '2,000 images'."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def similar_labels(classes: dict[str, int]) -> list[list[str]]:
    """Return groups of labels that differ only in case or spacing, the most frequent spelling first."""
    groups: dict[str, list[str]] = {}
    for label in classes:
        groups.setdefault(" ".join(label.split()).casefold(), []).append(label)
    return [sorted(group, key=lambda label: -classes[label]) for group in groups.values() if len(group) > 1]


def _check_class_sizes(found: Findings) -> list[str]:
    """Return warnings about small classes and class imbalance in the training images."""
    counts = found.count_training(i for i, label in enumerate(found.labels) if label)
    if len(counts) < 2:
        return []
    warnings = []
    ordered = counts.most_common()
    small = [label for label, n in reversed(ordered) if n < MIN_CLASS_SIZE]
    if small:
        warnings.append(
            f"Classes with fewer than {MIN_CLASS_SIZE} training images: {len(small):,} of {len(counts):,}, such as "
            f"'{small[0]}' with {counts[small[0]]}; add images or remove these classes."
        )
    (most, largest), (least, smallest) = ordered[0], ordered[-1]
    if largest > MAX_IMBALANCE * smallest:
        warnings.append(
            f"Class imbalance: '{most}' has {largest:,} images and '{least}' {smallest:,}; always predicting '{most}' "
            f"would be correct in {largest / sum(counts.values()):.0%} of the cases."
        )
    return warnings
