"""Prediction: labels for image files, folders, bytes. Decoding and preprocessing are those of evaluation.

`labels` has the network's own probabilities. Where it has a calibration, a prediction also has a confidence, which
decides whether it is unsure (see `calibration.py`); what people read shows calibrated probabilities only.

Importing torch takes longer than classifying an image, so it is imported only where it computes:
`load` can use a cached engine, or an exported file, without it.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from PIL import Image, ImageOps

from alexnet.calls import public
from alexnet.data.arrays import array_to_image, find_scale
from alexnet.data.decode import MAX_PIXELS, BadImage, decode_image, map_chunks_in_threads, map_in_threads
from alexnet.data.deep import CLIPPED, ValueRange
from alexnet.data.transforms import EvalTransform
from alexnet.device import pick_device
from alexnet.errors import UserError
from alexnet.inference.crops import CENTER_CROP, Views, make_views
from alexnet.inference.ensemble import Ensemble, RunNames, forward, load_ensemble
from alexnet.inference.load import find_cached
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions
from alexnet.runtimes.calibration import Calibration
from alexnet.runtimes.engines import EXACT, Engine, LoadedModel, check_engine, softmax, trace_model
from alexnet.text import escape, join_lines

if TYPE_CHECKING:
    import torch
    from torch import nn

    from alexnet.inference.load import ImageInput

    AnyImage = ImageInput | np.ndarray | torch.Tensor

BATCH_SIZE = 64
THUMBNAIL_SIDE = 160  # pixels: images in a notebook
UNNAMED = "image"  # the path of a prediction for an image that has none
MAX_SHOWN = 48  # predictions in one cell of a notebook


@dataclass(frozen=True, repr=False)
class Prediction:
    """The labels of one image with probabilities, the most likely first, or why there are none."""

    path: str
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    unsure: bool | None = None  # None: this network has no confidence threshold
    confidence: float | None = None  # calibrated, of the first label; None as above
    clipped: bool = False  # whether it has values beyond the range of the training images
    open_image: Callable[[], Image.Image] | None = field(default=None, compare=False)
    """Decodes the image again."""
    calibration: Calibration | None = field(default=None, compare=False)
    """What the confidence is from; None as above."""

    @property
    def confidences(self) -> tuple[tuple[str, float], ...]:
        """The labels with their calibrated probabilities, of which the first is `confidence`; without a calibration
        the network's own."""
        if self.calibration is None or self.confidence is None or not self.labels:
            return self.labels
        first, exponent = self.labels[0][1], 1 / self.calibration.temperature
        return tuple((label, self.confidence * (p / first) ** exponent) for label, p in self.labels)

    def to_dict(self) -> dict[str, Any]:
        pairs = zip(self.labels, self.confidences, strict=True)
        return {
            "path": self.path,
            "labels": [{"label": label, "p": p, "confidence": confidence} for (label, p), (_, confidence) in pairs],
            "unsure": self.unsure,
            "confidence": self.confidence,
            "error": self.error,
            **({"clipped": True} if self.clipped else {}),
        }

    def __repr__(self) -> str:
        return f"Prediction({self})"

    def __str__(self) -> str:
        if self.error:
            return escape(f"{self.path}: {self.error}")
        unsure = f"{self._unsure_text()}: " if self.unsure else ""
        return escape(f"{self.path}: {unsure}" + ", ".join(f"{label} {p:.1%}" for label, p in self.confidences))

    def _unsure_text(self) -> str:
        if self.calibration is None:
            return "unsure"
        needed = f"{self.calibration.threshold:.1%}"
        if needed == f"{self.confidence:.1%}":  # it missed the threshold by less than the digits show
            needed = f"{self.calibration.threshold:.3%}"
        return f"unsure (needs {needed})"

    def _repr_html_(self) -> str:
        return Predictions([self])._repr_html_()

    def to_cell(self) -> dict[str, Any]:
        """Return what a notebook shows: see `render_predictions`."""
        name = "" if self.path == UNNAMED else self.path
        texts = [name, self._unsure_text() if self.unsure else "", self.error or ""]
        return {
            "title": escape(": ".join(text for text in texts if text)),
            "rows": [(label, f"{p:.1%}") for label, p in self.confidences],
            "unsure": self.unsure, **self._thumbnail(),
        }  # fmt: skip

    def _thumbnail(self) -> dict[str, Any]:
        """Return a data URL of the image, None if it can no longer be read, and whether it is small."""
        from alexnet.notebook.display import image_url

        try:
            image = self.open_image() if self.open_image else None
        except BadImage:
            image = None
        if image is None:
            return {"image": None, "small": False}
        small = max(image.size) <= THUMBNAIL_SIDE // 2
        shown = image if small else ImageOps.contain(image, (2 * THUMBNAIL_SIDE, 2 * THUMBNAIL_SIDE))
        return {"image": image_url(shown, "PNG") if small else image_url(shown, quality=80), "small": small}


