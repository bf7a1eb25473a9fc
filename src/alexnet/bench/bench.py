"""`alexnet bench`: how fast we are here, each speed beside the limit of this machine that bounds it.

Needs no data and no network connection. What is measured, and how work is counted, stands in `measurements`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alexnet.bench.roofline import draw
from alexnet.bench.suites import Measurements
from alexnet.device import environment, pick_device, pick_precision
from alexnet.errors import UserError, unknown_name
from alexnet.files import write_json
from alexnet.models.architectures import architecture

# training tells the allocator to keep its pages, which prediction and workers do not: so it comes after them
PARTS = ("limits", "data", "predict", "train", "lrn", "layers", "memory")
ARCHS = ("torchvision", "paper")
BATCH_SIZES = {"cpu": 32, "cuda": 256}


def bench(
    parts: Sequence[str] = (),
    *,
    archs: Sequence[str] = ARCHS,
    batch_size: int | None = None,
    seconds: float = 1.0,
    precision: str = "auto",
    device: str = "auto",
    out: Path | None = None,
    say: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Measure the limits and `parts` of `PARTS` (all unless named); the document that `alexnet bench --json` prints.

    Each measurement takes about `seconds`, or three tries where one is longer. `batch_size` is 32 on a CPU and 256 on
    a GPU unless given; it shrinks where memory is short, which `say` is told and `notes` keeps. With `out`,
    bench.json and, if the layers were measured, the roofline picture are written there, and `files` names them. Raises
    `UserError` for unknown names, numbers that make no sense and a folder that cannot be written.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the bench", part, PARTS)
    specs = [architecture(name) for name in archs]
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}.")
    if not seconds > 0:
        raise UserError(f"--seconds is how long one measurement may take and must be above 0, not {seconds:g}.")
    where = pick_device(device)
    if out is not None:
        _check_writable(out)  # before a minute's work, not after
    chosen = pick_precision(precision, where)
    wanted = batch_size or BATCH_SIZES.get(where.type, BATCH_SIZES["cpu"])
    measure = Measurements(where, chosen, wanted, seconds, say, thorough="predict" in parts)
    document: dict[str, Any] = {
        "environment": environment(where, 0),
        "precision": {"name": chosen.name, "reason": chosen.reason},
        **measure.limits(),
    }
    of_network = {part: getattr(measure, part) for part in ("train", "predict", "layers", "memory")}
    alone = {"lrn": measure.lrn, "data": measure.data}
    for part in (part for part in PARTS if part in (parts or PARTS)):
        if part in of_network:
            document[part] = [row for spec in specs for row in of_network[part](spec)]
        elif part in alone:
            document[part] = list(alone[part]())
    document["notes"] = measure.notes
    return document if out is None else _write(document, out)


def _write(document: dict[str, Any], out: Path) -> dict[str, Any]:
    path = out / "bench.json"
    pictures = draw(document, out) if document.get("layers") else []
    document = {**document, "files": [str(p) for p in (path, *pictures)]}
    write_json(path, document)
    return document


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written: {error.strerror}; choose another --out.") from error
