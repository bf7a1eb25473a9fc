"""Pictures in class folders: finding them, and finding the bad ones before training does.

Any of these layouts is read, with any names for the classes and pictures at any depth below a class:

    DIR/<class>/*                                 no split
    DIR/train/<class>/*   DIR/val/<class>/*       also training; valid, validation; test, testing; in any case

Hidden files and files that are no pictures by their ending are passed over, and so are links to folders below a class,
which may lead in circles. A class's number is its place in the alphabet among the folders of train/; the other splits
are matched to it by name, never by position. An archive is read like the folder that it holds (`archives.py`), and a
table of labels may say the classes instead (`labels.py`).
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from alexnet.data.archives import ARCHIVE_SUFFIXES, is_archive, unpack_if_archive
from alexnet.data.dataset import ImageFiles
from alexnet.data.decode import IMAGE_SUFFIXES, check_image
from alexnet.device import cpu_count
from alexnet.errors import UserError

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what) while something takes long."""

FULL_CHECK = 50_000
"""Up to so many files are decoded to find the bad ones; of more, only headers and end markers are read."""

_CHUNK = 64  # files a thread takes at a time: enough to make its bookkeeping cheap, few enough to show progress

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ImageTree:
    """What `scan` found: class names in order, the splits that the folders make, and what was passed over."""

    classes: tuple[str, ...]
    splits: dict[str, ImageFiles]
    notes: list[str]


@dataclass
class FolderContents:
    """What lies below a folder, before anything is asked of it."""

    root: Path
    folders: dict[str, Path] = field(default_factory=dict)
    """The folder of each split; that of `all` is the root, where there are no splits."""
    classes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """For each split, class names in alphabetical order, each with the sorted paths of its pictures below `root`."""
    ignored: list[str] = field(default_factory=list)
    """Folders beside those of the splits, which are passed over."""
    stray: list[str] = field(default_factory=list)
    """Pictures that lie beside the class folders or the splits, and so in no class."""
    inaccessible: list[tuple[str, str]] = field(default_factory=list)
    """Folders that cannot be opened, and what the system says."""
    links: list[str] = field(default_factory=list)
    """Links to folders that are not followed: those below a class, and those that lead back to where they are."""


def require_folder(data: Path) -> Path:
    """`data`, if it is a folder. Raises `UserError` otherwise."""
    if not data.exists():
        raise UserError(f"There is no folder {data}; check the path given as data.")
    if not data.is_dir():
        kinds = ", ".join(ARCHIVE_SUFFIXES[:3])
        raise UserError(f"{data} is a file, not a folder or an archive ({kinds}, ...); check the path given as data.")
    return data


def resolve_data_folder(data: Path | None, labels: Path | None, progress: Progress | None = None) -> Path:
    """The folder that holds the pictures: `data`, unpacked where it is an archive, or else where `labels` lies.
    Raises `UserError`."""
    if data is None:
        assert labels is not None
        return labels.parent
    return require_folder(unpack_if_archive(data, progress) if is_archive(data) else data)


def resolve_labels_path(labels: Path, root: Path) -> Path:
    """The table of labels: where its path says, or below the data folder, as when both came in one archive."""
    return labels if labels.is_file() or not (root / labels).is_file() else root / labels


def walk_folder(root: Path) -> FolderContents:
    """What lies below `root`, whether or not it can be learnt from; no picture is opened.

    Raises `UserError` for a folder that is missing, and for one with two folders for the same split.
    """
    found = FolderContents(require_folder(root))
    inside = _list_entries(root, found)
    folders = [Path(entry.path) for entry in inside if _is_folder(entry, (root,), found)]
    found.folders, others = _split_folders(root, folders)
    if found.folders:
        found.ignored = [folder.name for folder in others]
        found.stray = [entry.name for entry in inside if _is_image(entry.name) and entry.is_file()]
    else:
        found.folders = {"all": root}
    for split, folder in found.folders.items():
        found.classes[split] = _find_classes(folder, found)
    return found


