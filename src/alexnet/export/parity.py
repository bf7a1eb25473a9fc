"""Comparison of an exported file with the trainer, from the bytes of real images to probabilities.

The trainer's side is the checkpoint in torch, float32, as `alexnet eval` computes it. The file's side is a process that
has only the file and its manifest: `python -m alexnet.export.parity JOB` with a JSON file that holds a `Job`. It must
not import torch where the file needs none, so this module imports torch only where it computes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from alexnet.data.dataset import ImageDataset, RawImage
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.image_folder import find_images
from alexnet.data.transforms import EvalTransform
from alexnet.device import package_environment
from alexnet.errors import ShownAsMessage, UserError
from alexnet.export.browser import classify_in_browser
from alexnet.files import read_json, write_json
from alexnet.inference.load import evenly_spaced, load_image
from alexnet.inference.predict import BATCH_SIZE
from alexnet.runtimes.engines import Engine, LoadedModel, TorchEngine, softmax
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import FORMATS, WEB

ENOUGH_IMAGES = 200  # with fewer, the comparison carries a note
MAX_IMAGES = 1000
BROWSER_SECONDS, IMAGE_SECONDS = 120, 10  # after which a browser that hangs is ended: to open the page, for each image
LATENCY_SECONDS = 0.5  # spent on each latency measurement
MIN_REPEATS = 7  # per latency
TOLERANCE = {"fp32": 1e-3, "half": 1e-2, "int8": 1e-2, "int8-fc": 1e-2}
"""Maximum difference of a probability, by precision."""

UNKNOWN = -1  # target of an unlabeled image


class ExportFailed(ShownAsMessage, RuntimeError):
    """The exported file cannot be written or differs from the trainer; nothing is left of it."""

    exit_code = 1


@dataclass(frozen=True)
class ImageSet:
    """Real images, as files."""

    files: list[Path]
    names: list[str]
    targets: np.ndarray
    """Class numbers, int64 (n,); `UNKNOWN` for unlabeled images."""
    description: str
    """Where they are from, for messages: "of the val split"."""
    trained_on: bool = False
    """Whether the run was trained on them."""


@dataclass(frozen=True)
class Reference:
    """The trainer's predictions on readable images."""

    images: ImageSet
    probabilities: np.ndarray
    """float32 (n, classes)."""
    seconds: dict[str, float]
    """Latency for 1 image and for 32."""
    unreadable: int = 0
    """Number of images that were skipped."""

    @property
    def note(self) -> str | None:
        """What limits the meaning of the comparison, if anything does."""
        n, images = len(self.images.files), self.images
        notes = []
        if n < ENOUGH_IMAGES:
            notes.append(
                f"only {n} images were compared, all there are {images.description}; {ENOUGH_IMAGES} would be more "
                "conclusive, and --images takes a folder of them"
            )
        if self.unreadable:
            notes.append(f"{self.unreadable:,} of {n + self.unreadable:,} could not be read")
        if images.trained_on:
            notes.append("the run was trained on these images, so top-1 does not predict the accuracy on new ones")
        return "; ".join(notes) or None


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the trainer."""

    images: int
    max_abs_diff: float
    """Maximum difference of a probability."""
    worst: str
    """The image that has it."""
    top1_agreement: float
    """Share of images with the same most likely label."""
    top1: float | None
    """Accuracy of the file on the labeled images; None without any."""
    run_top1: float | None
    """Accuracy of the run on the same images."""
    seconds: dict[str, float]
    without_torch: bool
    unreadable: int = 0
    """Number of images that were skipped because the file's runtime does not read their format."""


# ── images to compare on ──────────────────────────────────────────────────────────────────────────


