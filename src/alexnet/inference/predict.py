"""Prediction: labels for image files, folders, bytes. Decoding and preprocessing are those of evaluation.

The probabilities are the network's own. Where it has a calibration, a prediction also has a confidence, which decides
whether it is unsure (see `calibration.py`).

Importing torch takes longer than classifying an image, so it is imported only where it computes: `load_fast` uses a
cached engine, or an exported file, without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from alexnet.data.decode import MAX_PIXELS, BadImage, decode_image
from alexnet.data.transforms import EvalTransform
from alexnet.device import pick_device
from alexnet.errors import UserError
from alexnet.inference.calibration import find_calibration
from alexnet.inference.load import model_id, resolve_checkpoint
from alexnet.runtimes.calibration import Calibration
from alexnet.runtimes.engine_cache import EngineCache, open_cached
from alexnet.runtimes.engines import EXACT, Engine, LoadedModel, check_engine, softmax, trace_model
from alexnet.runtimes.exported import check_exported, open_exported
from alexnet.runtimes.manifest import is_exported_model

if TYPE_CHECKING:
    import torch

    from alexnet.inference.crops import Views
    from alexnet.inference.ensemble import Ensemble, RunNames

BATCH_SIZE = 64

ImageInput = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """The labels of one image with probabilities, the most likely first, or why there are none."""

    path: str
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    unsure: bool | None = None  # None: this network has no confidence threshold
    confidence: float | None = None  # calibrated, of the first label; None as above

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "labels": [{"label": label, "p": p} for label, p in self.labels],
            "unsure": self.unsure,
            "confidence": self.confidence,
            "error": self.error,
        }

    def __str__(self) -> str:
        if self.error:
            return f"{self.path}: {self.error}"
        unsure = f"{self._unsure_text()}: " if self.unsure else ""
        return f"{self.path}: {unsure}" + ", ".join(f"{label} {p:.1%}" for label, p in self.labels)

    def _unsure_text(self) -> str:
        return f"unsure (confidence {self.confidence:.1%})"

    def _repr_html_(self) -> str:
        if self.error:
            return f"<p>{escape(str(self))}</p>"
        bars = "".join(
            f"<tr><td>{escape(label)}</td><td>{p:.1%}</td><td style='width:12em'>"
            f"<div style='background:#0072b2;height:.8em;width:{p:.1%}'></div></td></tr>"
            for label, p in self.labels
        )
        title = f"{self.path}: {self._unsure_text()}" if self.unsure else self.path
        return f"<p>{escape(title)}</p><table>{bars}</table>"


class Scores(NamedTuple):
    """The output of a network for one image."""

    p: np.ndarray
    """Probabilities, float32 (classes,)."""
    order: np.ndarray
    """Class indices, the most likely first, int64 (classes,)."""
    unsure: bool | None
    confidence: float | None


class _BaseClassifier:
    """What all classifiers share: decoding, batching and labeling."""

    classes: tuple[str, ...]
    calibration: Calibration | None
    """What decides which predictions are unsure, if the network has one."""

    def predict(self, image: ImageInput, top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)) -> Prediction:
        """Return the `top` most likely labels of one image: a path, the bytes of a file, or a PIL image.

        `views` crops at each of `scales` are averaged; 10 is the paper's ten-crop test (see `crops.py`).

        Raises `UserError` if it cannot be read.
        """
        prediction = next(self.predict_many([image], top, views, scales))
        if prediction.error:
            raise UserError(f"{prediction.path} cannot be read: {prediction.error}.")
        return prediction

    def predict_many(
        self, images: Iterable[ImageInput], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order; that of an unreadable image has an `error`."""
        raise NotImplementedError

    def _predict_batches(
        self,
        images: Iterable[ImageInput],
        top: int,
        transforms: Sequence[EvalTransform],
        compute: Callable[[list[np.ndarray]], np.ndarray],
    ) -> Iterator[Prediction]:
        """Decode, batch and label: `compute` takes a uint8 batch for each of `transforms` and returns probabilities."""
        if top < 1:
            raise UserError(f"--top must be at least 1, not {top}.")
        pending: list[tuple[str, list[np.ndarray] | str]] = []
        for image in images:
            name = str(image) if isinstance(image, (str, Path)) else "-"
            try:
                pending.append((name, load_crops(image, transforms)))
            except BadImage as error:
                pending.append((name, error.reason))
            if len(pending) == BATCH_SIZE:
                yield from self._run_batch(pending, top, compute)
                pending = []
        yield from self._run_batch(pending, top, compute)

    def _run_batch(
        self,
        pending: list[tuple[str, list[np.ndarray] | str]],
        top: int,
        compute: Callable[[list[np.ndarray]], np.ndarray],
    ) -> Iterator[Prediction]:
        readable = [crops for _, crops in pending if not isinstance(crops, str)]
        batches = [np.stack(crops) for crops in zip(*readable, strict=True)]
        rows = iter(self.score_rows(compute(batches))) if readable else iter(())
        for name, crops in pending:
            yield (
                Prediction(name, error=crops) if isinstance(crops, str) else self.to_prediction(name, next(rows), top)
            )

    def score_rows(self, p: np.ndarray) -> Iterator[Scores]:
        """Return each row of probabilities (n, classes) with its confidence and whether it is unsure."""
        orders = np.argsort(-p, axis=1, kind="stable")  # in one call, since a call per row costs more
        if self.calibration is None:
            return (Scores(row, order, None, None) for row, order in zip(p, orders, strict=True))
        with np.errstate(divide="ignore"):
            confidence = self.calibration.confidence(np.log(p))
        unsure = self.calibration.is_unsure(confidence)
        return map(Scores, p, orders, unsure.tolist(), confidence.tolist())

    def to_prediction(self, name: str, row: Scores, top: int = 5) -> Prediction:
        """Return the `top` most likely labels of the image called `name`."""
        best = row.order[:top]
        labels = tuple(zip(map(self.classes.__getitem__, best.tolist()), row.p[best].tolist(), strict=True))
        return Prediction(name, labels, unsure=row.unsure, confidence=row.confidence)


