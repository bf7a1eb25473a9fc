"""What a packing is to do: the pictures, the form that they get, and the shards that hold them.

All of it depends on the data and on what was asked for alone, not on the machine: so any machine goes on with it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from alexnet.data import folders
from alexnet.data.folders import Progress
from alexnet.data.images import BadImage, image_size
from alexnet.data.packed import FORMAT, is_pack
from alexnet.data.samples import Arrays, Files
from alexnet.data.shard_writer import Task
from alexnet.data.shards import Form
from alexnet.data.sources import CIFAR10_ARCHIVE, open_layout
from alexnet.data.split import in_order
from alexnet.errors import UserError

SIDE = 256
"""The short side unless another is asked for, or the pictures are smaller."""
QUALITY = 90
"""Of JPEGs made here unless another is asked for."""

_SHARD_BYTES = 64 << 20  # of packed pixels: litdata's own habit; three times as much is in memory as it is made
_SHARD_JPEGS = 1024  # some 40 MB at 256 pixels
_SHARD_FILES = 256 << 20  # bytes of the files that it is made of, where these may be large: litdata counts to 4 GiB
_AT_LEAST = 16  # shards where pictures are few, so that all cores have some
_SAMPLED = 200  # pictures whose size is asked for


@dataclass(frozen=True)
class Contents:
    """What is to be packed."""

    classes: tuple[str, ...]
    splits: dict[str, Arrays | Files]
    channels: int


def read_contents(data: Path, labels: Path | None, progress: Progress | None) -> Contents:
    """The pictures of `data`, as training finds them, unopened and undivided. Raises `UserError` as `folders.scan`."""
    if is_pack(data):
        raise UserError(f"{data} is packed already; give the pictures that it was packed from.")
    root = data if data.name == CIFAR10_ARCHIVE else folders.data_folder(data, labels, progress)
    if labels is None and (layout := open_layout(root, progress)) is not None:
        return Contents(layout.classes, layout.splits, layout.channels)
    table = folders.labels_file(labels, root) if labels is not None else None

    def read(training: bool) -> folders.Tree:
        return folders.scan(root, training) if table is None else folders.listed(root, table, training)

    tree = read(training=False)
    if {"train", "all"} & set(tree.splits):  # else pictures to measure a network on
        tree = read(training=True)
    return Contents(tree.classes, in_order({**tree.splits}), channels=3)


def choose_form(contents: Contents, kind: str, size: int | str | None, quality: int) -> Form:
    """The form that is asked for; `size` is a number, 'original', or None for the pictures' own up to `SIDE`. Raises
    `UserError`."""
    side: int | None
    if size == "original":
        if kind == "uint8":
            raise UserError("Pixels are packed as squares of one size; give --size N, or --format jpeg.")
        side = None
    elif size is None:
        side = _own_side(next(iter(contents.splits.values())))
    else:
        side = int(size) if str(size).isdecimal() else 0
        if side < 1:
            raise UserError(f"--size {size} is neither a number of pixels nor 'original'; 256 is usual.")
    return Form(kind, side, contents.channels, quality if kind == "jpeg" else None)


def _own_side(part: Arrays | Files) -> int:
    """SIDE, or where the pictures are smaller the median of their short sides."""
    if isinstance(part, Arrays):
        return min(SIDE, *part.images.shape[2:])
    sides = []
    for i in np.unique(np.linspace(0, len(part) - 1, _SAMPLED).astype(int)).tolist():
        try:
            sides.append(min(image_size(part.stored(i))))
        except BadImage:
            continue
    return min(SIDE, round(statistics.median(sides))) if sides else SIDE


def tasks_of(contents: Contents, form: Form, target: Path) -> list[Task]:
    """The shards, the same whatever machine makes them."""
    return list(_cut(contents, form, target))


def _most(contents: Contents, form: Form) -> int:
    """Pictures in a shard."""
    total = sum(map(len, contents.splits.values()))
    most = _SHARD_JPEGS if form.kind == "jpeg" else max(1, _SHARD_BYTES // int(np.prod(form.shape)))
    return max(1, min(most, -(-total // _AT_LEAST)))


def _cut(contents: Contents, form: Form, target: Path) -> Iterator[Task]:
    most = _most(contents, form)
    for split, part in contents.splits.items():
        targets = part.targets.tolist()
        for number, (start, stop) in enumerate(_bounds(part, form, most)):
            if isinstance(part, Files):
                pictures: list[str] | np.ndarray = part.names[start:stop]
            else:
                pictures = part.images[start:stop].permute(0, 2, 3, 1).numpy()
            root = part.root if isinstance(part, Files) else Path()
            yield Task(target, split, number, root, pictures, targets[start:stop], form)


def _bounds(part: Arrays | Files, form: Form, most: int) -> Iterator[tuple[int, int]]:
    """Where each shard starts and stops: by number, and by bytes of JPEGs that may be larger than usual ones."""
    large = isinstance(part, Files) and form.kind == "jpeg" and (form.side is None or form.side > SIDE)
    start = total = 0
    for i in range(len(part)):
        size = _size(part.root / part.names[i]) if large and isinstance(part, Files) else 0
        if i > start and (i - start == most or total + size > _SHARD_FILES):
            yield start, i
            start, total = i, 0
        total += size
    if len(part):
        yield start, len(part)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # it will be listed among those that cannot be read
        return 0


def key_of(contents: Contents, form: Form, tasks: list[Task]) -> str:
    """What makes this packing this one: go on only with the same pictures in the same form, cut into the same shards
    (which are named only where bytes decided: the others follow from the rest)."""
    splits = {split: [part.names, part.targets.tolist()] for split, part in contents.splits.items()}
    said: list[object] = [FORMAT, asdict(form), contents.classes, splits]
    most = _most(contents, form)
    if any(one.split == after.split and len(one) < most for one, after in itertools.pairwise(tasks)):
        said.append([len(task) for task in tasks])
    return hashlib.blake2b(json.dumps(said).encode(), digest_size=16).hexdigest()
