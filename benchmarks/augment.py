"""Augmentation of 32×32 images in memory: images/s of ours and of torchvision's v2 transforms, on one and two threads.

Pad by 4 (zeros or reflection), crop 32, flip; uint8 to uint8, images in random order: the usual CIFAR augmentation.
torchvision draws one crop per call, so a whole batch per call is a weaker augmentation; image by image it equals ours.

    python benchmarks/augment.py  → results/augment.json, in half a minute
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import common
import torch
from torchvision.transforms import v2

from alexnet import rng
from alexnet.bench.limits import time_interleaved
from alexnet.data.augment import Augment, augment
from alexnet.data.dataset import ImageArrays
from alexnet.data.loader import BatchLoader
from alexnet.data.transforms import EvalTransform

BATCHES = 20
PREPROCESS = EvalTransform(32)


def ours(arrays: ImageArrays, cfg: Augment, batch_size: int, normalized: bool = False) -> Callable[[], None]:
    loader = BatchLoader(arrays, PREPROCESS, cfg, batch_size=batch_size, shuffle=True)

    def run() -> None:
        for batch in loader.batches(0):
            images = augment(batch.images, batch.ids, 0, 0, cfg, 32)
            if normalized:
                PREPROCESS.normalize(images).contiguous(memory_format=torch.channels_last)

    return run


def torchvisions(arrays: ImageArrays, cfg: Augment, batch_size: int, together: bool) -> Callable[[], None]:
    mode = "constant" if cfg.padding_mode == "zeros" else "reflect"
    transform = v2.Compose([v2.RandomCrop(32, cfg.padding, padding_mode=mode), v2.RandomHorizontalFlip()])
    order = torch.from_numpy(rng.permutation(0, 0, len(arrays)))

    def run() -> None:
        for ids in order.split(batch_size):
            if together:
                transform(arrays.images[ids])
            else:
                torch.stack([transform(arrays.images[i]) for i in ids.tolist()])

    return run


def main() -> None:
    results = {}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch_size in (128, 512):
            count = BATCHES * batch_size
            images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
            arrays = ImageArrays(images, torch.zeros(count, dtype=torch.int64), [])
            zeros, reflect = (Augment(crop="pad", flip=True, padding_mode=mode) for mode in ("zeros", "reflect"))
            work = {
                "ours, zeros": ours(arrays, zeros, batch_size),
                "ours, reflect": ours(arrays, reflect, batch_size),
                "ours, zeros, to float32 channels_last": ours(arrays, zeros, batch_size, normalized=True),
                "torchvision, a batch alike": torchvisions(arrays, zeros, batch_size, together=True),
            }
            few = ImageArrays(images[:512], torch.zeros(512, dtype=torch.int64), [])
            each = {"torchvision, picture by picture": torchvisions(few, zeros, batch_size, together=False)}
            timings = time_interleaved(work | each, tries=9)
            rows = results.setdefault(f"{threads} threads", {}).setdefault(f"batch {batch_size}", {})
            for name, timing in timings.items():
                n = len(few) if name in each else count
                rows[name] = common.rates(timing, n)
                print(
                    f"{threads} threads, batch {batch_size}: {name:38} {n / timing.median:10,.0f} images/s",
                    file=sys.stderr,
                )
    common.save("augment", {"images_per_second": results}, ("torchvision",))


if __name__ == "__main__":
    main()
