"""Images in class folders or listed in a table of labels: finding them, without opening any.

Both of these layouts are read, with any class names and images at any depth below a class:

    DIR/<class>/*                                 no splits
    DIR/train/<class>/*   DIR/val/<class>/*       also training; valid, validation; test, testing; in any case

The folder of a split may also hold images without class folders, if layouts.py finds their labels
in a file; test/ without labels is left out, with a note.

Hidden files are skipped; other files that are not images (image_names.py) and links to folders
below a class (possible cycles) are skipped and listed. Class indices follow the alphabetical order
of the folders in train/; other splits are matched to it by name. An archive is read like the folder
in it (archives.py). A table of labels (label_table.py) can replace the class folders. torch is
imported where needed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from alexnet.data.archives import ARCHIVE_SUFFIXES, ignored_in_archive, unpack_if_archive
from alexnet.data.dataset import EMPTY_FOLDER, BadFiles, ImageDataset, ImageFiles, list_first, order_splits
from alexnet.data.image_names import describe_ignored, has_image_suffix, is_hidden, is_image
from alexnet.data.label_table import SPLIT_NAMES, class_order, read_label_table
from alexnet.data.layouts import FlatImages, find_metadata, read_ground_truth, read_metadata
from alexnet.data.parquet_images import unpack_if_tables
from alexnet.errors import UserError
from alexnet.files import check_data_exists, printable
from alexnet.progress import Progress
from alexnet.text import BY_CONTENT, TextOptions, clean_label, decode, strip_blanks

# ── finding files ─────────────────────────────────────────────────────────────────────────────────


def find_images(paths: Iterable[str | Path], ignored: list[str] | None = None) -> list[Path]:
    """Return `paths` with each folder replaced by all images below it, sorted, except hidden ones.

    Other files, links to folders, and folders that cannot be opened are added to `ignored`. Raises
    `UserError` for a folder without images.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            images.append(path)
            continue
        found = FolderContents(path)
        inside = sorted(path / name for name in _find_below(path, found))
        others = [str(path / name) for name in found.others]
        others += [f"{path / name} (a link)" for name in found.links]
        others += [f"{path / name} ({reason})" for name, reason in found.inaccessible]
        if not inside:
            raise UserError(f"The folder {path} holds no images. {describe_ignored(others) if others else ''}".rstrip())
        images += inside
        if ignored is not None:
            ignored += others
    return images


def require_folder(data: Path) -> Path:
    """Return `data` if it is a folder. Raises `UserError` otherwise."""
    check_data_exists(data)
    if not data.is_dir():
        if data.suffix.lower() in (".csv", ".jsonl", ".parquet", ".pq"):
            raise UserError(f"{data} is a file, not a folder of images; give a table of labels as --labels {data}.")
        kinds = ", ".join(ARCHIVE_SUFFIXES[:3])
        raise UserError(f"{data} is a file, not a folder or an archive ({kinds}, ...); check the path given as data.")
    return data


def resolve_data_folder(
    data: Path | None, labels: Path | None, progress: Progress | None = None, text: TextOptions = BY_CONTENT
) -> Path:
    """Return the folder of the images: `data`, unpacked if it is an archive or, without `labels`, holds tables of
    images, or else the folder of `labels`.

    Raises `UserError`.
    """
    if data is None:
        assert labels is not None
        return labels.parent
    return require_folder(unpack_data(data, labels is None, progress, text))


def unpack_data(data: Path, tables: bool, progress: Progress | None, text: TextOptions) -> Path:
    """Return `data`, or, if it is an archive, or `tables` of images are in it, the folder that it is unpacked to."""
    data = unpack_if_archive(data, progress, text.encoding)
    return unpack_if_tables(data, progress, text) if tables else data


def resolve_labels_path(labels: Path, root: Path) -> Path:
    """Return `labels`, or the same path below the data folder `root` (as when both came in one archive)."""
    return labels if labels.is_file() or not (root / labels).is_file() else root / labels


def scan_images(
    data: Path | None,
    labels: Path | None,
    training: bool = True,
    progress: Progress | None = None,
    text: TextOptions = BY_CONTENT,
    bad: Sequence[tuple[str, str]] = (),
) -> ImageDataset:
    """Find the images in the class folders or archive `data` except the folders in `bad`, or those that the table
    `labels` lists, without opening them. Raises `UserError` as `scan_class_folders` and `scan_label_table`
    do."""
    root = resolve_data_folder(data, labels, progress, text)
    if labels is None:
        return scan_class_folders(root, training, text, bad)
    return scan_label_table(root, resolve_labels_path(labels, root), training, text)


