"""Shared by the benchmarks: the data folder, and JSON results with their environment."""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from alexnet.device import environment

RESULTS = Path(__file__).parent / "results"


def data(name: str) -> Path:
    """Return the folder `name` of the real datasets, in `$ALEXNET_DATA` or `../shared/data`; exit if it is missing."""
    for root in (os.environ.get("ALEXNET_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if root and (Path(root) / name).exists():
            return Path(root) / name
    sys.exit(f"{name} was not found; set ALEXNET_DATA to the folder that holds it.")


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
