"""Labels for pictures: files, folders, bytes. The same decoder and preprocessing as evaluation, so the same numbers.

The probabilities are the network's own. Where the run has a calibration, each answer also has a confidence, by which it
is unsure or not (see `calibration.py`).

Torch takes longer to import than to label a picture, so it is imported only where it computes: a `StoredClassifier`,
whose engine was opened here before, does without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
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
from alexnet.runtimes.engines import EXACT, Engine, check_engine, softmax
from alexnet.runtimes.exported import Exported, check_exported, open_exported
from alexnet.runtimes.manifest import is_exported_model

if TYPE_CHECKING:
    import torch

    from alexnet.inference.crops import Views
    from alexnet.inference.ensemble import Ensemble, RunNames

BATCH_SIZE = 64

Picture = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Prediction:
    """What the network says of one picture: labels with probabilities, the likeliest first, or why there are none."""

    path: str
    labels: tuple[tuple[str, float], ...] = ()
    error: str | None = None
    unsure: bool | None = None  # None: this network has no threshold for being unsure
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
        return f"{self.path}: {self._doubt}" + ", ".join(f"{label} {p:.1%}" for label, p in self.labels)

    @property
    def _doubt(self) -> str:
        return f"unsure (confidence {self.confidence:.1%}): " if self.unsure else ""

    def _repr_html_(self) -> str:
        if self.error:
            return f"<p>{escape(str(self))}</p>"
        bars = "".join(
            f"<tr><td>{escape(label)}</td><td>{p:.1%}</td><td style='width:12em'>"
            f"<div style='background:#0072b2;height:.8em;width:{p:.1%}'></div></td></tr>"
            for label, p in self.labels
        )
        doubt = f": {self._doubt.rstrip(': ')}" if self.unsure else ""
        return f"<p>{escape(self.path + doubt)}</p><table>{bars}</table>"


class Scores(NamedTuple):
    """What a network says of one picture."""

    p: np.ndarray
    """Probabilities, float32 (classes,)."""
    order: np.ndarray
    """The classes' numbers, the likeliest first, int64 (classes,)."""
    unsure: bool | None
    confidence: float | None


class _BaseClassifier:
    """What all classifiers do alike."""

    classes: tuple[str, ...]
    calibration: Calibration | None
    """What tells the unsure answers; None where there is nothing that does."""

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
        raise NotImplementedError

    def _label(
        self,
        images: Iterable[Picture],
        top: int,
        readings: Sequence[EvalTransform],
        ask: Callable[[list[np.ndarray]], np.ndarray],
    ) -> Iterator[Prediction]:
        """Decode, batch and label: `ask` gets a uint8 batch for each of `readings` and gives probabilities."""
        if top < 1:
            raise UserError(f"--top must be at least 1, not {top}.")
        waiting: list[tuple[str, list[np.ndarray] | str]] = []
        for image in images:
            name = str(image) if isinstance(image, (str, Path)) else "-"
            try:
                waiting.append((name, load_crops(image, readings)))
            except BadImage as error:
                waiting.append((name, error.reason))
            if len(waiting) == BATCH_SIZE:
                yield from self._run_batch(waiting, top, ask)
                waiting = []
        yield from self._run_batch(waiting, top, ask)

    def _run_batch(
        self,
        waiting: list[tuple[str, list[np.ndarray] | str]],
        top: int,
        ask: Callable[[list[np.ndarray]], np.ndarray],
    ) -> Iterator[Prediction]:
        readable = [squares for _, squares in waiting if not isinstance(squares, str)]
        batches = [np.stack(squares) for squares in zip(*readable, strict=True)]
        rows = iter(self.score_rows(ask(batches))) if readable else iter(())
        for name, squares in waiting:
            yield (
                Prediction(name, error=squares)
                if isinstance(squares, str)
                else self.to_prediction(name, next(rows), top)
            )

    def score_rows(self, p: np.ndarray) -> Iterator[Scores]:
        """Each row of probabilities (n, classes) with whether it is unsure, and its confidence."""
        orders = np.argsort(-p, axis=1, kind="stable")  # of all rows at once: a call for each costs more than sorting
        if self.calibration is None:
            return (Scores(row, order, None, None) for row, order in zip(p, orders, strict=True))
        with np.errstate(divide="ignore"):
            confidence = self.calibration.confidence(np.log(p))
        unsure = self.calibration.is_unsure(confidence)
        return map(Scores, p, orders, unsure.tolist(), confidence.tolist())

    def to_prediction(self, name: str, row: Scores, top: int = 5) -> Prediction:
        """The `top` likeliest labels of the picture called `name`."""
        best = row.order[:top]
        labels = tuple(zip(map(self.classes.__getitem__, best.tolist()), row.p[best].tolist(), strict=True))
        return Prediction(name, labels, unsure=row.unsure, confidence=row.confidence)