class ImageList(NamedTuple):
    """Images of a dataset by name; their files may be missing."""

    classes: tuple[str, ...]
    """In the order of their indices."""
    splits: dict[str, list[tuple[str, str]]]
    """Split → (path below the root, class name) of each image."""
    notes: list[str]
    """Sentences to show the user."""


def _to_dataset(root: Path, found: ImageList) -> ImageDataset:
    """Return the dataset of the images `found` below `root`."""
    import torch

    index = {name: i for i, name in enumerate(found.classes)}
    splits = {}
    for split, rows in found.splits.items():
        targets = torch.tensor([index[label] for _, label in rows], dtype=torch.int64)
        splits[split] = ImageFiles(root, [name for name, _ in rows], targets)
    return ImageDataset("folder", found.classes, order_splits(splits), channels=3, notes=found.notes)


# ── class folders ─────────────────────────────────────────────────────────────────────────────────

_NO_CLASSES = {"images", "imgs", "test", "unknown", "unlabeled", "unlabelled"}
"""Lowercase names of a folder that holds all images of a split, if train/ has no such class."""


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
    notes: list[str] = field(default_factory=list)
    """How names were understood, where that is not evident; a sentence each."""
    undecided: str = ""
    """Why class names that are not UTF-8 cannot be decoded; they then are as `clean_label` returns them."""


def walk_folder(root: Path, text: TextOptions = BY_CONTENT) -> FolderContents:
    """List the contents of `root`, usable for training or not, without opening images.

    Raises `UserError` if the folder is missing or has two folders for the same split.
    """
    found = FolderContents(require_folder(root))
    folders, found.stray = _list_folder(root, found, (root,))
    splits, others = _split_folders(root, folders)
    found.folders = splits or {"all": root}
    direct: dict[str, list[str]] = {}
    found.ignored = [folder.name for folder in others] if splits else []
    for split, folder in found.folders.items():
        direct[split] = found.stray
        if folder != root:
            folders, direct[split] = _list_folder(folder, found, (folder, root))
        found.classes[split] = {below.name: sorted(_find_below(below, found)) for below in folders}
    if splits:
        found.stray += [name for names in direct.values() for name in names]
    for split in sorted(direct, key=lambda split: split != "train"):  # its classes are needed for the others
        _label_flat_images(found, split, direct[split], text)
    found.others += ignored_in_archive(root)
    _clean_class_names(found, text)
    return found


def _label_flat_images(found: FolderContents, split: str, direct: list[str], text: TextOptions) -> None:
    """Find the classes of images that are in no class folders, as `layouts` does: `direct`, those
    in the folder of a split, or those in its only folder if that is no class. test/ without any is
    left out, with a note."""
    folder, by_class = found.folders[split], found.classes[split]
    train = sorted(found.classes.get("train", {}))
    holder = len(by_class) == 1 and not direct and next(iter(by_class)).lower() in _NO_CLASSES
    flat = (bool(direct) and not by_class) or (holder and (split == "train" or not set(by_class) <= set(train)))
    if not flat and not find_metadata(folder) and not find_metadata(found.root):
        return
    images = FlatImages(found.root, folder, sorted([*direct, *(name for names in by_class.values() for name in names)]))
    labeled = read_metadata(images, text, optional=not flat or split == "test")
    if labeled is None and flat and split in ("val", "all"):
        labeled = read_ground_truth(images, train)
    if labeled is None:
        if flat and split == "test" and train:
            found.notes.append(f"Left out {folder}, since its {len(images.names):,} images have no labels.")
            found.stray = [name for name in found.stray if name not in set(direct)]
            del found.folders[split], found.classes[split]
        return
    by_class.clear()
    for name, label in labeled.labels.items():
        by_class.setdefault(label, []).append(name)
    found.notes += [f"Read the classes of {len(labeled.labels):,} images from {labeled.file}.", *labeled.notes]
    found.others = [name for name in found.others if found.root / name != labeled.file]
    found.stray = sorted({*found.stray, *images.names} - set(labeled.labels))


def scan_class_folders(
    root: Path, training: bool = True, text: TextOptions = BY_CONTENT, bad: Sequence[tuple[str, str]] = ()
) -> ImageDataset:
    """Return the images that `list_class_folders` finds as a dataset."""
    return _to_dataset(root, list_class_folders(root, training, text, bad))


