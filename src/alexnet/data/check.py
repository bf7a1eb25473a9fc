"""A look at a data set before training: what is in it, what is wrong with it, and the command that trains on it.

`check` reads class folders, archives of them, a table of labels, and the layouts of CIFAR-10 and Fashion-MNIST. It
asks nothing of them that would keep it from listing everything at once; whether they can be learnt from is then judged
by the same rules as in training (`folders.scan`), whose sentence becomes the verdict. Every picture is looked at once,
by processes on all cores.
"""

from __future__ import annotations

import itertools
import multiprocessing
import shlex
import signal
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet import runtime
from alexnet.data import folders
from alexnet.data.duplicates import exact_groups, near_pairs
from alexnet.data.folders import Progress
from alexnet.data.inspection import PORTRAIT, Looked, look_at_files, look_at_pixels
from alexnet.data.labels import class_order, read_labels
from alexnet.data.samples import Arrays
from alexnet.data.sources import open_layout
from alexnet.data.verdict import counted, judge, refusal
from alexnet.errors import UserError

_CHUNK = 128  # pictures a process takes at a time
_WORTH_A_PROCESS = 1000  # pictures: fewer are looked at before new processes have started


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
    seen: list[Looked] = field(default_factory=list, repr=False)
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
    refusal: str | None = None
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
    def odd(self) -> list[int]:
        """The pictures that can be read and have something unusual."""
        return [i for i, looked in enumerate(self.seen) if looked.oddities]

    @property
    def duplicates(self) -> list[tuple[int, int]]:
        """Pairs: the first of each group with every other of it, then those that only look the same."""
        return [(group[0], other) for group in self.exact for other in group[1:]] + self.near

    def across(self, of: Sequence[str]) -> list[tuple[int, int]]:
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
        if self.refusal:
            return f"This cannot be trained on yet: {self.refusal}"
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
            "suspicious": [{"path": self.names[i], "reason": "; ".join(self.seen[i].oddities)} for i in self.odd],
            "duplicates": named(self.duplicates),
            "near_duplicates": named(self.near),
            "across_splits": named(self.across(self.splits)),
            "across_classes": named(self.across(self.labels)),
            "width": spread([looked.width for looked in good]),
            "height": spread([looked.height for looked in good]),
            "aspect": spread([looked.width / looked.height for looked in good]),
            "modes": dict(Counter(looked.mode for looked in good).most_common()),
            "formats": dict(Counter(looked.format for looked in good if looked.format).most_common()),
            "turned": sum(looked.turned for looked in good),
            "warnings": self.warnings,
            "notes": self.notes,
            "trainable": self.refusal is None,
            "verdict": self.verdict,
            "command": self.command,
        }


def spread(values: Sequence[float]) -> list[float] | None:
    """Least, median and greatest; None of nothing."""
    return [round(v, 3) for v in (min(values), statistics.median(values), max(values))] if values else None


def check(data: Path | None, labels: Path | None = None, progress: Progress | None = None) -> Findings:
    """Look the data set over: a folder, an archive, or a table of `labels` with pictures in `data` or beside it.

    Only reads, but for an archive, which is unpacked into the cache. Raises `UserError` for data that is missing or
    holds no pictures at all, and an archive or table that cannot be read.
    """
    found = _gather(data, labels, progress)
    if not found.names:
        raise UserError(
            f"{found.data} holds no pictures; give a folder with one folder a class, an archive of it, or --labels."
        )
    if found.pixels is not None:
        pixels = np.ascontiguousarray(found.pixels.permute(0, 2, 3, 1).numpy())
        found.seen = list(_look(look_at_pixels, pixels, progress))
    else:
        found.seen = list(_look(look_at_files, [str(found.root / name) for name in found.names], progress))
    found.bad += [(n, s.reason) for n, s in zip(found.names, found.seen, strict=True) if s.reason is not None]
    found.exact, found.near = _duplicates(found.seen)
    found.refusal = found.refusal or refusal(found)
    judge(found)
    return found


# ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────


