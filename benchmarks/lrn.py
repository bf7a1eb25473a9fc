"""Local response normalization, forward and backward, against torch's and against copying the tensor.

    python benchmarks/lrn.py            # 2 minutes; writes results/lrn.json
    python benchmarks/lrn.py --step     # 2 minutes; writes results/lrn-step.json

At both of AlexNet's shapes (batch 64, float32), in both memory formats, with pages mapped again for every tensor (the
default) and with pages that the process keeps (`tune_malloc`). `limit` is the time of 2.5 copies between existing
tensors: reading input and gradient, writing output and gradient. Everything is timed interleaved.

With `--step`, training steps of `paper` instead (224, batch 32, float32, channels last, pages kept): the difference to
`--norm none` is the cost of the normalization.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from common import save
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.bench.limits import time_interleaved
from alexnet.device import tune_malloc
from alexnet.models import layers, lrn
from alexnet.models.layers import LocalResponseNorm
from alexnet.models.model import create_model

SHAPES = ((64, 96, 55, 55), (64, 256, 27, 27))
CONSTANTS = lrn.Constants(size=5, alpha=1e-4, beta=0.75, k=2.0, towers=1)
CHUNKS = patch.object(lrn, "_compute_in_c", lrn._compute_in_chunks)


def measure(shape: tuple[int, ...], channels_last: bool) -> dict[str, Any]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, dy, room = (torch.randn(shape).contiguous(memory_format=layout) for _ in range(3))
    x.requires_grad_()

    def both(function: Callable[[Tensor], Tensor]) -> None:
        x.grad = None
        function(x).backward(dy)

    def without_compiler() -> None:
        with CHUNKS:
            both(ours)

    ours = LocalResponseNorm(*CONSTANTS)
    torchs = nn.LocalResponseNorm(CONSTANTS.size, CONSTANTS.alpha, CONSTANTS.beta, CONSTANTS.k)
    work: dict[str, Callable[[], object]] = {
        "copy": lambda: room.copy_(x.detach()),
        "ours": lambda: both(ours),
        "ours without a compiler": without_compiler,
        "ours, the formula by autograd": lambda: both(lambda x: lrn.composed_lrn(x, CONSTANTS)),
        "nn.LocalResponseNorm": lambda: both(torchs),
    }
    times = time_interleaved(work, tries=7, seconds=12)
    limit = 2.5 * times["copy"].median
    return {
        "shape": list(shape),
        "channels_last": channels_last,
        "limit_ms": limit * 1e3,
        "ms": {name: {k: v * 1e3 for k, v in t.to_dict().items() if k != "tries"} for name, t in times.items()},
        "times_the_limit": {name: t.median / limit for name, t in times.items() if name != "copy"},
        "times_faster_than_torch": times["nn.LocalResponseNorm"].median / times["ours"].median,
    }


def shapes() -> None:
    if lrn.c_kernel() is None:
        raise SystemExit("The C kernel cannot be built here; install gcc.")
    results = []
    for pages in (False, True):
        if pages:
            tune_malloc()
        for shape in SHAPES:
            for channels_last in (False, True):
                r = measure(shape, channels_last)
                results.append({"keeps_pages": pages, **r})
                where = f"{'×'.join(map(str, shape))} {'channels last' if channels_last else 'NCHW':<13}"
                shares = ", ".join(f"{name} {share:.1f}" for name, share in r["times_the_limit"].items())
                print(f"{where} {'kept' if pages else 'fresh'} pages: limit {r['limit_ms']:.1f} ms; times it: {shares}")
    save("lrn", {"threads": torch.get_num_threads(), "measured": results})


def steps(batch: int = 32) -> None:
    tune_malloc()
    x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    targets = torch.randint(1000, (batch,))

    def step(norm: str) -> Callable[[], object]:
        model = create_model("paper", norm=norm).to(memory_format=torch.channels_last)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)

        def run() -> None:
            F.cross_entropy(model(x), targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return run

    def before() -> None:
        with patch.object(layers, "local_response_norm", lrn.composed_lrn):
            ours()

    def without_compiler() -> None:
        with CHUNKS:
            ours()

    ours = step("lrn")
    work = {
        "norm none": step("none"),
        "ours": ours,
        "ours without a compiler": without_compiler,
        "the formula by autograd": before,
    }
    times = time_interleaved(work, tries=9, seconds=110)
    none = times["norm none"].median
    found = {
        name: {**t.to_dict(), "images_per_second": batch / t.median, "speed_of_norm_none": none / t.median}
        for name, t in times.items()
    }
    for name, r in found.items():
        print(f"{name:<25} {r['median']:.3f} s a step, {r['speed_of_norm_none']:.0%} of the speed without a norm")
    save("lrn-step", {"threads": torch.get_num_threads(), "batch": batch, "seconds_a_step": found})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--step", action="store_true", help="time training steps of `paper` instead")
    steps() if parser.parse_args().step else shapes()
