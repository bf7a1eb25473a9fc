"""How long a checkpoint interrupts training, and how long until it is on disk.

    python benchmarks/checkpoint.py             # `paper` with momentum; about 2 minutes; writes results/checkpoint.json

Training stops while weights and momentum are copied in memory (`stop`); a thread does the rest (`write`). `alone` is
the median time of a step while nothing is written, `beside` during writing.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from common import save

from alexnet.models.model import build
from alexnet.progress import Silent
from alexnet.run_dir import Run
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.trainer import Trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", default="paper")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write; by default the system's temporary folder")
    args = parser.parse_args()
    recipe = replace(
        named_recipe("digits"), arch=args.arch, image_size=None, width=1.0, norm="auto", batch_size=args.batch,
        precision="fp32", checkpoint_every=None, device="cpu",
    )  # fmt: skip
    prepared = prepare_training(recipe, Silent())
    torch.manual_seed(0)
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    loop = Trainer(prepared, Run.create("x", folder / "run", recipe.to_json()), build(prepared.spec), Silent())
    checkpoints, batch = loop.checkpoints, next(prepared.train.batches(0))

    def step() -> float:
        began = time.monotonic()
        loop.step(batch)
        return time.monotonic() - began

    try:
        for _ in range(3):
            step()
        alone = [step() for _ in range(10)]
        stops, writes, beside = [], [], []
        for _ in range(args.times):
            began = time.monotonic()
            checkpoints.save(loop.train_step, loop.state, best=False)
            stops.append(time.monotonic() - began)
            writing = checkpoints._writing[-1]
            while not writing.done():
                seconds = step()
                beside += [seconds] if not writing.done() else []
            checkpoints.wait()
            writes.append(time.monotonic() - began)
        size = sum(path.stat().st_size for path in loop.run.checkpoints()[0].iterdir())
    finally:
        shutil.rmtree(folder)
    found = {
        "arch": args.arch,
        "batch": args.batch,
        "bytes": size,
        "threads": torch.get_num_threads(),
        "stop": statistics.median(stops),
        "write": statistics.median(writes),
        "alone": statistics.median(alone),
        "beside": statistics.median(beside) if beside else None,
    }
    print(found)
    save("checkpoint", found)


if __name__ == "__main__":
    main()
