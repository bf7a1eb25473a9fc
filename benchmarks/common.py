"""Shared by the benchmarks: the data folder, measurements, and JSON results with their environment."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet.bench.limits import Spread
from alexnet.device import environment
from alexnet.models.layers import LocalResponseNorm

RESULTS = Path(__file__).parent / "results"


def data(name: str) -> Path:
    """Return the folder `name` of the real datasets, in `$ALEXNET_DATA` or `../shared/data`; exit if it is missing."""
    for root in (os.environ.get("ALEXNET_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if root and (Path(root) / name).exists():
            return Path(root) / name
    sys.exit(f"{name} was not found; set ALEXNET_DATA to the folder that holds it.")


def rates(timing: Spread, amount: float) -> dict[str, float]:
    """Return the amount per second of a call that handles `amount`."""
    return {"median": amount / timing.median, "low": amount / timing.high, "high": amount / timing.low}


@contextmanager
def kept_for_backward() -> Iterator[dict[int, int]]:
    """Collect the bytes that the forward pass in this context keeps, by storage and without weights."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        owner = tensor if tensor._base is None else tensor._base
        if not (owner.is_leaf and owner.requires_grad):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept


def use_torch_lrn(model: nn.Module) -> None:
    """Replace the response normalizations across channels by torch's."""
    for name, module in list(model.named_children()):
        if isinstance(module, LocalResponseNorm):
            setattr(model, name, nn.LocalResponseNorm(module.size, module.alpha, module.beta, module.k))


def save(
    name: str, results: dict[str, Any], packages: tuple[str, ...] = (), device: str = "cpu", folder: Path = RESULTS
) -> Path:
    """Write `results` to `<folder>/<name>.json` with machine, versions, commit and command; return the path."""
    versions = {package: metadata.version(package) for package in packages}
    document = {
        "benchmark": name,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "when": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "environment": environment(torch.device(device), seed=0),  # with the commit
        "packages": versions,
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    print(path)
    return path
