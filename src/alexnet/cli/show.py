"""`alexnet show`: draw a network, a run or a prediction as an image file."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Literal

from alexnet.cli.output import LANGUAGE, open_in_browser, print_json, print_lines
from alexnet.errors import UserError
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions


def show(
    kind: str | None = None,
    what: tuple[str, ...] = (),
    /,
    *,
    layer: str | None = None,
    method: Literal["auto", "grad-cam", "occlusion", "integrated-gradients"] | None = None,
    label: str | None = None,
    top: int | None = None,
    split: Literal["train", "val", "test"] | None = None,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    file: FileOptions = NO_OPTIONS,
    theme: Literal["light", "dark"] = "light",
    lang: Literal["en", "zh"] = LANGUAGE,
    out: Path | None = None,
    open: bool = False,
    json: bool = False,
) -> None:
    """Draw a network, a run or a prediction as an image file, and print its path.

    show filters RUN, activations RUN IMAGE, saliency RUN IMAGE, similar RUN IMAGE…, top5 RUN IMAGE…, mistakes RUN,
    curves RUN…, lrn RUN [IMAGE…], architecture NAME, receptive-field NAME [IMAGE].

    Args:
        kind: filters, activations, saliency, similar, top5, mistakes, curves, lrn, architecture or receptive-field.
        what: What to draw: a RUN (run folder, 'last', checkpoint folder, torchvision:IMAGENET1K_V1, file of weights)
            and IMAGEs, or the NAME of an architecture, or a RUN for its architecture.
        layer: filters: one convolution instead of all; similar: the layer to compare, fc7 by default.
        method: saliency: by default grad-cam, and occlusion below 64 pixels. Needs the extra 'show' (captum).
        label: saliency: the label to explain; the most probable one by default.
        top: similar, mistakes: how many; 6 by default.
        split: mistakes: the split; test where there is one, else val.
        checkpoint: Which checkpoint of the run.
        device: Where to compute the index for similar.
        theme: For .png and .svg; .html holds both and follows the reader's system.
        lang: Language of the figure, English or Chinese.
        out: The file, .png, .svg or .html; by default in the run folder's show/, or here if there is no run.
        open: Open the file in a browser.
        json: Print one JSON document.
    """
    from alexnet.plots.kinds import KINDS, check_arguments

    if kind is None:
        raise UserError(f"Name what to show: {', '.join(KINDS)}; run 'alexnet show --help' for details.")
    check_arguments(kind, what, {"layer": layer, "method": method, "label": label, "top": top, "split": split})
    from alexnet.plots.show import show as draw
    from alexnet.progress import default_progress

    with closing(default_progress()) as progress:
        drawn = draw(
            kind, what, out, theme, lang, layer=layer, method=method, label=label, top=top, split=split,
            checkpoint=checkpoint, device=device, file=file, progress=progress,
        )  # fmt: skip
    if open:
        open_in_browser(drawn)
    if json:
        print_json({"files": [str(drawn)]})
    else:
        print_lines(drawn)
