"""Wall time of `alexnet predict` on one image, from process start to exit: mostly imports.

    python benchmarks/cold_start.py --before OTHER/src    # OTHER: a checkout from before imports were lazy

A checkpoint of `torchvision` at 224 with random weights and an empty cache. Each command is a process; they are timed
interleaved. `fast, first time` converts, compares and selects the engine, and is timed once.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import save
from PIL import Image

from alexnet.bench.limits import time_interleaved
from alexnet.checkpoint import save_model
from alexnet.inference.load import TORCHVISION_PREPROCESS
from alexnet.models.model import create_model

HERE = Path(__file__).parents[1] / "src"


def predict(source: Path, folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "alexnet", "predict", "net", "a.jpg", *arguments]
    env = {**os.environ, "PYTHONPATH": str(source), "ALEXNET_CACHE": str(folder / "cache")}
    found = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the src folder of an older checkout")
    parser.add_argument("--tries", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "net").mkdir()
        torch.manual_seed(0)
        save_model(
            folder / "net", create_model("torchvision").eval(), list(map(str, range(1000))), TORCHVISION_PREPROCESS
        )
        pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "a.jpg")
        start = time.perf_counter()
        predict(HERE, folder, "--engine", "fast")
        first = time.perf_counter() - start
        predict(HERE, folder, "--engine", "onnxruntime")
        predict(HERE, folder, "--engine", "openvino")
        work = {
            "exact": lambda: predict(HERE, folder),
            "fast, second time": lambda: predict(HERE, folder, "--engine", "fast"),
            "onnxruntime, second time": lambda: predict(HERE, folder, "--engine", "onnxruntime"),
            "openvino, second time": lambda: predict(HERE, folder, "--engine", "openvino"),
            "python that imports torch and stops": lambda: subprocess.run(
                [sys.executable, "-c", "import torch"], check=True
            ),
        }
        if given.before:
            before = given.before.resolve()
            work = {"exact, before": lambda: predict(before, folder), **work}
        found = time_interleaved(work, tries=given.tries)
    rows = [{"name": "fast, first time", "seconds": first}]
    rows += [{"name": name, **timing.to_dict()} for name, timing in found.items()]
    for row in rows:
        print(row)
    save("cold_start", {"rows": rows}, ("openvino", "onnxruntime"))


if __name__ == "__main__":
    main()
