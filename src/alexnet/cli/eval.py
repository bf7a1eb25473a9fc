"""`alexnet eval`: evaluate a trained network, or an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alexnet.cli.output import log, print_json, print_table
from alexnet.errors import UserError


def evaluate(
    run: str,
    more: tuple[str, ...] = (),
    /,
    *,
    data: Path | None = None,
    labels: Path | None = None,
    split: Literal["auto", "train", "val", "test"] = "auto",
    checkpoint: Literal["best", "last"] = "best",
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    ten_crop: bool = False,
    crops: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    engine: str = "exact",
    calibrate: Path | None = None,
    trust: bool = False,
    json: bool = False,
) -> None:
    """Evaluate a network: top-1 with its confidence interval, top-5, loss, and precision and recall per class.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, or an exported file.
        more: Further runs with the same classes: an ensemble, whose probabilities are averaged.
        data: Other images than the run's own: a folder of class folders, or an archive of one.
        labels: A CSV or Parquet file with the columns path and label, instead of class folders.
        split: Which split; auto is test where there is one, else val.
        checkpoint: Which checkpoint of the run.
        device: Where to compute.
        ten_crop: Average the four corners, the center and their mirror images, as the paper's test does.
        crops: Average this many views instead: 2, 8, 18, 32, 50 … form grids.
        scales: Average over the image resized by each of these factors, such as 1 1.15 1.3.
        engine: exact (torch in float32, as in training), fast (the fastest installed here that stays close to exact),
            torch-bf16, onnxruntime, onnxruntime-int8, openvino, openvino-bf16, openvino-int8-fc or openvino-int8.
        calibrate: A folder of images that calibrates the int8 engines; the run's own images by default.
        trust: Open an exported file in a format that can run code (TorchScript, pt2).
        json: Print one JSON document.
    """
    from alexnet.inference.evaluate import evaluate as evaluate_runs

    found = evaluate_runs(
        (run, *more), data=data, labels=labels, split=split, checkpoint=checkpoint, device=device,
        views=number_of_views(ten_crop, crops), scales=scales, engine=engine, calibrate=calibrate, trust=trust, log=log,
    )  # fmt: skip
    if json:
        print_json(found)
        return
    print(found)
    if more:
        print("individually: " + ", ".join(f"{m['run']} {m['top1']:.2%}" for m in found["members"]))
    print_table(
        ("class", "images", "precision", "recall", "F1"),
        [
            (c["label"], c["n"], f"{c['precision']:.1%}", f"{c['recall']:.1%}", f"{c['f1']:.3f}")
            for c in found["per_class"]
        ],
    )


def number_of_views(ten_crop: bool, crops: int | None) -> int:
    """Return the number of views per image for --ten-crop and --crops."""
    if ten_crop and crops not in (None, 10):
        raise UserError(f"--ten-crop is 10 views, but --crops is {crops}; give only one of them.")
    return 10 if ten_crop else crops if crops is not None else 1