def scan_class_folders(root: Path, training: bool = True) -> ImageTree:
    """The pictures below `root`, without opening them; a folder without splits is all `train`, or `all` where they
    are not for `training`. Then train/ may be missing, one class is enough, and classes may be in any split.

    Raises `UserError` for a folder that is missing or cannot be opened, holds no pictures or no class folders, an empty
    class folder, fewer than two classes, two classes that differ only in case, a class that train/ lacks.
    """
    found = walk_folder(root)
    if found.inaccessible:
        name, reason = found.inaccessible[0]
        raise UserError(f"The folder {root / name} cannot be opened ({reason}); change its permissions or remove it.")
    notes = [f"Passed over in {root}: {', '.join(found.ignored)}."] if found.ignored else []
    if found.links:
        notes.append(f"Passed over {_list_first(found.links)} in {root}: links to folders, which may lead in circles.")
    split_folders, by_split = found.folders, found.classes
    if training and "all" in by_split:
        split_folders, by_split = {"train": root}, {"train": by_split["all"]}
    if training and "train" not in split_folders:
        other = next(iter(split_folders.values()))
        raise UserError(f"{root} has {other.name}/ but no train/ to learn from; name the training folder train.")
    if training:
        _check_folders_for_training(root, split_folders, by_split)
    import torch

    classes = tuple(by_split["train"] if training else sorted(set().union(*by_split.values())))
    number = {name: i for i, name in enumerate(classes)}
    splits = {}
    for split, by_class in by_split.items():
        names = [path for paths in by_class.values() for path in paths]
        targets = [number[name] for name, paths in by_class.items() for _ in paths]
        if not names:
            raise UserError(f"{split_folders[split]} holds no pictures; add some or remove the folder.")
        splits[split] = ImageFiles(root, names, torch.tensor(targets, dtype=torch.int64))
    return ImageTree(classes, splits, notes)


def scan_label_table(root: Path, labels: Path, training: bool = True) -> ImageTree:
    """The pictures below `root` that the table `labels` lists, as `scan` gives those of class folders.

    Raises `UserError` for a table that `read_labels` refuses or that contradicts itself, fewer than two classes, and
    a class or split that training lacks; for pictures that are not there, `drop_bad` does.
    """
    table = read_label_table(labels)
    if table.bad:
        shown = _list_first([f"{name} ({reason})" for name, reason in table.bad])
        rows = len(table.names) + table.repeated + len(table.bad)
        raise UserError(f"{len(table.bad)} of {rows} rows of {labels} cannot be used: {shown}; mend or remove them.")
    notes = [f"Passed over {table.repeated} repeated rows of {labels}."] if table.repeated else []
    splits = table.splits if "all" not in table.splits or not training else ["train"] * len(table.names)
    if training:
        _check_table_for_training(labels, table, splits)
    learnt = [label for label, split in zip(table.labels, splits, strict=True) if split == "train" or not training]
    classes = class_order(learnt)
    number = {name: i for i, name in enumerate(classes)}
    import torch

    parts: dict[str, tuple[list[str], list[int]]] = {split: ([], []) for split in dict.fromkeys(splits)}
    for name, label, split in zip(table.names, table.labels, splits, strict=True):
        parts[split][0].append(name)
        parts[split][1].append(number[label])
    return ImageTree(
        classes,
        {split: ImageFiles(root, names, torch.tensor(targets)) for split, (names, targets) in parts.items()},
        notes,
    )


