"""Images in class folders or listed in a table of labels: finding them, without opening any.

Both of these layouts are read, with any class names and images at any depth below a class:

    DIR/<class>/*                                 no splits
    DIR/train/<class>/*   DIR/val/<class>/*       also training; valid, validation; test, testing; in any case

Hidden files are skipped; other files that are not images (image_names.py) and links to folders below a class (possible
cycles) are skipped and listed. Class indices follow the alphabetical order of the folders in train/; other splits are
matched to it by name. An archive is read like the folder in it (archives.py). A table of labels, CSV or Parquet, can
replace the class folders. torch is imported where needed.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from alexnet.data.archives import ARCHIVE_SUFFIXES, ignored_in_archive, unpack_if_archive
from alexnet.data.dataset import ImageDataset, ImageFiles, list_first, order_splits
from alexnet.data.image_names import describe_ignored, has_image_suffix, is_hidden, is_image
from alexnet.errors import UserError
from alexnet.progress import Progress

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Lowercase name of a split, in a folder or a table → the split."""


# ── finding files ─────────────────────────────────────────────────────────────────────────────────


def require_folder(data: Path) -> Path:
    """Return `data` if it is a folder. Raises `UserError` otherwise."""
    if not data.exists():
        raise UserError(f"There is no folder {data}; check the path given as data.")
    if not data.is_dir():
        if data.suffix.lower() in (".csv", ".parquet", ".pq"):
            raise UserError(f"{data} is a file, not a folder of images; give a table of labels as --labels {data}.")
        kinds = ", ".join(ARCHIVE_SUFFIXES[:3])
        raise UserError(f"{data} is a file, not a folder or an archive ({kinds}, ...); check the path given as data.")
    return data


def resolve_data_folder(data: Path | None, labels: Path | None, progress: Progress | None = None) -> Path:
    """Return the folder of the images: `data`, unpacked if it is an archive, or else the folder of `labels`.

    Raises `UserError`.
    """
    if data is None:
        assert labels is not None
        return labels.parent
    return require_folder(unpack_if_archive(data, progress))


def resolve_labels_path(labels: Path, root: Path) -> Path:
    """Return `labels`, or the same path below the data folder `root` (as when both came in one archive)."""
    return labels if labels.is_file() or not (root / labels).is_file() else root / labels


def scan_images(
    data: Path | None, labels: Path | None, training: bool = True, progress: Progress | None = None
) -> ImageDataset:
    """Find the images in the class folders or archive `data`, or those that the table `labels` lists, without opening
    them. Raises `UserError` as `scan_class_folders` and `scan_label_table` do."""
    root = resolve_data_folder(data, labels, progress)
    if labels is None:
        return scan_class_folders(root, training)
    return scan_label_table(root, resolve_labels_path(labels, root), training)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.is_file() and is_image(entry.path)


def _to_dataset(
    root: Path, classes: tuple[str, ...], images: dict[str, list[tuple[str, str]]], notes: list[str]
) -> ImageDataset:
    """Return the dataset of `images`, (path below `root`, class name) by split."""
    import torch

    index = {name: i for i, name in enumerate(classes)}
    splits = {}
    for split, rows in images.items():
        targets = torch.tensor([index[label] for _, label in rows], dtype=torch.int64)
        splits[split] = ImageFiles(root, [name for name, _ in rows], targets)
    return ImageDataset("folder", classes, order_splits(splits), channels=3, notes=notes)


# ── class folders ─────────────────────────────────────────────────────────────────────────────────


