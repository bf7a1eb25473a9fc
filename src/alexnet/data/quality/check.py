"""The check of a dataset before training: what it contains, what is wrong with it, and the command that trains on it.

`check_dataset` reads class folders, archives of them, label tables, and the layouts of CIFAR-10 and
Fashion-MNIST, and lists all problems at once. Whether training would accept the data is decided by
the rules of training itself (`image_folder`), whose message becomes the verdict. Each image is
inspected once, by processes on all cores. `check_packed` verifies the checksums of a packed dataset
and lists its contents. torch is imported only for data that is not files.
"""

from __future__ import annotations

import csv
import itertools
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alexnet.data import image_folder
from alexnet.data.dataset import EMPTY_FOLDER, ImageArrays
from alexnet.data.image_names import describe_ignored
from alexnet.data.label_table import class_order, read_label_table
from alexnet.data.processes import check_main_module, process_pool
from alexnet.data.quality.clean import is_mendable
from alexnet.data.quality.duplicates import exact_groups, near_pairs
from alexnet.data.quality.findings import Findings, collect_warnings, find_blocking_error, pluralize
from alexnet.data.quality.inspect import THUMBNAIL_SIDE, ImageInfo, inspect_arrays, inspect_files
from alexnet.data.recognize import is_published
from alexnet.data.value_range import RangeFinder
from alexnet.device import cpu_count
from alexnet.errors import UserError
from alexnet.progress import Progress
from alexnet.text import BY_CONTENT, TextOptions

if TYPE_CHECKING:
    from alexnet.data.shards.manifest import PackedDataset

_CHUNK = 128  # images per task of a process
_MIN_FOR_PROCESSES = 1000  # images; fewer are inspected before new processes have started


def check_dataset(
    data: Path | None,
    labels: Path | None = None,
    progress: Progress | None = None,
    text: TextOptions = BY_CONTENT,
) -> Findings:
    """Check a folder, an archive, or a label table `labels` with images in `data` or next to the table.

    Nothing is written, except that an archive is extracted to the cache. Raises `UserError` if the
    data is missing or contains no images, or if an archive or table cannot be read.
    """
    check_main_module("the check")
    found = _list_images(data, labels, progress, text)
    if not found.names:
        raise UserError(
            f"{found.data} contains no images; give a folder with one folder per class, an archive of it, or --labels."
        )
    if found.pixels is not None:
        pixels = np.ascontiguousarray(found.pixels.permute(0, 2, 3, 1).numpy())
        found.infos = list(_inspect_all(inspect_arrays, pixels, progress))
    else:
        paths = [str(found.root / name) for name in found.names]
        finder = RangeFinder()
        for split, info in zip(found.splits, _inspect_all(inspect_files, paths, progress), strict=True):
            finder.add(info.values, split in ("train", "all"))
            found.infos.append(info._replace(values=None))
        found.value_range = finder.result()
    found.bad += [(n, info.reason) for n, info in zip(found.names, found.infos, strict=True) if info.reason is not None]
    found.exact, found.near = _find_duplicates(found.infos)
    found.blocking_error = found.blocking_error or find_blocking_error(found)
    found.mendable = is_mendable(found)
    collect_warnings(found)
    return found


# ── contents ──────────────────────────────────────────────────────────────────────────────────────


def _list_images(data: Path | None, labels: Path | None, progress: Progress | None, text: TextOptions) -> Findings:
    """Return findings with names, classes, splits, and the problems of the layout."""
    if labels is None and data is not None and is_published(data):
        return _load_published(data, progress)
    root = image_folder.resolve_data_folder(data, labels, progress, text)
    found = Findings(data if data is not None else root, root, labels, "folder", [], [], [], [], text=text)
    try:
        if labels is not None:
            labels = image_folder.resolve_labels_path(labels, root)
            table = read_label_table(labels, root, text)
            found.names, found.labels, found.splits, found.bad = table.names, table.labels, table.splits, table.bad
            found.class_order, found.notes = class_order(table.labels), table.notes
            if table.repeated:
                found.warnings.append(f"Ignored (repeated in {labels.name}): {pluralize(table.repeated, 'row')}.")
            image_folder.list_label_table(root, labels, text=text)
        else:
            _list_class_folders(found)
            image_folder.list_class_folders(root, text=text, bad=found.bad)
    except UserError as error:
        if not found.names:
            raise
        found.blocking_error = str(error)
    return found


def _load_published(data: Path, progress: Progress | None) -> Findings:
    """Return findings with the pixels of CIFAR-10 or a dataset like MNIST."""
    import torch

    from alexnet.data.datasets import load_known_layout

    layout = load_known_layout(data, progress)
    assert layout is not None, "is_published"
    parts = [(split, part) for split, part in layout.splits.items() if isinstance(part, ImageArrays)]
    return Findings(
        data, data, None, layout.name,
        names=[name for _, part in parts for name in part.names],
        labels=[layout.classes[i] for _, part in parts for i in part.targets.tolist()],
        splits=[split for split, part in parts for _ in part.names],
        notes=list(layout.notes), class_order=layout.classes, pixels=torch.cat([part.images for _, part in parts]),
    )  # fmt: skip


