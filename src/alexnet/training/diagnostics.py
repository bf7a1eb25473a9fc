"""What goes wrong in training, said in plain words as soon as the figures show it.

Each alarm is a pure function of the finished epochs' rows in `metrics.jsonl`, so that a resumed run says the same.
What was said stands in the run's `alarms.json`, and in its report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from alexnet.files import atomic_write
from alexnet.models.model import AlexNet, Network
from alexnet.training.recipe import Recipe

STUCK = 0.985  # share of the loss of guessing, above which nothing was learnt
DEAD = 0.5  # share of a layer's channels that are zero on every picture looked at
WAITING = 0.3  # share of the time that the network waited for pictures
WORSE = 5  # epochs in a row with a worse validation loss than the best: at high rates it jumps for two or three


def find_alarms(rows: Sequence[dict[str, Any]], recipe: Recipe, classes: int) -> list[tuple[str, str]]:
    """What the last of `rows` gives cause to say: (kind, sentence). Each kind is to be said once a run."""
    row, chance = rows[-1], math.log(classes)
    found = []
    if row["step"] >= 100 and min(row["train_loss"], row["val_loss"]) > STUCK * chance:
        advice = "--norm batch, --init kaiming, or " if recipe.norm != "batch" else ""
        found.append((
            "stuck",
            f"The loss is {row['train_loss']:.3f}, and guessing among {classes} classes gives {chance:.3f}: nothing "
            f"is being learned yet; if the next epochs stay here, try {advice}--lr {recipe.lr / 3:.2g} or "
            f"{recipe.lr * 3:.2g}.",
        ))  # fmt: skip
    if len(rows) > 1 and row["train_loss"] > 1.2 * min(r["train_loss"] for r in rows):
        found.append((
            "rate",
            f"The training loss rose from {min(r['train_loss'] for r in rows):.3f} to {row['train_loss']:.3f}: the "
            f"learning rate is probably too high; try --lr {recipe.lr / 3:.2g}.",
        ))  # fmt: skip
    best = min(range(len(rows)), key=lambda i: rows[i]["val_loss"])
    since = rows[best:]
    overfits = len(since) > WORSE and row["train_loss"] < rows[best]["train_loss"]
    if overfits and all(r["val_loss"] > 1.02 * rows[best]["val_loss"] for r in since[-WORSE:]):
        more = {"auto": "medium", "none": "light", "light": "medium", "medium": "strong"}.get(recipe.augment)
        advice = f"--augment {more}, more pictures, or" if more else "more pictures, or"
        found.append((
            "overfitting",
            f"Since epoch {rows[best]['epoch']} the validation loss rises ({rows[best]['val_loss']:.3f} to "
            f"{row['val_loss']:.3f}) while the training loss falls: the network learns its pictures by heart; try "
            f"{advice} fewer --epochs.",
        ))  # fmt: skip
    dead = {name: share for name, share in row.get("dead", {}).items() if share > DEAD}
    if dead:
        name = max(dead, key=lambda key: dead[key])
        found.append((
            "dead",
            f"{dead[name]:.0%} of the channels of {name} are zero on every picture looked at, and learn nothing any "
            f"more: the learning rate was too high for a while; try --lr {recipe.lr / 3:.2g}.",
        ))  # fmt: skip
    if len(rows) > 1 and row.get("waiting", 0.0) > WAITING:
        found.append((
            "waiting",
            f"The network waits for pictures {row['waiting']:.0%} of the time; raise --workers (now "
            f"{recipe.workers or 0}), or make the pictures smaller on disk.",
        ))  # fmt: skip
    return found


# ─── Dead ReLUs: channels that are zero whatever the picture, and so learn nothing any more.


@torch.no_grad()
def dead_channels(model: Network, images: Tensor) -> dict[str, float]:
    """The share of channels (or units) of each ReLU that are zero everywhere on `images`, preprocessed N×C×H×W.

    Empty for networks that are not AlexNets. The network is left in the mode that it is in; run it in evaluation mode.
    """
    if not isinstance(model, AlexNet):
        return {}
    was_training = model.training
    model.eval()
    shares = {}
    x = images
    for name, module in model.named_children():
        x = module(x)
        if isinstance(module, nn.ReLU):
            shares[name] = float((x.transpose(0, 1).flatten(1).amax(dim=1) <= 0).float().mean())
    model.train(was_training)
    return shares


# ─── Many small pictures in one: what training really reads, to be looked at.

ACROSS = 8
SIDE = 112  # pixels that a picture is shown with, at least


def save_image_grid(path: Path, images: torch.Tensor) -> None:
    """Write uint8 images N×C×S×S (C 1 or 3) as one PNG file, eight in a row; small ones enlarged without smoothing."""
    n, _, side, _ = images.shape
    factor = max(1, round(SIDE / side))
    step = side * factor + 4
    sheet = Image.new("RGB", (ACROSS * step - 4, -(-n // ACROSS) * step - 4), "white")
    for i, image in enumerate(images):
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        picture = Image.fromarray(pixels).resize((side * factor,) * 2, Image.Resampling.NEAREST)
        sheet.paste(picture, (i % ACROSS * step, i // ACROSS * step))
    sheet.thumbnail((1200, 1200))
    with atomic_write(path) as beside:
        sheet.save(beside, format="PNG")
