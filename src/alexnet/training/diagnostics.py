"""Training diagnostics: alarms for common failures, dead ReLUs, and the grid of augmented images.

Each alarm is a pure function of the finished epochs' rows in `metrics.jsonl`, so a resumed run
raises the same ones. They are shown during training, kept in the run's `alarms.json`, and repeated
in its report, except those that a later epoch has disproved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from alexnet.data.transforms import tile_images
from alexnet.files import atomic_write
from alexnet.models.layers import lrn_denominators
from alexnet.models.model import AlexNet, Network
from alexnet.training.recipe import Recipe

LIKELY_CAUSES = ("too few images or epochs", "the learning rate", "wrong labels")
"""Why a network learns nothing, the likeliest first."""
STUCK = 0.985  # fraction of the loss of random guessing above which nothing is learned
STUCK_AFTER = 0.05  # fraction of the run's epochs before which it is not said: a one-cycle schedule begins slowly
CONSTANT = 0.01  # deviation over mean of LRN's denominator below which it is a constant factor
DEAD = 0.5  # fraction of a layer's channels that are zero on every image checked
WAITING = 0.3  # fraction of the time the network waits for images
WORSE_EPOCHS = 5  # consecutive epochs with a validation loss above the best: high rates cause jumps of two or three
FALLEN = 0.01  # top-1 below the best, as a fraction of 1: less is a few images, or chance
DISPROVED_BY_A_BETTER_EPOCH = ("stuck", "rate", "overfitting")
GRID_COLUMNS, GRID_GAP = 8, 4  # images in a row, pixels between them
GRID_MIN_SIDE = 112  # pixels: smaller images are enlarged to about this size
GRID_MAX_SIZE = (1200, 1200)  # pixels of the whole grid


def all_alarms(rows: Sequence[dict[str, Any]], recipe: Recipe, classes: int) -> list[dict[str, Any]]:
    """Return the content of `alarms.json`: the first alarm of each kind, by epoch, as {epoch, kind, text, withdrawn}.

    `withdrawn` is the later epoch whose validation top-1 was higher than any until the alarm, so that it was a false
    one; else None.
    """
    first: dict[str, dict[str, Any]] = {}
    for done, row in enumerate(rows, 1):
        for kind, text in find_alarms(rows[:done], recipe, classes):
            if kind not in first:
                better = _next_better_epoch(rows, done) if kind in DISPROVED_BY_A_BETTER_EPOCH else None
                first[kind] = {"epoch": row["epoch"], "kind": kind, "text": text, "withdrawn": better}
    return list(first.values())


def _next_better_epoch(rows: Sequence[dict[str, Any]], done: int) -> int | None:
    """Return the first epoch after `done` epochs whose top-1 is higher than that of any of these."""
    best = max(row["top1"] for row in rows[:done])
    return next((row["epoch"] for row in rows[done:] if row["top1"] > best), None)


def find_alarms(rows: Sequence[dict[str, Any]], recipe: Recipe, classes: int) -> list[tuple[str, str]]:
    """Return the alarms that the last of `rows` raises, as (kind, sentence); show each kind once a run."""
    row, chance, lr = rows[-1], math.log(classes), recipe.optimization.lr
    found = []
    begun = row["step"] >= 100 and row["epoch"] >= STUCK_AFTER * recipe.schedule.epochs
    if begun and min(row["train_loss"], row["val_loss"]) > STUCK * chance:
        advice = "--norm batch, --init kaiming, or " if recipe.model.norm != "batch" else ""
        found.append((
            "stuck",
            f"The loss is {row['train_loss']:.3f}, and random guessing among {classes} classes gives {chance:.3f}: "
            f"nothing is being learned yet; likely causes, in this order, are {LIKELY_CAUSES[0]}, {LIKELY_CAUSES[1]} "
            f"(try {advice}--lr {lr / 3:.2g} or {lr * 3:.2g}), or {LIKELY_CAUSES[2]}.",
        ))  # fmt: skip
    if len(rows) > 1 and row["train_loss"] > 1.2 * min(r["train_loss"] for r in rows):
        found.append((
            "rate",
            f"The training loss rose from {min(r['train_loss'] for r in rows):.3f} to {row['train_loss']:.3f}: the "
            f"learning rate is probably too high; try --lr {lr / 3:.2g}.",
        ))  # fmt: skip
    best = min(range(len(rows)), key=lambda i: rows[i]["val_loss"])
    since = rows[best:]
    overfits = len(since) > WORSE_EPOCHS and row["train_loss"] < rows[best]["train_loss"]
    best_top1 = max(r["top1"] for r in rows)  # the loss alone also rises where a network becomes too confident
    if overfits and all(
        r["val_loss"] > 1.02 * rows[best]["val_loss"] and r["top1"] < best_top1 - FALLEN for r in since[-WORSE_EPOCHS:]
    ):
        more = {"auto": "medium", "none": "light", "light": "medium", "medium": "strong"}.get(recipe.augmentation.level)
        advice = f"--augment {more}, more images, or" if more else "more images, or"
        found.append((
            "overfitting",
            f"Since epoch {rows[best]['epoch']} the validation loss rises ({rows[best]['val_loss']:.3f} to "
            f"{row['val_loss']:.3f}) and top-1 falls ({best_top1:.1%} to {row['top1']:.1%}), while the training loss "
            f"falls, too: the network is overfitting; try {advice} fewer --epochs.",
        ))  # fmt: skip
    dead = {name: fraction for name, fraction in row.get("dead", {}).items() if fraction > DEAD}
    if dead:
        name = max(dead, key=lambda key: dead[key])
        found.append((
            "dead",
            f"{dead[name]:.0%} of the channels of {name} are zero on every image checked and no longer learn: the "
            f"learning rate was too high for a while; try --lr {lr / 3:.2g}.",
        ))  # fmt: skip
    if len(rows) > 1 and row.get("waiting", 0.0) > WAITING:
        found.append((
            "waiting",
            f"The network waits for images {row['waiting']:.0%} of the time; raise --workers (now "
            f"{recipe.data.workers or 0}), or store smaller images.",
        ))  # fmt: skip
    return found


@torch.no_grad()
def lrn_warning(model: Network, images: Tensor) -> str:
    """Return a sentence if each LRN of `model` is constant to `CONSTANT` on `images` (preprocessed, N×C×H×W), or ""."""
    found = lrn_denominators(model, images)
    deviations = {name: float(d.std() / d.mean()) for name, d in found.items()}
    if not deviations or max(deviations.values()) >= CONSTANT:
        return ""
    varies = ", ".join(f"{name} by {deviation:.2g}" for name, deviation in deviations.items())
    start = f"At the start of this run LRN is nearly multiplication by a constant: its denominators vary, {varies} of "
    if images.abs().max() > 20:  # about 0 to 255: the authors' own network starts so, too
        return f"{start}their mean; this grows if the weights do ('alexnet show lrn RUN' draws it)."
    return (
        f"{start}their mean, as its alpha belongs to pixels of 0 to 255; --std {1 / 255:.5f} keeps that range, --norm "
        "none or batch does without."
    )


def dead_relus(model: Network, images: Tensor) -> dict[str, float]:
    """Return for each ReLU the fraction of channels (or units) that are zero everywhere on `images`.

    `images` are preprocessed, N×C×H×W. Empty for networks other than `AlexNet`. Leaves the training
    mode as it was.
    """
    if not isinstance(model, AlexNet):
        return {}
    was_training = model.training
    model.eval()
    fractions = {}
    x = images
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.ReLU):
            fractions[name] = float((x.transpose(0, 1).flatten(1).amax(dim=1) <= 0).float().mean())
    model.train(was_training)
    return fractions


def save_image_grid(path: Path, images: Tensor) -> None:
    """Write uint8 images N×C×S×S (C 1 or 3) as one PNG, eight in a row; enlarge small ones by nearest neighbor."""
    factor = max(1, round(GRID_MIN_SIDE / images.shape[-1]))
    enlarged = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3).permute(0, 2, 3, 1)
    columns = min(GRID_COLUMNS, len(images))
    tiles = tile_images(enlarged.expand(-1, -1, -1, 3).numpy(), columns, gap=255, empty=255, border=GRID_GAP)
    grid = ImageOps.expand(Image.fromarray(tiles), GRID_GAP, "white")
    grid.thumbnail(GRID_MAX_SIZE)
    with atomic_write(path) as temporary:
        grid.save(temporary, format="PNG")
