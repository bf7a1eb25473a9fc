"""Run folders written by hand, for tests that only read them: curves and predictions are whatever the test needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from alexnet.run_dir import Run


def make_fake_run(
    path: Path,
    *,
    classes: int = 3,
    per_class: int = 20,
    accuracy: float = 0.8,
    val_top1: list[float] | None = None,
    train_top1: list[float] | None = None,
    val_losses: list[float] | None = None,
    recipe: dict[str, Any] | None = None,
    confuse: tuple[int, int] | None = None,
    confident: bool = False,
    seed: int = 0,
) -> Run:
    """Write a finished run with `classes` classes and `per_class` test images of each.

    The share `accuracy` of the images is classified correctly. `val_top1`, `train_top1` and `val_losses` hold a value
    per epoch. `confuse=(a, b)` turns every mistake on class a into class b. With `confident`, mistakes are as confident
    as correct predictions.
    """
    val_top1 = val_top1 or [0.3, 0.5, 0.6, 0.7, 0.75, 0.79, 0.8, 0.8]
    train_top1 = train_top1 or val_top1
    val_losses = val_losses or [2 - 1.5 * v for v in val_top1]
    names = [f"class {i}" for i in range(classes)]
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), per_class)
    wrong = (targets + 1 + rng.integers(0, classes - 1)) % classes
    predicted = np.where(np.arange(len(targets)) % per_class < accuracy * per_class, targets, wrong)
    if confuse is not None:
        predicted[(targets == confuse[0]) & (predicted != targets)] = confuse[1]
    logits = rng.normal(0, 0.3, (len(targets), classes)).astype(np.float32)
    margins = np.where(confident | (predicted == targets), 3, 1) + rng.exponential(1, len(targets))
    logits[np.arange(len(targets)), predicted] += margins
    rows = [
        {"epoch": i + 1, "step": 10 * (i + 1), "split": "val", "train_loss": 2 - t, "train_top1": t, "val_loss": loss,
         "top1": v, "top5": min(1.0, v + 0.1), "lr": 0.1, "images_per_second": 1000.0, "seconds": 2.0}
        for i, (v, t, loss) in enumerate(zip(val_top1, train_top1, val_losses, strict=True))
    ]  # fmt: skip
    best = max(rows, key=lambda row: row["top1"])
    test = {"top1": float((predicted == targets).mean()), "n": len(targets)}
    summary = {
        "best": best, "final": rows[-1], "split": "val", "epochs": len(rows), "steps": 10 * len(rows), "seconds": 75.0,
        "images_per_second": 1000.0, "parameters": 1234567, "arch": "cifar", "classes": classes, "precision": "fp32",
        "device": "cpu", "test": test, "complete": True,
    }  # fmt: skip
    settings = {
        "name": "folder", "dataset": "folder", "data": str(path / "data"), "labels": None, "encoding": None,
        "columns": None, "value_range": None, "seed": 0, "skip_bad": False, "validate_on": "val", "lr": 0.1,
        "batch_size": 64, "epochs": len(rows), "weight_decay": 5e-4,
    }  # fmt: skip
    run = Run(path)
    path.mkdir(parents=True)
    (path / "recipe.json").write_text(json.dumps(settings | (recipe or {})))
    (path / "summary.json").write_text(json.dumps(summary))
    (path / "env.json").write_text(json.dumps({"cpu": "A Processor", "cores": 2, "versions": {"torch": "2.6"}}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = path / "checkpoints" / "00000080"
    folder.mkdir(parents=True)
    model = {
        "format": "alexnet-1", "spec": {}, "classes": names, "preprocess": {"channels": 3, "size": 32}, "step": 80,
        "epoch": len(rows), "sha256": {},
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(model))
    (path / "best").write_text(folder.name + "\n")
    paths = [f"test/{names[t]}/{i}.jpg" for i, t in enumerate(targets)]
    run.write_evaluation("test", paths, targets, logits)
    run.write_evaluation("val", [p.replace("test/", "val/") for p in paths], targets, logits)
    return run
