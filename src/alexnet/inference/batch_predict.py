"""Predictions for many images, written to a file; an interrupted command resumes where it stopped.

While it runs, predictions are lines in `<file>.part`: the first line holds the settings, each other
line one prediction. An incomplete line is predicted again. At the end the whole file is written:
.jsonl, .csv or .parquet.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from alexnet.errors import UserError
from alexnet.files import atomic_write, convert, printable
from alexnet.inference.predict import Classifier
from alexnet.progress import Progress

T = TypeVar("T")

SUFFIXES = (".csv", ".parquet", ".jsonl")
PROGRESS_EVERY = 64  # images


@dataclass(frozen=True)
class PredictionFile:
    """The result of `write_predictions`."""

    file: Path
    images: int
    errors: int
    """Images that could not be read; their rows hold the reason."""
    resumed: int
    """Images that an earlier, interrupted command predicted."""
    clipped: int = 0
    """Images with values beyond the range of the training images."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of `alexnet predict --out`."""
        counts = {"images": self.images, "errors": self.errors, "resumed": self.resumed}
        return {"file": str(self.file), **counts, **({"clipped": self.clipped} if self.clipped else {})}


class WriteFailed(RuntimeError):
    """The file cannot be written, for example because the disk is full; finished predictions are kept."""

    exit_code = 1


def check_out(out: Path) -> None:
    """Raise `UserError` unless predictions can be written to a file of this name."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"Predictions are written as {', '.join(SUFFIXES)}, not as {out}; change its suffix.")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out} is a folder, or in one that does not exist; name a file in an existing folder.")


def write_predictions(
    classifier: Classifier,
    images: Sequence[Path],
    out: Path,
    settings: dict[str, Any],
    *,
    top: int = 5,
    views: int = 1,
    scales: Sequence[float] = (1.0,),
    progress: Progress | None = None,
) -> PredictionFile:
    """Predict `images` and write one row each, in order, to `out`: path, error, and labels with probabilities.

    In JSON lines a row is `Prediction.to_dict`; in Parquet `labels` is a list of (label, p); in CSV
    the columns are label1, p1, label2 …. `settings` is all else that determines the predictions: a
    `.part` with other settings is refused with `UserError`, as is an `out` with another suffix.
    Raises `WriteFailed` where the disk is full.
    """
    check_out(out)
    part = out.with_name(out.name + ".part")
    header = {**settings, "top": top, "views": views, "scales": list(scales)}
    try:
        done = _read_partial(part, header, [printable(str(path)) for path in images])
    except OSError as error:
        raise UserError(
            f"{part}, which holds unfinished predictions, cannot be used ({error.strerror or error}); remove it or "
            "choose another --out."
        ) from error
    try:
        predictions = classifier.predict_many(images[len(done) :], top, views, scales)
        first = list(itertools.islice(predictions, 1))  # raises for invalid settings before there is a file
        with part.open("a", encoding="utf-8") as file:
            if not done and part.stat().st_size == 0:
                file.write(json.dumps(header) + "\n")
            errors = sum(row["error"] is not None for row in done)
            clipped = sum(row.get("clipped", False) for row in done)
            for i, prediction in enumerate(itertools.chain(first, predictions), len(done) + 1):
                row = prediction.to_dict()
                file.write(json.dumps({**row, "path": printable(row["path"])}) + "\n")
                errors += prediction.error is not None
                clipped += prediction.clipped
                if i % PROGRESS_EVERY == 0 or i == len(images):
                    file.flush()
                    if progress:
                        progress(i, len(images), "predicting")
        with atomic_write(out) as temporary:
            _WRITERS[out.suffix.lower()](_read_rows(part), temporary, top)
        part.unlink()
    except OSError as error:
        raise WriteFailed(
            f"{out} cannot be written: {error.strerror or error}; finished predictions are in {part.name}; the same "
            "command resumes from there."
        ) from error
    return PredictionFile(out, len(images), errors, len(done), clipped)


def _read_partial(part: Path, header: dict[str, Any], paths: list[str]) -> list[Row]:
    """Return the rows of an interrupted command with the same settings, and truncate its incomplete last line."""
    if not part.exists():
        return []
    found, *lines = part.read_bytes().split(b"\n")[:-1] or [b""]
    if found and _parse(found, dict[str, Any]) != header:
        raise UserError(
            f"{part} holds the predictions of another network or with other settings; delete it, or finish that "
            "command."
        )
    rows = list(itertools.takewhile(lambda row: row is not None, (_parse(line, Row) for line in lines)))
    if [row["path"] for row in rows if row] != paths[: len(rows)]:
        raise UserError(f"{part} holds predictions for other images; delete it, or give the same images again.")
    with part.open("r+b") as file:
        file.truncate(sum(len(line) + 1 for line in (found, *lines[: len(rows)])) if found else 0)
    return [row for row in rows if row]


class _AlwaysInRow(TypedDict):
    path: str
    labels: list[dict[str, Any]]
    unsure: bool | None
    confidence: float | None
    error: str | None


class Row(_AlwaysInRow, total=False):
    """A `Prediction.to_dict`."""

    clipped: bool


def _parse(line: bytes, kind: type[T]) -> T | None:
    """Return a line of JSON as the type `kind`, or None if it is incomplete."""
    try:
        return convert(json.loads(line), kind, "line")
    except (ValueError, UserError):
        return None


def _read_rows(part: Path) -> Iterator[dict[str, Any]]:
    with part.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield json.loads(line)


# ── one writer per format ─────────────────────────────────────────────────────────────────────────


def _write_jsonl(rows: Iterator[dict[str, Any]], path: Path, _: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_csv(rows: Iterator[dict[str, Any]], path: Path, top: int) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # Excel needs the mark
        writer = csv.writer(file)
        labels = [f"{name}{i}" for i in range(1, top + 1) for name in ("label", "p")]
        writer.writerow(["path", "error", "unsure", "confidence", *labels])
        for row in rows:
            pairs = [cell for entry in row["labels"] for cell in (entry["label"], f"{entry['p']:.9g}")]
            others = ["" if row[key] is None else row[key] for key in ("error", "unsure", "confidence")]
            writer.writerow([row["path"], *others, *pairs, *[""] * (2 * top - len(pairs))])


def _write_parquet(rows: Iterator[dict[str, Any]], path: Path, _: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    labels = pa.list_(pa.struct([("label", pa.string()), ("p", pa.float64())]))
    columns = {"path": pa.string(), "labels": labels, "unsure": pa.bool_(), "confidence": pa.float64()}
    schema = pa.schema([*columns.items(), ("error", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(itertools.islice(rows, 10_000)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


_WRITERS: dict[str, Callable[[Iterator[dict[str, Any]], Path, int], None]] = {
    ".jsonl": _write_jsonl,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}
