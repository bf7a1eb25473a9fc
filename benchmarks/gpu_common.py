"""Shared by the parts of gpu.sh: options, device, data, results, and time to an accuracy."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from common import RESULTS, data, save

from alexnet.run_dir import Run
from alexnet.training.api import TrainingResult


def parser(about: str) -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tiny", action="store_true", help="try the script on any device, with synthetic data")
    options.add_argument("--data", type=Path, help="the dataset, a folder or a .zip; by default in $ALEXNET_DATA")
    return options


def device(tiny: bool) -> str:
    """Return cuda; with `tiny`, whatever is available. Exit without a GPU."""
    if torch.cuda.is_available():
        return "cuda"
    if not tiny:
        sys.exit("No CUDA GPU was found, so nothing was measured; --tiny tries the script on the CPU.")
    return "cpu"


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
    spent = 0.0
    for row in Run(result.run).metrics():
        spent += row["seconds"]
        if row["top1"] >= accuracy:
            return spent
    return None


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
