"""`alexnet predict`: label images, on stdout or as a table."""

from __future__ import annotations

import itertools
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet.cli.classifier_options import ClassifierOptions
from alexnet.cli.output import log, print_json, print_lines
from alexnet.errors import UserError
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions

if TYPE_CHECKING:
    from alexnet.inference.predict import Classifier


def predict(
    run: str,
    images: tuple[str, ...] = (),
    /,
    *,
    top: int = 5,
    network: ClassifierOptions = ClassifierOptions(),  # noqa: B008  # frozen
    file: FileOptions = NO_OPTIONS,
    out: Path | None = None,
    json: bool = False,
) -> int:
    """Label images: files, folders, or '-' for one image on standard input.

    Args:
        run: A run folder, 'last', a checkpoint folder, torchvision:IMAGENET1K_V1, a file of weights, or an
            exported file.
        images: Image files, folders of them, or '-'. Runs named before them (a folder with recipe.json, a checkpoint
            folder, 'last', torchvision:…, a file of weights) form an ensemble, whose probabilities are averaged.
        top: Labels per image.
        out: Write a table, .csv, .parquet or .jsonl, instead of printing; rerun the command to resume it.
        json: Print one JSON document.
    """
    from alexnet.data.image_folder import find_images
    from alexnet.data.image_names import describe_ignored
    from alexnet.data.value_range import describe_clipped
    from alexnet.inference.batch_predict import check_out
    from alexnet.inference.load import is_run_reference
    from alexnet.inference.predict import load
    from alexnet.run_dir import check_runs

    runs = [run, *itertools.takewhile(is_run_reference, images)]
    images = images[len(runs) - 1 :]
    check_runs(*runs)
    if not images:
        raise UserError("Name at least one image after the run: a file, a folder, or '-' for standard input.")
    if out is not None:
        check_out(out)
        if "-" in images:
            raise UserError("--out writes one row per image file and '-' is not a file; leave one of them out.")
    if not any(image == "-" or os.path.exists(image) for image in images) and not json:
        raise UserError(f"None of the images could be read: {images[0]}: there is no such file.")
    inputs: list[str | Path | bytes] = []
    ignored: list[str] = []
    for image in images:
        inputs += [sys.stdin.buffer.read()] if image == "-" else find_images([image], ignored)
    if ignored:
        log(describe_ignored(ignored))
    classifier = load(runs, cached_for="one" if len(inputs) == 1 else "many", file=file, **network.to_load())
    if out is not None:
        return _predict_to_file(out, classifier, inputs, top, network, json)
    predictions = []
    for prediction in classifier.predict_many(inputs, top, network.views, network.scales):
        predictions.append(prediction)
        if not json:
            print_lines(prediction)
    if json:
        threshold = classifier.calibration.threshold if classifier.calibration else None
        print_json({"predictions": [p.to_dict() for p in predictions], "threshold": threshold})
    if clipped := sum(p.clipped for p in predictions):
        log(describe_clipped(clipped, classifier.preprocess.value_range))
    unreadable = sum(p.error is not None for p in predictions)
    if unreadable == len(predictions):
        raise UserError("None of the images could be read: " + "; ".join(str(p) for p in predictions[:3]) + ".")
    if unreadable:
        log(f"{unreadable:,} of {len(predictions):,} images could not be read; each has its reason above.")
    return 0


def _predict_to_file(
    out: Path, classifier: Classifier, paths: list[Any], top: int, network: ClassifierOptions, json: bool
) -> int:
    """Write the labels of many images as a table, resuming a table that an earlier command left unfinished."""
    from alexnet.data.value_range import describe_clipped
    from alexnet.inference.batch_predict import write_predictions
    from alexnet.progress import default_progress

    networks = [member.model_id for member in classifier.ensemble.members]
    request = {"networks": networks, "engine": network.engine}
    with closing(default_progress()) as progress:
        written = write_predictions(
            classifier, paths, out, request, top=top, views=network.views, scales=network.scales, progress=progress
        )
    if json:
        print_json(written.to_dict())
    else:
        resumed = f", {written.resumed:,} of them from an earlier command" if written.resumed else ""
        unreadable = f"; {written.errors:,} unreadable, with the reason in their row" if written.errors else ""
        print_lines(f"{written.file}: {written.images:,} images{resumed}{unreadable}")
    if written.clipped:
        log(describe_clipped(written.clipped, classifier.preprocess.value_range))
    if written.errors == written.images:
        raise UserError(f"None of the images could be read; {out} gives the reason for each.")
    return 0
