"""Tables of labels, CSV, JSON Lines or Parquet: their encoding, their columns, and the files that their paths mean."""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from alexnet.data.image_names import IMAGE_SUFFIXES
from alexnet.errors import UserError
from alexnet.files import check_labels_exist, printable
from alexnet.text import BY_CONTENT, COLUMNS, TextOptions, clean_label, decode_file, escape, find_codec, strip_blanks

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

COLUMN_NAMES = {
    "path": ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name"),
    "label": ("label", "class", "category", "target", "label_name", "class_name"),
    "split": ("split", "set", "subset", "partition"),
}
"""Column → its accepted names, in lower case."""
ID_NAMES = ("id", "image_id", "img_id", "id_code")
"""Names of the column of paths where none of `COLUMN_NAMES` is there, as in many tables of Kaggle;
the only other column then is the label."""
LABEL_NAMES = ("labels", "breed", "species", "diagnosis", "dx", "tag", "tags", "y", "id")
"""Names of the label where it is the only column beside the path and none of `COLUMN_NAMES` is there."""
_INDEX_NAMES = ("", "index", "unnamed:_0")  # row numbers that pandas writes


@dataclass
class LabelTable:
    """The usable rows of a table of labels, and what is wrong with the others."""

    names: list[str] = field(default_factory=list)
    """Paths of the images, as they are on disk."""
    labels: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    """train, val or test; `all` throughout if the table has no such column."""
    repeated: int = 0
    """Number of rows that repeat an earlier one and are left out."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(image or row, what is wrong): no path or label, a contradiction, an unknown split."""
    notes: list[str] = field(default_factory=list)
    """How the table was understood, where that is not evident; a sentence each."""


def class_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the classes in the order of their indices: numerical if all are integers, else alphabetical."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def read_label_table(path: Path, root: Path | None = None, text: TextOptions = BY_CONTENT) -> LabelTable:
    """Read the table at `path`, whose paths are relative to `root`, collecting unusable rows.

    Labels are stripped and as `clean_label` returns them. A path that does not exist in `root`
    stands for the one file that `_Files.find` finds; without `root` paths stay as they are. Raises
    `UserError` if the file is missing, not a table, empty, in an unknown encoding, or without a
    column for path or label.
    """
    check_labels_exist(path)
    table, encoding = LabelTable(), "utf-8"

    def choose(names: list[str]) -> dict[str, str]:
        return _choose_columns(path, names, text.chosen_columns, table.notes)

    if path.suffix.lower() in (".parquet", ".pq"):
        columns = _read_parquet(path, choose)
    elif path.suffix.lower() == ".jsonl":
        columns = _read_json_lines(path, choose)
    else:
        columns, encoding = _read_csv(path, text.encoding, choose)
        if encoding != "utf-8" and text.encoding is None:
            table.notes.append(f"Read {path} as {encoding}, the only encoding that fits.")
    files = _Files(root, encoding) if root is not None else None
    first: dict[str, tuple[str, str]] = {}
    splits = columns.get("split")
    for i, (given, label) in enumerate(zip(columns["path"], columns["label"], strict=True)):
        split = "all" if splits is None else SPLIT_NAMES.get(splits[i].strip().lower(), "")
        found = files.find(given) if files and given.strip() else [strip_blanks(given)]
        name, label = found[0], clean_label(strip_blanks(label))
        if not name:
            table.bad.append((f"row {i + 1}", f"{path.name} gives no path there"))
        elif len(found) > 1:
            table.bad.append((given, f"it may be {found[0]} or {found[1]}"))
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
    if not table.names and not table.bad:
        raise UserError(f"{path} lists no images; it needs a row for each, such as 'cat/1.jpg,cat'.")
    if files and files.resolved:
        given, name = files.resolved[0]
        table.notes.append(
            f"Took {len(files.resolved):,} paths of {path} for the only file that fits, such as {printable(name)} for "
            f"'{given}'."
        )
    return table