def list_class_folders(
    root: Path, training: bool = True, text: TextOptions = BY_CONTENT, bad: Sequence[tuple[str, str]] = ()
) -> ImageList:
    """Find the images in the class folders of `root`, without opening them. Leave out the empty ones listed in `bad`.

    A folder without splits is one split: `train`, or `all` unless `training`. For evaluation train/
    may be missing, one class is enough, and any split may have any class. Raises `UserError` if the
    folder is missing, inaccessible or empty or has class names in an unknown encoding, and for
    training also without class folders, with fewer than two classes, two class names that differ
    only in case, or a class that train/ lacks, and `BadFiles` for empty class folders.
    """
    found = walk_folder(root, text)
    if found.undecided:
        raise UserError(found.undecided)
    if found.inaccessible:
        name, reason = found.inaccessible[0]
        raise UserError(f"The folder {root / name} cannot be opened ({reason}); change its permissions or remove it.")
    notes = found.notes + ([f"Ignored in {root}: {', '.join(found.ignored)}."] if found.ignored else [])
    if found.links:
        notes.append(f"Ignored in {root}, since links to folders can form cycles: {list_first(found.links)}.")
    if found.stray:
        count = f" {len(found.stray):,} images" if len(found.stray) > 10 else ""
        notes.append(f"Ignored{count} in {root}, since they are in no class: {list_first(found.stray)}.")
    if found.others:
        notes.append(describe_ignored(found.others))
    folders, by_split = found.folders, found.classes
    if training and "all" in by_split:
        folders, by_split = {"train": root}, {"train": by_split["all"]}
    if training and "train" not in folders:
        other = next(iter(folders.values()))
        raise UserError(f"{root} has {other.name}/ but no train/ to learn from; name the training folder train.")
    if training:
        left_out = {name for name, _ in bad} if any(by_split["train"].values()) else set()
        by_split = {
            split: {
                name: images
                for name, images in by_class.items()
                if images or folder_name(root, folders[split] / name) not in left_out
            }
            for split, by_class in by_split.items()
        }
        check_folders_for_training(root, folders, by_split)
    images = {
        split: [(path, name) for name, paths in by_class.items() for path in paths]
        for split, by_class in by_split.items()
    }
    for split, rows in images.items():
        if not rows:
            if any((root / name).parent == folders[split] for name in found.stray):
                raise UserError(_without_classes(folders[split]))
            raise UserError(f"{folders[split]} holds no images; add some or remove the folder.")
    classes = tuple(by_split["train"] if training else sorted(set().union(*by_split.values())))
    if spaced := [name for name in classes if (plain := strip_blanks(name)) != name and plain in classes]:
        notes.append(f"In {root} classes differ from others only in blanks: {', '.join(map(repr, spaced[:10]))}.")
    return ImageList(classes, images, notes)


