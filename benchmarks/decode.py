"""Training images/s from JPEG files, one process and one thread: ours, torchvision's and timm's.

Includes everything up to a uint8 batch: opening the file, decoding, random crop, resizing, flipping, collating. Files
are in the page cache. Needs the 200 ImageNet photos, and `pip install timm simplejpeg`.

    python benchmarks/decode.py  → results/decode.json, in a minute
"""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import common
import numpy as np
import simplejpeg
import torch
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from alexnet import rng
from alexnet.bench.limits import time_interleaved
from alexnet.data import decode as decode_module
from alexnet.data import jpeg
from alexnet.data.augment import BOX_DRAWS, Augment, augment, crop_box
from alexnet.data.dataset import ImageFiles
from alexnet.data.decode import decode_crop, decode_image
from alexnet.data.loader import BatchLoader
from alexnet.data.transforms import EvalTransform

BATCH = 50
PREPROCESS = EvalTransform(224, 256)
RESIZED, RANDOM = Augment(crop="resized", flip=True), Augment(crop="random", flip=True)
TORCHVISION = {
    "resized": v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]),
    "2012": v2.Compose(
        [v2.Resize(256), v2.CenterCrop(256), v2.RandomCrop(224), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    ),
}
NORMALIZED = v2.Compose(
    [*TORCHVISION["resized"].transforms, v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.5,) * 3, (0.25,) * 3)]
)
TIMM = create_transform(224, is_training=True, color_jitter=None, interpolation="bilinear", use_prefetcher=True)


def pil_pipeline(transform: Callable, paths: list[Path]) -> None:
    for start in range(0, len(paths), BATCH):
        torch.stack([torch.as_tensor(transform(Image.open(p).convert("RGB"))) for p in paths[start : start + BATCH]])


def ours(cfg: Augment, paths: list[Path], turbo: bool = True) -> None:
    files = ImageFiles(Path("/"), [str(p) for p in paths], torch.zeros(len(paths), dtype=torch.int64))
    loader = BatchLoader(files, PREPROCESS, cfg, batch_size=BATCH, shuffle=True)
    with nullcontext() if turbo else patch.object(jpeg, "import_simplejpeg", lambda: None):
        for batch in loader.batches(0):
            augment(batch.images, batch.ids, 0, 0, loader.device_augment, PREPROCESS.size)


def exact(paths: list[Path]) -> None:
    """Our pipeline with Pillow only: the reference for the other pixels."""
    for start in range(0, len(paths), BATCH):
        torch.stack([exact_image(path, i)[0] for i, path in enumerate(paths[start : start + BATCH])])


def box_of(i: int) -> Callable[[int, int], decode_module.Box]:
    uniform = rng.uniform(0, 0, [i], "crop", BOX_DRAWS)[0]
    return partial(crop_box, uniform=uniform, scale=RESIZED.scale, ratio=RESIZED.ratio)


def exact_image(path: Path | bytes, i: int, size: int = 224) -> tuple[torch.Tensor, decode_module.Box]:
    image = decode_image(path)
    box = box_of(i)(*image.size)
    resized = image.crop(box).resize((size, size), Image.Resampling.BILINEAR)
    return v2.functional.pil_to_tensor(resized), box


# ── time per step ─────────────────────────────────────────────────────────────────────────────────


