"""One GPU's limits, the share that LRN and training at 224 reach, and a plain torchvision loop for comparison.

    benchmarks/gpu.sh throughput

Targets: LRN at 70 % of the copy bandwidth or more, training at batch 1024 in bfloat16 at 45 % of the bfloat16 matmul
rate or more. The plain loop is torchvision's network as tutorials train it: float32, NCHW, float images already on the
GPU, `loss.item()` at each step; and the same with autocast to bfloat16.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from gpu_common import device, finish, parser
from torch.nn import functional as F
from torchvision.models import alexnet

from alexnet.bench import bench
from alexnet.bench.bench import synthetic_step
from alexnet.bench.limits import Work, matmul_work, measure_rates
from alexnet.models.architectures import architecture


def plain_step(batch_size: int, size: int, on: str, bf16: bool) -> Any:
    """Return one step of the loop that tutorials show."""
    model = alexnet(num_classes=1000).to(on)
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
    ours = partial(synthetic_step, "torchvision", image_size=size, batch_size=batch_size, precision=precision)
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


def main() -> None:
    args = parser(__doc__).parse_args()
    on = device(args.tiny)
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


if __name__ == "__main__":
    main()