def _list_folder(folder: Path, found: FolderContents, parents: tuple[Path, ...] = ()) -> tuple[list[Path], list[str]]:
    """Return the folders and the images (paths below the root) directly in `folder`, by name, and record the rest.

    Links to folders are followed only if `parents` are given and they lead to none of these. A
    folder that cannot be opened counts as empty.
    """
    folders, images = [], []
    prefix = folder.relative_to(found.root).as_posix()
    try:
        with os.scandir(folder) as listed:
            entries = sorted((entry for entry in listed if not is_hidden(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        found.inaccessible.append((prefix, error.strerror or str(error)))
        return [], []
    for entry in entries:
        name = entry.name if prefix == "." else f"{prefix}/{entry.name}"
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if (
            is_folder
            and entry.is_symlink()
            and (not parents or any(os.path.samefile(entry.path, parent) for parent in parents))
        ):
            found.links.append(name)
        elif is_folder:
            folders.append(Path(entry.path))
        elif _is_image(entry):
            images.append(name)
        else:
            found.others.append(name)
    return folders, images


def _is_image(entry: os.DirEntry[str]) -> bool:
    """Whether an entry that is no folder is an image; a link of an image's name is, even if it leads nowhere."""
    if has_image_suffix(entry.name):
        return entry.is_symlink() or entry.is_file(follow_symlinks=False)
    return os.path.isfile(entry.path) and is_image(entry.path)


def _has_images(folder: Path) -> bool:
    """Whether `folder` directly contains images, as a class folder does and train/ does not."""
    return bool(_list_folder(folder, FolderContents(folder))[1])


def _split_folders(root: Path, folders: list[Path]) -> tuple[dict[str, Path], list[Path]]:
    """Return the folders that are splits, by split, and the others.

    A class may be called train or valid: a folder with a split's name that directly contains images
    is a class, unless all folders next to it have such names too, or train/ contains folders or a
    table of labels.
    """
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if len(named) < len(folders):
        nested = [folder for folder in named if not _has_images(folder) or find_metadata(folder)]
        if not any(SPLIT_NAMES[folder.name.lower()] == "train" for folder in nested):
            named = nested
    splits: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in splits:
            raise UserError(f"{root} has both {splits[split].name}/ and {folder.name}/; leave only one of them.")
        splits[split] = folder
    return splits, [folder for folder in folders if folder not in named]


def _clean_class_names(found: FolderContents, text: TextOptions) -> None:
    """Replace folder names by class names: decoded, and as `clean_label` returns them. Folders
    whose names then are equal are one class."""
    folders = {name for by_class in found.classes.values() for name in by_class}
    names = {name: name for name in folders}
    broken = sorted(name for name in folders if printable(name) != name)
    foreign = sorted(name for name in folders if not name.isascii())
    for group in (foreign, broken) if broken else ():  # a name in GBK may by chance be valid UTF-8
        try:
            raw = [name.encode("utf-8", "surrogateescape") for name in group]
            decoded, encoding = decode(raw, f"A name among {len(group)} class folders in {found.root}", text.encoding)
        except UserError as error:
            found.undecided = str(error)
        else:
            found.undecided = ""
            names |= zip(group, decoded, strict=True)
            found.notes.append(f"Read the names of class folders in {found.root} as {encoding}: {list_first(decoded)}.")
            break
    for split, by_class in found.classes.items():
        merged: dict[str, list[str]] = {}
        for folder, images in by_class.items():
            merged.setdefault(clean_label(names[folder]), []).extend(images)
        found.classes[split] = {name: sorted(merged[name]) for name in sorted(merged)}
        if (fewer := len(by_class) - len(merged)) > 0:
            same = [name for name in merged if sum(clean_label(names[f]) == name for f in by_class) > 1]
            found.notes.append(
                f"Merged {fewer} class folders in {found.folders[split]} with another whose name looks the same: "
                f"{list_first(same)}."
            )


def _find_below(folder: Path, found: FolderContents) -> list[str]:
    """Return the paths below the root of the images at any depth in `folder`."""
    folders, names = _list_folder(folder, found)
    for below in folders:
        names += _find_below(below, found)
    return names


def _without_classes(folder: Path) -> str:
    return (
        f"{folder} holds images but no class folders; put the images of each class into a separate folder there, or "
        "give a table of labels as --labels."
    )


def folder_name(root: Path, folder: Path) -> str:
    """Return what `BadFiles` calls a class folder."""
    return f"{folder.relative_to(root).as_posix()}/"


def check_folders_for_training(root: Path, folders: dict[str, Path], by_split: dict[str, dict[str, list[str]]]) -> None:
    """Raise `UserError` if the class folders cannot be trained on, `BadFiles` if they can without the empty ones.

    `by_split` has the images of each class for each split, of which one is train.
    """
    train, folder = by_split["train"], folders["train"]
    if not train:
        if _has_images(folder):
            raise UserError(_without_classes(folder))
        found = "holds no images" if folder == root else "holds no class folders"
        raise UserError(f"{folder} {found}; put the images of each class into a separate folder there.")
    if not any(train.values()):
        raise UserError(f"{folder} holds no images; put those of each class into its folder.")
    full = [name for name, images in train.items() if images]
    if len(full) == 1:
        raise UserError(f"{folder} holds images of one class only, '{full[0]}'; a classifier needs two or more.")
    empty = [
        folder_name(root, folders[split] / name)
        for split, by_class in by_split.items()
        for name, images in by_class.items()
        if not images and not train.get(name, True)
    ]
    if empty:
        listed = f"Class folders in {root} that hold no images ({len(empty)}): {list_first(empty)}"
        raise BadFiles(listed, [(name, EMPTY_FOLDER) for name in empty])
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


def scan_label_table(root: Path, labels: Path, training: bool = True, text: TextOptions = BY_CONTENT) -> ImageDataset:
    """Return the images that `list_label_table` finds as a dataset."""
    return _to_dataset(root, list_label_table(root, labels, training, text))


def list_label_table(root: Path, labels: Path, training: bool = True, text: TextOptions = BY_CONTENT) -> ImageList:
    """Return the images below `root` that the table `labels` lists, like `list_class_folders`.

    Raises `UserError` if `read_label_table` does, for unusable rows, and for training also with
    fewer than two classes, without train rows, or with a class that train lacks. Missing images are
    found when they are read.
    """
    table = read_label_table(labels, root, text)
    if table.bad:
        shown = list_first([f"{name} ({reason})" for name, reason in table.bad])
        rows = len(table.names) + table.repeated + len(table.bad)
        raise UserError(f"{len(table.bad)} of {rows} rows of {labels} cannot be used: {shown}; fix or remove them.")
    notes = table.notes + ([f"Ignored {table.repeated} repeated rows of {labels}."] if table.repeated else [])
    splits = table.splits if "all" not in table.splits or not training else ["train"] * len(table.names)
    images: dict[str, list[tuple[str, str]]] = {split: [] for split in splits}
    for name, label, split in zip(table.names, table.labels, splits, strict=True):
        images[split].append((name, label))
    if training:
        _check_table_for_training(labels, images)
    classes = class_order(label for _, label in images["train"]) if training else class_order(table.labels)
    return ImageList(classes, images, notes)


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
