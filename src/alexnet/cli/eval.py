"""The commands that train, use and describe networks, each a typed function.

Results are printed on stdout. Everything heavy is imported inside the command that needs it, so that `alexnet --help`
answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alexnet.cli.output import _print_json, _say, _table, _views


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
    """Measure a trained network: top-1 with its interval, top-5, loss, and precision and recall of each class.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, or an exported file.
        more: Further runs that know the same classes: an ensemble, whose probabilities are averaged.
        data: Other pictures than the run's own: a folder of class folders, or an archive of it.
        labels: A CSV or Parquet file with the columns path and label, in place of class folders.
        split: Which part of the data; auto is test where there is one, else val.
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
        json: Print one JSON document.
    """
    from alexnet.inference.evaluate import evaluate as run_evaluation

    found = run_evaluation(
        (run, *more), data=data, labels=labels, split=split, checkpoint=checkpoint, device=device,
        views=_views(ten_crop, crops), scales=scales, engine=engine, calibrate=calibrate, trust=trust, say=_say,
    )  # fmt: skip
    if json:
        _print_json(found)
        return
    print(found)
    if more:
        print("alone: " + ", ".join(f"{m['run']} {m['top1']:.2%}" for m in found["members"]))
    _table(
        ("class", "images", "precision", "recall", "F1"),
        [
            (c["label"], c["n"], f"{c['precision']:.1%}", f"{c['recall']:.1%}", f"{c['f1']:.3f}")
            for c in found["per_class"]
        ],
    )
