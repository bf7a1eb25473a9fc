"""A table of pictures and their labels, CSV or Parquet, in place of class folders.

The columns are told by name: path and label, and split where the table divides the data. Paths start from the data
folder, or from the table's own folder where none is given. Labels are texts; whole numbers are put in numerical order.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from alexnet.errors import UserError

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

COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name"),
    "label": ("label", "class", "category", "target", "label_name", "class_name"),
    "split": ("split", "set", "subset", "partition"),
}
"""Names of a column, in lower case; the first is what we call it."""


@dataclass
class Listed:
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


def read_labels(path: Path) -> Listed:
    """The rows of the table at `path`, with what is wrong with some of them beside.

    Raises `UserError` for a file that is missing, no such table, empty, or without a column for path or label.
    """
    if not path.is_file():
        raise UserError(f"There is no file of labels {path}; check the path given as --labels.")
    columns = _parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _csv(path)
    chosen = {
        kind: next((name for name in columns if name.strip().lower() in names), None) for kind, names in COLUMNS.items()
    }
    if chosen["path"] is None or chosen["label"] is None:
        shown = ", ".join(list(columns)[:8]) or "none"
        raise UserError(f"{path} needs the columns path and label (and may have split), but has {shown}; name them so.")
    found = Listed()
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


def _csv(path: Path) -> dict[str, list[str]]:
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


def _parquet(path: Path) -> dict[str, list[str]]:
    import pyarrow
    from pyarrow import parquet

    wanted = {name for names in COLUMNS.values() for name in names}
    try:
        schema = parquet.read_schema(path)
        chosen = [name for name in schema.names if name.strip().lower() in wanted]
        table = parquet.read_table(path, columns=chosen or None)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"The labels in {path} cannot be read ({error}); save them as Parquet again.") from error
    return {name: [_text(value) for value in table[name].to_pylist()] for name in table.column_names}


def _text(value: object) -> str:
    """A cell as CSV would have it: a float that is a whole number, as data frames make of gaps, loses its point."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