def _list_class_folders(found: Findings) -> None:
    tree = image_folder.walk_folder(found.root, found.text)
    found.notes += tree.notes
    closed = {Path(name).name for name, _ in tree.inaccessible}
    for split, by_class in tree.classes.items():
        for label, names in by_class.items():
            found.names += names
            found.labels += [label] * len(names)
            found.splits += [split] * len(names)
            if not names and label not in closed:
                name = image_folder.folder_name(found.root, tree.folders[split] / label)
                found.bad.append((name, EMPTY_FOLDER))
    if tree.stray and not found.names:  # a folder of images without classes can still be inspected
        found.names, found.labels = tree.stray, [""] * len(tree.stray)
        found.splits = ["all"] * len(tree.stray)
    elif tree.stray:
        found.warnings.append(
            f"Ignored (outside the class folders): {pluralize(len(tree.stray), 'image')}, such as {tree.stray[0]}."
        )
    found.class_order = sorted({label for by_class in tree.classes.values() for label in by_class})
    if tree.ignored:
        found.warnings.append(f"Ignored (not a split): {', '.join(tree.ignored[:10])}.")
    if tree.others:
        found.notes.append(describe_ignored(tree.others))
    for link in tree.links:
        found.warnings.append(f"The link {link} to a folder is not followed, since it may form a cycle.")
    found.bad += [(name, f"the folder cannot be opened ({reason})") for name, reason in tree.inaccessible]


# ── inspection ────────────────────────────────────────────────────────────────────────────────────


def _inspect_all(
    inspect: Callable[[Any], list[ImageInfo]], items: Any, progress: Progress | None
) -> Iterator[ImageInfo]:
    """Yield the results of inspect(chunk) for chunks of `items`, in order, in processes if there are enough items."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done = 0
    try:
        many = len(items) >= _MIN_FOR_PROCESSES
        for results in _map_in_processes(inspect, chunks) if many else map(inspect, chunks):
            yield from results
            done += 1
            if progress is not None:
                progress(min(done * _CHUNK, len(items)), len(items), "inspecting images")
    except (BrokenProcessPool, OSError):  # processes cannot be started, or one was killed: continue in this one
        for results in map(inspect, chunks[done:]):
            yield from results


def _map_in_processes(inspect: Callable[[Any], list[ImageInfo]], chunks: list[Any]) -> Iterator[list[ImageInfo]]:
    with process_pool(min(cpu_count(), len(chunks))) as pool:
        yield from pool.map(inspect, chunks)


def _find_duplicates(infos: Sequence[ImageInfo]) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """Return groups of exact duplicates and pairs of near duplicates."""
    exact = exact_groups([info.digest if info.reason is None else b"" for info in infos])
    copies = {i for group in exact for i in group[1:]}
    kept = [i for i, info in enumerate(infos) if info.thumbnail and i not in copies]
    joined = b"".join(infos[i].thumbnail for i in kept)
    thumbnails = np.frombuffer(joined, dtype=np.uint8).reshape(-1, THUMBNAIL_SIDE**2)
    pairs = near_pairs(np.array([infos[i].hash for i in kept], dtype=np.uint64), thumbnails)
    return exact, [(kept[a], kept[b]) for a, b in pairs.tolist()]


# ── packed datasets ───────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class PackedFindings:
    """Results of checking a packed dataset."""

    pack: PackedDataset
    by_split: dict[str, dict[str, int]]
    """Images per class for each split, in class order."""
    damaged: list[str]
    """Files with another checksum, relative to the folder."""
    failed: list[tuple[str, str]]
    """Images that could not be read during packing, with the reason."""
    duplicates: list[tuple[str, str]]
    """Pairs of images that were packed from identical bytes."""
    across_splits: int
    """Number of these pairs that are in different splits."""

    @property
    def verdict(self) -> str:
        """Whether the files are intact, in one sentence."""
        files = len(self.pack.manifest.sha256)
        if self.damaged:
            return f"{len(self.damaged):,} of {files:,} files are damaged; rerun 'alexnet pack' to repair them."
        return f"All {files:,} files are intact."

    @property
    def command(self) -> str:
        """The command that trains on this dataset."""
        return shlex.join(["alexnet", "train", str(self.pack.path)])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet check`."""
        classes: Counter[str] = Counter()
        for counts in self.by_split.values():
            classes.update(counts)
        return {
            "data": str(self.pack.path),
            "images": sum(map(len, self.pack.splits.values())),
            "classes": {name: classes[name] for name in self.pack.manifest.classes},
            "splits": self.by_split,
            "form": asdict(self.pack.manifest.form),
            "damaged": self.damaged,
            "bad": [{"path": name, "reason": reason} for name, reason in self.failed],
            "duplicates": [list(pair) for pair in self.duplicates],
            "warnings": [self.verdict] if self.damaged else [],
            "verdict": self.verdict,
            "command": self.command,
        }


def check_packed(data: Path, progress: Progress | None = None) -> PackedFindings:
    """Verify all checksums and count the images. Raises `UserError` if the packed dataset cannot be opened."""
    from alexnet.data.shards.manifest import find_mismatches, open_packed
    from alexnet.data.shards.reader import FAILED

    pack = open_packed(data, verify=False)
    damaged = find_mismatches(data, pack.manifest.sha256, progress)
    by_split = {}
    names: list[tuple[str, str]] = []
    digests: list[bytes] = []
    for split, part in pack.splits.items():
        counts = Counter(part.targets.tolist())
        by_split[split] = {name: counts[i] for i, name in enumerate(pack.manifest.classes) if counts[i]}
        names += [(split, name) for name in part.names]
        digests += part.digests()
    pairs = [pair for group in exact_groups(digests) for pair in itertools.pairwise(group)]
    return PackedFindings(
        pack,
        by_split,
        damaged,
        _read_failed(data / FAILED),
        [(names[a][1], names[b][1]) for a, b in pairs],
        sum(names[a][0] != names[b][0] for a, b in pairs),
    )


def _read_failed(path: Path) -> list[tuple[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return [(row["name"], row["reason"]) for row in csv.DictReader(file)]
    except (OSError, csv.Error, KeyError) as error:
        raise UserError(f"{path} cannot be read ({error!r}); pack the dataset again.") from error
