"""Labels for pictures: files, folders, bytes. The same decoder and preprocessing as evaluation, so the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from alexnet.data.images import IMAGE_SUFFIXES, BadImage, decode
from alexnet.errors import UserError
from alexnet.inference.evaluate import forward
from alexnet.inference.formats import Opened, open_model
from alexnet.inference.views import CENTRE, Views, uncropped, views_of
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
    """A trained network that takes pictures.

    >>> alexnet.load("runs/digits-…").predict("seven.png")  # doctest: +SKIP
    """

    def __init__(self, opened: Opened, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.model = opened.model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.classes = opened.classes
        self.preprocess = opened.preprocess

    def predict(self, image: Picture, top: int = 5, views: int = 1) -> Prediction:
        """The `top` likeliest labels of one picture: a path, the bytes of a file, or a PIL image.

        `views` crops are averaged; 10 is the paper's ten-crop test.

        Raises `UserError` if it cannot be read.
        """
        found = next(self.predict_many([image], top, views))
        if found.error:
            raise UserError(f"{found.path} cannot be read: {found.error}.")
        return found

    def predict_many(self, images: Iterable[Picture], top: int = 5, views: int = 1) -> Iterator[Prediction]:
        """One prediction a picture, in order; an unreadable picture gets an `error` and the rest go on."""
        if top < 1:
            raise UserError(f"--top must be at least 1, not {top}.")
        looks = views_of(views)
        as_read = self.preprocess if looks == CENTRE else uncropped(self.preprocess)
        waiting: list[tuple[str, torch.Tensor | str]] = []
        for image in images:
            name = str(image) if isinstance(image, (str, Path)) else "-"
            try:
                waiting.append((name, as_read.evaluation(decode(image, self.preprocess.channels))))
            except BadImage as error:
                waiting.append((name, error.reason))
            if len(waiting) == BATCH_SIZE:
                yield from self._run(waiting, top, looks)
                waiting = []
        yield from self._run(waiting, top, looks)

    def _run(self, waiting: list[tuple[str, torch.Tensor | str]], top: int, views: Views) -> Iterator[Prediction]:
        readable = [tensor for _, tensor in waiting if isinstance(tensor, torch.Tensor)]
        rows = iter(self.probabilities(torch.stack(readable), views)) if readable else iter(())
        for name, tensor in waiting:
            if isinstance(tensor, str):
                yield Prediction(name, error=tensor)
                continue
            p, index = next(rows).topk(min(top, len(self.classes)))
            pairs = zip(index.tolist(), p.tolist(), strict=True)
            yield Prediction(name, tuple((self.classes[i], value) for i, value in pairs))

    @torch.no_grad()
    def probabilities(self, images: torch.Tensor, views: Views = CENTRE) -> torch.Tensor:
        """Softmax of the logits, averaged over `views`: uint8 (n, channels, size, size) → float32 (n, classes), on
        the CPU. Several views are cut from uncropped images."""
        return forward(self.model, images.to(self.device), self.preprocess, views).softmax(dim=1).cpu()


def load(run: str | Path, *, checkpoint: str = "best", device: str = "auto") -> Classifier:
    """Open a run folder, a checkpoint folder, `last`, or `torchvision:IMAGENET1K_V1` for prediction."""
    return Classifier(open_model(run, checkpoint), device)


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
