"""Explanations of a served model for the web page: saliency, feature maps, similar training images, sample images.

They put hooks into a copy of the network that shares its weights, so that concurrent predictions are not affected; a
model computes one at a time.
"""

from __future__ import annotations

import base64
import copy
import dataclasses
import functools
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageOps

from alexnet.data.transforms import tile_images
from alexnet.errors import UserError
from alexnet.inference import explain
from alexnet.inference.explain import Saliency
from alexnet.inference.explain import Stage as StageValues
from alexnet.inference.features import Features, extract_features
from alexnet.inference.load import load_image
from alexnet.inference.neighbors import INFO, Index, find_image_file, load_index, load_run_images
from alexnet.inference.predict import Classifier
from alexnet.models.model import AlexNet
from alexnet.runtimes.engines import LoadedModel

NUM_SAMPLES, NUM_NEIGHBORS = 12, 6
INDEX_FILES = f"index/*/{INFO}"  # in a run folder
BROWSER_TYPES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".gif": "image/gif",
}  # fmt: skip
"""Media types of files that every browser shows; they are sent unchanged, all others as PNG of their pixels."""


class NotAvailable(UserError):
    """The model cannot provide what was requested."""


@dataclass
class SaliencyMap:
    """Which image regions the prediction depends on."""

    label: str
    probability: float
    method: str
    input: str
    """The network's input, as a data URI."""
    image: str
    """The same in gray: orange regions support the label, blue ones oppose it."""


@dataclass
class Stage:
    """Activations of one stage."""

    name: str
    shape: list[int]
    active: float
    """Share of values above zero."""
    image: str
    """The strongest feature maps, as a data URI."""


@dataclass
class Activations:
    """Activations of each stage of the network."""

    stages: list[Stage]


@dataclass
class Neighbor:
    """A training image near the query; `image` is a data URI."""

    label: str
    distance: float
    image: str


@dataclass
class Similar:
    """The most similar training images, nearest first, and the layer whose activations are compared."""

    layer: str
    neighbors: list[Neighbor]