def drop_unreadable(
    tree: ImageTree, *, skip_bad: bool, progress: Progress | None = None
) -> tuple[ImageTree, list[tuple[str, str]]]:
    """The tree without the pictures that cannot be read, and those as (name, reason).

    Every file is decoded if there are at most `FULL_CHECK`, or if the bad ones are to be left out, which is only
    safe when all of them are known; otherwise header and end marker are read. Raises
    `UserError` naming the first ten bad ones unless `skip_bad`; always if a class of train/ or a split has none
    left.
    """
    root = next(iter(tree.splits.values())).root
    total = sum(map(len, tree.splits.values()))
    full = skip_bad or total <= FULL_CHECK
    paths = [path for files in tree.splits.values() for path in files.paths]
    names = [name for files in tree.splits.values() for name in files.names]
    reasons = list(map_in_threads(lambda path: check_image(path, full=full), paths, progress, "checking images"))
    bad = [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason is not None]
    if not bad:
        return tree, []
    listed = ", ".join(f"{name} ({reason})" for name, reason in bad[:10]) + (", ..." if len(bad) > 10 else "")
    if len(bad) == total:
        raise UserError(f"None of the {total} images in {root} can be read: {listed}; replace them.")
    if not skip_bad:
        raise UserError(
            f"{len(bad)} of {total} images in {root} cannot be read: {listed}; "
            "replace or remove them, or go on without them with --skip-bad."
        )
    import torch

    splits, start = {}, 0
    for split, files in tree.splits.items():
        good = np.array([reason is None for reason in reasons[start : start + len(files)]])
        start += len(files)
        splits[split] = files.take(np.flatnonzero(good))
        if not good.any():
            raise UserError(f"No image of {split}/ in {root} can be read ({listed}); replace them.")
    learnt = splits.get("train")
    left = [] if learnt is None else torch.bincount(learnt.targets, minlength=len(tree.classes)).tolist()
    for name, count in zip(tree.classes, left, strict=False):
        if count == 0:
            raise UserError(f"No image of class '{name}' in {root} can be read ({listed}); replace them.")
    return ImageTree(tree.classes, splits, tree.notes), bad


def map_in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None, what: str
) -> Iterator[Result]:
    """work(item) for each item, in order, on as many threads as there are cores (Pillow decodes outside the GIL)."""
    pool = ThreadPoolExecutor(cpu_count())
    try:
        starts = range(0, len(items), _CHUNK)
        for start, results in zip(
            starts, pool.map(lambda at: [work(item) for item in items[at : at + _CHUNK]], starts), strict=True
        ):
            yield from results
            if progress is not None:
                progress(min(start + _CHUNK, len(items)), len(items), what)
    finally:
        pool.shutdown(cancel_futures=True)  # an error or Ctrl-C must not wait for thousands of files


# ── the parts of a scan ───────────────────────────────────────────────────────────────────────────────────────


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "@")) or name == "__MACOSX"  # @eaDir: thumbnails of network drives


def _is_image(name: str) -> bool:
    return not _is_hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _list_first(names: Sequence[str]) -> str:
    """The first ten, and that there are more."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _list_entries(folder: Path, found: FolderContents) -> list[os.DirEntry[str]]:
    """What lies in `folder`, by name; a folder that cannot be opened is noted and counts as empty."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not _is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        name = folder.relative_to(found.root).as_posix() if folder != found.root else "."
        found.inaccessible.append((name, error.strerror or str(error)))
        return []


def _is_folder(entry: os.DirEntry[str], above: tuple[Path, ...], found: FolderContents) -> bool:
    """Whether `entry` is a folder, or a link to one that it does not lie in itself: such a circle is noted."""
    try:
        if not entry.is_dir():
            return False
        if entry.is_symlink() and any(os.path.samefile(entry.path, folder) for folder in above):
            found.links.append(Path(entry.path).relative_to(found.root).as_posix())
            return False
        return True
    except OSError:  # a link to itself, or to nothing
        return False


def _has_images(folder: Path, found: FolderContents) -> bool:
    """Whether pictures lie in `folder` itself, as they do in a class folder and not in train/."""
    return any(_is_image(entry.name) for entry in _list_entries(folder, found))


