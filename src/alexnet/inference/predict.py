"""Labels for pictures: files, folders, bytes. The same decoder and preprocessing as evaluation, so the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from alexnet.data.images import IMAGE_SUFFIXES, BadImage, decode
from alexnet.errors import UserError
from alexnet.inference.ensemble import Ensemble, RunNames, open_ensemble
from alexnet.inference.evaluate import forward
from alexnet.inference.views import CENTRE, Views, views_of
from alexnet.runtime import pick_device

BATCH_SIZE = 64

Picture = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture: labels with probabilities, the likeliest first, or why there are none."""

    path: str
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    unsure: bool | None = None  # None: this network has no threshold for being unsure

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "labels": [{"label": label, "p": p} for label, p in self.labels],
            "unsure": self.unsure,
            "error": self.error,
        }

    def __str__(self) -> str:
        if self.error:
            return f"{self.path}: {self.error}"
        return f"{self.path}: " + ", ".join(f"{label} {p:.1%}" for label, p in self.labels)

    def _repr_html_(self) -> str:
        if self.error:
            return f"<p>{escape(str(self))}</p>"
        bars = "".join(
            f"<tr><td>{escape(label)}</td><td>{p:.1%}</td><td style='width:12em'>"
            f"<div style='background:#0072b2;height:.8em;width:{p:.1%}'></div></td></tr>"
            for label, p in self.labels
        )
        return f"<p>{escape(self.path)}</p><table>{bars}</table>"


class Classifier:
    """A trained network, or several together, that take pictures.

    >>> alexnet.load("runs/digits-…").predict("seven.png")  # doctest: +SKIP
    """

    def __init__(self, ensemble: Ensemble, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.ensemble = ensemble
        ensemble.to(self.device)
        self.classes = ensemble.classes
        self.model = ensemble.members[0].model  # of several, the first
        self.preprocess = ensemble.members[0].preprocess

    def predict(self, image: Picture, top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)) -> Prediction:
        """The `top` likeliest labels of one picture: a path, the bytes of a file, or a PIL image.

        `views` crops at each of `scales` are averaged; 10 is the paper's ten-crop test (see `views.py`).

        Raises `UserError` if it cannot be read.
        """
        found = next(self.predict_many([image], top, views, scales))
        if found.error:
            raise UserError(f"{found.path} cannot be read: {found.error}.")
        return found

    def predict_many(
        self, images: Iterable[Picture], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """One prediction a picture, in order; an unreadable picture gets an `error` and the rest go on."""
        if top < 1:
            raise UserError(f"--top must be at least 1, not {top}.")
        looks = views_of(views, scales)
        readings = [reading.preprocess for reading in self.ensemble.readings(looks)]
        waiting: list[tuple[str, list[torch.Tensor] | str]] = []
        for image in images:
            name = str(image) if isinstance(image, (str, Path)) else "-"
            try:
                pictures = {channels: decode(image, channels) for channels in {read.channels for read in readings}}
                waiting.append((name, [read.evaluation(pictures[read.channels]) for read in readings]))
            except BadImage as error:
                waiting.append((name, error.reason))
            if len(waiting) == BATCH_SIZE:
                yield from self._run(waiting, top, looks)
                waiting = []
        yield from self._run(waiting, top, looks)

    def _run(self, waiting: list[tuple[str, list[torch.Tensor] | str]], top: int, views: Views) -> Iterator[Prediction]:
        readable = [squares for _, squares in waiting if not isinstance(squares, str)]
        batches = [torch.stack(squares) for squares in zip(*readable, strict=True)]
        rows = iter(self.probabilities(batches, views)) if readable else iter(())
        for name, squares in waiting:
            if isinstance(squares, str):
                yield Prediction(name, error=squares)
                continue
            p, index = next(rows).topk(min(top, len(self.classes)))
            pairs = zip(index.tolist(), p.tolist(), strict=True)
            yield Prediction(name, tuple((self.classes[i], value) for i, value in pairs))

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor | Sequence[torch.Tensor], views: Views = CENTRE) -> torch.Tensor:
        """Softmax of the logits, averaged over `views` and networks: float32 (n, classes), on the CPU.

        `images` are uint8 (n, channels, size, size), one such batch for each of `self.ensemble.readings(views)`: of
        one network at one scale that is one. Several views are cut from uncropped images.
        """
        batches = [images] if isinstance(images, torch.Tensor) else images
        logits: list[list[torch.Tensor]] = [[] for _ in self.ensemble.members]
        for reading, batch in zip(self.ensemble.readings(views), batches, strict=True):
            squares = batch.to(self.device)
            for i in reading.members:
                member = self.ensemble.members[i]
                logits[i].append(forward(member.model, squares, member.preprocess, views))
        return self.ensemble.average(logits).softmax(dim=1).cpu()


def load(run: RunNames, *, checkpoint: str = "best", device: str = "auto") -> Classifier:
    """Open a run folder, a checkpoint folder, `last`, or `torchvision:IMAGENET1K_V1` for prediction, or several of
    them as an ensemble."""
    return Classifier(open_ensemble(run, checkpoint), device)


def find_images(arguments: Iterable[str | Path]) -> list[Path]:
    """The pictures that the arguments name: files as they are, folders with all pictures below them, by name."""
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"The folder {path} holds no pictures.")
            found += inside
        else:
            found.append(path)
    return found