class Classifier(_BaseClassifier):
    """A trained network, or several together, that take pictures.

    >>> alexnet.load("runs/digits-…").predict("seven.png")  # doctest: +SKIP
    """

    def __init__(
        self,
        ensemble: Ensemble,
        device: str = "auto",
        engine: str = EXACT,
        calibrate: str | Path | None = None,
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        from alexnet.runtimes.select import EngineConfig

        check_engine(engine, device)
        self.device = pick_device(device)
        self.ensemble = ensemble
        self.classes = ensemble.classes
        self.model = getattr(ensemble.members[0], "model", None)  # of several, the first; None of an exported file
        self.preprocess = ensemble.members[0].preprocess
        self.calibration, how = ensemble.calibration()
        if self.calibration and how:
            say(how)
        wanted = EngineConfig(engine, self.device, device, Path(calibrate) if calibrate else None, say)
        self._networks = ensemble.networks(wanted)

    def trace(self) -> bool:
        """Make each network that torch computes on a CPU one call (see `traced.py`), which gives the same numbers.

        Whether all are such: then several threads may ask for probabilities at once.
        """
        from torch import nn

        from alexnet.runtimes.engines import trace_model

        networks = [network for network in self._networks if isinstance(network, nn.Module)]
        if self.device.type != "cpu" or len(networks) < len(self._networks):
            return False
        reads = [member.preprocess for member in self.ensemble.members]
        self._networks = [trace_model(n, (r.channels, r.size, r.size)) for n, r in zip(networks, reads, strict=True)]
        return True

    def predict_many(
        self, images: Iterable[Picture], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """One prediction a picture, in order; an unreadable picture gets an `error` and the rest go on."""
        import torch

        from alexnet.inference.crops import make_views

        looks = make_views(views, scales)
        readings = [reading.preprocess for reading in self.ensemble.input_groups(looks)]
        yield from self._label(
            images,
            top,
            readings,
            lambda batches: self.probabilities([torch.from_numpy(b) for b in batches], looks).numpy(),
        )

    def probabilities(self, images: torch.Tensor | Sequence[torch.Tensor], views: Views | None = None) -> torch.Tensor:
        """Softmax of the logits, averaged over `views` (the centre alone unless given) and networks: float32
        (n, classes), on the CPU.

        `images` are uint8 (n, channels, size, size), one such batch for each of `self.ensemble.readings(views)`: of
        one network at one scale that is one. Several views are cut from uncropped images.
        """
        import torch

        from alexnet.inference.crops import CENTER_CROP
        from alexnet.inference.ensemble import forward

        views = views or CENTER_CROP
        batches = [images] if isinstance(images, torch.Tensor) else images
        logits: list[list[torch.Tensor]] = [[] for _ in self.ensemble.members]
        with torch.no_grad():
            for reading, batch in zip(self.ensemble.input_groups(views), batches, strict=True):
                squares = batch.to(self.device)
                for i in reading.members:
                    logits[i].append(forward(self._networks[i], squares, self.ensemble.members[i].preprocess, views))
            return self.ensemble.average(logits).softmax(dim=1).cpu()


class StoredClassifier(_BaseClassifier):
    """A network by an engine that was opened here before: one view of each picture, and no torch.

    What it cannot do (several views, a file that is damaged or gone), `whole` does.
    """

    def __init__(
        self,
        identity: str,
        engine: str,
        device: str,
        whole: Callable[[], Classifier],
        say: Callable[[str], object] = lambda _: None,
        calibration: Calibration | None = None,
    ) -> None:
        found = EngineCache(identity).describe()
        assert found is not None, "looked up before"
        self.classes, self.preprocess = found
        self._identity, self._name, self._device, self._whole, self._say = identity, engine, device, whole, say
        self.calibration = calibration
        self._engine: Engine | None = None
        self._classifier: Classifier | None = None

    def predict_many(
        self, images: Iterable[Picture], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """One prediction a picture, in order; an unreadable picture gets an `error` and the rest go on."""
        if views != 1 or tuple(scales) != (1.0,):
            return self._whole().predict_many(images, top, views, scales)
        return self._label(images, top, [self.preprocess], lambda batches: self._probabilities(batches[0]))

    def _probabilities(self, pictures: np.ndarray) -> np.ndarray:
        if self._engine is None and self._classifier is None:
            self._engine = open_cached(self._identity, self._name, self._device, one=len(pictures) == 1)
            if self._engine is None:
                self._classifier = self._whole()
            else:
                self._say(self._engine.note)
        if self._engine is not None:
            return softmax(self._engine.logits(pictures))
        assert self._classifier is not None
        import torch

        return self._classifier.probabilities(torch.from_numpy(pictures)).numpy()


class FileClassifier(_BaseClassifier):
    """An exported file by its own runtime: one view of each picture; several are left to `whole`."""

    def __init__(self, exported: Exported, whole: Callable[[], Classifier]) -> None:
        self.classes, self.preprocess = exported.classes, exported.preprocess
        self.calibration, _ = exported.calibration()
        self._exported, self._whole = exported, whole

    def predict_many(
        self, images: Iterable[Picture], top: int = 5, views: int = 1, scales: Sequence[float] = (1.0,)
    ) -> Iterator[Prediction]:
        """One prediction a picture, in order; an unreadable picture gets an `error` and the rest go on."""
        if views != 1 or tuple(scales) != (1.0,):
            return self._whole().predict_many(images, top, views, scales)
        return self._label(
            images, top, [self.preprocess], lambda batches: softmax(self._exported.engine.logits(*batches))
        )


def load(
    run: RunNames,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    engine: str = EXACT,
    calibrate: str | Path | None = None,
    trust: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Classifier:
    """Open a run folder, a checkpoint folder, `last`, `torchvision:IMAGENET1K_V1` or an exported file for prediction,
    or several of them as an ensemble.

    `engine` is what computes (see `engines.py`); one of 8 bits is calibrated on the pictures in the folder `calibrate`,
    else on training pictures. `say` gets a sentence on each engine and how far off it is. `trust` opens an exported
    file that nothing vouches for.
    """
    from alexnet.inference.ensemble import load_ensemble

    check_engine(engine, device, calibrate)
    return Classifier(load_ensemble(run, checkpoint, trust), device, engine, calibrate, say)


def load_quickly(
    run: RunNames,
    *,
    checkpoint: str = "best",
    device: str = "auto",
    engine: str = EXACT,
    calibrate: str | Path | None = None,
    trust: bool = False,
    say: Callable[[str], object] = lambda _: None,
) -> Classifier | StoredClassifier | FileClassifier:
    """`load`, or, of a single network whose engine was opened here before, or of an exported file, what labels pictures
    without torch."""
    check_engine(engine, device, calibrate)
    runs = [run] if isinstance(run, (str, Path)) else list(run)

    def whole() -> Classifier:
        return load(
            runs, checkpoint=checkpoint, device=device, engine=engine, calibrate=calibrate, trust=trust, say=say
        )

    if len(runs) == 1 and is_exported_model(runs[0]):
        check_exported(Path(runs[0]), engine, device)
        return FileClassifier(open_exported(runs[0], trust), whole)
    if engine == EXACT or len(runs) != 1 or calibrate or device not in ("auto", "cpu"):
        return whole()
    name = model_id(runs[0], checkpoint)
    if not EngineCache(name).describe():
        return whole()
    calibration, how = (
        (None, "")
        if str(runs[0]).startswith("torchvision:")
        else find_calibration(*resolve_checkpoint(runs[0], checkpoint))
    )
    if calibration and how:
        say(how)
    return StoredClassifier(name, engine, device, whole, say, calibration)


def load_crops(image: Picture, readings: Sequence[EvalTransform], max_pixels: int = MAX_PIXELS) -> list[np.ndarray]:
    """A picture as each of `readings` cuts it: uint8 C×size×size. Raises `BadImage`."""
    kinds = {read.channels for read in readings}
    pictures = {channels: decode_image(image, channels, max_pixels=max_pixels) for channels in kinds}
    return [read.eval_array(pictures[read.channels]) for read in readings]


def load_eval_array(image: Picture, preprocess: EvalTransform) -> np.ndarray:
    """What the network sees of a picture: uint8 C×size×size. Raises `BadImage`."""
    return preprocess.eval_array(decode_image(image, preprocess.channels))
