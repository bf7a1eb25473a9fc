"""Benchmarks on one GPU, one part at a time; gpu.sh starts them with a limit of nine minutes.

JSON goes to $OUT if set, else to benchmarks/results/. --tiny tries the part on any device, even a CPU, with synthetic
data: it shows that the script runs, and measures nothing. Data sets are searched in $ALEXNET_DATA.
"""

from __future__ import annotations

import argparse
import gzip
import os
import statistics
import struct
import sys
import tempfile
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, data, save
from PIL import Image
from torch.nn import functional as F
from torchvision.models import alexnet as torchvision_alexnet

import alexnet
from alexnet.bench import bench
from alexnet.bench.limits import Work, matmul_work, measure_rates
from alexnet.models.architectures import architecture
from alexnet.run_dir import Run
from alexnet.training.api import TrainingResult

AIM = 0.78  # of cifar10
BUDGET = 6 * 60.0

# ── throughput ────────────────────────────────────────────────────────────────────────────────────


def plain_step(batch_size: int, size: int, on: str, bf16: bool) -> Any:
    """Return one step of the loop that tutorials show."""
    model = torchvision_alexnet(num_classes=1000).to(on)
    images = torch.randn(batch_size, 3, size, size, device=on)
    targets = torch.randint(1000, (batch_size,), device=on)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(on, torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def compare_loops(batch_size: int, on: str, seconds: float, tiny: bool) -> dict[str, Any]:
    """Time our step and the plain loop on torchvision's network, interleaved with a matmul of the same precision."""
    where, size = torch.device(on), 64 if tiny else 224
    precision = "fp32" if on == "cpu" else "bf16"  # which a CPU may emulate
    ours = partial(bench.synthetic_step, "torchvision", image_size=size, batch_size=batch_size, precision=precision)
    steps = {
        f"ours, {precision}": ours(settings={"device": on}),
        "plain, fp32": plain_step(batch_size, size, on, False),
    }
    if not tiny:
        steps["plain, bf16 autocast"] = plain_step(batch_size, size, on, True)
        steps[f"ours, {precision}, compiled"] = ours(settings={"device": on, "compile": True})
    product = matmul_work(precision, where)
    assert product, f"this device has no {precision} product"
    work = {name: Work(step, batch_size) for name, step in steps.items()}
    found = measure_rates({"limit": product, **work}, seconds, where)
    limit, each = found["limit"].median, bench.training_operations(architecture("torchvision", image_size=size))
    return {
        "limit_gflop_s": limit / 1e9,
        "images_per_second": {name: found[name].to_dict() for name in work},
        "share_of_limit": {name: found[name].median * each / limit for name in work},
    }


def throughput(args: argparse.Namespace, on: str) -> None:
    """Measure the GPU's limits, the share that LRN and training at 224 reach, and a plain torchvision loop.

    Targets: LRN at 70 % of the copy bandwidth, training at batch 1024 in bfloat16 at 45 % of the bfloat16 matmul rate.
    The plain loop is torchvision's network as tutorials train it: float32, NCHW, float images already on
    the GPU, `loss.item()` at each step; and the same with autocast to bfloat16.
    """
    batch, seconds = (2, 0.01) if args.tiny else (1024, 10.0)
    if args.tiny:
        bench.LRN_SHAPES = ((1, 6, 5, 5),)
    log = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    archs = ("cifar-towers",) if args.tiny else ("torchvision", "paper", "code2012")
    results: dict[str, Any] = {"aims": {"lrn": 0.7, "train": 0.45}}
    for precision in ("fp32",) if args.tiny else ("bf16", "fp32"):
        found = bench.bench(
            ("train", "lrn"), archs=archs, batch_size=batch, seconds=seconds / 4, precision=precision, device=on,
            log=log,
        )  # fmt: skip
        results[precision] = {key: value for key, value in found.items() if key != "environment"}
    log("our loop and the plain loop")
    results["loops"] = loops = compare_loops(batch, on, seconds, args.tiny)
    first = results["fp32" if args.tiny else "bf16"]
    for row in first["lrn"]:
        print(f"LRN {row['name']}, {row['precision']}: {row['share_of_limit']:.0%} of a copy's bandwidth (aim 70 %)")
    for row in first["train"]:
        speed, share = row["images_per_second"], row["share_of_limit"]
        print(f"{row['arch']}, {row['precision']}: {speed:,.0f} images/s, {share:.0%} of the product (aim 45 %)")
    for name, rate in loops["images_per_second"].items():
        print(f"{name}: {rate['median']:,.0f} images/s, {loops['share_of_limit'][name]:.0%}")
    finish("gpu-throughput", results, on, args.tiny)


# ── CIFAR-10 ──────────────────────────────────────────────────────────────────────────────────────


def noise_folders(folder: Path) -> Path:
    """Class folders of noise, 32×32."""
    rng = np.random.default_rng(0)
    for split, images in (("train", 12), ("test", 4)):
        for label in range(10):
            here = folder / split / f"class{label}"
            here.mkdir(parents=True)
            for n in range(images):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(here / f"{n}.png")
    return folder


def cifar10(args: argparse.Namespace, on: str) -> None:
    """Measure the time in which `cifar10-fast` reaches 78 %, and the accuracy of `cifar10-best`.

    Time includes training and validation, but not reading the data, nor an untimed short training that initializes the
    GPU and its libraries. The best recipe gets one seed; no further seed starts after half of six minutes.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="alexnet-gpu-") as folder:
        here = Path(folder)
        data = noise_folders(here / "data") if args.tiny else unpacked(args.data, "cifar10-jpeg")
        short: dict[str, Any] = {"epochs": 1, "limit_steps": 1, "width": 0.125} if args.tiny else {}

        def run(recipe: str, seed: int, **more: Any) -> Any:
            settings = {"data": data, "seed": seed, "device": on, **short, **more}
            return alexnet.train(recipe, out=here / f"{recipe}-{seed}-{len(more)}", **settings)

        run(args.fast, 0, limit_steps=1 if args.tiny else 20)  # starts the GPU
        rows: list[dict[str, Any]] = []
        for seed in range(1 if args.tiny else args.seeds):
            if seed and time.monotonic() - began > BUDGET / 2:
                break
            result = run(args.fast, seed + 1)
            best = result.summary.get("test") or result.summary["final"]
            row = {"seed": seed + 1, "seconds_to_78": seconds_to(result, AIM), "top1": best["top1"]}
            rows.append({**row, "seconds": result.summary["seconds"], "curve": curve(result)})
            print({k: v for k, v in rows[-1].items() if k != "curve"}, flush=True)
        reached = [row["seconds_to_78"] for row in rows if row["seconds_to_78"] is not None]
        results: dict[str, Any] = {
            "fast": {
                "recipe": args.fast, "aim_seconds": 5.0, "runs": rows, "reached_78": len(reached),
                "mean_seconds_to_78": statistics.fmean(reached) if reached else None,
                "mean_top1": statistics.fmean(row["top1"] for row in rows),
            }
        }  # fmt: skip
        if time.monotonic() - began < BUDGET:
            finish("gpu-cifar10", results, on, args.tiny)  # should the time be up before the next is done
            result = run(args.best, 1)
            best = result.summary.get("test") or result.summary["final"]
            results["best"] = {
                "recipe": args.best, "top1": best["top1"], "seconds": result.summary["seconds"],
                "seconds_to_78": seconds_to(result, AIM), "curve": curve(result),
            }  # fmt: skip
    finish("gpu-cifar10", results, on, args.tiny)


# ── Fashion-MNIST ─────────────────────────────────────────────────────────────────────────────────


def noise_idx(folder: Path) -> Path:
    """The four IDX files, of noise."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for stem, n in (("train", 40), ("t10k", 20)):
        images = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        files = {"images-idx3": images, "labels-idx1": np.arange(n, dtype=np.uint8) % 10}
        for kind, values in files.items():
            head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            (folder / f"{stem}-{kind}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))
    return folder


def fashion_mnist(args: argparse.Namespace, on: str) -> None:
    """Train the ten epochs of `fashion-mnist-d2l`."""
    with tempfile.TemporaryDirectory(prefix="alexnet-gpu-") as folder:
        data = noise_idx(Path(folder) / "data") if args.tiny else unpacked(args.data, "fashion-mnist")
        short: dict[str, Any] = {"epochs": 1, "limit_steps": 1, "batch_size": 4} if args.tiny else {}
        result = alexnet.train("fashion-mnist-d2l", out=Path(folder) / "run", data=data, seed=1, device=on, **short)
        results = {
            "recipe": "fashion-mnist-d2l", "top1": result.summary["final"]["top1"],
            "epochs": result.summary["epochs"], "seconds": result.summary["seconds"],
            "images_per_second": result.summary["images_per_second"], "precision": result.summary["precision"],
            "curve": curve(result),
        }  # fmt: skip
    print({k: v for k, v in results.items() if k != "curve"})
    finish("gpu-fashion-mnist", results, on, args.tiny)


# ── data and results ──────────────────────────────────────────────────────────────────────────────


def unpacked(given: Path | None, name: str) -> Path:
    """Return the dataset `name`: `given`, or from $ALEXNET_DATA; a .zip is unpacked into a temporary folder."""
    path = given
    if path is None:
        zipped = Path(os.environ.get("ALEXNET_DATA", Path(__file__).parents[2] / "shared" / "data")) / f"{name}.zip"
        path = zipped if zipped.is_file() else data(name)
    if path.suffix != ".zip":
        return path
    folder = Path(tempfile.mkdtemp(prefix="alexnet-data-"))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    inside = [p for p in folder.iterdir() if p.is_dir()]
    return inside[0] if len(inside) == 1 else folder


def seconds_to(result: TrainingResult, accuracy: float) -> float | None:
    """Return the seconds of training and validation until top-1 on validation reached `accuracy`, or None."""
    return next((point["seconds"] for point in curve(result) if point["top1"] >= accuracy), None)


def curve(result: TrainingResult) -> list[dict[str, float]]:
    """Return (epoch, seconds since the start, accuracy) per epoch."""
    spent, points = 0.0, []
    for row in Run(result.run).metrics():
        spent += row["seconds"]
        points.append({"epoch": row["epoch"], "seconds": spent, "top1": row["top1"]})
    return points


def finish(name: str, results: dict[str, Any], on: str, tiny: bool) -> None:
    """Write the JSON to $OUT or the results folder; a trial is marked as such in its file name and content."""
    marks = {"ran_on_a_gpu": on == "cuda", "tiny": tiny}
    if tiny or on != "cuda":
        print("This was a trial: it was not measured on a GPU at full size, and its numbers mean nothing.")
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else RESULTS
    save(f"{name}{'-tiny' if tiny else ''}", {**marks, **results}, device=on, folder=folder)


PARTS = {"throughput": throughput, "cifar10": cifar10, "fashion-mnist": fashion_mnist}


def main() -> None:
    parser = argparse.ArgumentParser("benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--tiny", action="store_true", help="try the script on any device, with synthetic data")
    parser.add_argument("--data", type=Path, help="the dataset, a folder or a .zip; by default in $ALEXNET_DATA")
    parser.add_argument("--seeds", type=int, default=5, help="of cifar10")
    parser.add_argument("--fast", default="cifar10-fast", help="the recipe that cifar10 times")
    parser.add_argument("--best", default="cifar10-best", help="the recipe for cifar10's accuracy")
    args = parser.parse_args()
    on = "cuda" if torch.cuda.is_available() else "cpu"
    if on == "cpu" and not args.tiny:
        sys.exit("No CUDA GPU was found, so nothing was measured; --tiny tries the script on the CPU.")
    PARTS[args.part](args, on)


if __name__ == "__main__":
    main()
