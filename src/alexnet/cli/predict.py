"""The commands that train, use and describe networks, each a typed function.

Results are printed on stdout. Everything heavy is imported inside the command that needs it, so that `alexnet --help`
answers at once.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from alexnet.cli.output import _print_json, _progress, _say, _views
from alexnet.errors import UserError


def predict(
    run: str,
    images: tuple[str, ...] = (),
    /,
    *,
    top: int = 5,
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    ten_crop: bool = False,
    crops: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    engine: str = "exact",
    calibrate: Path | None = None,
    trust: bool = False,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Label pictures: files, folders, or '-' for one picture on standard input.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, or an exported file.
        images: Picture files, folders of them, or '-'. Words before them that are runs too (a folder with recipe.json,
            a checkpoint folder, 'last', torchvision:…) make an ensemble, whose probabilities are averaged.
        top: How many labels for each.
        checkpoint: Which checkpoint of the run.
        device: Where to compute.
        ten_crop: Average four corners, the centre and their mirror images, as the paper tests.
        crops: Average this many views instead: 2, 8, 18, 32, 50 … make grids.
        scales: Average over the picture resized by each of these factors, such as 1 1.15 1.3.
        engine: What computes: exact (torch in float32, as in training), fast (the fastest installed here that stays
            close to exact), torch-bf16, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, openvino-int8-fc or
            openvino-int8.
        calibrate: A folder of pictures for the int8 engines to see the ranges of their numbers; the run's own unless
            given.
        trust: Open an exported file even if nothing says that it was exported here; such a file can run code.
        out: Write a table, .csv, .parquet or .jsonl, instead of printing; interrupted, the same command goes on.
        json: Print one JSON document.
    """
    from alexnet.data.image_folder import find_images
    from alexnet.inference.load import is_run_reference
    from alexnet.inference.predict import load_quickly

    runs = [run, *itertools.takewhile(is_run_reference, images)]
    images = images[len(runs) - 1 :]
    if not images:
        raise UserError("Name at least one picture after the run: a file, a folder, or '-' for standard input.")
    if out is not None:
        return predict_into(
            out, runs, images, top=top, checkpoint=checkpoint, device=device, views=_views(ten_crop, crops),
            scales=scales, engine=engine, calibrate=calibrate, trust=trust, json=json,
        )  # fmt: skip
    wanted: list[str | Path | bytes] = []
    for image in images:
        wanted += [sys.stdin.buffer.read()] if image == "-" else find_images([image])
    predictions = []
    views = _views(ten_crop, crops)
    classifier = load_quickly(
        runs, checkpoint=checkpoint, device=device, engine=engine, calibrate=calibrate, trust=trust, say=_say
    )
    for prediction in classifier.predict_many(wanted, top, views, scales):
        predictions.append(prediction)
        if not json:
            print(prediction, flush=True)
    if json:
        _print_json({"predictions": [p.to_dict() for p in predictions]})
    if all(p.error for p in predictions):
        raise UserError("None of the pictures could be read: " + "; ".join(str(p) for p in predictions[:3]) + ".")
    return 0


def predict_into(
    out: Path,
    runs: Sequence[str],
    images: Sequence[str],
    *,
    top: int,
    views: int,
    scales: tuple[float, ...],
    checkpoint: str,
    engine: str,
    json: bool,
    **opening: Any,
) -> int:
    """`alexnet predict … --out FILE`: labels for many pictures, as a table."""
    from alexnet.data.image_folder import find_images
    from alexnet.inference.batch_predict import check_out, write_predictions
    from alexnet.inference.load import model_id
    from alexnet.inference.predict import load_quickly

    check_out(out)
    if "-" in images:
        raise UserError("--out writes a row for each picture file, and '-' is none; leave one of them out.")
    wanted = find_images(images)
    trust = opening.get("trust", False)
    asked = {"networks": [model_id(run, checkpoint, trust) for run in runs], "engine": engine}
    classifier = load_quickly(runs, checkpoint=checkpoint, engine=engine, say=_say, **opening)
    with _progress() as progress:
        written = write_predictions(
            classifier, wanted, out, asked, top=top, views=views, scales=scales, progress=progress
        )
    if json:
        _print_json(written.to_dict())
    else:
        resumed = f", {written.resumed:,} of them by an earlier command" if written.resumed else ""
        unread = f"; {written.errors:,} cannot be read, and their rows say why" if written.errors else ""
        print(f"{written.file}: {written.images:,} pictures{resumed}{unread}")
    if written.errors == written.images:
        raise UserError(f"None of the pictures could be read; {out} says why of each.")
    return 0
