"""The training images that are most similar to an image: nearest by Euclidean distance in fc7's space (figure 4).

The vectors of all training images are computed once and kept in the run folder, in `index/<layer>/`: float16 and
memory-mapped, so that 1.3 million of them (10.6 GB) need not fit into memory. The search is exact: every vector is
read, block by block, and the candidates for the nearest are measured again in float64.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet.checkpoint import MODEL
from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles
from alexnet.data.decode import decode_image
from alexnet.data.loader import choose_workers, evaluation_batches
from alexnet.device import pick_device
from alexnet.errors import UserError
from alexnet.files import atomic_folder, printable, read_json, write_json
from alexnet.inference.features import Features, extract_features
from alexnet.inference.load import load_image, load_run_dataset, read_recipe
from alexnet.progress import Progress
from alexnet.run_dir import Run
from alexnet.runtimes.engines import LoadedModel

INFO, VECTORS, NORMS = "index.json", "vectors.npy", "norms.npy"
BLOCK = 256  # vectors converted to float32 at a time: 4 MiB for fc7, which fits into a CPU cache


@dataclass(frozen=True)
class Neighbor:
    """A training image and its distance from a query."""

    name: str
    """Its name in the dataset: a path below the data folder, or split/number."""
    label: str
    distance: float
    """Euclidean, between activations."""


@dataclass(frozen=True)
class Index:
    """The vectors of the training images."""

    vectors: np.ndarray
    """float16 (n, d), memory-mapped."""
    norms: np.ndarray
    """Squared lengths of the float16 vectors, float64 (n,)."""
    names: list[str]
    labels: list[str]
    layer: str

    def nearest(self, queries: np.ndarray, top: int) -> list[list[Neighbor]]:
        """Return the `top` nearest of each query, float (m, d), the nearest first."""
        found = search(self.vectors, self.norms, queries, top)
        return [[Neighbor(self.names[i], self.labels[i], d) for i, d in pairs] for pairs in found]


def search(stored: np.ndarray, norms: np.ndarray, queries: np.ndarray, top: int) -> list[list[tuple[int, float]]]:
    """Return for each of `queries`, float (m, d), its `top` nearest rows of `stored`, float16 (n, d): (row, distance).

    Exact: |x − q|² is first computed as |x|² − 2xq + |q|² in float32, which is fast but rounded; all rows within the
    rounding error of the nearest are then measured in float64. Equal distances keep the order of the rows.
    """
    n, d = stored.shape
    top = min(top, n)
    q = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    rough = np.empty((len(q), n))
    buffer = torch.empty(min(BLOCK, n), d)  # reused: allocating memory for each block takes longer than the products
    for start in range(0, n, BLOCK):
        block = buffer[: min(BLOCK, n - start)].copy_(torch.from_numpy(stored[start : start + BLOCK]))
        rough[:, start : start + BLOCK] = norms[start : start + BLOCK] - 2 * (block @ q.T).T.double().numpy()
    found = []
    for row, query in zip(rough, queries.astype(np.float64), strict=True):
        # a float32 sum of d products is off by at most d·2⁻²⁴·|x||q| (Higham, Accuracy and Stability, section 3.1)
        off = 4 * d * 2.0**-24 * np.sqrt(norms.max() * (query**2).sum())
        kept = np.flatnonzero(row <= np.partition(row, top - 1)[top - 1] + off)
        exact = np.concatenate([
            np.sqrt(((stored[kept[i : i + BLOCK]].astype(np.float64) - query) ** 2).sum(1))
            for i in range(0, len(kept), BLOCK)
        ])  # fmt: skip
        order = np.argsort(exact, kind="stable")[:top]
        found.append([(int(kept[i]), float(exact[i])) for i in order])
    return found


def find_similar(
    loaded: LoadedModel, images: Sequence[Any], top: int = 6, layer: str | None = None, device: str = "auto",
    progress: Progress | None = None,
) -> list[list[Neighbor]]:  # fmt: skip
    """Return the `top` training images nearest to each of `images` (paths, bytes or PIL images) in the space of
    `layer`.

    The first call builds the index of the run. Raises `UserError` for a network without a run, and `BadImage` for an
    unreadable image.
    """
    if top < 1:
        raise UserError(f"--top must be at least 1, not {top}.")
    pixels = np.stack([load_image(image, loaded.preprocess) for image in images])
    index = open_index(loaded, layer, device, progress)
    return index.nearest(extract_features(Features(loaded.model, layer), loaded, pixels), top)


def open_index(
    loaded: LoadedModel, layer: str | None = None, device: str = "auto", progress: Progress | None = None,
) -> Index:  # fmt: skip
    """Return the index of a run's training images at `layer` (fc7 by default); builds it unless this checkpoint
    has one. Raises `UserError`, also for a network without a run."""
    if loaded.run is None or loaded.checkpoint is None:
        raise UserError("Finding similar training images needs the run folder, and this network has none; give a run.")
    index = load_index(loaded, layer)
    if index is None:
        features = Features(loaded.model, layer)
        folder = loaded.run.path / "index" / features.layer
        source = load_run_dataset(loaded.run, progress)
        if progress:
            images = len(source.splits["train"])
            progress.log(f"Computing {features.layer} of {images:,} training images, once; kept in {folder}.")
        _build_index(folder, _digest(loaded.checkpoint), loaded, features, source, device, progress)
        index = load_index(loaded, layer)
        assert index is not None
    return index


@dataclass(frozen=True)
class IndexInfo:
    """The content of index.json."""

    checkpoint: str
    module: str
    layer: str
    classes: list[str]
    names: list[str]
    targets: list[int]


def load_index(loaded: LoadedModel, layer: str | None = None) -> Index | None:
    """Return the index that `open_index` built, or None if it is missing, damaged, or of another checkpoint."""
    if loaded.run is None or loaded.checkpoint is None or not (loaded.run.path / "index").is_dir():
        return None
    features = Features(loaded.model, layer)
    folder = loaded.run.path / "index" / features.layer
    try:
        about = read_json(folder / INFO, IndexInfo)
        if (about.checkpoint, about.module) != (_digest(loaded.checkpoint), features.module):
            return None
        stored = np.load(folder / VECTORS, mmap_mode="c")  # like "r", but torch takes it without a warning
        norms = np.load(folder / NORMS)
        if not len(stored) == len(norms) == len(about.names) == len(about.targets):
            return None
        labels = [about.classes[target] for target in about.targets]
        return Index(stored, norms, about.names, labels, folder.name)
    except (OSError, ValueError, IndexError, UserError):
        return None


def _digest(checkpoint: Path) -> str:
    """Return the checksum of a checkpoint's model.json, which holds that of the weights, and the preprocessing."""
    return hashlib.sha256((checkpoint / MODEL).read_bytes()).hexdigest()


