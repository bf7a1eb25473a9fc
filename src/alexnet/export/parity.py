"""Whether an exported file agrees with the trainer: from the bytes of real pictures to probabilities, both ways.

The trainer's side is the checkpoint in torch, float32, as `alexnet eval` computes it. The file's side is `check.py`, a
process that knows the file and its description and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles, RawImage
from alexnet.data.decode import BadImage
from alexnet.data.image_folder import find_images
from alexnet.errors import UserError
from alexnet.export.parity_worker import latencies
from alexnet.inference.evaluate import match_classes
from alexnet.inference.predict import BATCH_SIZE, load_eval_array
from alexnet.runtimes.engines import LoadedModel, softmax
from alexnet.runtimes.manifest import FORMATS
from alexnet.runtimes.select import torch_engine

ENOUGH = 200  # pictures that parity is measured on, where there are as many
MOST = 1000
TOLERANCE = {"fp32": 1e-3, "half": 1e-2, "int8": 1e-2, "int8-fc": 1e-2}
"""The largest difference of a probability that passes."""

UNKNOWN = -1  # in place of a target


class ExportFailed(RuntimeError):
    """An exported file that cannot be written, or is not what the trainer is; nothing is left of it."""

    exit_code = 1


@dataclass(frozen=True)
class Pictures:
    """Real pictures, as files."""

    files: list[Path]
    names: list[str]
    """What each is called."""
    targets: np.ndarray
    """Class numbers of the network, int64; `UNKNOWN` where nobody knows."""
    what: str
    """Which they are, in words."""
    learnt: bool = False
    """Whether the run was trained on them."""


@dataclass(frozen=True)
class Reference:
    """What the trainer says of pictures, all of which can be read."""

    pictures: Pictures
    probabilities: np.ndarray
    """float32 (n, classes)."""
    seconds: dict[str, float]
    """For 1 picture and for 32."""
    unreadable: int = 0
    """Pictures that were left out."""

    @property
    def top1(self) -> float | None:
        return top1(self.probabilities, self.pictures.targets)

    @property
    def note(self) -> str | None:
        """What makes the comparison say less than it should, if anything does."""
        n, pictures = len(self.pictures.files), self.pictures
        said = []
        if n < ENOUGH:
            said.append(
                f"only {n} pictures were compared, for want of more {pictures.what}; {ENOUGH} would say more, and "
                "--images takes a folder of them"
            )
        if self.unreadable:
            said.append(f"{self.unreadable:,} of {n + self.unreadable:,} could not be read")
        if pictures.learnt:
            said.append("the run was trained on these pictures, so that top-1 says little of others")
        return "; ".join(said) or None


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the trainer."""

    images: int
    max_abs_diff: float
    """The largest difference of a probability."""
    worst: str
    """The picture where it is."""
    top1_agreement: float
    """The share of pictures with the same likeliest label."""
    top1: float | None
    """The share of pictures that the file labels rightly, of those whose label is known."""
    seconds: dict[str, float]
    without_torch: bool


# ── pictures ──────────────────────────────────────────────────────────────────────────────────────────────────


def pictures_below(folder: Path, classes: tuple[str, ...]) -> Pictures:
    """Those in `folder` and below, evenly up to `MOST`; the folder that one is in is its label, if there is such one.

    Raises `UserError` if there are none.
    """
    if not folder.is_dir():
        raise UserError(f"--images {folder} is not a folder; give one of pictures like those the network will see.")
    files = _evenly(find_images([folder]))
    known = {name: i for i, name in enumerate(classes)}
    targets = np.array([known.get(path.parent.name, UNKNOWN) for path in files], dtype=np.int64)
    return Pictures(files, list(map(str, files)), targets, f"in {folder}")


def own_pictures(source: ImageDataset, classes: tuple[str, ...], temporary: Path) -> Pictures:
    """Pictures of the split that the run validated on, or else of its test split, evenly up to `MOST`.

    Those of a data set without picture files are written to `temporary`: packed JPEGs as they are, pixels as PNG.
    """
    split = next(name for name in ("val", "test", "train") if name in source.splits)
    whole: ImageArrays | ImageFiles = source.splits[split]
    part = whole.take(np.array(_evenly(list(range(len(whole))))))
    if isinstance(part, ImageFiles):
        stored: Iterable[RawImage] = map(part.raw, range(len(part)))
    else:
        stored = part.images.permute(0, 2, 3, 1).numpy()
    files = [_as_file(picture, temporary / str(i)) for i, picture in enumerate(stored)]
    targets = match_classes(classes, source.classes)[part.targets.numpy()]
    return Pictures(files, part.names, targets, f"of the {split} split", learnt=split == "train")


