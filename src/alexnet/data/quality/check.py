"""A look at a data set before training: what is in it, what is wrong with it, and the command that trains on it.

`check` reads class folders, archives of them, a table of labels, and the layouts of CIFAR-10 and Fashion-MNIST. It
asks nothing of them that would keep it from listing everything at once; whether they can be learnt from is then judged
by the same rules as in training (`folders.scan`), whose sentence becomes the verdict. Every picture is looked at once,
by processes on all cores.
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from alexnet.data import image_folder
from alexnet.data.dataset import ImageArrays
from alexnet.data.datasets import load_known_layout
from alexnet.data.image_folder import Progress, class_order, read_label_table
from alexnet.data.quality.duplicates import exact_groups, near_pairs
from alexnet.data.quality.findings import Findings, collect_warnings, counted, refusal
from alexnet.data.quality.inspect import PORTRAIT, ImageInfo, inspect_arrays, inspect_files
from alexnet.data.shards.manifest import PackedDataset, find_mismatches, open_packed
from alexnet.data.shards.reader import FAILED
from alexnet.device import cpu_count
from alexnet.errors import UserError

_CHUNK = 128  # pictures a process takes at a time
_WORTH_A_PROCESS = 1000  # pictures: fewer are looked at before new processes have started


def check_dataset(data: Path | None, labels: Path | None = None, progress: Progress | None = None) -> Findings:
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
        found.seen = list(_look(inspect_arrays, pixels, progress))
    else:
        found.seen = list(_look(inspect_files, [str(found.root / name) for name in found.names], progress))
    found.bad += [(n, s.reason) for n, s in zip(found.names, found.seen, strict=True) if s.reason is not None]
    found.exact, found.near = _duplicates(found.seen)
    found.blocking_error = found.blocking_error or refusal(found)
    collect_warnings(found)
    return found


# ── what there is ─────────────────────────────────────────────────────────────────────────────────────────────


def _gather(data: Path | None, labels: Path | None, progress: Progress | None) -> Findings:
    """Names, classes and splits, and what is wrong with their arrangement."""
    if labels is None and data is not None and (layout := load_known_layout(data, progress)) is not None:
        parts = [(split, part) for split, part in layout.splits.items() if isinstance(part, ImageArrays)]
        return Findings(
            data, data, None, layout.name,
            names=[name for _, part in parts for name in part.names],
            labels=[layout.classes[i] for _, part in parts for i in part.targets.tolist()],
            splits=[split for split, part in parts for _ in part.names],
            order=layout.classes, pixels=torch.cat([part.images for _, part in parts]),
        )  # fmt: skip
    root = image_folder.resolve_data_folder(data, labels, progress)
    found = Findings(data if data is not None else root, root, labels, "folder", [], [], [], [])
    try:
        if labels is not None:
            labels = image_folder.resolve_labels_path(labels, root)
            table = read_label_table(labels)
            found.names, found.labels, found.splits, found.bad = table.names, table.labels, table.splits, table.bad
            found.order = class_order(table.labels)
            if table.repeated:
                found.warnings.append(f"Repeated in {labels.name} and passed over: {counted(table.repeated, 'row')}.")
            image_folder.scan_label_table(root, labels)
        else:
            _walk(found)
            image_folder.scan_class_folders(root)
    except UserError as error:
        if not found.names:
            raise
        found.blocking_error = str(error)
    return found


def _walk(found: Findings) -> None:
    tree = image_folder.walk_folder(found.root)
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
    if tree.ignored:
        found.warnings.append(f"Folders that are no splits are passed over: {', '.join(tree.ignored[:10])}.")
    for link in tree.links:
        found.warnings.append(f"The link {link} leads to a folder and is not followed; it may lead in circles.")
    found.bad += [(name, f"the folder cannot be opened ({reason})") for name, reason in tree.inaccessible]


# ── looking ───────────────────────────────────────────────────────────────────────────────────────────────────


def _look(work: Callable[[Any], list[ImageInfo]], items: Any, progress: Progress | None) -> Iterator[ImageInfo]:
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


def _in_processes(work: Callable[[Any], list[ImageInfo]], chunks: list[Any]) -> Iterator[list[ImageInfo]]:
    """New processes, not copies of this one, which may hold torch's threads."""
    count = min(cpu_count(), len(chunks))
    pool = ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"), initializer=_leave_signals)
    try:
        yield from pool.map(work, chunks)
    finally:
        pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer


