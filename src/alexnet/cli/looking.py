"""The commands that look inside: pictures of networks and runs, and activations as a table.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from alexnet.cli.printing import _print_json
from alexnet.errors import UserError


def show(
    kind: str | None = None,
    what: tuple[str, ...] = (),
    /,
    *,
    layer: str | None = None,
    method: Literal["grad-cam", "occlusion", "integrated-gradients"] | None = None,
    label: str | None = None,
    top: int | None = None,
    split: Literal["train", "val", "test"] | None = None,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    theme: Literal["light", "dark"] = "light",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Draw what a network is, sees and says: a picture file, whose path is printed.

    show filters RUN, activations RUN IMAGE, saliency RUN IMAGE, similar RUN IMAGE…, top5 RUN IMAGE…, mistakes RUN,
    curves RUN…, architecture NAME, receptive-field NAME [IMAGE].

    Args:
        kind: filters, activations, saliency, similar, top5, mistakes, curves, architecture or receptive-field.
        what: What it is of: a RUN (a run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1) and IMAGEs,
            or the NAME of an architecture, or a RUN for its own.
        layer: filters: one convolution instead of all; similar: where to compare, fc7 unless given.
        method: saliency: how; grad-cam unless given. Needs the extra 'show' (captum).
        label: saliency: what the pixels speak for; the likeliest label unless given.
        top: similar, mistakes: how many; 6 unless given.
        split: mistakes: of which part of the data; test where there is one, else val.
        checkpoint: Which checkpoint of the run.
        device: Where to compute the index for similar.
        theme: For .png and .svg; .html holds both and shows the one that the reader's system prefers.
        out: The file, .png, .svg or .html; in the run folder's show/ unless given, or here where there is no run.
        json: Print one JSON document.
    """
    from alexnet.insight.show import KINDS
    from alexnet.insight.show import show as draw
    from alexnet.training.progress import default_progress

    if kind is None:
        raise UserError(f"Say what to show: {', '.join(KINDS)}; 'alexnet show --help' tells more.")
    progress = default_progress()
    try:
        file = draw(
            kind, what, out, theme, layer=layer, method=method, label=label, top=top, split=split,
            checkpoint=checkpoint, device=device, progress=progress.work, say=progress.say,
        )  # fmt: skip
    finally:
        progress.close()
    if json:
        _print_json({"files": [str(file)]})
    else:
        print(file)


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
            run, data, out, layer=layer, checkpoint=checkpoint, device=device, progress=progress.work
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
