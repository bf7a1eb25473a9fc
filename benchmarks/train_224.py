"""Training at 224 pixels: the package's own step against a loop as tutorials write it, on the same networks.

    python benchmarks/train_224.py [--batch 32] [--tries 5] [--archs torchvision paper …] [--threads N] [--profile]

The plain loop: float32, channels first, default `torch.optim.SGD`, `zero_grad`, `loss.item()` at each step, torch's own
`nn.LocalResponseNorm` and dropout, on float images in memory. Ours: `alexnet.bench.bench`, from uint8, with random
crops and flips. Each loop has its own process, since allocator settings are per process; they run interleaved.
Memory is the process's peak, and the bytes that the forward pass keeps for the backward pass.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch
from common import kept_for_backward, save, use_torch_lrn
from torch.nn import functional as F
from torch.profiler import profile

from alexnet.bench.bench import synthetic_step
from alexnet.bench.limits import time_interleaved
from alexnet.device import peak_memory
from alexnet.models.model import create_model, specify
from alexnet.models.summary import summarize

ARCHS = ("torchvision", "paper", "torchvision-lrn")
AIMS = {"torchvision": 2.6, "paper": 4.0, "torchvision-lrn": 4.0}  # for machines with bfloat16


def plain_step(arch: str, batch_size: int) -> Callable[[], None]:
    """Return one step of a tutorial's loop."""
    model = create_model(arch)
    use_torch_lrn(model)
    side = model.spec.image_size
    batches = [(torch.randn(batch_size, 3, side, side), torch.randint(1000, (batch_size,))) for _ in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
    running = 0.0
    number = 0

    def step() -> None:
        nonlocal running, number
        images, targets = batches[number % len(batches)]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        running += loss.item()
        number += 1

    return step


def matmul_step() -> Callable[[], None]:
    """Return the arithmetic limit: the product of two float32 matrices of 2048×2048."""
    a, b = torch.randn(2, 2048, 2048)
    c = torch.empty(2048, 2048)

    def step() -> None:
        torch.mm(a, b, out=c)

    return step


def work(connection: Connection, make: Callable[[], Callable[[], None]], threads: int | None) -> None:
    """Run a worker process: execute requests until "end"."""
    if threads:
        torch.set_num_threads(threads)
    step = make()
    step()
    connection.send(None)
    while (request := connection.recv()) != "end":
        if request == "step":
            connection.send(step())
        elif request == "kept":
            with kept_for_backward() as kept:
                step()
            connection.send(sum(kept.values()))
        elif request == "peak":
            connection.send(peak_memory())
        elif request == "profile":
            with profile() as seen:
                step()
            rows = sorted(seen.key_averages(), key=lambda row: -row.self_cpu_time_total)[:10]
            connection.send({row.key: round(row.self_cpu_time_total / 1e3, 1) for row in rows})


class Worker:
    """The process behind one row of the table."""

    def __init__(self, make: Callable[[], Callable[[], None]], threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, remote = context.Pipe()
        self.process = context.Process(target=work, args=(remote, make, threads), daemon=True)
        self.process.start()
        self.connection.recv()

    def request(self, request: str) -> Any:
        self.connection.send(request)
        return self.connection.recv()

    def end(self) -> None:
        self.connection.send("end")
        self.process.join()


def compare(arch: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time plain and ours interleaved; for networks with LRN also ours without it."""
    ours = partial(synthetic_step, arch, batch_size=args.batch, precision=args.precision)
    makers: dict[str, Callable[[], Callable[[], None]]] = {
        "plain": partial(plain_step, arch, args.batch),
        "ours": ours,
        "matmul": matmul_step,
    }
    if any(row.kind == "lrn" for row in summarize(specify(arch)).rows):
        makers["ours without LRN"] = partial(ours, settings={"norm": "none"})
    workers = {name: Worker(make, args.threads) for name, make in makers.items()}
    taken = time_interleaved({name: partial(p.request, "step") for name, p in workers.items()}, args.tries)
    limit = 2 * 2048**3 / taken.pop("matmul").median
    results: dict[str, Any] = {"matmul_fp32_gflop_s": limit / 1e9}
    for name, timing in taken.items():
        counted = summarize(specify(arch, norm="none" if "without" in name else None))
        # forward, and backward for weights and inputs; the images need no gradient
        operations = 2 * args.batch * (3 * counted.macs - next(r.macs for r in counted.rows if r.macs))
        results[name] = {
            "images_per_second": args.batch / timing.median,
            "slowest": args.batch / timing.high,
            "fastest": args.batch / timing.low,
            "tries": timing.tries,
            "share_of_fp32_matmul": operations / timing.median / limit,
            "peak_bytes": workers[name].request("peak"),
            "kept_for_backward_bytes": workers[name].request("kept"),
        }
        if args.profile:
            results[name]["profile_ms"] = workers[name].request("profile")
    for player in workers.values():
        player.end()
    results["times_plain"] = taken["plain"].median / taken["ours"].median
    results["aim_with_bf16"] = AIMS.get(arch)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=list(ARCHS))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--profile", action="store_true", help="also the time of one step in ms per operator")
    parser.add_argument("--name", default="train_224", help="of the results file")
    args = parser.parse_args()
    began = time.perf_counter()
    results: dict[str, Any] = {"batch": args.batch, "threads": args.threads or torch.get_num_threads()}
    for arch in args.archs:
        results[arch] = found = compare(arch, args)
        for name in (n for n in found if isinstance(found[n], dict)):
            row = found[name]
            print(
                f"{arch:16} {name:17} {row['images_per_second']:6.1f} images/s ({row['slowest']:.1f} to "
                f"{row['fastest']:.1f})  {row['share_of_fp32_matmul']:4.0%} of matmul  peak "
                f"{row['peak_bytes'] / 2**20:5.0f} MiB, kept {row['kept_for_backward_bytes'] / 2**20:5.0f} MiB",
                flush=True,
            )
        print(f"{arch:16} {found['times_plain']:.2f} times the plain loop", flush=True)
    results["seconds"] = time.perf_counter() - began
    save(args.name, results)


if __name__ == "__main__":
    main()
