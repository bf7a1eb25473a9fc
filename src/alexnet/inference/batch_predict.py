"""Labels for many pictures, written to a file as they come, and gone on with where an interruption left them.

While it lasts, predictions are lines in `<file>.part`: the first line says what was asked, each other is one picture's.
A line cut short is made again. When all are there, the file is written whole: .jsonl, .csv or .parquet.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from alexnet.errors import UserError
from alexnet.files import atomic_write, printable
from alexnet.inference.predict import Prediction

SUFFIXES = (".csv", ".parquet", ".jsonl")
CHUNK = 64  # pictures between two reports of progress

Progress = Callable[[int, int, str], None]


class Predicts(Protocol):
    """A classifier."""

    def predict_many(
        self, images: Sequence[Path], top: int, views: int, scales: Sequence[float]
    ) -> Iterator[Prediction]:
        """One prediction a picture."""


@dataclass(frozen=True)
class Written:
    """What `write_predictions` wrote."""

    file: Path
    images: int
    errors: int
    """Pictures that could not be read; their rows say why."""
    resumed: int
    """Pictures that an earlier, interrupted command had labelled."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document of `alexnet predict --out`."""
        return {"file": str(self.file), "images": self.images, "errors": self.errors, "resumed": self.resumed}


class NotWritten(RuntimeError):
    """The file cannot be written, for want of room say; what there is of it is kept."""

    exit_code = 1


def check_out(out: Path) -> None:
    """Raise `UserError` unless predictions can be written to a file of this name."""
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"Predictions are written as {', '.join(SUFFIXES)}, and {out} is none; change its ending.")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--out {out} is a folder, or in one that does not exist; name a file in a folder that does.")


def write_predictions(
    classifier: Predicts,
    images: Sequence[Path],
    out: Path,
    asked: dict[str, Any],
    *,
    top: int = 5,
    views: int = 1,
    scales: Sequence[float] = (1.0,),
    progress: Progress | None = None,
) -> Written:
    """Label `images` and write one row each, in order, to `out`: path, error, and labels with probabilities.

    In JSON lines a row is what `Prediction.to_dict` gives; in Parquet `labels` is a list of (label, p); in CSV the
    columns are label1, p1, label2 …. `asked` says what decides the answers; a `.part` of other questions is refused
    with `UserError`, as is an `out` of another ending. Raises `NotWritten` where there is no room.
    """
    check_out(out)
    part = out.with_name(out.name + ".part")
    head = {**asked, "top": top, "views": views, "scales": list(scales)}
    try:
        done = _done(part, head, [printable(str(path)) for path in images])
    except OSError as error:
        raise UserError(
            f"{part}, where rows are kept until all are there, cannot be used ({error.strerror or error}); remove it "
            "or choose another --out."
        ) from error
    try:
        return _label_on(classifier, images, out, part, head, done, progress)
    except OSError as error:
        raise NotWritten(
            f"{out} cannot be written: {error.strerror or error}; what is labelled already is in {part.name}, and the "
            "same command goes on from there."
        ) from error


def _label_on(
    classifier: Predicts,
    images: Sequence[Path],
    out: Path,
    part: Path,
    head: dict[str, Any],
    done: list[dict[str, Any]],
    progress: Progress | None,
) -> Written:
    """Label what is not `done` yet, and write the file."""
    top, views, scales = head["top"], head["views"], head["scales"]
    predictions = classifier.predict_many(images[len(done) :], top, views, scales)
    first = list(itertools.islice(predictions, 1))  # what cannot be asked is refused here, before there is a file
    with part.open("a", encoding="utf-8") as file:
        if not done and part.stat().st_size == 0:
            file.write(json.dumps(head) + "\n")
        errors = sum(row["error"] is not None for row in done)
        for i, prediction in enumerate(itertools.chain(first, predictions), len(done) + 1):
            row = prediction.to_dict()
            file.write(json.dumps({**row, "path": printable(row["path"])}) + "\n")
            errors += prediction.error is not None
            if i % CHUNK == 0 or i == len(images):
                file.flush()
                if progress:
                    progress(i, len(images), "labelling")
    with atomic_write(out) as beside:
        _FORMATS[out.suffix.lower()](_rows(part), beside, top)
    part.unlink()
    return Written(out, len(images), errors, len(done))


def _done(part: Path, head: dict[str, Any], paths: list[str]) -> list[dict[str, Any]]:
    """The rows of an interrupted command that asked the same; what it left of a last line is cut off."""
    if not part.exists():
        return []
    lines = part.read_bytes().split(b"\n")[:-1]
    rows = []
    whole = 0
    for number, line in enumerate(lines):
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if number > 0 and not (isinstance(found, dict) and found.keys() >= _ROW):
            break
        if number == 0 and found != head:
            raise UserError(
                f"{part} holds the predictions of another network or with other settings; delete it, or finish that "
                "command."
            )
        if number > 0 and (number > len(paths) or found["path"] != paths[number - 1]):
            raise UserError(f"{part} was begun on other pictures; delete it, or name the pictures as they were then.")
        rows.append(found)
        whole += len(line) + 1
    with part.open("r+b") as file:
        file.truncate(whole)
    return rows[1:]


_ROW = Prediction("").to_dict().keys()


def _rows(part: Path) -> Iterator[dict[str, Any]]:
    with part.open(encoding="utf-8") as file:
        next(file)
        for line in file:
            yield json.loads(line)


# ── formats ───────────────────────────────────────────────────────────────────────────────────────────────────


def _jsonl(rows: Iterator[dict[str, Any]], path: Path, _: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _csv(rows: Iterator[dict[str, Any]], path: Path, top: int) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        labels = [f"{what}{i}" for i in range(1, top + 1) for what in ("label", "p")]
        lines.writerow(["path", "error", "unsure", "confidence", *labels])
        for row in rows:
            pairs = [cell for entry in row["labels"] for cell in (entry["label"], f"{entry['p']:.9g}")]
            told = ["" if row[key] is None else row[key] for key in ("error", "unsure", "confidence")]
            lines.writerow([row["path"], *told, *pairs, *[""] * (2 * top - len(pairs))])


def _parquet(rows: Iterator[dict[str, Any]], path: Path, _: int) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    labels = pa.list_(pa.struct([("label", pa.string()), ("p", pa.float64())]))
    columns = {"path": pa.string(), "labels": labels, "unsure": pa.bool_(), "confidence": pa.float64()}
    schema = pa.schema([*columns.items(), ("error", pa.string())])
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(itertools.islice(rows, 10_000)):
            writer.write_table(pa.Table.from_pylist(chunk, schema))


_FORMATS: dict[str, Callable[[Iterator[dict[str, Any]], Path, int], None]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}
