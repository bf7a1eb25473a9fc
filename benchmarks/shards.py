"""Training images/s from packed data and from torchvision's ImageFolder, and the speed of packing.

The same on both sides: short side 256, its center square, a random crop of 224, a random flip, a uint8 batch; one
process and one thread. Files are in the page cache unless stated otherwise. The 200 photos are repeated under other
names.

    python benchmarks/shards.py  → results/shards.json, in five minutes
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import numpy as np
import torch
from litdata import StreamingDataset
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler
from torchvision import datasets
from torchvision.transforms import v2

from alexnet.bench.limits import time_interleaved
from alexnet.data.augment import Augment, augment
from alexnet.data.loader import BatchLoader
from alexnet.data.shards.manifest import open_packed
from alexnet.data.shards.pack import pack_dataset
from alexnet.data.shards.reader import PackedImages
from alexnet.data.transforms import EvalTransform
from alexnet.device import cpu_count

REPEATS = 20  # of each photo
BATCH = 128
PREPROCESS = EvalTransform(224, 256)
CFG = Augment(crop="random", flip=True)
TRANSFORM = v2.Compose(
    [v2.Resize(256), v2.CenterCrop(256), v2.RandomCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]
)
READ = {
    "ImageFolder": 384, "ImageFolder, shrunk files": 384, "JPEG shards": 1280, "uint8 shards": 3840,
    "uint8 shards from the disk": 1280, "uint8 shards, litdata's reader": 1280,
}  # fmt: skip
"""Images per repetition: complete batches, enough to be timed."""
IMAGENET = 1_281_167


def folder_of(photos: Path, root: Path) -> Path:
    """Create class folders of links to the photos, each `REPEATS` times."""
    for i, path in enumerate(sorted(photos.rglob("*.JPEG"))):
        folder = root / f"{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        for again in range(REPEATS):
            (folder / f"{path.stem}-{again:02d}.jpg").symlink_to(path.resolve())
    return root


def shrunk(packed: PackedImages, root: Path) -> Path:
    """Write the JPEGs of the shards as files: to measure what ImageFolder gains from images resized in advance."""
    for i, name in enumerate(packed.names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(packed.raw(i)))
    return root


def image_folder(data: Dataset, count: int, workers: int = 0) -> None:
    chosen = torch.randperm(len(data))[:count].tolist()  # type: ignore[arg-type]
    for images, _ in DataLoader(data, BATCH, sampler=SubsetRandomSampler(chosen), num_workers=workers):
        assert images.dtype == torch.uint8


def ours(packed: PackedImages, count: int, workers: int = 0) -> None:
    part = packed.take(np.random.default_rng(0).permutation(len(packed))[:count])
    loader = BatchLoader(part, PREPROCESS, CFG, batch_size=BATCH, shuffle=True, workers=workers)
    for batch in loader.batches(0):
        images = augment(batch.images, batch.ids, 0, 0, loader.device_augment, PREPROCESS.size)
        assert images.shape[1:] == (3, 224, 224)


def from_disk(packed: PackedImages, count: int) -> None:
    """Return `ours` with the shards dropped from the page cache first."""
    packed.shards.shard.cache_clear()
    for number in range(len(packed.shards.files)):
        with packed.shards.path(number).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    ours(packed, count)


def litdata_reader(data: StreamingDataset, side: int, count: int) -> None:
    """Return the same images, crops and order through litdata's own reader, item by item."""
    draws = np.random.default_rng(0)
    order = draws.permutation(len(data))[:count]
    for start in range(0, count, BATCH):
        batch = torch.empty(BATCH, 224, 224, 3, dtype=torch.uint8)
        for row, i in enumerate(order[start : start + BATCH].tolist()):
            image, _ = data[i]
            pixels = np.frombuffer(image, np.uint8).reshape(side, side, 3)
            top, left = draws.integers(0, side - 224 + 1, 2)
            window = torch.from_numpy(np.array(pixels[top : top + 224, left : left + 224]))
            batch[row] = window.flip(1) if draws.random() < 0.5 else window


def main() -> None:
    results: dict[str, dict] = {"packing": {}, "images_per_second": {}}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        source = folder_of(common.data("imagenet-photos-200"), root / "photos")
        packed = {}
        for kind, size in (("uint8", 256), ("jpeg", 256)):
            done = pack_dataset(source, root / kind, kind=kind, size=size)
            results["packing"][kind] = row = {
                **{key: done[key] for key in ("form", "images", "bytes", "shards", "seconds", "images_per_second")},
                "processes": cpu_count(),
                "bytes_each": done["bytes"] / sum(done["images"].values()),
            }
            row["imagenet_hours"] = IMAGENET / row["images_per_second"] / 3600
            row["imagenet_gb"] = IMAGENET * row["bytes_each"] / 1e9
            packed[kind] = open_packed(root / kind).splits["train"]
            print(f"packing {kind}: {done['images_per_second']:.0f} images/s", file=sys.stderr)
        theirs = datasets.ImageFolder(str(source), TRANSFORM)
        smaller = datasets.ImageFolder(str(shrunk(packed["jpeg"], root / "shrunk")), TRANSFORM)
        readers: dict[str, Callable] = {
            "ImageFolder": partial(image_folder, theirs),
            "ImageFolder, shrunk files": partial(image_folder, smaller),
            "JPEG shards": partial(ours, packed["jpeg"]),
            "uint8 shards": partial(ours, packed["uint8"]),
            "uint8 shards from the disk": partial(from_disk, packed["uint8"]),
            "uint8 shards, litdata's reader": partial(
                litdata_reader, StreamingDataset(str(root / "uint8" / "train")), 256
            ),
        }
        work = {name: partial(read, READ[name]) for name, read in readers.items()}
        timings = time_interleaved(work, tries=9)
        results["photographs"] = {
            "files": len(theirs),
            "bytes_each": float(np.mean([os.stat(path).st_size for path, _ in theirs.samples])),
        }
    for name, timing in timings.items():
        theirs_each = timings["ImageFolder"].median / READ["ImageFolder"]
        results["images_per_second"][name] = row = {
            **common.rates(timing, READ[name]),
            "over_ImageFolder": theirs_each / (timing.median / READ[name]),
        }
        print(f"{name:32} {row['median']:9.1f} images/s  {row['over_ImageFolder']:.2f}x", file=sys.stderr)
    common.save("shards", results, ("torchvision", "pillow", "simplejpeg", "litdata"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
