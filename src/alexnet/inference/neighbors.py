"""The training pictures that a network finds most alike: nearest by Euclidean distance in fc7's space (figure 4).

The vectors of all training pictures are computed once and kept inside the run folder, in `index/<layer>/`: float16,
memory-mapped, so that 1.3 million of them (10.6 GB) need not fit into memory. The search is exact: every vector is
read, one block after the other, and what may be among the nearest is measured again in float64.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from alexnet.checkpoint import MODEL
from alexnet.data.dataset import ImageArrays, ImageDataset
from alexnet.data.decode import decode_image
from alexnet.data.loader import choose_workers, evaluation_batches
from alexnet.device import pick_device
from alexnet.errors import UserError
from alexnet.files import printable, write_json
from alexnet.inference.evaluate import run_dataset
from alexnet.inference.features import Features, Progress, extract_features, load_image
from alexnet.run_dir import Run
from alexnet.runtimes.loaded_model import LoadedModel

INFO, VECTORS, NORMS = "index.json", "vectors.npy", "norms.npy"
BLOCK = 256  # vectors that are in memory as float32 at a time: of fc7 4 MiB, which stay in a processor's cache


@dataclass(frozen=True)
class Neighbor:
    """A training picture and how far it is."""

    name: str
    """As the data set calls it: a path below the data folder, or split/number."""
    label: str
    distance: float
    """Euclidean, between activations."""


@dataclass(frozen=True)
class Index:
    """The vectors of the training pictures."""

    vectors: np.ndarray
    """float16 (n, d), mapped from the disk."""
    norms: np.ndarray
    """Squared lengths of the float16 vectors, float64 (n,)."""
    names: list[str]
    labels: list[str]
    layer: str

    def nearest(self, queries: np.ndarray, top: int) -> list[list[Neighbor]]:
        """The `top` nearest of each query, float (m, d), the nearest first."""
        found = search(self.vectors, self.norms, queries, top)
        return [[Neighbor(self.names[i], self.labels[i], d) for i, d in pairs] for pairs in found]


def search(stored: np.ndarray, norms: np.ndarray, queries: np.ndarray, top: int) -> list[list[tuple[int, float]]]:
    """For each of `queries`, float (m, d), its `top` nearest rows of `stored`, float16 (n, d): (row, distance).

    Exact: |x − q|² is first computed as |x|² − 2xq + |q|² in float32, which is fast and off by rounding; all rows that
    this error leaves in question are then measured in float64. Equal distances keep the order of the rows.
    """
    n, d = stored.shape
    top = min(top, n)
    q = torch.from_numpy(np.ascontiguousarray(queries, dtype=np.float32))
    rough = np.empty((len(q), n))
    space = torch.empty(min(BLOCK, n), d)  # used again: fresh memory for each block takes longer than the products
    for start in range(0, n, BLOCK):
        block = space[: min(BLOCK, n - start)].copy_(torch.from_numpy(stored[start : start + BLOCK]))
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


def similar(
    opened: LoadedModel, images: Sequence[Any], top: int = 6, layer: str | None = None, device: str = "auto",
    progress: Progress | None = None, say: Callable[[str], object] = lambda _: None,
) -> list[list[Neighbor]]:  # fmt: skip
    """The `top` training pictures nearest to each of `images` (paths, bytes or PIL images) in the space of `layer`.

    The first call makes the index of the run, and tells `say` so. Raises `UserError` for a network without a run, and
    `BadImage` for a picture that cannot be read.
    """
    if top < 1:
        raise UserError(f"--top must be at least 1, not {top}.")
    pictures = torch.stack([load_image(opened, image) for image in images])
    index = open_index(opened, layer, device, progress, say)
    features, on = Features(opened.model, layer), next(opened.model.parameters()).device
    return index.nearest(extract_features(features, opened, pictures.to(on)), top)


def open_index(
    opened: LoadedModel, layer: str | None = None, device: str = "auto", progress: Progress | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Index:  # fmt: skip
    """The index of a run's training pictures at `layer` (fc7 unless given), made if it is not there or was made from
    another checkpoint. Raises `UserError`, also for a network that comes without a run."""
    if opened.run is None or opened.checkpoint is None:
        raise UserError(
            "To find training pictures the run folder is needed, which says what was trained on; this network comes "
            "without one."
        )
    features = Features(opened.model, layer)
    folder, made_from = _place(opened.run, opened.checkpoint, features)
    found = _read(folder, made_from)
    if found is None:
        source = run_dataset(opened.run, progress)
        say(f"Computing {features.layer} of {len(source.splits['train']):,} training pictures, once; kept in {folder}.")
        _make(folder, opened, features, source, made_from, device, progress)
        found = _read(folder, made_from)
        assert found is not None
    return found


def find_index(opened: LoadedModel, layer: str | None = None) -> Index | None:
    """The index that `open_index` made before, of this checkpoint; None where there is none. Makes nothing."""
    if opened.run is None or opened.checkpoint is None or not (opened.run.path / "index").is_dir():
        return None
    return _read(*_place(opened.run, opened.checkpoint, Features(opened.model, layer)))


def _place(run: Run, checkpoint: Path, features: Features) -> tuple[Path, dict[str, str]]:
    """The folder of an index, and what it must have been made from."""
    return run.path / "index" / features.layer, {"checkpoint": _digest(checkpoint / MODEL), "module": features.module}


def _digest(path: Path) -> str:
    """Of a model.json, which holds the checksum of the weights and the preprocessing."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read(folder: Path, made_from: dict[str, str]) -> Index | None:
    """The index in `folder`; None if there is none, or none of this checkpoint."""
    try:
        about = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if any(about[key] != value for key, value in made_from.items()):
            return None
        stored = np.load(folder / VECTORS, mmap_mode="c")  # as "r", but torch takes it without a warning
        norms = np.load(folder / NORMS)
        if not len(stored) == len(norms) == len(about["names"]) == len(about["targets"]):
            return None
        labels = [about["classes"][target] for target in about["targets"]]
        return Index(stored, norms, about["names"], labels, folder.name)
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None  # missing or damaged: it is made again


