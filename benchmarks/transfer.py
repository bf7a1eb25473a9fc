"""Few images per class, from scratch and from a trained network: transfer.json.

    python benchmarks/transfer.py tiny-imagenet-50/ --weights RUN [--images 10 20 50 100] [--seeds 3] [--out DIR]

Draws so many training images per class of a folder with train/ and val/, and tests on all of val/. The best network of
RUN, which must not have seen these classes, takes the place of the one that comes with the package. Arms: "scratch"
(`alexnet train DIR --weights none`), "linear" (the classifier on its features that is fitted before the first epoch of
`--weights tiny`) and "trained" (what follows). Runs in DIR that have finished are not repeated.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from common import save

import alexnet
from alexnet.files import read_json, write_json
from alexnet.progress import Silent
from alexnet.run_dir import find_run
from alexnet.training import setup, transfer

ARMS: dict[str, dict[str, Any]] = {
    "scratch": {"weights": "none"},
    "linear": {"weights": "tiny", "limit_steps": 1, "lr": 1e-9},  # ends before anything is learned
    "trained": {"weights": "tiny"},
}


def draw_images(data: Path, images: int, seed: int, folder: Path) -> Path:
    """Link `images` training images per class, drawn by `seed`, and all of val/ as test/ into `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    for split, target in (("train", "train"), ("val", "test")):
        for class_folder in sorted((data / split).iterdir()):
            files = sorted(path for path in class_folder.rglob("*") if path.is_file())
            if split == "train":
                random.Random(seed).shuffle(files)
                files = files[:images]
            (folder / target / class_folder.name).mkdir(parents=True)
            for file in files:
                (folder / target / class_folder.name / file.name).hardlink_to(file)
    return folder


def measure(arm: str, data: Path, seed: int, out: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Train one arm, unless it was before; return its test accuracy and seconds."""
    stored = out / "result.json"
    if not stored.is_file():
        shutil.rmtree(out, ignore_errors=True)
        began = time.monotonic()
        result = alexnet.train(data, seed=seed, out=out, progress=Silent(), **settings, **ARMS[arm])
        seconds = time.monotonic() - began
        write_json(stored, {"top1": result.summary["test"]["top1"], "seconds": seconds})
    return read_json(stored, dict[str, Any])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 20, 50, 100])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("transfer"))
    given = parser.parse_args()
    setup.TINY_FOLDER = transfer.TINY_FOLDER = find_run(given.weights).named_checkpoint("best")
    results: dict[str, Any] = {}
    for images in given.images:
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in given.arms}
        for seed in range(given.seeds):
            data = draw_images(given.data.absolute(), images, seed, given.out / "images")
            for arm in given.arms:
                run = given.out / f"{arm}-{images}-{seed}"
                found[arm].append(measure(arm, data, seed, run, {"threads": given.threads}))
                print(images, seed, arm, found[arm][-1], flush=True)
        results[f"{images} images per class"] = {
            arm: {
                "top1": [run["top1"] for run in runs],
                "mean": statistics.fmean(run["top1"] for run in runs),
                "seconds": statistics.fmean(run["seconds"] for run in runs),
            }
            for arm, runs in found.items()
        }
    save("transfer", results)


if __name__ == "__main__":
    main()