# ── columns ───────────────────────────────────────────────────────────────────────────────────────


def _choose_columns(path: Path, names: list[str], given: dict[str, str], notes: list[str]) -> dict[str, str]:
    """Return path, label and perhaps split → the table's name of that column: as `given`, else by
    `COLUMN_NAMES`, else by `ID_NAMES` and `LABEL_NAMES`, with a note."""
    plain = {name: re.sub(r"[\s-]+", "_", name.strip().lower()) for name in names}
    shown = ", ".join(escape(name)[:40] for name in names[:8]) or "none"
    chosen = {}
    for column, wanted in given.items():
        match = [name for name in names if name.strip().lower() == wanted.lower()]
        if not match:
            raise UserError(f"--columns names {wanted}, which {path} does not have; it has {shown}.")
        chosen[column] = match[0]
    for column in COLUMNS:
        free = [name for name in names if name not in chosen.values()]
        match = [name for name in free if plain[name] in COLUMN_NAMES[column]]
        if match and column not in chosen:
            chosen[column] = match[0]
    others = [name for name in names if name not in chosen.values() and plain[name] not in _INDEX_NAMES]
    ids = [name for name in others if plain[name] in ID_NAMES]
    guessed = "path" not in chosen and len(ids) == 1
    if guessed:
        chosen["path"] = ids[0]
        others.remove(ids[0])
    if "label" not in chosen and len(others) == 1 and (guessed or plain[others[0]] in LABEL_NAMES):
        chosen["label"], guessed = others[0], True
    if not {"path", "label"} <= set(chosen):
        raise UserError(
            f"{path} needs the columns path and label (and may have split), but has {shown}; name them so, or give "
            "--columns path=NAME,label=NAME."
        )
    if guessed:
        notes.append(
            f"Read paths from the column {escape(chosen['path'])} of {path} and labels from {escape(chosen['label'])}; "
            "--columns path=NAME,label=NAME reads others."
        )
    return chosen


# ── files ─────────────────────────────────────────────────────────────────────────────────────────


class _Files:
    """Finds the files below a folder that the paths of a table mean; the folder is listed if a path does not exist."""

    def __init__(self, root: Path, encoding: str) -> None:
        self._root, self._encoding = root, encoding
        self.resolved: list[tuple[str, str]] = []
        """(Path in the table, the only file that it fits)."""

    def find(self, name: str) -> list[str]:
        """Return the file `name`, or else those it may mean: with other case, slashes, blanks or
        Unicode composition, without the ending of an image, or, for a name without folders, in any
        folder. None fits: `name` itself."""
        plain = strip_blanks(name)
        for exact in (plain, name):
            if os.path.isfile(os.path.join(self._root, exact)):
                return [exact]
        by_path, by_name = self._index
        key = self._key(plain)
        found = by_path.get(key) or ([] if "/" in key else by_name.get(key, []))
        if len(found) == 1:
            self.resolved.append((plain, found[0]))
        return found or [plain]

    @cached_property
    def _index(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """The files below the folder by the keys of their path and of their name, with and without ending."""
        by_path: dict[str, list[str]] = {}
        by_name: dict[str, list[str]] = {}
        for folder, folders, files in os.walk(self._root):
            folders[:] = sorted(entry for entry in folders if not entry.startswith("."))
            for entry in sorted(files):
                name = Path(folder, entry).relative_to(self._root).as_posix()
                key, (stem, suffix) = self._key(name), os.path.splitext(self._key(name))
                for form in (key, stem) if suffix in IMAGE_SUFFIXES else (key,):
                    by_path.setdefault(form, []).append(name)
                    by_name.setdefault(posixpath.basename(form), []).append(name)
        return by_path, by_name

    def _key(self, name: str) -> str:
        """Return a form of a path that is equal for all its spellings."""
        if printable(name) != name:  # a file name in the encoding of the table
            try:
                name = name.encode("utf-8", "surrogateescape").decode(find_codec(self._encoding))
            except UnicodeDecodeError:
                name = printable(name)
        parts = unicodedata.normalize("NFC", name).casefold().replace("\\", "/").split("/")
        return posixpath.normpath("/".join(part.strip() for part in parts))


# ── formats ───────────────────────────────────────────────────────────────────────────────────────


Choose = Callable[[list[str]], dict[str, str]]
"""Names of all columns → path, label and perhaps split → the name of that column."""


def _read_csv(path: Path, encoding: str | None, choose: Choose) -> tuple[dict[str, list[str]], str]:
    """Return the chosen columns of a CSV file, and its encoding."""
    try:
        text, found = decode_file(path.read_bytes(), str(path), encoding)
        if "\0" in text:
            raise UserError(f"{path} is no table of text; save it as CSV in UTF-8, or as .parquet.")
        separator = _find_separator(text.split("\n", 1)[0])
        header, *rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator)) or [[]]
    except (OSError, csv.Error) as error:
        raise UserError(f"The labels in {path} cannot be read ({error}); save them as CSV again.") from error
    rows = [row for row in rows if row]
    uneven = next((i for i, row in enumerate(rows, 1) if len(row) != len(header)), None)
    if uneven is not None:
        raise UserError(
            f"Row {uneven} of {path} has {len(rows[uneven - 1])} fields and the first line {len(header)}; "
            "put names with commas into quotes."
        )
    index = {column: header.index(name) for column, name in choose(header).items()}
    return {column: [row[i] for row in rows] for column, i in index.items()}, found


