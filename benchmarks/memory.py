"""Memory of a training step of `paper` at 224, batch 128: ours against a plain network of the same layers.

    python benchmarks/memory.py         # about 1 minute; writes results/memory.json
    python benchmarks/memory.py --peak  # training and prediction at batch 32; writes results/peak-memory.json

`activations` are the bytes that autograd keeps between forward and backward, each storage once and without weights;
`peak` is the increase of the process's peak memory by one step (forward, backward, SGD), including the gradients of the
weights (244 MB). Plain: `nn.LocalResponseNorm`, ReLUs that are not in place, float32, NCHW. With --peak, the increase
by two of our training steps (momentum is allocated at the end of the first) or two batches of predictions. Each row is
measured in a fresh process: a used one would reuse its freed pages.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from functools import partial
from typing import Any

import torch
from common import kept_for_backward, save, use_torch_lrn
from torch import nn
from torch.nn import functional as F

from alexnet.bench.bench import synthetic_step
from alexnet.data.transforms import EvalTransform
from alexnet.device import peak_memory
from alexnet.models.architectures import architecture
from alexnet.models.model import build, create_model
from alexnet.runtimes.engines import LoadedModel, TorchEngine

ARMS = ("ours", "ours, NCHW", "plain, with our LRN", "plain")


def network(arm: str) -> nn.Module:
    """Return `paper`, or the same with the layers of a tutorial."""
    model = create_model("paper")
    for name, module in list(model.named_children()):
        if arm.startswith("plain") and isinstance(module, nn.ReLU):
            setattr(model, name, nn.ReLU())
    if arm == "plain":
        use_torch_lrn(model)
    return model


def measure(arm: str, batch: int) -> dict[str, Any]:
    """Measure one step in this process, which must be fresh."""
    torch.manual_seed(0)
    model = network(arm)
    x, targets = torch.randn(batch, 3, 224, 224), torch.randint(1000, (batch,))
    if arm == "ours":  # as `alexnet train` has it
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    before = peak()
    with kept_for_backward() as kept:
        loss = F.cross_entropy(model(x), targets)
    loss.backward()
    optimizer.step()
    return {"activations": sum(kept.values()), "peak": peak() - before}


def measure_peak(task: str, arch: str, batch: int) -> int:
    """Return the peak memory in bytes of training or predicting with `arch` in this process, which must be fresh."""
    spec = architecture(arch)
    before = peak()
    if task == "train":
        call = synthetic_step(arch, image_size=spec.image_size, batch_size=batch, precision="fp32")
    else:
        model = build(spec).eval().to(memory_format=torch.channels_last)
        preprocess = EvalTransform(spec.image_size, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
        loaded = LoadedModel(model, (), preprocess, None, None, "")
        images = torch.randint(256, (batch, 3, spec.image_size, spec.image_size), dtype=torch.uint8).numpy()
        call = partial(TorchEngine(loaded, torch.device("cpu")).logits, images)
    for _ in range(2):
        call()
    return peak() - before


def peak() -> int:
    """Return the peak memory of this process in bytes (Linux, macOS)."""
    found = peak_memory()
    assert found is not None, "this system does not report it"
    return found


def in_fresh_process(*arguments: str) -> Any:
    """Return the JSON that this script prints when called with `arguments`."""
    command = [sys.executable, __file__, *arguments]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--peak", action="store_true", help="measure training and prediction at batch 32")
    parser.add_argument("--arm", choices=ARMS, help="measure only this one and print it")
    parser.add_argument("--task", nargs=2, metavar=("TASK", "ARCH"), help="measure only this peak and print it")
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args.arm, args.batch)))
    elif args.task:
        print(json.dumps(measure_peak(*args.task, 32)))
    elif args.peak:
        rows = [
            {"name": task, "arch": arch, "batch_size": 32, "bytes": in_fresh_process("--task", task, arch)}
            for arch in ("torchvision", "paper")
            for task in ("train", "predict")
        ]
        for row in rows:
            print(f"{row['name']} {row['arch']}: {row['bytes'] / 2**20:,.0f} MiB")
        save("peak-memory", {"rows": rows})
    else:
        found = {arm: in_fresh_process("--arm", arm, "--batch", str(args.batch)) for arm in ARMS}
        for arm, r in found.items():
            r["share_of_plain"] = {key: r[key] / found["plain"][key] for key in ("activations", "peak")}
            sizes = ", ".join(
                f"{key} {r[key] / 1e6:.0f} MB ({share:.0%})" for key, share in r["share_of_plain"].items()
            )
            print(f"{arm:<20} {sizes}")
        save("memory", {"batch": args.batch, "measured": found})


if __name__ == "__main__":
    main()
