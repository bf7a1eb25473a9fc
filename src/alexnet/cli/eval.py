"""`alexnet eval`: evaluate a trained network, or an ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alexnet.cli.classifier_options import ClassifierOptions
from alexnet.cli.output import print_json, print_lines, print_table
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions
from alexnet.text import BY_CONTENT, TextOptions


def evaluate(
    run: str,
    more: tuple[str, ...] = (),
    /,
    *,
    data: Path | None = None,
    labels: Path | None = None,
    text: TextOptions = BY_CONTENT,
    split: Literal["auto", "train", "val", "test"] = "auto",
    network: ClassifierOptions = ClassifierOptions(),  # noqa: B008  # frozen
    file: FileOptions = NO_OPTIONS,
    json: bool = False,
) -> None:
    """Evaluate a network: top-1 with its confidence interval, top-5, loss, and precision and recall per class.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, a file of weights, or an
            exported file.
        more: Further runs with the same classes: an ensemble, whose probabilities are averaged.
        data: Other images than the run's own: a folder of class folders, or an archive of one.
        labels: A CSV, JSON Lines or Parquet file with the columns path and label, instead of class folders.
        split: Which split; auto is test where there is one, else val.
        json: Print one JSON document.
    """
    from alexnet.files import check_data_exists, check_labels_exist
    from alexnet.run_dir import check_runs

    check_runs(run, *more)
    check_data_exists(data)
    check_labels_exist(labels)
    from alexnet.inference.evaluate import evaluate as evaluate_runs

    found = evaluate_runs(
        (run, *more),
        data=data,
        labels=labels,
        encoding=text.encoding,
        columns=text.columns,
        split=split,
        views=network.views,
        scales=network.scales,
        file=file,
        **network.to_load(),
    )
    if json:
        print_json(found)
        return
    print(found)
    if more:
        print_lines("individually: " + ", ".join(f"{m['run']} {m['top1']:.2%}" for m in found["members"]))
    print_table(
        ("class", "images", "precision", "recall", "F1"),
        [
            (c["label"], c["n"], f"{c['precision']:.1%}", f"{c['recall']:.1%}", f"{c['f1']:.3f}")
            for c in found["per_class"]
        ],
    )
