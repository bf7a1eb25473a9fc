"""Entry point of `alexnet bench`: run the suites, collect one JSON document, and write it.

Needs no data and no internet connection. See `suites.py` for what is measured and how work is counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alexnet.bench.roofline import draw_roofline
from alexnet.bench.suites import Suites
from alexnet.device import environment, pick_device, pick_precision
from alexnet.errors import UserError, unknown_name
from alexnet.files import write_json
from alexnet.models.architectures import architecture

# training tunes malloc for the whole process, prediction and data loading do not: so they come first
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
    log: Callable[[str], object] = str,
) -> dict[str, Any]:
    """Measure the limits and `parts` (default: all `PARTS`); return the document of `alexnet bench --json`.

    Each measurement takes about `seconds`, or three tries if they take longer. `batch_size` defaults to 32 on a CPU and
    256 on a GPU; halved where memory is short (see `notes`). With `out`, write bench.json and, if layers were
    measured, the roofline plot there; `files` lists them. Raises `UserError` for unknown names, invalid numbers,
    and a folder that cannot be written.
    """
    for part in parts:
        if part not in PARTS:
            raise unknown_name("part of the bench", part, PARTS)
    specs = [architecture(name) for name in archs]
    if batch_size is not None and batch_size < 1:
        raise UserError(f"--batch-size must be at least 1, not {batch_size}.")
    if not seconds > 0:
        raise UserError(f"--seconds, the time per measurement, must be above 0, not {seconds:g}.")
    torch_device = pick_device(device)
    if out is not None:
        _check_writable(out)  # fail now, not after the measurements
    chosen = pick_precision(precision, torch_device)
    size = batch_size or BATCH_SIZES.get(torch_device.type, BATCH_SIZES["cpu"])
    suites = Suites(torch_device, chosen, size, seconds, log, calibrate="predict" in parts)
    document: dict[str, Any] = {
        "environment": environment(torch_device, 0),
        "precision": {"name": chosen.name, "reason": chosen.reason},
        **suites.limits(),
    }
    per_model = {part: getattr(suites, part) for part in ("train", "predict", "layers", "memory")}
    standalone = {"lrn": suites.lrn, "data": suites.data}
    for part in (part for part in PARTS if part in (parts or PARTS)):
        if part in per_model:
            document[part] = [row for spec in specs for row in per_model[part](spec)]
        elif part in standalone:
            document[part] = list(standalone[part]())
    document["notes"] = suites.notes
    return document if out is None else _write(document, out)


def _write(document: dict[str, Any], out: Path) -> dict[str, Any]:
    path = out / "bench.json"
    plots = draw_roofline(document, out) if document.get("layers") else []
    document = {**document, "files": [str(p) for p in (path, *plots)]}
    write_json(path, document)
    return document


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be written: {error.strerror}; choose another --out.") from error