def stages(paths: list[Path]) -> dict[str, Callable[[], object]]:
    """Return the steps of `ours` separately, each on the output of the previous one.

    Decoding at 1/8 size is almost entirely entropy decoding; the difference to full size is inverse DCT and color.
    """
    data = [path.read_bytes() for path in paths]
    pixels = [simplejpeg.decode_jpeg(d) for d in data]
    boxes = [box_of(i) for i in range(len(data))]
    cuts = [part(p, box(p.shape[1], p.shape[0])) for p, box in zip(pixels, boxes, strict=True)]
    images = [PREPROCESS.resize_crop(cut) for cut in cuts]
    batch = torch.stack([p.movedim(0, -1) for p in images]).movedim(-1, 1)

    def eighth(d: bytes) -> None:
        height, width, *_ = simplejpeg.decode_jpeg_header(d)
        simplejpeg.decode_jpeg(d, min_height=-(-height // 8), min_width=-(-width // 8), min_factor=8)

    return {
        "read the file": lambda: [path.read_bytes() for path in paths],
        "header, EXIF": lambda: [decode_module.exif_orientation(Image.open(io.BytesIO(d))) for d in data],
        "draw the box": lambda: [box(500, 375) for box in boxes],
        "decode at an eighth": lambda: [eighth(d) for d in data],
        "decode": lambda: [simplejpeg.decode_jpeg(d) for d in data],
        "decode by Pillow": lambda: [np.asarray(decode_image(d)) for d in data],
        "crop and resize": lambda: [PREPROCESS.resize_crop(cut) for cut in cuts],
        "collate": lambda: torch.stack([p.movedim(0, -1) for p in images]).movedim(-1, 1),
        "mirror": lambda: augment(batch, range(len(batch)), 0, 0, Augment(flip=True), 224),
    }


def part(pixels: np.ndarray, box: decode_module.Box) -> np.ndarray:
    left, top, right, bottom = box
    return pixels[top:bottom, left:right]


def differences(paths: list[Path], size: int) -> dict[str, float]:
    """Return the differences of our pixels from Pillow's, in levels of 255, over all photos."""
    found = []
    for i, path in enumerate(paths):
        image = replace(PREPROCESS, size=size, resize=size).resize_crop(decode_crop(path, size, box=box_of(i)))
        found.append((image.int() - exact_image(path, i, size)[0].int()).abs().float())
    return {"mean": float(np.mean([f.mean() for f in found])), "max": max(float(f.max()) for f in found)}


def speed() -> None:
    paths = sorted(common.data("imagenet-photos-200").rglob("*.JPEG"))
    few = paths[:: len(paths) // BATCH][:BATCH]
    with tempfile.TemporaryDirectory() as folder:
        camera = [Path(folder) / f"{i}.jpg" for i in range(2)]
        for path, small in zip(camera, paths, strict=False):
            Image.open(small).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=90)
        work = {
            "resized": {
                "torchvision": partial(pil_pipeline, TORCHVISION["resized"], few),
                "torchvision, normalised": partial(pil_pipeline, NORMALIZED, few),
                "timm": partial(pil_pipeline, TIMM, few),
                "Pillow alone": partial(exact, few),
                "ours, without simplejpeg": partial(ours, RESIZED, few, turbo=False),
                "ours": partial(ours, RESIZED, few),
            },
            "2012": {
                "torchvision": partial(pil_pipeline, TORCHVISION["2012"], few),
                "ours, without simplejpeg": partial(ours, RANDOM, few, turbo=False),
                "ours": partial(ours, RANDOM, few),
            },
            "camera": {
                "torchvision": partial(pil_pipeline, TORCHVISION["resized"], camera),
                "ours, without simplejpeg": partial(ours, RESIZED, camera, turbo=False),
                "ours": partial(ours, RESIZED, camera),
            },
            "stages": stages(few),
        }
        timings = time_interleaved({(g, n): call for g, calls in work.items() for n, call in calls.items()}, tries=9)
    results: dict[str, dict] = {"images_per_second": {}, "milliseconds": {}}
    for (group, name), timing in timings.items():
        count = len(camera) if group == "camera" else len(few)
        if group == "stages":
            results["milliseconds"][name] = {k: 1e3 / count * getattr(timing, k) for k in ("median", "low", "high")}
            continue
        row = common.rates(timing, count)
        theirs = timings[group, "torchvision"].median
        results["images_per_second"].setdefault(group, {})[name] = {**row, "over_torchvision": theirs / timing.median}
    results["difference_in_levels"] = {f"at {size}": differences(paths, size) for size in (224, 64)}
    for group, rows in results["images_per_second"].items():
        for name, row in rows.items():
            print(f"{group:8} {name:26} {row['median']:7.1f} images/s  {row['over_torchvision']:.2f}x", file=sys.stderr)
    for name, row in results["milliseconds"].items():
        print(f"{name:26} {row['median']:.3f} ms", file=sys.stderr)
    common.save("decode", results, ("pillow", "simplejpeg", "torchvision", "timm"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    speed()