def _as_file(picture: RawImage, name: Path) -> Path:
    """The file of a picture, which is written under this name where there is none."""
    if isinstance(picture, Path):
        return picture
    path = name.with_suffix(".jpg" if isinstance(picture, bytes) else ".png")
    if isinstance(picture, bytes):
        path.write_bytes(picture)
    else:
        Image.fromarray(picture if picture.shape[-1] == 3 else picture[..., 0]).save(path)
    return path


def _evenly(items: list[Any]) -> list[Any]:
    return [items[i] for i in np.linspace(0, len(items) - 1, min(MOST, len(items))).round().astype(int)]


# ── the two sides ─────────────────────────────────────────────────────────────────────────────────────────────


def reference(opened: LoadedModel, pictures: Pictures) -> Reference:
    """The trainer's answers. Raises `UserError` if not one of the pictures can be read."""
    engine = torch_engine(opened, torch.device("cpu"))
    read: list[int] = []
    answers, pixels = [], []
    for i, path in enumerate(pictures.files):
        try:
            pixels.append(load_eval_array(path, opened.preprocess))
            read.append(i)
        except BadImage:
            continue
        if len(pixels) == BATCH_SIZE:
            answers.append(softmax(engine.logits(np.stack(pixels))))
            last, pixels = pixels, []
    if pixels:
        answers.append(softmax(engine.logits(np.stack(pixels))))
        last = pixels
    if not answers:
        raise UserError(
            "Not one picture can be read to compare the exported file with the run; give others with --images."
        )
    files, names = [pictures.files[i] for i in read], [pictures.names[i] for i in read]
    kept = replace(pictures, files=files, names=names, targets=pictures.targets[read])
    unreadable = len(pictures.files) - len(read)
    return Reference(kept, np.concatenate(answers), latencies(engine.logits, np.stack(last)), unreadable)


def compare(path: Path, kind: str, truth: Reference, trust: bool = False) -> Parity:
    """Ask the exported file `path`, in a process of its own, and compare; `trust` as for `open_exported`. Raises
    `ExportFailed` where that fails."""
    pictures = truth.pictures
    with tempfile.TemporaryDirectory(prefix="alexnet-", ignore_cleanup_errors=True) as folder:
        answers, job = Path(folder) / "answers.npy", Path(folder) / "job.json"
        job.write_text(
            json.dumps(
                {
                    "file": str(path.absolute()),
                    "trust": trust,
                    "pictures": [str(p.absolute()) for p in pictures.files],
                    "without_torch": FORMATS[kind].without_torch,
                    "answers": str(answers),
                }
            ),
            encoding="utf-8",
        )
        home = str(Path(__file__).parents[2])  # where this package was imported from
        search = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        done = subprocess.run(
            [sys.executable, "-m", "alexnet.export.parity_worker", str(job)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": search},
        )
        if done.returncode:
            why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise ExportFailed(f"The {kind} file was written, but its own runtime cannot use it ({why}).")
        found = np.load(answers)
        seconds = json.loads(done.stdout.splitlines()[-1])
    difference = np.abs(found - truth.probabilities).max(axis=1)
    return Parity(
        images=len(found),
        max_abs_diff=float(difference.max()),
        worst=pictures.names[int(np.argmax(np.nan_to_num(difference, nan=np.inf)))],
        top1_agreement=float((found.argmax(axis=1) == truth.probabilities.argmax(axis=1)).mean()),
        top1=top1(found, pictures.targets),
        seconds=seconds,
        without_torch=FORMATS[kind].without_torch,
    )


def top1(probabilities: np.ndarray, targets: np.ndarray) -> float | None:
    """The share of the pictures with a known target that are labelled rightly; None if there are none."""
    known = targets != UNKNOWN
    if not known.any():
        return None
    return float((probabilities.argmax(axis=1) == targets)[known].mean())
