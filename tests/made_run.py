"""Run folders written by hand, for what only reads them: curves and answers can be whatever a test needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.run_dir import Run


def made_run(
    path: Path,
    *,
    classes: int = 3,
    each: int = 20,
    right: float = 0.8,
    val: list[float] | None = None,
    train: list[float] | None = None,
    losses: list[float] | None = None,
    recipe: dict[str, Any] | None = None,
    confuse: tuple[int, int] | None = None,
    sure: bool = False,
    seed: int = 0,
) -> Run:
    """A finished run with `classes` classes and `each` test pictures of each, of which the share `right` is labelled
    rightly. `val` and `train` are top-1 by epoch and `losses` the validation loss; `confuse` sends all mistakes of the
    first class to the second; `sure` makes mistakes as sure as the rest."""
    val = val or [0.3, 0.5, 0.6, 0.7, 0.75, 0.79, 0.8, 0.8]
    train = train or val
    losses = losses or [2 - 1.5 * v for v in val]
    names = [f"class {i}" for i in range(classes)]
    draw = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), each)
    said = np.where(
        np.arange(len(targets)) % each < right * each, targets, (targets + 1 + draw.integers(0, classes - 1)) % classes
    )
    if confuse is not None:
        said[(targets == confuse[0]) & (said != targets)] = confuse[1]
    logits = draw.normal(0, 0.3, (len(targets), classes)).astype(np.float32)
    logits[np.arange(len(targets)), said] += np.where(sure | (said == targets), 3, 1) + draw.exponential(
        1, len(targets)
    )
    rows = [
        {"epoch": i + 1, "step": 10 * (i + 1), "split": "val", "train_loss": 2 - t, "train_top1": t, "val_loss": loss,
         "top1": v, "top5": min(1.0, v + 0.1), "lr": 0.1, "images_per_second": 1000.0, "seconds": 2.0}
        for i, (v, t, loss) in enumerate(zip(val, train, losses, strict=True))
    ]  # fmt: skip
    best = max(rows, key=lambda row: row["top1"])
    test = {"top1": float((said == targets).mean()), "n": len(targets)}
    summary = {
        "best": best, "final": rows[-1], "split": "val", "epochs": len(rows), "steps": 10 * len(rows), "seconds": 75.0,
        "images_per_second": 1000.0, "parameters": 1234567, "arch": "cifar", "classes": classes, "precision": "fp32",
        "device": "cpu", "test": test, "complete": True,
    }  # fmt: skip
    run = Run(path)
    path.mkdir(parents=True)
    settings = {
        "name": "folder", "dataset": "folder", "data": str(path / "data"), "seed": 0, "skip_bad": False,
        "validate_on": "val", "lr": 0.1, "batch_size": 64, "epochs": len(rows), "weight_decay": 5e-4,
    }  # fmt: skip
    (path / "recipe.json").write_text(json.dumps(settings | (recipe or {})))
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "env.json").write_text(json.dumps({"cpu": "A Processor", "cores": 2, "versions": {"torch": "2.6"}}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = path / "checkpoints" / "00000080"
    folder.mkdir(parents=True)
    model = {"format": "alexnet-1", "classes": names, "preprocess": {"channels": 3, "size": 32}}
    (folder / "model.json").write_text(json.dumps(model))
    (path / "best").write_text(folder.name + "\n")
    paths = [f"test/{names[t]}/{i}.jpg" for i, t in enumerate(targets)]
    run.write_evaluation("test", paths, targets, logits)
    run.write_evaluation("val", [p.replace("test/", "val/") for p in paths], targets, logits)
    return run