def _find_separator(header: str) -> str:
    return max(",;\t", key=header.count)


def _read_json_lines(path: Path, choose: Choose) -> dict[str, list[str]]:
    """Return the chosen columns of a file with a JSON object in each line, of those that hold text or numbers."""
    try:
        text, _ = decode_file(path.read_bytes(), str(path), "utf-8")
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"The labels in {path} cannot be read ({error}); write a JSON object per line.") from error
    if any(not isinstance(row, dict) for row in rows):
        raise UserError(f'{path} is no table: it needs a JSON object per line, such as {{"file_name": "1.jpg"}}.')
    nested = {name for row in rows for name, value in row.items() if isinstance(value, (list, dict))}
    chosen = choose([name for name in dict.fromkeys(name for row in rows for name in row) if name not in nested])
    return {column: [_to_text(row.get(name)) for row in rows] for column, name in chosen.items()}


def read_column_names(path: Path) -> list[str]:
    """Return the names of the columns of a table, from its start; none if it cannot be read."""
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            from pyarrow import parquet

            return list(parquet.read_schema(path).names)
        with path.open("rb") as file:
            first = file.readline().decode("utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            return list(json.loads(first))
        return next(csv.reader([first], delimiter=_find_separator(first)), [])
    except (OSError, ValueError, csv.Error, TypeError):  # pyarrow's errors are ValueErrors
        return []


def _read_parquet(path: Path, choose: Choose) -> dict[str, list[str]]:
    """Return the chosen columns of a Parquet file, of those that hold text or numbers."""
    import pyarrow
    from pyarrow import parquet, types

    try:
        schema = parquet.read_schema(path)
        kinds = {name: schema.field(name).type for name in schema.names}
        binary = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
        plain = [n for n, kind in kinds.items() if not types.is_nested(kind) and not any(f(kind) for f in binary)]
        chosen = choose(plain)
        table = parquet.read_table(path, columns=list(chosen.values()))
    except (OSError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"The labels in {path} cannot be read ({error}); save them as Parquet again.") from error
    return {column: [_to_text(value) for value in table[name].to_pylist()] for column, name in chosen.items()}


def _to_text(value: object) -> str:
    """Format a cell as CSV would; data frames turn integer columns with gaps into floats, so 3.0 becomes 3."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