@dataclass
class Explainer:
    """Explanations of one model. What is slow to load is loaded once.

    The methods raise `NotAvailable` if the model lacks what they need.
    """

    name: str
    classifier: Classifier
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _index: Index | None = None

    def __post_init__(self) -> None:
        self._run = self.classifier.ensemble.members[0].run

    @functools.cached_property
    def loaded(self) -> LoadedModel:
        """The model with a copy of its network that shares its weights."""
        loaded = self.classifier.ensemble.members[0]
        if loaded.network is None:
            raise NotAvailable(
                f"{self.name} is an exported file, which gives predictions only; serve the run that it was exported "
                "from."
            )
        tensors = {id(x): x for x in (*loaded.network.parameters(), *loaded.network.buffers())}
        return dataclasses.replace(loaded, network=copy.deepcopy(loaded.network, tensors))

    # ── explanations of an image ──────────────────────────────────────────────────────────────────

    def saliency(self, image: Image.Image, method: str = "auto", label: str | None = None) -> SaliencyMap:
        """Return the saliency map for `label`, by default the most likely one. Raises `UserError` if it is unknown."""
        with self._lock:
            found = explain.saliency(self.loaded, image, method, label)
        pixels = data_uri(render_input(found.image))
        return SaliencyMap(found.label, found.probability, found.method, pixels, data_uri(overlay(found)))

    def activations(self, image: Image.Image) -> Activations:
        """Return the activations of each stage."""
        with self._lock:
            stages = explain.activations(self.loaded, image)
        return Activations(
            [Stage(one.name, list(one.values.shape), one.active, data_uri(render_stage(one))) for one in stages]
        )

    def similar(self, image: Image.Image) -> Similar:
        """Return the training images nearest in activation space."""
        loaded, index = self.loaded, self.index()
        if index is None or loaded.run is None:
            raise NotAvailable(
                f"{self.name} has no index of its training images; run 'alexnet show similar RUN IMAGE' once on "
                "the server to build it."
            )
        with self._lock:
            features = Features(loaded.model, index.layer)
            query = extract_features(features, loaded, load_image(image, loaded.preprocess)[None])
        nearest = index.nearest(query, NUM_NEIGHBORS)[0]
        with self._reading_run():
            images = load_run_images(loaded.run, [neighbor.name for neighbor in nearest])
        neighbors = [
            Neighbor(neighbor.label, neighbor.distance, thumbnail(found))
            for neighbor, found in zip(nearest, images, strict=True)
        ]
        return Similar(index.layer, neighbors)

    def index(self) -> Index | None:
        """Return the index that `alexnet show similar` built, preferring the last hidden layer's.

        It may be built while the server runs.
        """
        loaded = self.loaded
        if self._index is None and loaded.run and isinstance(loaded.model, AlexNet):
            default = Features(loaded.model).layer
            with self._reading_run():
                indexed = [path.parent.name for path in loaded.run.path.glob(INDEX_FILES)]
                layers = sorted(indexed, key=lambda layer: layer != default)
                self._index = next(filter(None, (load_index(loaded, layer) for layer in layers)), None)
        return self._index

    # ── sample images ─────────────────────────────────────────────────────────────────────────────

    @functools.cached_property
    def samples(self) -> list[tuple[str, str]]:
        """(name, label) of some images that the run was not trained on, from as many classes as possible."""
        with self._reading_run():
            for split in ("val", "test"):
                if self._run and (evaluation := self._run.read_evaluation_targets(split)):
                    names, targets = evaluation
                    rows = spread_over_classes(targets, NUM_SAMPLES)
                    return [(names[i], self.classifier.classes[targets[i]]) for i in rows]
        return []

    def sample(self, number: int) -> tuple[bytes, str]:
        """Return the file and media type of one of `samples`."""
        if self._run is None or not 0 <= number < len(self.samples):
            raise NotAvailable(f"{self.name} has {len(self.samples)} samples, but no number {number}.")
        with self._reading_run():
            file = find_image_file(self._run, self.samples[number][0])
            if file and file.suffix.lower() in BROWSER_TYPES:
                return file.read_bytes(), BROWSER_TYPES[file.suffix.lower()]
            return self._sample_pngs[number], "image/png"

    @functools.cached_property
    def _sample_pngs(self) -> list[bytes]:
        """All samples as PNG files. A dataset without image files is loaded for them once."""
        assert self._run is not None
        with self._lock:
            return [encode(image) for image in load_run_images(self._run, [name for name, _ in self.samples])]

    @contextmanager
    def _reading_run(self) -> Iterator[None]:
        """Raise `NotAvailable` where the run or its data has been moved or damaged since the server started."""
        try:
            yield
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise NotAvailable(
                f"The run of {self.name} or its images have changed since the server started; restart the "
                "server with their current location."
            ) from error


def spread_over_classes(targets: np.ndarray, count: int) -> list[int]:
    """Return up to `count` row numbers of `targets` (n,): the first row of each class, then the second …

    If there are more than `count` classes, evenly spaced ones are chosen.
    """
    classes = np.unique(targets)
    if not len(classes):
        return []
    chosen = classes[np.linspace(0, len(classes) - 1, min(count, len(classes))).astype(int)]
    rows = [np.flatnonzero(targets == c) for c in chosen]
    return [int(of_class[turn]) for turn in range(count) for of_class in rows if turn < len(of_class)][:count]


# ── small images for the page ─────────────────────────────────────────────────────────────────────

MAX_MAPS, COLUMNS = 8, 4  # feature maps per stage, those with the largest mean, in rows of four
INPUT_SIZE = 256  # pixels: smaller network inputs are enlarged to at most this, by an integer factor
THUMBNAIL_SIZE = 160
SUPPORTS, OPPOSES = (230, 126, 0), (0, 114, 178)  # orange, blue
COLOR_RAMP = np.array([[0, 24, 56], [0, 114, 178], [240, 228, 66]])  # zero, half, the stage's maximum
GAP, GAP_GRAY = 3, 128  # pixels between maps, and their gray