class Predictions(list[Prediction]):
    """Predictions in the order of their images; a notebook shows them side by side."""

    def __repr__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_predictions

        unreadable = sum(prediction.error is not None for prediction in self)
        notes = [f"{len(self):,} images"] if len(self) > 1 else []
        notes += [f"{unreadable:,} could not be read"] if unreadable and len(self) > 1 else []
        notes += [f"the first {MAX_SHOWN} are shown"] if len(self) > MAX_SHOWN else []
        return render_predictions([p.to_cell() for p in self[:MAX_SHOWN]], "; ".join(notes))


class Scores(NamedTuple):
    """The output of a network for one image."""

    p: np.ndarray
    """Probabilities, float32 (classes,)."""
    order: np.ndarray
    """Class indices, the most likely first, int64 (classes,)."""
    unsure: bool | None
    confidence: float | None
    clipped: bool = False


class Classifier:
    """A trained network, or several as an ensemble, applied to images.

    >>> alexnet.load("runs/digits-…").predict("seven.png")  # doctest: +SKIP
    """

    def __init__(
        self,
        ensemble: Ensemble,
        device: str = "auto",
        engine: str = EXACT,
        calibrate: str | Path | None = None,
        log: Callable[[str], object] = lambda _: None,
    ) -> None:
        check_engine(engine, device, calibrate)
        self.classes = ensemble.classes
        self.model = ensemble.members[0].network  # None for an exported file or a cached engine
        self.preprocess = ensemble.members[0].preprocess
        self.calibration, note = ensemble.calibration()
        """What decides which predictions are unsure, if the network has it."""
        if self.calibration and note:
            log(note)
        self._device_name = device
        self._traced: Sequence[nn.Module | Engine] = ()
        self.ensemble = ensemble.open(engine, device, calibrate, log)

    @cached_property
    def device(self) -> torch.device:
        """Where torch computes."""
        return pick_device(self._device_name)

    @property
    def thread_safe(self) -> bool:
        """Whether several threads may compute probabilities at the same time: once its networks are traced."""
        return bool(self._traced)

    def trace(self) -> None:
        """Trace each network if torch computes them all on a CPU (see `trace_model`), which changes no number."""
        if self._torch_on_cpu:
            members = self.ensemble.members
            shapes = [(m.preprocess.channels, m.preprocess.size, m.preprocess.size) for m in members]
            self._traced = [trace_model(m.model, shape) for m, shape in zip(members, shapes, strict=True)]

    @property
    def _torch_on_cpu(self) -> bool:
        """Whether torch computes all networks, on a CPU."""
        return all(member.engine is None for member in self.ensemble.members) and self.device.type == "cpu"

    def __repr__(self) -> str:
        """Name each network with its parameters and input, and the classes."""
        networks = [_describe(name, m) for name, m in zip(self.ensemble.names, self.ensemble.members, strict=True)]
        shown = ", ".join(self.classes[:10]) + (", …" if len(self.classes) > 10 else "")
        return join_lines(*networks, f"classes: {shown}")

    @overload
    def predict(
        self, image: AnyImage, top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Prediction: ...
    @overload
    def predict(
        self, image: list[Any] | tuple[Any, ...], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Predictions: ...
    @public("predict")
    def predict(
        self, image: AnyImage | list[Any] | tuple[Any, ...], top: int = 5, views: int = 1,
        scales: Sequence[float] = (1.0,),
    ) -> Prediction | Predictions:  # fmt: skip
        """Return the `top` most likely labels of one image, or of each image of a list or batch.

        An image is a path, the bytes of a file, a PIL image, an array (H×W or H×W×C) or a tensor (H×W
        or C×H×W); a batch is an array or tensor with four axes. Values are uint8 from 0 to 255 or
        floating-point from 0 to 1 (see `array_to_image`), and a warning says if they are nearly black.
        `views` crops at each of `scales` are averaged; 10 is the paper's ten-crop test (see `crops.py`).
        What has no path is called `image`, and in a list `image 1`, `image 2`, …

        Raises `UserError` if the image cannot be read; in a list, its prediction has an `error`.
        """
        several = isinstance(image, (list, tuple)) or getattr(image, "ndim", 0) == 4
        images: list[Any] = list(image) if several else [image]  # type: ignore[arg-type]
        if self.preprocess.value_range is None and (note := find_scale(images)):
            warnings.warn(note, stacklevel=3)  # where the caller of `public` stands
        predictions = Predictions()
        for number, (one, found) in enumerate(
            zip(images, self.predict_many(images, top, views, scales), strict=True), start=1
        ):
            unnamed = not isinstance(one, (str, Path))
            name = f"{UNNAMED} {number}" if several else UNNAMED
            predictions.append(replace(found, path=name) if unnamed else found)
        if several:
            return predictions
        (prediction,) = predictions
        if prediction.error:
            name = "The image" if prediction.path == UNNAMED else prediction.path
            raise UserError(f"{name} cannot be read: {prediction.error}.")
        return prediction

    def predict_many(
        self, images: Iterable[AnyImage], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order; that of an unreadable image has an `error`."""
        if top < 1:
            raise UserError(f"--top must be at least 1, not {top}.")
        grid = make_views(views, scales)
        transforms = [group.preprocess for group in self.ensemble.input_groups(grid)]
        lock = Lock()  # one PIL image may be given twice, and must not be read by two threads at a time

        def load(image: AnyImage) -> tuple[AnyImage, Crops | str]:
            with lock if isinstance(image, Image.Image) else nullcontext():
                return image, _crops_or_reason(image, transforms)

        if not self._torch_on_cpu:
            loaded = map_in_threads(load, images)
            while batch := list(itertools.islice(loaded, BATCH_SIZE)):
                yield from self._predict_batch(batch, top, grid)
            return

        import torch

        # Each thread reads and computes batches of its own: torch's threads would compete with those that decode.
        threads, remaining = torch.get_num_threads(), iter(images)

        def predict(batch: list[AnyImage]) -> list[Prediction]:
            with _one_torch_thread(threads):
                return list(self._predict_batch([load(image) for image in batch], top, grid))

        first = list(itertools.islice(remaining, BATCH_SIZE * threads))
        if len(first) == 1:
            yield from self._predict_batch([load(first[0])], top, grid)
            return
        size = max(1, math.ceil(len(first) / threads))  # smaller batches for few images, so that all threads have one
        yield from map_chunks_in_threads(predict, itertools.chain(first, remaining), size, threads)

    def _predict_batch(
        self, pending: list[tuple[AnyImage, Crops | str]], top: int, views: Views
    ) -> Iterator[Prediction]:
        readable = [crops for _, crops in pending if not isinstance(crops, str)]
        batches = [np.stack(crops) for crops in zip(*readable, strict=True)]
        rows = iter(self.score_rows(self._compute(batches, views))) if readable else iter(())
        for image, crops in pending:
            name = str(image) if isinstance(image, (str, Path)) else "-"
            if isinstance(crops, str):
                yield Prediction(name, error=crops)
            else:
                decode = partial(_decode, image, self.preprocess.channels, self.preprocess.value_range)
                yield self.to_prediction(name, next(rows), top, crops.clipped, decode)

    def _compute(self, batches: list[np.ndarray], views: Views) -> np.ndarray:
        """Return the probabilities of a batch, read once for each input group; without torch if it is not needed."""
        engine = self.ensemble.members[0].engine
        if engine is not None and len(self.ensemble.members) == 1 and views == CENTER_CROP:
            return softmax(engine.logits(batches[0]))
        import torch

        return self.probabilities([torch.from_numpy(batch) for batch in batches], views).numpy()

    def probabilities(self, images: torch.Tensor | Sequence[torch.Tensor], views: Views = CENTER_CROP) -> torch.Tensor:
        """Return the softmax of the logits, averaged over `views` (the center crop by default) and
        networks: float32 (n, classes), on the CPU.

        `images` are uint8 (n, channels, size, size), one such batch for each of
        `self.ensemble.input_groups(views)`: a single network at one scale has one. Several views
        are cut from uncropped images.
        """
        import torch

        batches = [images] if isinstance(images, torch.Tensor) else images
        members = self.ensemble.members
        networks = self._traced or [member.computes for member in members]
        logits: list[list[torch.Tensor]] = [[] for _ in members]
        with torch.no_grad():
            for group, batch in zip(self.ensemble.input_groups(views), batches, strict=True):
                squares = batch.to(self.device)
                for i in group.members:
                    logits[i].append(forward(networks[i], squares, members[i].preprocess, views))
            return self.ensemble.average(logits).softmax(dim=1).cpu()

    def score_rows(self, p: np.ndarray) -> Iterator[Scores]:
        """Return each row of probabilities (n, classes) with its confidence and whether it is unsure."""
        orders = np.argsort(-p, axis=1, kind="stable")  # in one call, since a call per row costs more
        if self.calibration is None:
            return (Scores(row, order, None, None) for row, order in zip(p, orders, strict=True))
        with np.errstate(divide="ignore"):
            confidence = self.calibration.confidence(np.log(p))
        unsure = self.calibration.is_unsure(confidence)
        return map(Scores, p, orders, unsure.tolist(), confidence.tolist())

    def to_prediction(
        self,
        name: str,
        row: Scores,
        top: int = 5,
        clipped: bool = False,
        open_image: Callable[[], Image.Image] | None = None,
    ) -> Prediction:
        """Return the `top` most likely labels of the image called `name`."""
        best = row.order[:top]
        labels = tuple(zip(map(self.classes.__getitem__, best.tolist()), row.p[best].tolist(), strict=True))
        return Prediction(name, labels, None, row.unsure, row.confidence, clipped, open_image, self.calibration)


def load(
    run: RunNames,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    engine: str = EXACT,
    calibrate: str | Path | None = None,
    trust: bool = False,
    file: FileOptions = NO_OPTIONS,
    log: Callable[[str], object] = lambda _: None,
    cached_for: str | None = None,
) -> Classifier:
    """Load a run folder, a checkpoint folder, `last`, `torchvision:IMAGENET1K_V1`, a file of
    weights or an exported file for prediction, or several of them as an ensemble.

    `engine` is what computes (see `runtimes/engines.py`); an int8 engine is calibrated on the
    images in the folder `calibrate`, else on training images. `log` receives a sentence on each
    engine and how much it differs from `exact`. `trust` opens an exported file whose format can run
    code; `file` describes a file of weights (.pth). With `cached_for`, "one" image or "many" (for
    which `fast` may be another engine), a single network whose engine is cached is opened without
    torch, and has no `model`.

    >>> classifier = alexnet.load("last")
    >>> digit = load_digits().images[0] / 16  # 8×8, from 0 to 1
    >>> [label for label, probability in classifier.predict(digit, top=1).labels]
    ['0']
    >>> len(classifier.predict([digit, "shades/light/1.png"]))
    2
    """
    runs = [run] if isinstance(run, (str, Path)) else list(run)
    check_engine(engine, device, calibrate, runs)
    if (
        cached_for
        and engine != EXACT
        and len(runs) == 1
        and not calibrate
        and device in ("auto", "cpu")
        and file == NO_OPTIONS
    ):
        found = find_cached(runs[0], checkpoint, engine, device, cached_for == "one")
        if found is not None and found.engine is not None:
            classifier = Classifier(Ensemble((str(runs[0]),), (found,)), log=log)
            log(found.engine.note)
            return classifier
    return Classifier(load_ensemble(runs, checkpoint, trust, file, log), device, engine, calibrate, log)


@contextmanager
def _one_torch_thread(usual: int) -> Iterator[None]:
    """Let torch compute with one thread in this thread of Python, instead of the `usual` number."""
    import torch

    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)  # a thread of Python that starts later takes over what was set last


def _crops_or_reason(image: AnyImage, transforms: Sequence[EvalTransform]) -> Crops | str:
    """Return an image as each of `transforms` crops it, or why it cannot be read."""
    try:
        return load_crops(image, transforms)
    except BadImage as error:
        return error.reason


class Crops(list[np.ndarray]):
    """An image as each of several transforms crops it."""

    clipped = False
    """Whether the image has values beyond their range."""


def load_crops(image: AnyImage, transforms: Sequence[EvalTransform], max_pixels: int = MAX_PIXELS) -> Crops:
    """Return an image as each of `transforms` crops it: uint8 C×size×size. Raises `BadImage`."""
    keys = {(transform.channels, transform.value_range) for transform in transforms}
    decoded = {key: _decode(image, *key, max_pixels) for key in keys}
    crops = Crops(t.eval_array(decoded[t.channels, t.value_range]) for t in transforms)
    # without a range the network was trained on 8-bit images, which clip nothing
    crops.clipped = any(range is not None and image.info.get(CLIPPED) for (_, range), image in decoded.items())
    return crops


def _decode(
    image: AnyImage, channels: int, value_range: ValueRange | None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Return an image of mode RGB (3 `channels`) or L (1). Raises `BadImage`."""
    source = image if isinstance(image, (str, Path, bytes, Image.Image)) else array_to_image(image, value_range)
    return decode_image(source, channels, value_range=value_range, max_pixels=max_pixels)


def _describe(name: str, member: LoadedModel) -> str:
    """Return a line on a network: its name, architecture, parameters and input."""
    title = member.run.path.name if member.run else name
    if member.network is not None:
        return f"{title}: {member.network.extra_repr()}"
    preprocess = member.preprocess  # of an exported file, or of a cached engine
    return f"{title}: input {preprocess.channels}×{preprocess.size}×{preprocess.size}"