def folder_images(folder: Path, classes: tuple[str, ...], option: str = "--images") -> ImageSet:
    """Return up to `MAX_IMAGES` evenly spaced images below `folder`, labeled by their folder if it names a class.

    Raises `UserError`, naming the option that gave the folder, if there are none.
    """
    if not folder.is_dir():
        raise UserError(f"{option} {folder} is not a folder; pass a folder of typical images.")
    files = evenly_spaced(find_images([folder]), MAX_IMAGES)
    numbers = {name: i for i, name in enumerate(classes)}
    targets = np.array([numbers.get(path.parent.name, UNKNOWN) for path in files], dtype=np.int64)
    return ImageSet(files, list(map(str, files)), targets, f"in {folder}")


def dataset_images(dataset: ImageDataset, classes: tuple[str, ...], temporary: Path) -> ImageSet:
    """Return up to `MAX_IMAGES` evenly spaced images of the validation split, else of the test or training split.

    Images that are not files are written to `temporary`: packed JPEGs unchanged, pixel arrays as PNG.
    """
    from alexnet.inference.evaluate import match_classes

    split = next(name for name in ("val", "test", "train") if name in dataset.splits)
    complete = dataset.splits[split]
    part = complete.take(np.array(evenly_spaced(range(len(complete)), MAX_IMAGES)))
    files = [_as_file(part.raw(i), temporary / str(i)) for i in range(len(part))]
    targets = match_classes(classes, dataset.classes)[part.targets.numpy()]
    return ImageSet(files, part.names, targets, f"of the {split} split", trained_on=split == "train")


def _as_file(image: RawImage, stem: Path) -> Path:
    """Return the file of an image, writing it to `stem` with a suffix if it is none."""
    if isinstance(image, Path):
        return image
    path = stem.with_suffix(".jpg" if isinstance(image, bytes) else ".png")
    if isinstance(image, bytes):
        path.write_bytes(image)
    else:
        decode_image(image, image.shape[-1]).save(path)
    return path


# ── the two sides ─────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Job:
    """What the process of the exported file runs."""

    file: Path
    images: list[Path]
    without_torch: bool
    """Make importing torch an error."""
    output: Path
    """The .npy file for the probabilities."""
    min_seconds: float
    """Spent on each latency measurement; a browser measures each image once."""


def run_job(job_file: Path) -> None:
    """Run a `Job`, and print the latencies as JSON. Raises what opening the file and inference raise."""
    job = read_json(job_file, Job)
    if job.without_torch:
        assert "torch" not in sys.modules
        sys.modules["torch"] = None  # type: ignore[assignment]  # importing it now raises ImportError
    if job.file.suffix == FORMATS[WEB].suffix:
        probabilities, seconds = classify_in_browser(job.file, job.images)
        np.save(job.output, probabilities)
        print(json.dumps(seconds))
        return
    exported = open_exported(job.file, trust=True)  # the exporter has just written it
    assert exported.engine is not None
    _, probabilities, seconds = _measure(exported.engine, exported.preprocess, job.images, job.min_seconds)
    np.save(job.output, probabilities)
    print(json.dumps(seconds))


def compute_reference(loaded: LoadedModel, images: ImageSet) -> Reference:
    """Return the trainer's predictions. Raises `UserError` if no image can be read."""
    import torch

    engine = TorchEngine(loaded, torch.device("cpu"))
    readable, probabilities, seconds = _measure(engine, loaded.preprocess, images.files, LATENCY_SECONDS)
    files, names = [images.files[i] for i in readable], [images.names[i] for i in readable]
    kept = replace(images, files=files, names=names, targets=images.targets[readable])
    return Reference(kept, probabilities, seconds, unreadable=len(images.files) - len(readable))