class Classifier(_BaseClassifier):
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
        from alexnet.runtimes.select import EngineConfig

        check_engine(engine, device)
        self.device = pick_device(device)
        self.ensemble = ensemble
        self.classes = ensemble.classes
        self.model = getattr(ensemble.members[0], "model", None)  # the first member's; None for an exported file
        self.preprocess = ensemble.members[0].preprocess
        self.calibration, note = ensemble.calibration()
        if self.calibration and note:
            log(note)
        folder = Path(calibrate) if calibrate else None
        images = partial(_calibration_images, folder=folder)
        config = EngineConfig(engine, self.device, device, images, recalibrate=folder is not None, log=log)
        self._networks = ensemble.networks(config)

    def trace(self) -> bool:
        """Trace each network if torch computes them all on a CPU (see `trace_model`), which changes no number.

        Return whether it did: then several threads may compute probabilities at the same time.
        """
        from torch import nn

        networks = [network for network in self._networks if isinstance(network, nn.Module)]
        if self.device.type != "cpu" or len(networks) < len(self._networks):
            return False
        inputs = [member.preprocess for member in self.ensemble.members]
        self._networks = [trace_model(n, (t.channels, t.size, t.size)) for n, t in zip(networks, inputs, strict=True)]
        return True

    def predict_many(
        self, images: Iterable[ImageInput], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order; that of an unreadable image has an `error`."""
        import torch

        from alexnet.inference.crops import make_views

        grid = make_views(views, scales)
        transforms = [group.preprocess for group in self.ensemble.input_groups(grid)]
        yield from self._predict_batches(
            images,
            top,
            transforms,
            lambda batches: self.probabilities([torch.from_numpy(b) for b in batches], grid).numpy(),
        )

    def probabilities(self, images: torch.Tensor | Sequence[torch.Tensor], views: Views | None = None) -> torch.Tensor:
        """Return the softmax of the logits, averaged over `views` (the center crop by default) and networks: float32
        (n, classes), on the CPU.

        `images` are uint8 (n, channels, size, size), one such batch for each of `self.ensemble.input_groups(views)`: a
        single network at one scale has one. Several views are cut from uncropped images.
        """
        import torch

        from alexnet.inference.crops import CENTER_CROP
        from alexnet.inference.ensemble import forward

        views = views or CENTER_CROP
        batches = [images] if isinstance(images, torch.Tensor) else images
        logits: list[list[torch.Tensor]] = [[] for _ in self.ensemble.members]
        with torch.no_grad():
            for group, batch in zip(self.ensemble.input_groups(views), batches, strict=True):
                squares = batch.to(self.device)
                for i in group.members:
                    logits[i].append(forward(self._networks[i], squares, self.ensemble.members[i].preprocess, views))
            return self.ensemble.average(logits).softmax(dim=1).cpu()


def _calibration_images(loaded: LoadedModel, folder: Path | None) -> np.ndarray:
    from alexnet.inference.evaluate import calibration_images  # which needs torchvision

    return calibration_images(loaded, folder)


class EngineClassifier(_BaseClassifier):
    """One network in one engine, without torch: the center crop of each image.

    `open_engine` opens the engine for the first batch, given its size. What the engine cannot do goes to the classifier
    that `load_full` returns: several views, or all of it where `open_engine` returns None.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        preprocess: EvalTransform,
        calibration: Calibration | None,
        open_engine: Callable[[int], Engine | None],
        load_full: Callable[[], Classifier],
    ) -> None:
        self.classes, self.preprocess, self.calibration = classes, preprocess, calibration
        self._open_engine, self._load_full = open_engine, load_full
        self._engine: Engine | None = None
        self._classifier: Classifier | None = None

    def predict_many(
        self, images: Iterable[ImageInput], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """Yield a prediction for each image, in order; that of an unreadable image has an `error`."""
        if views != 1 or tuple(scales) != (1.0,):
            return self._load_full().predict_many(images, top, views, scales)
        return self._predict_batches(images, top, [self.preprocess], lambda batches: self._probabilities(batches[0]))

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        if self._engine is None and self._classifier is None:
            self._engine = self._open_engine(len(images))
            if self._engine is None:
                self._classifier = self._load_full()
        if self._engine is not None:
            return softmax(self._engine.logits(images))
        assert self._classifier is not None
        import torch

        return self._classifier.probabilities(torch.from_numpy(images)).numpy()


def load(
    run: RunNames,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    engine: str = EXACT,
    calibrate: str | Path | None = None,
    trust: bool = False,
    log: Callable[[str], object] = lambda _: None,
) -> Classifier:
    """Load a run folder, a checkpoint folder, `last`, `torchvision:IMAGENET1K_V1` or an exported file for prediction,
    or several of them as an ensemble.

    `engine` is what computes (see `runtimes/engines.py`); an int8 engine is calibrated on the images in the folder
    `calibrate`, else on training images. `log` receives a sentence on each engine and how much it differs from `exact`.
    `trust` opens an exported file that is not verified.
    """
    from alexnet.inference.ensemble import load_ensemble

    check_engine(engine, device, calibrate)
    return Classifier(load_ensemble(run, checkpoint, trust), device, engine, calibrate, log)


def load_fast(
    run: RunNames,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    engine: str = EXACT,
    calibrate: str | Path | None = None,
    trust: bool = False,
    log: Callable[[str], object] = lambda _: None,
) -> Classifier | EngineClassifier:
    """Do the same as `load`, without importing torch for an exported file, or a single network whose engine is
    cached."""
    check_engine(engine, device, calibrate)
    runs = [run] if isinstance(run, (str, Path)) else list(run)

    def load_full() -> Classifier:
        return load(
            runs, checkpoint=checkpoint, device=device, engine=engine, calibrate=calibrate, trust=trust, log=log
        )

    if len(runs) == 1 and is_exported_model(runs[0]):
        check_exported(Path(runs[0]), engine, device)
        exported = open_exported(runs[0], trust)
        calibration, _ = exported.calibration()
        return EngineClassifier(
            exported.classes, exported.preprocess, calibration, lambda _: exported.engine, load_full
        )
    if engine == EXACT or len(runs) != 1 or calibrate or device not in ("auto", "cpu"):
        return load_full()
    name = model_id(runs[0], checkpoint)
    description = EngineCache(name).load_description()
    if description is None:
        return load_full()
    published = str(runs[0]).startswith("torchvision:")
    calibration, note = find_calibration(*((None, None) if published else resolve_checkpoint(runs[0], checkpoint)))
    if calibration and note:
        log(note)

    def open_engine(count: int) -> Engine | None:
        opened = open_cached(name, engine, device, single=count == 1)
        if opened is not None:
            log(opened.note)
        return opened

    return EngineClassifier(*description, calibration, open_engine, load_full)


def load_crops(
    image: ImageInput, transforms: Sequence[EvalTransform], max_pixels: int = MAX_PIXELS
) -> list[np.ndarray]:
    """Return an image as each of `transforms` crops it: uint8 C×size×size. Raises `BadImage`."""
    channels = {transform.channels for transform in transforms}
    decoded = {n: decode_image(image, n, max_pixels=max_pixels) for n in channels}
    return [transform.eval_array(decoded[transform.channels]) for transform in transforms]


def load_eval_array(image: ImageInput, preprocess: EvalTransform) -> np.ndarray:
    """Return what the network reads of an image: uint8 C×size×size. Raises `BadImage`."""
    return preprocess.eval_array(decode_image(image, preprocess.channels))
