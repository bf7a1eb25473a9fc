"""Memory of a training step of `paper` at 224, batch 128: ours against a plain network of the same layers.

    python benchmarks/memory.py         # about 1 minute; writes results/memory.json

`activations` are the bytes that autograd keeps between forward and backward, each storage once and without weights;
`peak` is the increase of the process's peak memory by one step (forward, backward, SGD), including the gradients of the
weights (244 MB). Plain: `nn.LocalResponseNorm`, ReLUs that are not in place, float32, NCHW.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import torch
from common import save
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.models.layers import LocalResponseNorm
from alexnet.models.model import create_model

ARMS = ("ours", "ours, NCHW", "plain, with our LRN", "plain")


def network(arm: str) -> nn.Module:
    """Return `paper`, or the same with the layers of a tutorial."""
    model = create_model("paper")
    for name, module in list(model.named_children()):
        if arm.startswith("plain") and isinstance(module, nn.ReLU):
            setattr(model, name, nn.ReLU())
        if arm == "plain" and isinstance(module, LocalResponseNorm):
            setattr(model, name, nn.LocalResponseNorm(module.size, module.alpha, module.beta, module.k))
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
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    held: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return t

    before = peak()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        loss = F.cross_entropy(model(x), targets)
    activations = sum(held.values())
    loss.backward()
    optimizer.step()
    return {"activations": activations, "peak": peak() - before}


def peak() -> int:
    """Return the peak memory of this process in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--arm", choices=ARMS, help="measure only this one and print it")
    args = parser.parse_args()
    if args.arm:
        print(json.dumps(measure(args.arm, args.batch)))
        return
    found = {}
    for arm in ARMS:
        command = [sys.executable, __file__, "--arm", arm, "--batch", str(args.batch)]
        found[arm] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for arm, r in found.items():
        r["share_of_plain"] = {key: r[key] / found["plain"][key] for key in ("activations", "peak")}
        sizes = ", ".join(f"{key} {r[key] / 1e6:.0f} MB ({share:.0%})" for key, share in r["share_of_plain"].items())
        print(f"{arm:<20} {sizes}")
    save("memory", {"batch": args.batch, "measured": found})


if __name__ == "__main__":
    main()