@dataclass
class FolderContents:
    """The contents of a data folder, before any check."""

    root: Path
    folders: dict[str, Path] = field(default_factory=dict)
    """Split → its folder; without splits, `all` → the root."""
    classes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Split → class name, in alphabetical order → sorted image paths below `root`."""
    ignored: list[str] = field(default_factory=list)
    """Folders next to the split folders."""
    stray: list[str] = field(default_factory=list)
    """Images next to the class or split folders, which belong to no class."""
    others: list[str] = field(default_factory=list)
    """Files that are not images, at any depth, and those that were not extracted from an archive."""
    inaccessible: list[tuple[str, str]] = field(default_factory=list)
    """Folders that cannot be opened: (name, the system's reason)."""
    links: list[str] = field(default_factory=list)
    """Links to folders that are not followed: below a class, or to a parent."""


def walk_folder(root: Path) -> FolderContents:
    """List the contents of `root`, usable for training or not, without opening images.

    Raises `UserError` if the folder is missing or has two folders for the same split.
    """
    found = FolderContents(require_folder(root))
    entries = _list_entries(root, found)
    folders = [Path(entry.path) for entry in entries if _is_folder(entry, (root,), found)]
    found.folders, ignored = _split_folders(root, folders)
    if found.folders:
        found.ignored = [folder.name for folder in ignored]
        _sort_files(entries, found)
    else:
        found.folders = {"all": root}
    for split, folder in found.folders.items():
        found.classes[split] = _find_classes(folder, found)
    found.others += ignored_in_archive(root)
    return found


def scan_class_folders(root: Path, training: bool = True) -> ImageDataset:
    """Find the images in the class folders of `root`, without opening them.

    A folder without splits is one split: `train`, or `all` unless `training`. For evaluation train/ may be missing, one
    class is enough, and any split may have any class. Raises `UserError` if the folder is missing, inaccessible or
    empty, and for training also without class folders, with an empty class folder, fewer than two classes, two class
    names that differ only in case, or a class that train/ lacks.
    """
    found = walk_folder(root)
    if found.inaccessible:
        name, reason = found.inaccessible[0]
        raise UserError(f"The folder {root / name} cannot be opened ({reason}); change its permissions or remove it.")
    notes = [f"Ignored in {root}: {', '.join(found.ignored)}."] if found.ignored else []
    if found.links:
        notes.append(f"Ignored in {root}, since links to folders can form cycles: {list_first(found.links)}.")
    if found.stray:
        notes.append(f"Ignored in {root}, since they are in no class: {list_first(found.stray)}.")
    if found.others:
        notes.append(describe_ignored(found.others))
    folders, by_split = found.folders, found.classes
    if training and "all" in by_split:
        folders, by_split = {"train": root}, {"train": by_split["all"]}
    if training and "train" not in folders:
        other = next(iter(folders.values()))
        raise UserError(f"{root} has {other.name}/ but no train/ to learn from; name the training folder train.")
    if training:
        _check_folders_for_training(root, folders, by_split)
    images = {
        split: [(path, name) for name, paths in by_class.items() for path in paths]
        for split, by_class in by_split.items()
    }
    for split, rows in images.items():
        if not rows:
            raise UserError(f"{folders[split]} holds no images; add some or remove the folder.")
    classes = tuple(by_split["train"] if training else sorted(set().union(*by_split.values())))
    return _to_dataset(root, classes, images, notes)


def _list_entries(folder: Path, found: FolderContents) -> list[os.DirEntry[str]]:
    """Return the entries of `folder` by name; one that cannot be opened is recorded and counts as empty."""
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        name = folder.relative_to(found.root).as_posix() if folder != found.root else "."
        found.inaccessible.append((name, error.strerror or str(error)))
        return []


def _is_folder(entry: os.DirEntry[str], parents: tuple[Path, ...], found: FolderContents) -> bool:
    """Whether `entry` is a folder or a link to one; a link to one of `parents` is recorded instead."""
    try:
        if not entry.is_dir():
            return False
        if entry.is_symlink() and any(os.path.samefile(entry.path, folder) for folder in parents):
            found.links.append(Path(entry.path).relative_to(found.root).as_posix())
            return False
        return True
    except OSError:  # a link to itself or to nothing
        return False


def _has_images(folder: Path, found: FolderContents) -> bool:
    """Whether `folder` directly contains images, as a class folder does and train/ does not."""
    return any(_is_image(entry) for entry in _list_entries(folder, found))


def _split_folders(root: Path, folders: list[Path]) -> tuple[dict[str, Path], list[Path]]:
    """Return the folders that are splits, by split, and the others.

    A class may be called train or valid: a folder with a split's name that directly contains images is a class, unless
    all folders next to it have such names too.
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
    """Return class name, in alphabetical order → sorted image paths below the root."""
    classes = {}
    entries = _list_entries(folder, found)
    for entry in entries:
        if _is_folder(entry, (folder, found.root), found):
            classes[entry.name] = sorted(_find_below(Path(entry.path), found))
    _sort_files(entries, found)
    return classes


def _sort_files(entries: list[os.DirEntry[str]], found: FolderContents) -> None:
    """Record the files among `entries`, which are in no class, as stray images or others."""
    for entry in entries:
        try:
            is_folder, of_image = entry.is_dir(), _is_image(entry)
        except OSError:  # a link to itself
            is_folder = of_image = False
        if not is_folder:
            (found.stray if of_image else found.others).append(Path(entry.path).relative_to(found.root).as_posix())


def _find_below(folder: Path, found: FolderContents) -> list[str]:
    """Return the paths below the root of the images at any depth in `folder`."""
    prefix = folder.relative_to(found.root).as_posix()
    names = []
    for entry in _list_entries(folder, found):
        if entry.is_dir(follow_symlinks=False):
            names += _find_below(Path(entry.path), found)
        elif entry.is_symlink() and entry.is_dir():
            found.links.append(f"{prefix}/{entry.name}")
        elif has_image_suffix(entry.name) or _is_image(entry):
            names.append(f"{prefix}/{entry.name}")
        else:
            found.others.append(f"{prefix}/{entry.name}")
    return names


def _check_folders_for_training(
    root: Path, folders: dict[str, Path], by_split: dict[str, dict[str, list[str]]]
) -> None:
    """Raise `UserError` if the class folders cannot be trained on."""
    train, folder = by_split["train"], folders["train"]
    if not train:
        if _has_images(folder, FolderContents(root)):
            found = "holds images but no class folders"
        else:
            found = "holds no images" if folder == root else "holds no class folders"
        raise UserError(f"{folder} {found}; put the images of each class into a separate folder there.")
    if not any(train.values()):
        raise UserError(f"{folder} holds no images; put those of each class into its folder.")
    for name, images in train.items():
        if not images:
            raise UserError(f"The class folder {folder / name} holds no images; add some or remove the folder.")
    if len(train) == 1:
        raise UserError(f"{folder} holds one class only, '{next(iter(train))}'; a classifier needs two or more.")
    by_case: dict[str, str] = {}
    for name in train:
        other = by_case.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"{folder} has classes '{other}' and '{name}', which differ only in case; rename one.")
    for split, classes in by_split.items():
        for name in classes:
            if name not in train:
                near = by_case.get(name.casefold())
                hint = f"there it is called '{near}'" if near else "classes are matched by name"
                raise UserError(
                    f"{folders[split] / name} is a class that {folder} lacks ({hint}); rename or remove it."
                )


# ── tables of labels ──────────────────────────────────────────────────────────────────────────────

COLUMN_NAMES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name"),
    "label": ("label", "class", "category", "target", "label_name", "class_name"),
    "split": ("split", "set", "subset", "partition"),
}
"""Column → its accepted names, in lower case."""


@dataclass
class LabelTable:
    """The usable rows of a table of labels, and what is wrong with the others."""

    names: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    """train, val or test; `all` throughout if the table has no such column."""
    repeated: int = 0
    """Number of rows that repeat an earlier one and are left out."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(image or row, what is wrong): no path or label, a contradiction, an unknown split."""


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the classes in the order of their indices: numerical if all are integers, else alphabetical."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def read_label_table(path: Path) -> LabelTable:
    """Read the table at `path`, collecting unusable rows.

    Raises `UserError` if the file is missing, not a table, empty, or without a column for path or label.
    """
    if not path.is_file():
        raise UserError(f"There is no label file {path}; check the path given as --labels.")
    columns = _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)
    chosen = {
        column: next((name for name in columns if name.strip().lower() in accepted), None)
        for column, accepted in COLUMN_NAMES.items()
    }
    if chosen["path"] is None or chosen["label"] is None:
        shown = ", ".join(list(columns)[:8]) or "none"
        raise UserError(f"{path} needs the columns path and label (and may have split), but has {shown}; name them so.")
    table = LabelTable()
    first: dict[str, tuple[str, str]] = {}
    splits = columns[chosen["split"]] if chosen["split"] is not None else None
    for i, (name, label) in enumerate(zip(columns[chosen["path"]], columns[chosen["label"]], strict=True)):
        split = "all" if splits is None else SPLIT_NAMES.get(splits[i].strip().lower(), "")
        if not name:
            table.bad.append((f"row {i + 1}", f"{path.name} gives no path there"))
        elif not label:
            table.bad.append((name, f"{path.name} gives it no label"))
        elif not split:
            table.bad.append((name, f"{path.name} gives it the split '{splits[i] if splits else ''}'"))
        elif name not in first:
            first[name] = (label, split)
            table.names.append(name)
            table.labels.append(label)
            table.splits.append(split)
        elif first[name] == (label, split):
            table.repeated += 1
        else:
            other = f"'{first[name][0]}' and '{label}'" if first[name][0] != label else f"{first[name][1]} and {split}"
            table.bad.append((name, f"{path.name} lists it twice, as {other}"))
    if not table.names:
        raise UserError(f"{path} lists no images; it needs a row for each, such as 'cat/1.jpg,cat'.")
    return table


