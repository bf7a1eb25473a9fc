"""Images inside tables, as Hugging Face distributes datasets: unpacked once into the cache, then read like a folder.

Parquet files, and the Arrow files of `Dataset.save_to_disk`, hold an image in each row as `{bytes, path}` and its class
as a number, whose names are in the schema's metadata under `huggingface`. Each split becomes a folder of image files
with a `metadata.csv`, which layouts.py reads.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alexnet.data.archives import MAX_GROWTH
from alexnet.data.image_names import has_image_suffix, is_hidden
from alexnet.data.label_table import COLUMN_NAMES, LABEL_NAMES, SPLIT_NAMES
from alexnet.data.layouts import METADATA_FILES, unpacked_tables
from alexnet.errors import UserError
from alexnet.files import atomic_folder, encode_csv
from alexnet.progress import Progress
from alexnet.text import BY_CONTENT, TextOptions

_SUFFIXES = (".parquet", ".pq", ".arrow")
_ROWS = 256  # rows in memory at once
_RESERVED = 1 << 30  # bytes that must stay free on the disk
_ALWAYS_ALLOWED = 1 << 28  # bytes that any table may unpack to


class _Table(NamedTuple):
    """A file with images, and where in it they are."""

    path: Path
    split: str
    """train, val, test, or `all`."""
    image: str
    """Name of the column of images."""
    label: str | None
    """Name of the column of classes; None in a test set without labels."""
    classes: Sequence[str]
    """Class names, where labels are numbers that index them; else empty."""


def unpack_if_tables(data: Path, progress: Progress | None = None, text: TextOptions = BY_CONTENT) -> Path:
    """Return `data`, or, if it is a table of images or a folder of such, the folder in the cache that they are
    unpacked to, now or earlier. `text.columns` names the columns of images (path) and classes (label).

    Raises `UserError` for a damaged table, for columns or configurations that cannot be told apart, and for tables too
    large for the disk.
    """
    if data.is_file():
        files = [data] if data.suffix.lower() in _SUFFIXES else []
    else:
        files = _find_tables(data) if data.is_dir() else []
    damaged: list[Path] = []
    tables = [table for path in files if (table := _open_table(path, data, text, damaged)) is not None]
    if damaged and (tables or damaged == [data]):
        raise UserError(f"{damaged[0]} is no readable table; download or save it again.")
    if not tables:
        return data
    _check_configurations(tables, data)
    if len({table.split for table in tables}) > 1:  # one without a name beside test is train
        tables = [table._replace(split="train") if table.split == "all" else table for table in tables]
    digest = hashlib.blake2b(f"{text.columns}".encode(), digest_size=8)
    for table in tables:
        state = table.path.stat()
        digest.update(f"{table.path.resolve()} {state.st_size} {state.st_mtime_ns} ".encode("utf-8", "surrogateescape"))
    target = unpacked_tables() / f"{data.resolve().stem[:80]}-{digest.hexdigest()}"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_folder(target, flush=False) as temporary:
                _unpack(tables, temporary, progress)
        except OSError as error:
            if not target.is_dir():  # otherwise another process was faster
                raise UserError(f"The images in {data} cannot be unpacked into {target.parent} ({error}).") from error
    return target


# ── what there is ─────────────────────────────────────────────────────────────────────────────────


def _find_tables(folder: Path) -> list[Path]:
    """Return the tables below `folder`; none where image files come first, so that those are not all listed."""
    found: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        found += [Path(parent, name) for name in sorted(files) if name.lower().endswith(_SUFFIXES)]
        if not found and any(map(has_image_suffix, files)):
            return []
    return found


def _open_table(path: Path, data: Path, text: TextOptions, damaged: list[Path]) -> _Table | None:
    """Return the table at `path`, or None if it has no images or cannot be read, and then add it to `damaged`."""
    import pyarrow
    from pyarrow import types

    try:
        schema = _read_schema(path)
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        kinds = {field.name: field.type for field in schema}
    except (OSError, ValueError, AttributeError, pyarrow.ArrowException):
        damaged.append(path)
        return None
    images = [
        name
        for name, kind in kinds.items()
        if (types.is_struct(kind) and kind.get_field_index("bytes") >= 0)
        or ((types.is_binary(kind) or types.is_large_binary(kind)) and name.lower() in COLUMN_NAMES["path"])
    ]
    if not images:
        return None
    chosen = {column: _match(name, kinds, path) for column, name in text.chosen_columns.items()}
    image = chosen.get("path") or (images[0] if len(images) == 1 else None)
    if image is None:
        raise UserError(f"{path} has images in {', '.join(images)}; choose with --columns path=NAME,label=NAME.")
    numbered = {n: f["names"] for n, f in features.items() if isinstance(f, dict) and f.get("names")}
    plain = [name for name, kind in kinds.items() if not types.is_nested(kind) and name != image]
    usual = [name for name in plain if name.lower() in COLUMN_NAMES["label"]]
    others = [name for name in plain if name in numbered] or [name for name in plain if name.lower() in LABEL_NAMES]
    label = chosen.get("label") or next(iter(usual), None) or (others[0] if len(others) == 1 else None)
    split = _split_of(path, data)
    if label is None and split != "test":
        raise UserError(
            f"{path} has images in {image}, and no evident label among {', '.join(plain) or 'no other columns'}; "
            f"choose with --columns path={image},label=NAME."
        )
    return _Table(path, split, image, label, numbered.get(label or "", []))


def _read_schema(path: Path) -> Any:
    """Return the schema of a table, without reading its rows."""
    from pyarrow import ipc, parquet

    if path.suffix.lower() == ".arrow":
        with ipc.open_stream(path) as reader:
            return reader.schema
    return parquet.read_schema(path)


def _match(name: str, kinds: dict[str, Any], path: Path) -> str:
    found = [column for column in kinds if column.lower() == name.lower()]
    if not found:
        raise UserError(f"--columns names {name}, which {path} does not have; it has {', '.join(kinds)}.")
    return found[0]


def _split_of(path: Path, data: Path) -> str:
    """Return the split that the name of a file says, such as `train-00000-of-00002`, or else those of its folders."""
    inside = [data.name] if path == data else list(path.relative_to(data).parts)
    for part in reversed(inside):
        words = re.split(r"[^a-z]+", part.lower())
        if split := next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None):
            return split
    return "all"


def _check_configurations(tables: Sequence[_Table], data: Path) -> None:
    """Raise `UserError` if the tables are in several folders that are not splits: configurations of the same images."""
    homes = {t.path.parent if t.path.parent.name.lower() not in SPLIT_NAMES else t.path.parent.parent for t in tables}
    if len(homes) > 1:
        shown = ", ".join(sorted(str(home) for home in homes)[:5])
        raise UserError(f"{data} has several configurations of its images ({shown}); give the folder of one.")


# ── unpacking ─────────────────────────────────────────────────────────────────────────────────────


def _unpack(tables: Sequence[_Table], target: Path, progress: Progress | None) -> None:
    """Write the images of each split, numbered, and its metadata.csv. An image that the table lacks is empty."""
    size = sum(table.path.stat().st_size for table in tables)
    allowed = min(max(_ALWAYS_ALLOWED, MAX_GROWTH * size), shutil.disk_usage(target).free - _RESERVED)
    listed: dict[Path, list[tuple[str, str]]] = {}  # folder of a split → (file, class)
    done = written = 0
    for table in tables:
        folder = target if table.split == "all" else target / table.split
        rows = listed.setdefault(folder, [])
        folder.mkdir(exist_ok=True)
        for content, name, label in _rows(table):
            file = f"{len(rows):07d}{os.path.splitext(name)[1].lower() if has_image_suffix(name) else ''}"
            rows.append((file, label))
            written += len(content)
            if written > allowed:
                raise UserError(
                    f"The images in {table.path.parent} would take more than {allowed / 1e9:.1f} GB; free some space, "
                    "or set ALEXNET_CACHE to a folder elsewhere."
                )
            (folder / file).write_bytes(content)
        done += table.path.stat().st_size
        if progress is not None:
            progress(done, size, f"unpacking {table.path.name}")
    for folder, rows in listed.items():
        if labeled := [row for row in rows if row[1]]:
            (folder / METADATA_FILES[0]).write_bytes(encode_csv([("file_name", "label"), *labeled]))


def _rows(table: _Table) -> Iterator[tuple[bytes, str, str]]:
    """Yield (bytes, file name, class) of each row; no bytes without an image, and "" without a class."""
    import pyarrow

    columns = [table.image] if table.label is None else [table.image, table.label]
    try:
        for batch in _batches(table.path, columns):
            images = batch.column(table.image).to_pylist()
            labels = [None] * len(images) if table.label is None else batch.column(table.label).to_pylist()
            for image, label in zip(images, labels, strict=True):
                content, name = (image.get("bytes"), image.get("path")) if isinstance(image, dict) else (image, "")
                yield content or b"", name or "", _class_name(label, table)
    except (OSError, ValueError, KeyError, pyarrow.ArrowException) as error:
        raise UserError(f"The images in {table.path} cannot be read ({error}); download it again.") from error


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """Yield a table's rows, a few at a time."""
    from pyarrow import ipc, parquet

    if path.suffix.lower() == ".arrow":
        with ipc.open_stream(path) as reader:
            for batch in reader:
                yield batch.select(columns)
    else:
        with parquet.ParquetFile(path) as file:
            yield from file.iter_batches(batch_size=_ROWS, columns=columns)


def _class_name(label: object, table: _Table) -> str:
    """Return the name of a class; "" where there is none, which Hugging Face also writes as -1."""
    if label is None or label != label:
        return ""
    if isinstance(label, int) and not isinstance(label, bool) and table.classes:
        if label >= len(table.classes) or label < -1:
            raise UserError(f"{table.path} has the label {label}, and its schema names {len(table.classes)} classes.")
        return "" if label == -1 else str(table.classes[label])
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return "" if label == -1 and table.split == "test" else str(label)
