"""`alexnet features`: write the activations of a layer as a table."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Literal

from alexnet.cli.output import log, print_json, print_lines
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions


def features(
    run: str,
    data: str,
    /,
    *,
    out: Path,
    layer: str | None = None,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    file: FileOptions = NO_OPTIONS,
    json: bool = False,
) -> None:
    """Write the activations of a layer as a table: path, label and a list of numbers (f0, f1 … in CSV).

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, or a file of weights.
        data: An image or a folder of images; the name of the folder that holds an image is its label.
        out: The file, .parquet or .csv.
        layer: Any layer that 'alexnet arch' lists; fc7 by default. conv1 … fc7 mean the output of their ReLU.
        checkpoint: Which checkpoint of the run.
        device: Where to compute.
        json: Print one JSON document.
    """
    from alexnet.files import check_image_exists
    from alexnet.run_dir import check_runs

    check_runs(run)
    check_image_exists(data)
    from alexnet.inference.features import write_features
    from alexnet.progress import default_progress

    with closing(default_progress()) as progress:
        written = write_features(
            run, data, out, layer=layer, checkpoint=checkpoint, device=device, file=file, progress=progress
        )  # fmt: skip
    if json:
        print_json(written.to_dict())
        return
    for path, reason in written.errors:
        log(f"{path}: {reason}")
    shape = "×".join(map(str, written.shape))
    print_lines(f"{written.file}: {written.n:,} images, {shape} values each, the output of {written.module}")