def _split_folders(root: Path, folders: list[Path]) -> tuple[dict[str, Path], list[Path]]:
    """The folders that are splits, by split, and the others.

    A class may be called train or valid. So a folder of such a name that holds pictures itself is a class,
    unless all its neighbours have such names too.
    """
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if len(named) < len(folders):
        named = [folder for folder in named if not _has_images(folder, FolderContents(root))]
    splits: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in splits:
            raise UserError(f"{root} has both {splits[split].name}/ and {folder.name}/; leave only one of them.")
        splits[split] = folder
    return splits, [folder for folder in folders if folder not in named]


def _find_classes(folder: Path, found: FolderContents) -> dict[str, list[str]]:
    """Class names in alphabetical order, each with the sorted paths of its pictures below the root."""
    classes = {}
    for entry in _list_entries(folder, found):
        if _is_folder(entry, (folder, found.root), found):
            classes[entry.name] = sorted(_find_below(Path(entry.path), found))
        elif _is_image(entry.name) and entry.is_file():
            found.stray.append(Path(entry.path).relative_to(found.root).as_posix())
    return classes


def _find_below(folder: Path, found: FolderContents) -> list[str]:
    """The paths of the pictures at any depth below `folder`, from the root."""
    prefix = folder.relative_to(found.root).as_posix()
    names = []
    for entry in _list_entries(folder, found):
        if entry.is_dir(follow_symlinks=False):
            names += _find_below(Path(entry.path), found)
        elif entry.is_symlink() and entry.is_dir():
            found.links.append(f"{prefix}/{entry.name}")
        elif _is_image(entry.name):
            names.append(f"{prefix}/{entry.name}")
    return names


def _check_table_for_training(labels: Path, table: LabelTable, splits: list[str]) -> None:
    """Refuse a table that cannot be learnt from."""
    by_split: dict[str, set[str]] = {split: set() for split in splits}
    for label, split in zip(table.labels, splits, strict=True):
        by_split[split].add(label)
    if "train" not in by_split:
        raise UserError(f"{labels} has no rows of the split train to learn from; its splits are {', '.join(by_split)}.")
    train = by_split["train"]
    if len(train) == 1:
        raise UserError(f"{labels} has one class only, '{next(iter(train))}'; a classifier needs two or more.")
    for split, names in by_split.items():
        if lacking := sorted(names - train):
            raise UserError(f"{labels} has the class '{lacking[0]}' in {split} and not in train; mend or remove it.")


def _check_folders_for_training(root: Path, folders: dict[str, Path], found: dict[str, dict[str, list[str]]]) -> None:
    train, where = found["train"], folders["train"]
    if not train:
        what = "pictures but no class folders" if _has_images(where, FolderContents(root)) else "no class folders"
        if where == root and what == "no class folders":
            raise UserError(f"{root} holds no images; put those of each class into a folder of its own there.")
        raise UserError(f"{where} holds {what}; put the images of each class into a folder of its own there.")
    if not any(train.values()):
        raise UserError(f"{where} holds no images; put those of each class into its folder.")
    for name, pictures in train.items():
        if not pictures:
            raise UserError(f"The class folder {where / name} holds no images; add some or remove the folder.")
    if len(train) == 1:
        raise UserError(f"{where} holds one class only, '{next(iter(train))}'; a classifier needs two or more.")
    by_case: dict[str, str] = {}
    for name in train:
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"{where} has classes '{other}' and '{name}', which differ only in case; rename one.")
    for split, classes in found.items():
        for name in classes:
            if name not in train:
                near = by_case.get(name.casefold())
                hint = f"there it is called '{near}'" if near else "classes are matched by name"
                raise UserError(f"{folders[split] / name} is a class that {where} lacks ({hint}); rename or remove it.")