def _gather(data: Path | None, labels: Path | None, progress: Progress | None) -> Findings:
    """Names, classes and splits, and what is wrong with their arrangement."""
    if labels is None and data is not None and (layout := open_layout(data, progress)) is not None:
        parts = [(split, part) for split, part in layout.splits.items() if isinstance(part, Arrays)]
        return Findings(
            data, data, None, layout.name,
            names=[name for _, part in parts for name in part.names],
            labels=[layout.classes[i] for _, part in parts for i in part.targets.tolist()],
            splits=[split for split, part in parts for _ in part.names],
            order=layout.classes, pixels=torch.cat([part.images for _, part in parts]),
        )  # fmt: skip
    root = folders.data_folder(data, labels, progress)
    found = Findings(data if data is not None else root, root, labels, "folder", [], [], [], [])
    try:
        if labels is not None:
            labels = folders.labels_file(labels, root)
            table = read_labels(labels)
            found.names, found.labels, found.splits, found.bad = table.names, table.labels, table.splits, table.bad
            found.order = class_order(table.labels)
            if table.repeated:
                found.warnings.append(f"Repeated in {labels.name} and passed over: {counted(table.repeated, 'row')}.")
            folders.listed(root, labels)
        else:
            _walk(found)
            folders.scan(root)
    except UserError as error:
        if not found.names:
            raise
        found.refusal = str(error)
    return found


def _walk(found: Findings) -> None:
    tree = folders.find(found.root)
    for split, by_class in tree.classes.items():
        for label, names in by_class.items():
            found.names += names
            found.labels += [label] * len(names)
            found.splits += [split] * len(names)
            if not names:
                found.warnings.append(f"The class folder {tree.folders[split] / label} holds no pictures.")
    if tree.stray and not found.names:  # a folder of pictures without classes: worth a look all the same
        found.names, found.labels = tree.stray, [""] * len(tree.stray)
        found.splits = ["all"] * len(tree.stray)
    elif tree.stray:
        found.warnings.append(
            f"Outside the class folders and passed over: {counted(len(tree.stray), 'picture')}, as {tree.stray[0]}."
        )
    found.order = sorted({label for by_class in tree.classes.values() for label in by_class})
    if tree.others:
        found.warnings.append(f"Folders that are no splits are passed over: {', '.join(tree.others[:10])}.")
    for link in tree.links:
        found.warnings.append(f"The link {link} leads to a folder and is not followed; it may lead in circles.")
    found.bad += [(name, f"the folder cannot be opened ({reason})") for name, reason in tree.closed]


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────


def _look(work: Callable[[Any], list[Looked]], items: Any, progress: Progress | None) -> Iterator[Looked]:
    """work(chunk) for chunks of `items`, in order, by processes where there is enough to do."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done = 0
    try:
        for results in _in_processes(work, chunks) if len(items) >= _WORTH_A_PROCESS else map(work, chunks):
            yield from results
            done += 1
            if progress is not None:
                progress(min(done * _CHUNK, len(items)), len(items), "looking at images")
    except (BrokenProcessPool, OSError):  # no processes here, or one was killed: then alone
        for results in map(work, chunks[done:]):
            yield from results


def _in_processes(work: Callable[[Any], list[Looked]], chunks: list[Any]) -> Iterator[list[Looked]]:
    """New processes, not copies of this one, which may hold torch's threads."""
    count = min(runtime.cpu_count(), len(chunks))
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_signals)
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer


def _duplicates(seen: Sequence[Looked]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    exact = exact_groups([looked.digest if looked.reason is None else b"" for looked in seen])
    copies = {i for group in exact for i in group[1:]}
    kept = [i for i, looked in enumerate(seen) if looked.portrait and i not in copies]
    portraits = np.frombuffer(b"".join(seen[i].portrait for i in kept), dtype=np.uint8).reshape(-1, PORTRAIT**2)
    pairs = near_pairs(np.array([seen[i].hash for i in kept], dtype=np.uint64), portraits)
    return exact, [(kept[a], kept[b]) for a, b in pairs.tolist()]