def _make(
    folder: Path, opened: LoadedModel, features: Features, source: ImageDataset, made_from: dict[str, str], device: str,
    progress: Progress | None,
) -> None:  # fmt: skip
    part = source.splits["train"]
    on = pick_device(device)
    features.to(on).to(memory_format=torch.channels_last)
    opened.model.to(on)
    read = opened.preprocess
    workers, _ = choose_workers(None, 256 * read.channels * read.size**2)
    folder.parent.mkdir(exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        beside.chmod(0o755)
        shape = (len(part), int(np.prod(features.shape)))
        stored = np.lib.format.open_memmap(beside / VECTORS, mode="w+", dtype=np.float16, shape=shape)
        norms = np.empty(len(part))
        done = 0
        for batch in evaluation_batches(part, read, workers).batches(0):
            values = extract_features(features, opened, batch.images.to(on))
            half = np.clip(values, -65504, 65504).astype(np.float16)  # the largest that float16 has
            stored[done : done + len(half)] = half
            norms[done : done + len(half)] = np.square(half.astype(np.float64)).sum(1)
            done += len(half)
            if progress:
                progress(done, len(part), "indexing")
        stored.flush()
        del stored  # Windows renames no mapped file
        np.save(beside / NORMS, norms)
        write_json(
            beside / INFO,
            {
                **made_from, "layer": features.layer, "classes": list(source.classes),
                "names": [printable(name) for name in part.names], "targets": part.targets.tolist(),
            },
        )  # fmt: skip
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def data_file(run: Run, name: str) -> Path | None:
    """The file that holds the picture `name` of a run's data set; None where it has no such file."""
    recipe = json.loads(run.recipe_json.read_text(encoding="utf-8"))
    path = Path(recipe["data"]) / name if recipe.get("data") else None
    return path if path and path.is_file() else None


def run_pictures(run: Run, names: Sequence[str]) -> list[Image.Image]:
    """The pictures of a run's data set that are called `names`, as `evaluation/*.parquet` and indexes call them.

    Files are opened by name; a data set without files is loaded. Raises `UserError` where the data is gone.
    """
    files = [data_file(run, name) for name in names]
    if None not in files:
        return [decode_image(file) for file in files if file]
    parts = list(run_dataset(run, None).splits.values())
    found: dict[str, Image.Image] = {}
    for part in parts:
        places = {printable(name): i for i, name in enumerate(part.names)}
        for name in set(names) & set(places):
            i = places[name]
            if isinstance(part, ImageArrays):
                pixels = part.images[i].permute(1, 2, 0).numpy()
                found[name] = decode_image(Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]))
            else:
                found[name] = decode_image(part.raw(i))
    if missing := [name for name in names if name not in found]:
        raise UserError(f"The picture '{missing[0]}' is no longer in the data that {run.path} was trained on.")
    return [found[name] for name in names]