def _duplicates(seen: Sequence[ImageInfo]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    exact = exact_groups([looked.digest if looked.reason is None else b"" for looked in seen])
    copies = {i for group in exact for i in group[1:]}
    kept = [i for i, looked in enumerate(seen) if looked.portrait and i not in copies]
    portraits = np.frombuffer(b"".join(seen[i].portrait for i in kept), dtype=np.uint8).reshape(-1, PORTRAIT**2)
    pairs = near_pairs(np.array([seen[i].hash for i in kept], dtype=np.uint64), portraits)
    return exact, [(kept[a], kept[b]) for a, b in pairs.tolist()]


# ─── What `alexnet check` says of a packed data set: are its files whole, what is in it, what was left out.


@dataclass(frozen=True)
class PackFindings:
    """What was found."""

    pack: PackedDataset
    by_split: dict[str, dict[str, int]]
    """Pictures of each class, in the order of the classes."""
    damaged: list[str]
    """Files whose checksum differs, below the folder."""
    failed: list[tuple[str, str]]
    """Pictures that could not be read as it was packed, and why."""
    copies: list[tuple[str, str]]
    """Pairs of pictures that were packed from the same bytes."""
    across: int
    """How many of these pairs are in two splits."""

    @property
    def verdict(self) -> str:
        """One sentence."""
        files = len(self.pack.checksums)
        if self.damaged:
            return f"{len(self.damaged)} of {files} files are damaged; 'alexnet pack' as before makes them anew."
        return f"All {files} files are as they were packed."

    @property
    def command(self) -> str:
        """What trains on it."""
        return shlex.join(["alexnet", "train", str(self.pack.path)])

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `check`."""
        classes: Counter[str] = Counter()
        for counts in self.by_split.values():
            classes.update(counts)
        return {
            "data": str(self.pack.path),
            "images": sum(map(len, self.pack.splits.values())),
            "classes": {name: classes[name] for name in self.pack.classes},
            "splits": self.by_split,
            "form": self.pack.about["form"],
            "damaged": self.damaged,
            "bad": [{"path": name, "reason": reason} for name, reason in self.failed],
            "duplicates": [list(pair) for pair in self.copies],
            "warnings": [self.verdict] if self.damaged else [],
            "verdict": self.verdict,
            "command": self.command,
        }


def check_packed(data: Path, progress: Progress | None = None) -> PackFindings:
    """Compute all checksums, and count. Raises `UserError` where the data set cannot even be opened."""
    pack = open_packed(data, verify=False)
    damaged = find_mismatches(data, pack.checksums, progress)
    by_split = {}
    names: list[tuple[str, str]] = []
    digests: list[bytes] = []
    for split, part in pack.splits.items():
        counts = Counter(part.targets.tolist())
        by_split[split] = {name: counts[i] for i, name in enumerate(pack.classes) if counts[i]}
        names += [(split, name) for name in part.names]
        digests += part.digests()
    pairs = [pair for group in exact_groups(digests) for pair in itertools.pairwise(group)]
    return PackFindings(
        pack,
        by_split,
        damaged,
        _failed(data / FAILED),
        [(names[a][1], names[b][1]) for a, b in pairs],
        sum(names[a][0] != names[b][0] for a, b in pairs),
    )


def _failed(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return [(row["name"], row["reason"]) for row in csv.DictReader(file)]
    except (OSError, csv.Error, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); pack the data again.") from error
