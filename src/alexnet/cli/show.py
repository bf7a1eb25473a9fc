"""The commands that look inside: pictures of networks and runs, and activations as a table.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alexnet.cli.output import _print_json
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
    from alexnet.plots.show import KINDS
    from alexnet.plots.show import show as draw
    from alexnet.training.progress import default_progress

    if kind is None:
        raise UserError(f"Say what to show: {', '.join(KINDS)}; 'alexnet show --help' tells more.")
    progress = default_progress()
    try:
        file = draw(
            kind, what, out, theme, layer=layer, method=method, label=label, top=top, split=split,
            checkpoint=checkpoint, device=device, progress=progress.update, say=progress.log,
        )  # fmt: skip
    finally:
        progress.close()
    if json:
        _print_json({"files": [str(file)]})
    else:
        print(file)
