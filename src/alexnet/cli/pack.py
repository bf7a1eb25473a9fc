"""The command that makes a data set into a few large files.

Everything heavy is imported inside the command.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from alexnet.cli.output import _print_json, _progress


def pack(
    data: Path,
    target: Path,
    /,
    *,
    labels: Path | None = None,
    format: Literal["jpeg", "uint8"] = "jpeg",
    size: str | None = None,
    quality: int = 90,
    workers: int | None = None,
    json: bool = False,
) -> None:
    """Make a data set into a few large files that training reads fast; given again, it goes on or mends.

    Args:
        data: A folder of class folders (in train/, val/, test/ or not), a zip or tar archive of one, or a folder with
            the files of CIFAR-10 or Fashion-MNIST.
        target: The new folder, which '--data' of train and eval then reads.
        labels: A CSV or Parquet file with the columns path and label (and split), in place of class folders.
        format: jpeg, or uint8: decoded pixels, squares cut from the centre, which need seven times the space of JPEGs
            and are read more than ten times as fast.
        size: Pixels of the short side, or 'original' for JPEGs as they are; 256 unless given, or the pictures' own if
            they are smaller.
        quality: Of the JPEGs that are made, 1 to 100.
        workers: Processes that pack; as many as there are cores unless given.
        json: Print one JSON document.
    """
    from alexnet.data.shards.pack import pack_dataset as make_shards

    with _progress() as progress:
        found = make_shards(
            data, target, labels=labels, kind=format, size=size, quality=quality, workers=workers, progress=progress
        )
    if json:
        _print_json(found)
    else:
        _show(found, target)


def _show(found: dict[str, Any], target: Path) -> None:
    form = found["form"]
    side = "their own size" if form["side"] is None else f"{form['side']} pixels"
    square = f"squares of {side}" if form["kind"] == "uint8" else f"short side {side}, quality {form['quality']}"
    parts = ", ".join(f"{count:,} {split}" for split, count in found["images"].items())
    print(
        f"{target}: {parts} pictures of {len(found['classes']):,} classes as {form['kind']}, {square}: "
        f"{found['bytes'] / 1e6:,.1f} MB in {found['shards']:,} shards"
    )
    print(f"{found['seconds']:.1f} s, {found['images_per_second']:,.0f} pictures a second")
    if found["failed"]:
        print(f"{found['failed']:,} could not be read and were left out; {target / 'failed.csv'} lists them")
    print(f"\nNext:\n  {shlex.join(['alexnet', 'train', str(target)])}")
