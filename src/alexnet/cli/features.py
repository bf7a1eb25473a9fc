"""The commands that look inside: pictures of networks and runs, and activations as a table.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from alexnet.cli.output import _print_json


def features(
    run: str,
    data: str,
    /,
    *,
    out: Path,
    layer: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    json: bool = False,
) -> None:
    """Write the activations of a layer as a table: path, label, and one column of numbers (or f0, f1 … in CSV).

    Args:
        run: A run folder, 'last', a checkpoint folder, or torchvision:IMAGENET1K_V1.
        data: A picture, or a folder of pictures; the folder that a picture is in is its label.
        out: The file, .parquet or .csv.
        layer: Any layer that 'alexnet arch' lists; fc7 unless given. conv1 … fc7 mean what their ReLU gives.
        checkpoint: Which checkpoint of the run.
        device: Where to compute.
        json: Print one JSON document.
    """
    from alexnet.inference.features import write_features
    from alexnet.training.progress import default_progress

    progress = default_progress()
    try:
        written = write_features(
            run, data, out, layer=layer, checkpoint=checkpoint, device=device, progress=progress.update
        )  # fmt: skip
    finally:
        progress.close()
    if json:
        _print_json(written.to_dict())
        return
    for path, reason in written.errors:
        print(f"{path}: {reason}", file=sys.stderr)
    shape = "×".join(map(str, written.shape))
    print(f"{written.file}: {written.n:,} pictures, {shape} values each, the output of {written.module}")
