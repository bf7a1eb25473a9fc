"""Looks inside a served network, for the web page: what an answer hangs on, what each layer gives, what is similar; and
pictures of its run to try.

A look hangs hooks into the network's twin (see `models.py`), so that there is one at a time of each network.
"""

from __future__ import annotations

import base64
import functools
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from alexnet.errors import UserError
from alexnet.inference import explain
from alexnet.inference.explain import Saliency, Stage
from alexnet.inference.features import Features, extract_features, load_image
from alexnet.inference.neighbors import INFO, Index, find_image_file, load_index, load_run_images
from alexnet.models.model import AlexNet
from alexnet.run_dir import Run
from alexnet.runtimes.engines import LoadedModel
from alexnet.serving.registry import ServedModel

SAMPLES, SIMILAR = 12, 6
INDEXES = f"index/*/{INFO}"  # in a run folder
SHOWN = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif"}
"""Files that every browser shows: sent as they are. Of others the pixels are sent, as PNG."""


class NotAvailable(UserError):
    """What was asked for is not to be had of this network."""


@dataclass
class Explainer:
    """What can be looked at of one network; what is slow to find is found once."""

    served: ServedModel
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
            "seen": data_uri(seen(found.image)),
            "picture": data_uri(overlay(found)),
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
                    "picture": data_uri(sheet(stage)),
                }
                for stage in stages
            ]
        }  # fmt: skip

    def similar(self, picture: Image.Image) -> dict[str, Any]:
        """The most alike training pictures."""
        opened, index = self._opened(), self.index()
        if index is None or opened.run is None:
            raise NotAvailable(
                f"The training pictures of {self.served.name} are not indexed; 'alexnet show similar RUN PICTURE', run "
                "once where the server is, does it."
            )
        device = next(opened.model.parameters()).device
        with self._one:
            features = Features(opened.model, index.layer)
            query = extract_features(features, opened, load_image(opened, picture)[None].to(device))
        near = index.nearest(query, SIMILAR)[0]
        with self._reading():
            images = load_run_images(opened.run, [neighbour.name for neighbour in near])
        return {
            "layer": index.layer,
            "neighbours": [
                {"label": neighbour.label, "distance": neighbour.distance, "picture": thumbnail(image)}
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
                self._index = next(filter(None, (load_index(opened, layer) for layer in layers)), None)
        return self._index

    def _opened(self) -> LoadedModel:
        if self.served.opened is None:
            raise NotAvailable(
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
                if run and (found := run.evaluation_targets(split)):
                    names, targets = found
                    return [(names[i], self.served.classifier.classes[targets[i]]) for i in spread(targets, SAMPLES)]
        return []

    def sample(self, number: int) -> tuple[bytes, str]:
        """The file of one of `samples`, and its type. Raises `NotThere` where there is none, or the data is gone."""
        if self.served.run is None or not 0 <= number < len(self.samples):
            raise NotAvailable(f"{self.served.name} has {len(self.samples)} samples, and none is number {number}.")
        with self._reading():
            file = find_image_file(self.served.run, self.samples[number][0])
            if file and file.suffix.lower() in SHOWN:
                return file.read_bytes(), SHOWN[file.suffix.lower()]
            return self._drawn(self.served.run)[number], "image/png"

    def _drawn(self, run: Run) -> list[bytes]:
        """The samples of a data set without files, which is loaded once for them."""
        with self._one:
            if not self._pngs:
                self._pngs = [png(image) for image in load_run_images(run, [name for name, _ in self.samples])]
        return self._pngs

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Run folder and data set may be moved or damaged while the server runs: whatever that raises is `NotThere`."""
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise NotAvailable(
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


# ─── Small images for the web page, with numpy and Pillow alone.

MAPS, COLUMNS = 8, 4  # of each stage: those with the largest mean, in rows of four
SIDE = 256  # pixels, of what the network sees: small pictures are enlarged by whole numbers up to it
THUMBNAIL = 160
FOR, AGAINST = (230, 126, 0), (0, 114, 178)
RAMP = np.array([[0, 24, 56], [0, 114, 178], [240, 228, 66]])  # nothing, half, the stage's largest
GAP = np.array([128, 128, 128], np.uint8)
BETWEEN = 3  # pixels between maps


def data_uri(image: Image.Image, form: str = "PNG") -> str:
    """`image` as an address that holds it."""
    file = io.BytesIO()
    image.save(file, form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def png(image: Image.Image) -> bytes:
    """`image` as a PNG file, its pixels unchanged."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def thumbnail(image: Image.Image) -> str:
    """`image` as a data address, at most `THUMBNAIL` pixels wide and high; a small one unchanged."""
    if max(image.size) <= THUMBNAIL:
        return data_uri(image)
    return data_uri(ImageOps.contain(image.convert("RGB"), (THUMBNAIL, THUMBNAIL)), "JPEG")


def seen(pixels: np.ndarray) -> Image.Image:
    """What the network sees, uint8 (H, W, 1 or 3), enlarged by a whole number to about `SIDE`: each pixel stays one."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, SIDE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def overlay(found: Saliency) -> Image.Image:
    """The picture in grey, with orange where a place speaks for the label, and blue where against it.

    The strongest half per cent of the places has full colour; nothing is coloured where all are 0.
    """
    back = seen(found.image).convert("L")
    limit = float(np.quantile(np.abs(found.heat), 0.995))
    share = np.clip(found.heat / limit, -1, 1) if limit > 0 else np.zeros_like(found.heat)
    large = Image.fromarray(share.astype(np.float32)).resize(back.size, Image.Resampling.BILINEAR)
    strength = np.asarray(large)[..., None]
    grey = 40 + 0.7 * np.asarray(back, np.float32)[..., None]  # never black: colours show on dark places too
    colours = np.where(strength > 0, np.array(FOR, np.float32), np.array(AGAINST, np.float32))
    share_of_colour = 0.85 * np.abs(strength) ** 0.8
    return Image.fromarray(np.rint(grey * (1 - share_of_colour) + colours * share_of_colour).astype(np.uint8))


def sheet(stage: Stage) -> Image.Image:
    """A stage's strongest maps, or its units in rows, from dark (nothing) to yellow (the largest shown)."""
    flat = stage.values.ndim == 1
    values = _rows(stage.values)[None] if flat else stage.values
    maps = values[np.argsort(-values.mean((1, 2)), kind="stable")[:MAPS]]
    largest = max(float(np.nanmax(maps)), 1e-12)
    columns = 1 if flat else COLUMNS
    factor = max(1, SIDE // columns // maps.shape[2])  # whole pixels, so that a value stays a square
    tiles = _coloured(maps / largest).repeat(factor, axis=1).repeat(factor, axis=2)
    count, high, wide = tiles.shape[:3]
    rows = -(-count // columns)
    canvas = np.tile(GAP, (rows * (high + BETWEEN) - BETWEEN, columns * (wide + BETWEEN) - BETWEEN, 1))
    for i, tile in enumerate(tiles):
        top, left = i // columns * (high + BETWEEN), i % columns * (wide + BETWEEN)
        canvas[top : top + high, left : left + wide] = tile
    return Image.fromarray(canvas)


def _rows(values: np.ndarray) -> np.ndarray:
    """A vector broken into rows, about four times as wide as high; NaN where there is nothing."""
    rows = max(1, round((len(values) / 4) ** 0.5)) if len(values) > 40 else 1
    wide = -(-len(values) // rows)
    found = np.full(rows * wide, np.nan, np.float32)
    found[: len(values)] = values
    return found.reshape(rows, wide)


def _coloured(share: np.ndarray) -> np.ndarray:
    """Shares of the largest, (…), as colours, uint8 (…, 3); below 0 is as 0, and NaN is grey."""
    at = np.linspace(0, 1, len(RAMP))
    colours = np.stack([np.interp(np.nan_to_num(share), at, RAMP[:, c]) for c in range(3)], axis=-1)
    return np.where(np.isnan(share)[..., None], GAP, np.rint(colours).astype(np.uint8))