def scan_label_table(root: Path, labels: Path, training: bool = True) -> ImageDataset:
    """Return the images below `root` that the table `labels` lists, like `scan_class_folders`.

    Raises `UserError` if `read_label_table` does, for unusable rows, and for training also with fewer than two classes,
    without train rows, or with a class that train lacks. Missing images are found when they are read.
    """
    table = read_label_table(labels)
    if table.bad:
        shown = list_first([f"{name} ({reason})" for name, reason in table.bad])
        rows = len(table.names) + table.repeated + len(table.bad)
        raise UserError(f"{len(table.bad)} of {rows} rows of {labels} cannot be used: {shown}; fix or remove them.")
    notes = [f"Ignored {table.repeated} repeated rows of {labels}."] if table.repeated else []
    splits = table.splits if "all" not in table.splits or not training else ["train"] * len(table.names)
    images: dict[str, list[tuple[str, str]]] = {split: [] for split in splits}
    for name, label, split in zip(table.names, table.labels, splits, strict=True):
        images[split].append((name, label))
    if training:
        _check_table_for_training(labels, images)
    classes = class_order(label for _, label in images["train"]) if training else class_order(table.labels)
    return _to_dataset(root, classes, images, notes)


def _check_table_for_training(labels: Path, images: dict[str, list[tuple[str, str]]]) -> None:
    """Raise `UserError` if the table cannot be trained on."""
    if "train" not in images:
        raise UserError(f"{labels} has no rows of the split train to learn from; its splits are {', '.join(images)}.")
    by_split = {split: {label for _, label in rows} for split, rows in images.items()}
    train = by_split["train"]
    if len(train) == 1:
        raise UserError(f"{labels} has one class only, '{next(iter(train))}'; a classifier needs two or more.")
    for split, names in by_split.items():
        if missing := sorted(names - train):
            raise UserError(f"{labels} has the class '{missing[0]}' in {split} but not in train; fix or remove it.")


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

    accepted = {name for names in COLUMN_NAMES.values() for name in names}
    try:
        schema = parquet.read_schema(path)
        chosen = [name for name in schema.names if name.strip().lower() in accepted]
        table = parquet.read_table(path, columns=chosen or None)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"The labels in {path} cannot be read ({error}); save them as Parquet again.") from error
    return {name: [_to_text(value) for value in table[name].to_pylist()] for name in table.column_names}


def _to_text(value: object) -> str:
    """Format a cell as CSV would; data frames turn integer columns with gaps into floats, so 3.0 becomes 3."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
