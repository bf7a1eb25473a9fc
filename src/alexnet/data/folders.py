"""Pictures in class folders: finding them, and finding the bad ones before training does.

Any of these layouts is read, with any names for the classes and pictures at any depth below a class:

    DIR/<class>/*                                 no split
    DIR/train/<class>/*   DIR/val/<class>/*       also training; valid, validation; test, testing; in any case

Hidden files and files that are no pictures by their ending are passed over. A class's number is its place in the
alphabet among the folders of train/; the other splits are matched to it by name, never by position.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from alexnet import runtime
from alexnet.data.images import IMAGE_SUFFIXES, check_image
from alexnet.data.samples import Files
from alexnet.errors import UserError

Progress = Callable[[int, int, str], None]
"""Called as progress(done, total, what) while something takes long."""

FULL_CHECK = 50_000
"""Up to so many files are decoded to find the bad ones; of more, only headers and end markers are read."""

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_CHUNK = 64  # files a thread takes at a time: enough to make its bookkeeping cheap, few enough to show progress

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Tree:
    """What `scan` found: class names in order, the splits that the folders make, and what was passed over."""

    classes: tuple[str, ...]
    splits: dict[str, Files]
    notes: list[str]


def existing_folder(data: Path) -> Path:
    """`data`, if it is a folder. Raises `UserError` otherwise."""
    if not data.exists():
        raise UserError(f"There is no folder {data}; check the path given as data.")
    if not data.is_dir():
        raise UserError(f"{data} is a file, not a folder; unpack it if it is an archive, and give the folder.")
    return data


def scan(root: Path, training: bool = True) -> Tree:
    """The pictures below `root`, without opening them; a folder without splits is all `train`, or `all` where they
    are not for `training`. Then train/ may be missing, one class is enough, and classes may be in any split.

    Raises `UserError` for a folder that is missing, holds no pictures or no class folders, an empty class
    folder, fewer than two classes, two classes that differ only in case, a class that train/ lacks.
    """
    folders = _subfolders(existing_folder(root))
    split_folders, others = _split_folders(root, folders)
    notes: list[str] = []
    if not split_folders:
        split_folders = {"train": root}
        if not training:
            split_folders = {"all": root}
    elif others:
        notes.append(f"Passed over in {root}: {', '.join(folder.name for folder in others)}.")
    if training and "train" not in split_folders:
        found = next(iter(split_folders.values()))
        raise UserError(f"{root} has {found.name}/ but no train/ to learn from; name the training folder train.")

    by_split = {split: _classes(folder) for split, folder in split_folders.items()}
    if training:
        _check_classes(root, split_folders, by_split)
    classes = tuple(by_split["train"] if training else sorted(set().union(*by_split.values())))
    number = {name: i for i, name in enumerate(classes)}
    splits = {}
    for split, by_class in by_split.items():
        names = [path for paths in by_class.values() for path in paths]
        targets = [number[name] for name, paths in by_class.items() for _ in paths]
        if not names:
            raise UserError(f"{split_folders[split]} holds no pictures; add some or remove the folder.")
        prefix = "" if split_folders[split] == root else split_folders[split].name + "/"
        splits[split] = Files(root, [prefix + name for name in names], torch.tensor(targets, dtype=torch.int64))
    return Tree(classes, splits, notes)


def drop_bad(tree: Tree, *, skip_bad: bool, progress: Progress | None = None) -> tuple[Tree, list[tuple[str, str]]]:
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
    reasons = list(in_threads(lambda path: check_image(path, full=full), paths, progress, "checking images"))
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
    return Tree(tree.classes, splits, tree.notes), bad


def in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], progress: Progress | None, what: str
) -> Iterator[Result]:
    """work(item) for each item, in order, on as many threads as there are cores (Pillow decodes outside the GIL)."""
    pool = ThreadPoolExecutor(runtime.cpu_count())
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


def _hidden(name: str) -> bool:
    return name.startswith((".", "@")) or name == "__MACOSX"  # @eaDir: thumbnails of network drives


def _is_picture(name: str) -> bool:
    return not _hidden(name) and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not _hidden(path.name))


def _has_pictures(folder: Path) -> bool:
    """Whether pictures lie in `folder` itself, as they do in a class folder and not in train/."""
    return any(_is_picture(path.name) for path in folder.iterdir())


def _split_folders(root: Path, folders: list[Path]) -> tuple[dict[str, Path], list[Path]]:
    """The folders that are splits, by split, and the others.

    A class may be called train or valid. So a folder of such a name that holds pictures itself is a class,
    unless all its neighbours have such names too.
    """
    named = [folder for folder in folders if folder.name.lower() in SPLIT_NAMES]
    if len(named) < len(folders):
        named = [folder for folder in named if not _has_pictures(folder)]
    splits: dict[str, Path] = {}
    for folder in named:
        split = SPLIT_NAMES[folder.name.lower()]
        if split in splits:
            raise UserError(f"{root} has both {splits[split].name}/ and {folder.name}/; leave only one of them.")
        splits[split] = folder
    return splits, [folder for folder in folders if folder not in named]


def _classes(folder: Path) -> dict[str, list[str]]:
    """Class names in alphabetical order, each with the sorted paths of its pictures below `folder`."""
    classes = {}
    for class_folder in _subfolders(folder):
        names = []
        for where, below, files in os.walk(class_folder):
            below[:] = [name for name in below if not _hidden(name)]
            relative = Path(where).relative_to(folder).as_posix()
            names += [f"{relative}/{name}" for name in files if _is_picture(name)]
        classes[class_folder.name] = sorted(names)
    return classes


def _check_classes(root: Path, folders: dict[str, Path], found: dict[str, dict[str, list[str]]]) -> None:
    train, where = found["train"], folders["train"]
    if not train:
        what = "pictures but no class folders" if _has_pictures(where) else "no class folders"
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
