"""`alexnet pack`: rewrite a dataset as a few large files that training reads fast."""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

from alexnet.cli.output import print_json, print_lines, print_list
from alexnet.text import BY_CONTENT, TextOptions


def pack(
    data: Path,
    target: Path,
    /,
    *,
    labels: Path | None = None,
    text: TextOptions = BY_CONTENT,
    format: Literal["jpeg", "uint8"] = "jpeg",
    size: str | None = None,
    quality: int = 90,
    in_channels: int | None = None,
    value_range: str | None = None,
    workers: int | None = None,
    json: bool = False,
) -> None:
    """Rewrite a dataset as a few large files that training reads fast; rerun to resume or repair.

    Args:
        data: A folder of class folders (with or without train/, val/, test/ above), a zip or tar archive of one, or a
            folder with the files of CIFAR-10 or Fashion-MNIST.
        target: The new folder, for --data of train and eval.
        labels: A CSV, JSON Lines or Parquet file with the columns path and label (and split), instead of class folders.
        format: jpeg, or uint8: decoded center squares, which take seven times the space of JPEGs and are read more
            than ten times as fast.
        size: Short side in pixels, or 'original' for JPEGs as they are; by default 256, or the images' own if smaller.
        quality: JPEG quality, 1 to 100.
        in_channels: 1 stores grayscale images, 3 color; by default 3 for files, else those of the dataset.
        value_range: LO,HI: the values that become black and white in images of more than 8 bits, such as 0,4095 for 12
            bits or --value-range=-1000,3000; by default measured on the training images.
        workers: Number of processes; by default one per core.
        json: Print one JSON document.
    """
    from alexnet.files import check_data_exists, check_labels_exist

    check_data_exists(data)  # before NumPy is imported
    check_labels_exist(labels)
    from alexnet.data.value_range import parse_value_range

    known_range = None if value_range is None else parse_value_range(value_range)
    from alexnet.data.shards.pack import pack_dataset
    from alexnet.progress import default_progress

    with closing(default_progress()) as progress:
        found = pack_dataset(
            data, target, labels=labels, text=text, kind=format, size=size, quality=quality, workers=workers,
            progress=progress, channels=in_channels,
            value_range=known_range,
        )  # fmt: skip
    if json:
        print_json(found)
    else:
        _show(found, target)


def _show(found: dict[str, Any], target: Path) -> None:
    form = found["form"]
    side = "original size" if form["side"] is None else f"{form['side']} pixels"
    square = f"squares of {side}" if form["kind"] == "uint8" else f"short side {side}, quality {form['quality']}"
    parts = ", ".join(f"{count:,} {split}" for split, count in found["images"].items())
    print_lines(
        f"{target}: {parts} images of {len(found['classes']):,} classes as {form['kind']}, {square}: "
        f"{found['bytes'] / 1e6:,.1f} MB in {found['shards']:,} shards"
    )
    print(f"{found['seconds']:.1f} s, {found['images_per_second']:,.0f} images/s")
    if found["failed"]:
        print_lines(f"{found['failed']:,} unreadable and skipped; see {target / 'failed.csv'}")
    unreadable = found["unreadable_classes"]
    print_list("Classes without a readable training image", unreadable)
    command = ["alexnet", "train", str(target), *["--skip-bad"] * bool(unreadable)]
    print_lines("", "Next:", f"  {shlex.join(command)}")
