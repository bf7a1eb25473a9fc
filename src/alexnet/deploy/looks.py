"""Looks inside a served network, for the web page: what an answer hangs on, what each layer gives, what is similar; and
pictures of its run to try.

A look hangs hooks into the network's twin (see `models.py`), so that there is one at a time of each network.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from alexnet.deploy import pictures
from alexnet.deploy.models import Served
from alexnet.errors import UserError
from alexnet.inference import explain
from alexnet.inference.features import Features, read_picture, vectors
from alexnet.inference.formats import Opened
from alexnet.inference.neighbours import INFO, Index, data_file, find_index, run_pictures
from alexnet.networks.model import AlexNet
from alexnet.runs import Run

SAMPLES, SIMILAR = 12, 6
INDEXES = f"index/*/{INFO}"  # in a run folder
SHOWN = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
"""Files that every browser shows: sent as they are. Of others the pixels are sent, as PNG."""


class NotThere(UserError):
    """What was asked for is not to be had of this network."""


@dataclass
class Looks:
    """What can be looked at of one network; what is slow to find is found once."""

    served: Served
    _one: threading.Lock = field(default_factory=threading.Lock)
    _index: Index | None = None
    _pngs: list[bytes] = field(default_factory=list)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────────────────

    def saliency(self, picture: Image.Image, method: str = "grad-cam", label: str | None = None) -> dict[str, Any]:
        """Where the network looks: `seen` and `picture` as data addresses, for the likeliest label unless one is given.

        This and the others below raise `NotThere` for what this network does not have, `BadImage` for a bad picture.
        Raises `UserError` for an unknown label.
        """
        opened = self._opened()
        with self._one:
            found = explain.saliency(opened, picture, method, label)
        return {
            "label": found.label, "probability": found.probability, "method": found.method,
            "seen": pictures.data_uri(pictures.seen(found.image)),
            "picture": pictures.data_uri(pictures.overlay(found)),
        }  # fmt: skip

    def activations(self, picture: Image.Image) -> dict[str, Any]:
        """What each stage gives."""
        opened = self._opened()
        with self._one:
            stages = explain.activations(opened, picture)
        return {
            "stages": [
                {
                    "name": stage.name, "shape": list(stage.values.shape), "active": stage.active,
                    "picture": pictures.data_uri(pictures.sheet(stage)),
                }
                for stage in stages
            ]
        }  # fmt: skip

    def similar(self, picture: Image.Image) -> dict[str, Any]:
        """The most alike training pictures."""
        opened, index = self._opened(), self.index()
        if index is None or opened.run is None:
            raise NotThere(
                f"The training pictures of {self.served.name} are not indexed; 'alexnet show similar RUN PICTURE', run "
                "once where the server is, does it."
            )
        device = next(opened.model.parameters()).device
        with self._one:
            features = Features(opened.model, index.layer)
            query = vectors(features, opened, read_picture(opened, picture)[None].to(device))
        near = index.nearest(query, SIMILAR)[0]
        with self._reading():
            images = run_pictures(opened.run, [neighbour.name for neighbour in near])
        return {
            "layer": index.layer,
            "neighbours": [
                {"label": neighbour.label, "distance": neighbour.distance, "picture": pictures.thumbnail(image)}
                for neighbour, image in zip(near, images, strict=True)
            ],
        }

    def index(self) -> Index | None:
        """The index of training pictures that `alexnet show similar` made: that of the last hidden layer, or another's.

        It may come while the server runs.
        """
        opened = self.served.opened
        if self._index is None and opened and opened.run and isinstance(opened.model, AlexNet):
            usual = Features(opened.model).layer
            with self._reading():
                found = [path.parent.name for path in opened.run.path.glob(INDEXES)]
                layers = sorted(found, key=lambda layer: layer != usual)
                self._index = next(filter(None, (find_index(opened, layer) for layer in layers)), None)
        return self._index

    def _opened(self) -> Opened:
        if self.served.opened is None:
            raise NotThere(
                f"{self.served.name} is an exported file, which cannot be looked into; serve the run that it came from."
            )
        return self.served.opened

    # ── pictures to try ───────────────────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def samples(self) -> list[tuple[str, str]]:
        """A few pictures that the run was not trained on, as (name, label), of as many classes as can be."""
        run = self.served.run
        with self._reading():
            for split in ("val", "test") if run else ():
                if run and (found := run.evaluated(split)):
                    names, targets = found
                    return [(names[i], self.served.classifier.classes[targets[i]]) for i in spread(targets, SAMPLES)]
        return []

    def sample(self, number: int) -> tuple[bytes, str]:
        """The file of one of `samples`, and its type. Raises `NotThere` where there is none, or the data is gone."""
        if self.served.run is None or not 0 <= number < len(self.samples):
            raise NotThere(f"{self.served.name} has {len(self.samples)} samples, and none is number {number}.")
        with self._reading():
            file = data_file(self.served.run, self.samples[number][0])
            if file and file.suffix.lower() in SHOWN:
                return file.read_bytes(), SHOWN[file.suffix.lower()]
            return self._drawn(self.served.run)[number], "image/png"

    def _drawn(self, run: Run) -> list[bytes]:
        """The samples of a data set without files, which is loaded once for them."""
        with self._one:
            if not self._pngs:
                self._pngs = [pictures.png(image) for image in run_pictures(run, [name for name, _ in self.samples])]
        return self._pngs

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Run folder and data set may be moved or damaged while the server runs: whatever that raises is `NotThere`."""
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise NotThere(
                f"The run of {self.served.name} or its pictures are not what they were when the server started; start "
                "it again where they are."
            ) from error


def spread(targets: np.ndarray, count: int) -> list[int]:
    """`count` rows of `targets` (n,): the first, then the second … of each of as many classes as there can be."""
    classes = np.unique(targets)
    if not len(classes):
        return []
    chosen = classes[np.linspace(0, len(classes) - 1, min(count, len(classes))).astype(int)]
    rows = [np.flatnonzero(targets == c) for c in chosen]
    return [int(of[turn]) for turn in range(count) for of in rows if turn < len(of)][:count]