def _measure(
    engine: Engine, preprocess: EvalTransform, files: Sequence[Path], min_seconds: float
) -> tuple[list[int], np.ndarray, dict[str, float]]:
    """Return which of `files` can be read, their probabilities, float32 (n, classes), and the median seconds for 1
    image and for 32. Raises `UserError` if no image can be read."""
    readable: list[int] = []
    probabilities = []
    for start in range(0, len(files), BATCH_SIZE):
        batch = []
        for i, path in enumerate(files[start : start + BATCH_SIZE], start):
            try:
                batch.append(load_image(path, preprocess))
                readable.append(i)
            except BadImage:
                continue
        if batch:
            pixels = np.stack(batch)
            probabilities.append(softmax(engine.logits(pixels)))
    if not probabilities:
        raise UserError("None of the images to compare on can be read; pass others with --images.")
    seconds = {}
    for count in (1, 32):
        x = np.resize(pixels, (count, *pixels.shape[1:]))
        engine.logits(x)  # warm-up, may compile
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < MIN_REPEATS or time.perf_counter() - began < min_seconds:
            start_time = time.perf_counter()
            engine.logits(x)
            times.append(time.perf_counter() - start_time)
        seconds[str(count)] = statistics.median(times)
    return readable, np.concatenate(probabilities), seconds


def count_in_browser(images: ImageSet) -> int:
    """Return how many of `images` a page is compared on: one at a time in JavaScript, all would take minutes."""
    return min(len(images.files), ENOUGH_IMAGES)


def compare(path: Path, kind: str, reference: Reference) -> Parity:
    """Compute the probabilities of the exported file `path` in a separate process, and compare them.

    Raises `ExportFailed` if the process fails, or if a browser takes far too long.
    """
    images, expected = reference.images, reference.probabilities
    if kind == WEB:
        few = evenly_spaced(range(len(images.files)), count_in_browser(images))
        images, expected = _take(images, expected, few)
    with tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True) as folder:
        output, job_file = Path(folder) / "probabilities.npy", Path(folder) / "job.json"
        files = [p.absolute() for p in images.files]
        job = Job(path.absolute(), files, FORMATS[kind].without_torch, output, LATENCY_SECONDS)
        write_json(job_file, asdict(job))
        limit = BROWSER_SECONDS + IMAGE_SECONDS * len(files) if kind == WEB else None
        try:
            worker = subprocess.run(
                [sys.executable, "-m", "alexnet.export.parity", str(job_file)],
                capture_output=True,
                text=True,
                env=package_environment(),
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            raise ExportFailed(
                f"The {kind} file was written, but the browser did not finish the comparison within {limit} s; close "
                "other programs and export again."
            ) from error
        if worker.returncode:
            reason = (worker.stderr.strip().splitlines() or [f"exit code {worker.returncode}"])[-1]
            raise ExportFailed(f"The {kind} file was written, but its own runtime cannot use it ({reason}).")
        probabilities = np.load(output)
        seconds = json.loads(worker.stdout.splitlines()[-1])
    read = ~np.isnan(probabilities).all(axis=1) | (kind != WEB)
    if not read.any():
        raise ExportFailed(
            "No browser reads the format of these images, so the web file cannot be compared with the run; pass others "
            "with --images."
        )
    images, expected = _take(images, expected, np.flatnonzero(read).tolist())
    probabilities = probabilities[read]
    difference = np.abs(probabilities - expected).max(axis=1)
    return Parity(
        images=len(probabilities),
        max_abs_diff=float(difference.max()),
        worst=images.names[int(np.argmax(np.nan_to_num(difference, nan=np.inf)))],
        top1_agreement=float((probabilities.argmax(axis=1) == expected.argmax(axis=1)).mean()),
        top1=top1(probabilities, images.targets),
        run_top1=top1(expected, images.targets),
        seconds=seconds,
        without_torch=FORMATS[kind].without_torch,
        unreadable=int((~read).sum()),
    )


def _take(images: ImageSet, probabilities: np.ndarray, indices: Sequence[int]) -> tuple[ImageSet, np.ndarray]:
    files, names = [images.files[i] for i in indices], [images.names[i] for i in indices]
    return replace(images, files=files, names=names, targets=images.targets[indices]), probabilities[indices]


def top1(probabilities: np.ndarray, targets: np.ndarray) -> float | None:
    """Return the accuracy on the labeled images; None if there are none."""
    labeled = targets != UNKNOWN
    if not labeled.any():
        return None
    return float((probabilities.argmax(axis=1) == targets)[labeled].mean())


if __name__ == "__main__":
    run_job(Path(sys.argv[1]))
