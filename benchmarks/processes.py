"""The same training in one, two and four processes, step by step: differences of losses, weights and logits.

    python benchmarks/processes.py --data photos/ [--arch paper] [--width 0.25] [--batch 40] [--steps 50]

torchrun starts each number of processes; they train in float32 on the CPU with dropout, random crops and flips from the
same seed. Only networks without batch norm, whose statistics would differ per process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from common import save

from alexnet.models.model import build
from alexnet.progress import Silent
from alexnet.rng import derive_seed
from alexnet.run_dir import Run
from alexnet.training.distributed import connect
from alexnet.training.distributed.base import read_together
from alexnet.training.recipe import with_settings
from alexnet.training.recipes import named_recipe
from alexnet.training.setup import prepare_training
from alexnet.training.trainer import Trainer

UNIT = 1e-7  # of the largest differences from one process


def work(args: argparse.Namespace) -> None:
    """Train as one of the processes; rank 0 writes the result to `args.result`."""
    settings = {
        "data": args.data, "arch": args.arch, "image_size": args.size, "width": args.width, "batch_size": args.batch,
        "lr": args.lr, "epochs": args.steps, "schedule": "constant", "augment": "none", "flip": True, "crop": "random",
        "crop_pct": 0.875, "precision": "fp32", "device": "cpu", "dropout": 0.5, "accumulate": args.accumulate,
    }  # fmt: skip
    with connect("auto", "cpu") as parallel:
        prepared = prepare_training(with_settings(named_recipe("folder"), settings), Silent(), parallel=parallel)
        torch.manual_seed(derive_seed(0, "init"))
        loop = Trainer(prepared, Run(Path()), build(prepared.spec), Silent())
        loop.train_step.train()
        steps, times, epoch = [], [], 0
        while len(steps) < args.steps:
            for batch in islice(read_together(parallel, prepared.train.batches(epoch)), args.steps - len(steps)):
                began = time.perf_counter()
                number = len(steps)
                loss, _ = loop.train_step(batch, epoch, number, loop.hyperparameters(number))
                steps.append(loss)
                times.append((time.perf_counter() - began, batch.row_range.total))
            epoch += 1
        losses = parallel.all_reduce(torch.stack(steps), "sum").tolist()
        outputs = loop.evaluate("val")
        if parallel.shard.rank == 0:
            seconds = sum(s for s, _ in times[2:])
            torch.save(
                {
                    "losses": losses,
                    "weights": loop.model.state_dict(),
                    "logits": torch.from_numpy(outputs.logits),
                    "images_per_second": sum(n for _, n in times[2:]) / seconds,
                },
                args.result,
            )


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="class folders of photos")
    parser.add_argument("--arch", default="paper")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--batch", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.result:
        work(args)
        return
    found: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in args.processes:
            result = Path(folder) / f"{count}.pt"
            torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
            subprocess.run(
                [sys.executable, *torchrun, *sys.argv, "--result", str(result)],
                check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            found[count] = torch.load(result, weights_only=True)
    one = found[args.processes[0]]
    rows = {}
    for count, run in found.items():
        losses = [abs(a / b - 1) for a, b in zip(run["losses"], one["losses"], strict=True)]
        rows[f"{count}"] = row = {
            "first_loss": run["losses"][0],
            "last_loss": run["losses"][-1],
            "loss_relatively": max(losses) / UNIT,
            "weight": apart(run["weights"], one["weights"]) / UNIT,
            "logit": float((run["logits"] - one["logits"]).abs().max()) / UNIT,
            "same_answers": float((run["logits"].argmax(1) == one["logits"].argmax(1)).float().mean()),
            "images_per_second": run["images_per_second"],
        }
        print(count, *(f"{key} {value:.3g}" for key, value in row.items()), sep="  ", flush=True)
    settings = {key: getattr(args, key) for key in ("arch", "size", "width", "batch", "accumulate", "steps", "lr")}
    losses_by_step = {f"{count}": run["losses"] for count, run in found.items()}
    save("processes", {**settings, "rows": rows, "losses": losses_by_step})


if __name__ == "__main__":
    main()