def _build_index(
    folder: Path, checkpoint: str, loaded: LoadedModel, features: Features, source: ImageDataset, device: str,
    progress: Progress | None,
) -> None:  # fmt: skip
    part = source.splits["train"]
    loaded.model.to(pick_device(device))
    features.to(memory_format=torch.channels_last)
    transform = loaded.preprocess
    workers, _ = choose_workers(None, 256 * transform.channels * transform.size**2)
    folder.parent.mkdir(exist_ok=True)
    with atomic_folder(folder) as partial:
        shape = (len(part), int(np.prod(features.shape)))
        stored = np.lib.format.open_memmap(partial / VECTORS, mode="w+", dtype=np.float16, shape=shape)
        norms = np.empty(len(part))
        done = 0
        for batch in evaluation_batches(part, transform, workers).batches(0):
            values = extract_features(features, loaded, batch.images)
            half = np.clip(values, -65504, 65504).astype(np.float16)  # the largest float16
            stored[done : done + len(half)] = half
            norms[done : done + len(half)] = np.square(half.astype(np.float64)).sum(1)
            done += len(half)
            if progress:
                progress(done, len(part), "indexing")
        stored.flush()
        del stored  # Windows cannot rename a mapped file
        np.save(partial / NORMS, norms)
        names = [printable(name) for name in part.names]
        info = IndexInfo(
            checkpoint, features.module, features.layer, list(source.classes), names, part.targets.tolist()
        )
        write_json(partial / INFO, asdict(info))
        shutil.rmtree(folder, ignore_errors=True)


def find_image_file(run: Run, name: str) -> Path | None:
    """Return the file of the image `name` in a run's dataset, or None where it has no such file."""
    data = read_recipe(run)["data"]
    path = Path(data) / name if data else None
    return path if path and path.is_file() else None


def load_run_images(run: Run, names: Sequence[str], part: ImageArrays | ImageFiles | None = None) -> list[Image.Image]:
    """Return the images of a run's dataset that are called `names` in `evaluation/*.parquet` and indexes.

    Files are opened by name; a dataset without files is loaded, unless `part` of it is given. Raises `UserError` where
    the data is gone.
    """
    files = [find_image_file(run, name) for name in names]
    value_range = read_recipe(run)["value_range"]
    if None not in files:
        return [decode_image(file, value_range=value_range) for file in files if file]
    parts = [part] if part is not None else list(load_run_dataset(run, None).splits.values())
    found: dict[str, Image.Image] = {}
    for part in parts:
        indices = {printable(name): i for i, name in enumerate(part.names)}
        for name in set(names) & set(indices):
            found[name] = decode_image(part.raw(indices[name]), value_range=value_range)
    if missing := [name for name in names if name not in found]:
        raise UserError(f"The image '{missing[0]}' is no longer in the data that {run.path} was trained on.")
    return [found[name] for name in names]