# ─── A table of pictures and their labels, CSV or Parquet, in place of class folders.

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What splits are called, in lower case, and which each is."""

COLUMN_NAMES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name"),
    "label": ("label", "class", "category", "target", "label_name", "class_name"),
    "split": ("split", "set", "subset", "partition"),
}
"""Names of a column, in lower case; the first is what we call it."""


@dataclass
class LabelTable:
    """What a table says, row by row, and what is wrong with it."""

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    """train, val or test; `all` throughout where the table has no such column."""
    repeated: int = 0
    """Rows that say what an earlier row has said; they are not among the above."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(Picture or line, what is wrong): no label, another label than before, an unknown split."""


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """The classes in the order of their numbers: the alphabet's, or that of whole numbers where all are such."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def read_label_table(path: Path) -> LabelTable:
    """The rows of the table at `path`, with what is wrong with some of them beside.

    Raises `UserError` for a file that is missing, no such table, empty, or without a column for path or label.
    """
    if not path.is_file():
        raise UserError(f"There is no file of labels {path}; check the path given as --labels.")
    columns = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    chosen = {
        kind: next((name for name in columns if name.strip().lower() in names), None)
        for kind, names in COLUMN_NAMES.items()
    }
    if chosen["path"] is None or chosen["label"] is None:
        shown = ", ".join(list(columns)[:8]) or "none"
        raise UserError(f"{path} needs the columns path and label (and may have split), but has {shown}; name them so.")
    found = LabelTable()
    said: dict[str, tuple[str, str]] = {}
    splits = columns[chosen["split"]] if chosen["split"] is not None else None
    for i, (name, label) in enumerate(zip(columns[chosen["path"]], columns[chosen["label"]], strict=True)):
        split = "all" if splits is None else SPLIT_NAMES.get(splits[i].strip().lower(), "")
        what = name or f"row {i + 1}"
        if not name:
            found.bad.append((what, f"{path.name} names no picture there"))
        elif not label:
            found.bad.append((what, f"{path.name} gives it no label"))
        elif not split:
            found.bad.append((what, f"{path.name} gives it the split '{splits[i] if splits else ''}'"))
        elif name not in said:
            said[name] = (label, split)
            found.names.append(name)
            found.labels.append(label)
            found.splits.append(split)
        elif said[name] == (label, split):
            found.repeated += 1
        else:
            other = f"'{said[name][0]}' and '{label}'" if said[name][0] != label else f"{said[name][1]} and {split}"
            found.bad.append((what, f"{path.name} lists it twice, as {other}"))
    if not found.names:
        raise UserError(f"{path} lists no pictures; it needs a row for each, such as 'cat/1.jpg,cat'.")
    return found


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            first = file.readline()
            file.seek(0)
            separator = max(",;\t", key=first.count)
            header, *rows = list(csv.reader(file, delimiter=separator)) or [[]]
    except (OSError, csv.Error) as error:
        raise UserError(f"The labels in {path} cannot be read ({error}); save them as CSV again.") from error
    rows = [row for row in rows if row]
    uneven = next((i for i, row in enumerate(rows, 1) if len(row) != len(header)), None)
    if uneven is not None:
        raise UserError(
            f"Row {uneven} of {path} has {len(rows[uneven - 1])} fields and the first line {len(header)}; "
            "put names with commas into quotes."
        )
    return {name: [row[i] for row in rows] for i, name in enumerate(header)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow
    from pyarrow import parquet

    wanted = {name for names in COLUMN_NAMES.values() for name in names}
    try:
        schema = parquet.read_schema(path)
        chosen = [name for name in schema.names if name.strip().lower() in wanted]
        table = parquet.read_table(path, columns=chosen or None)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"The labels in {path} cannot be read ({error}); save them as Parquet again.") from error
    return {name: [_to_text(value) for value in table[name].to_pylist()] for name in table.column_names}


def _to_text(value: object) -> str:
    """A cell as CSV would have it: a float that is a whole number, as data frames make of gaps, loses its point."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def find_images(arguments: Iterable[str | Path]) -> list[Path]:
    """The pictures that the arguments name: files as they are, folders with all pictures below them, by name."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"The folder {path} holds no pictures.")
            found += inside
        else:
            found.append(path)
    return found