def encode(image: Image.Image, format: str = "PNG") -> bytes:
    """Return `image` as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, format, quality=85)
    return file.getvalue()


def data_uri(image: Image.Image, format: str = "PNG") -> str:
    """Return `image` as a data URI."""
    return f"data:image/{format.lower()};base64,{base64.b64encode(encode(image, format)).decode()}"


def thumbnail(image: Image.Image) -> str:
    """Return `image` as a data URI, fit into `THUMBNAIL_SIZE`; a smaller image is unchanged."""
    if max(image.size) <= THUMBNAIL_SIZE:
        return data_uri(image)
    return data_uri(ImageOps.contain(image.convert("RGB"), (THUMBNAIL_SIZE, THUMBNAIL_SIZE)), "JPEG")


def render_input(pixels: np.ndarray) -> Image.Image:
    """Render the network's input, uint8 (H, W, 1 or 3), enlarged by an integer factor to at most `INPUT_SIZE`."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    factor = max(1, INPUT_SIZE // max(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def overlay(saliency: Saliency) -> Image.Image:
    """Render the input in gray, with orange where a pixel supports the label and blue where it opposes it.

    The strongest 0.5 % of the pixels get full color; a map of zeros gets none.
    """
    background = render_input(saliency.image).convert("L")
    limit = float(np.quantile(np.abs(saliency.heat), 0.995))
    heat = np.clip(saliency.heat / limit, -1, 1) if limit > 0 else np.zeros_like(saliency.heat)
    enlarged = Image.fromarray(heat.astype(np.float32)).resize(background.size, Image.Resampling.BILINEAR)
    strength = np.asarray(enlarged)[..., None]
    gray = 40 + 0.7 * np.asarray(background, np.float32)[..., None]  # never black: colors must show on dark regions
    color = np.where(strength > 0, np.array(SUPPORTS, np.float32), np.array(OPPOSES, np.float32))
    opacity = 0.85 * np.abs(strength) ** 0.8
    return Image.fromarray(np.rint(gray * (1 - opacity) + color * opacity).astype(np.uint8))


def render_stage(stage: StageValues) -> Image.Image:
    """Render a stage's strongest feature maps, or all its units in rows, from dark (0) to yellow (maximum)."""
    flat = stage.values.ndim == 1
    values = _wrap_rows(stage.values)[None] if flat else stage.values
    maps = values[np.argsort(-values.mean((1, 2)), kind="stable")[:MAX_MAPS]]
    maximum = max(float(np.nanmax(maps)), 1e-12)
    columns = 1 if flat else COLUMNS
    factor = max(1, INPUT_SIZE // columns // maps.shape[2])  # an integer, so that a value stays a square
    tiles = _colorize(maps / maximum).repeat(factor, axis=1).repeat(factor, axis=2)
    return Image.fromarray(tile_images(tiles, min(columns, len(tiles)), GAP_GRAY, GAP_GRAY, GAP))


def _wrap_rows(values: np.ndarray) -> np.ndarray:
    """Wrap a vector (n,) into rows, about four times as wide as high, padded with NaN."""
    rows = max(1, round((len(values) / 4) ** 0.5)) if len(values) > 40 else 1
    width = -(-len(values) // rows)
    wrapped = np.full(rows * width, np.nan, np.float32)
    wrapped[: len(values)] = values
    return wrapped.reshape(rows, width)


def _colorize(values: np.ndarray) -> np.ndarray:
    """Map values (…) from 0 to 1 to colors, uint8 (…, 3); values below 0 count as 0, and NaN is gray."""
    positions = np.linspace(0, 1, len(COLOR_RAMP))
    colors = np.stack([np.interp(np.nan_to_num(values), positions, COLOR_RAMP[:, c]) for c in range(3)], axis=-1)
    return np.where(np.isnan(values)[..., None], GAP_GRAY, np.rint(colors)).astype(np.uint8)
