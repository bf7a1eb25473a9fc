"""A network, or several together, over a split of a data set: logits, and the figures made of them.

Training validates through the same functions, always in float32 and in the same batches, so that `alexnet eval`
prints exactly the figure that training reported.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles
from alexnet.data.datasets import decode_files, load_dataset, load_for_evaluation
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.image_folder import find_images
from alexnet.data.loader import (
    EVAL_BATCH_SIZE,
    BatchLoader,
    choose_workers,
    evaluation_batches,
    fits_in_memory,
)
from alexnet.data.split import read_split
from alexnet.data.transforms import EvalTransform
from alexnet.device import pick_device
from alexnet.errors import UserError, unknown_name
from alexnet.inference.calibration import describe_answers
from alexnet.inference.crops import CENTER_CROP, Views, log_mean, make_views
from alexnet.inference.ensemble import Ensemble, RunNames, forward, load_ensemble
from alexnet.inference.metrics import compute_metrics, correct_at
from alexnet.run_dir import Run
from alexnet.runtimes.engines import EXACT, Engine, check_engine
from alexnet.runtimes.exported import Exported
from alexnet.runtimes.loaded_model import LoadedModel
from alexnet.runtimes.quantize import _evenly
from alexnet.runtimes.select import EngineConfig

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outputs:
    """What a network said of each image of a split, in the split's order."""

    ids: np.ndarray  # (n,) int64: index of the image in its split
    targets: np.ndarray  # (n,) int64
    logits: np.ndarray  # (n, classes) float32

    def measure(self, classes: tuple[str, ...]) -> dict[str, Any]:
        return compute_metrics(self.logits, self.targets, classes)


def run_network(
    model: nn.Module,
    batches: BatchLoader,
    preprocess: EvalTransform,
    device: torch.device,
    progress: Progress | None = None,
    views: Views = CENTER_CROP,
) -> Outputs:
    """The logits of every image of `batches`, in float32; leaves the model's training mode as it found it.

    With several `views`, `batches` must be uncropped, and the logits are the logarithm of the mean probability.
    """
    return run_networks([(model, preprocess)], batches, device, progress, views)[0]


@torch.no_grad()
def run_networks(
    networks: Sequence[tuple[nn.Module | Engine, EvalTransform]],
    batches: BatchLoader,
    device: torch.device,
    progress: Progress | None = None,
    views: Views = CENTER_CROP,
) -> list[Outputs]:
    """`run_network` for several networks that look at the same images, which are read once."""
    were_training = [(model, model.training) for model, _ in networks if isinstance(model, nn.Module)]
    ids, targets = [], []
    logits: list[list[torch.Tensor]] = [[] for _ in networks]
    done = 0
    try:
        for model, _ in were_training:
            model.eval()
        for batch in batches.batches(0):
            images = batch.images.to(device, non_blocking=device.type == "cuda")
            for said, (network, preprocess) in zip(logits, networks, strict=True):
                said.append(forward(network, images, preprocess, views).cpu())
            ids.append(batch.ids.cpu())
            targets.append(batch.targets.cpu())
            done += len(batch.ids)
            if progress:
                progress(done, batches.samples, "evaluating")
    finally:
        for model, was_training in were_training:
            model.train(was_training)
    all_ids, all_targets = torch.cat(ids).numpy(), torch.cat(targets).numpy()
    return [Outputs(all_ids, all_targets, torch.cat(said).numpy()) for said in logits]


class Evaluation(dict[str, Any]):
    """The figures of one evaluation, as a dict that shows itself in a notebook."""

    def __repr__(self) -> str:
        low, high = self["interval"]
        return (
            f"top-1 {self['top1']:.2%} (95 % interval {low:.2%} to {high:.2%}), top-5 {self['top5']:.2%}, "
            f"loss {self['loss']:.4f} on {self['n']} images of the {self['split']} split"
            f"\n{self._confidence()}"
        )

    def _confidence(self) -> str:
        """The sentence on how sure it is, and how rightly."""
        calibration = self["calibration"]
        if calibration is None:
            return f"calibration error {self['ece']:.2%}; {self['calibration_note']}"
        right = f", {self['answered_top1']:.2%} of them right" if self["answered_top1"] is not None else ""
        return (
            f"calibration error {self['ece']:.2%}, {self['ece_calibrated']:.2%} at temperature "
            f"{calibration['temperature']:.3g}; unsure below {calibration['threshold']:.1%}: "
            f"{self['coverage']:.2%} answered{right}. {self['calibration_note']}"
        ).rstrip()

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(c['label'])}</td><td>{c['n']}</td><td>{c['precision']:.1%}</td>"
            f"<td>{c['recall']:.1%}</td><td>{c['f1']:.3f}</td></tr>"
            for c in self["per_class"]
        )
        head = "<tr><th>class</th><th>images</th><th>precision</th><th>recall</th><th>F1</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{head}{rows}</table>"


def evaluate(
    run: RunNames,
    *,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    split: str = "auto",
    checkpoint: str = "best",
    device: str = "auto",
    views: int = 1,
    scales: Sequence[float] = (1.0,),
    engine: str = EXACT,
    calibrate: str | Path | None = None,
    trust: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], object] = lambda _: None,
) -> Evaluation:
    """Measure a trained network, or several as an ensemble, on the (first) run's own data, on the folders in `data`, or
    on what the table `labels` lists.

    `split` is train, val or test; `auto` takes test where there is one, else val. `views` is the number of crops an
    image, at each of `scales`, whose probabilities are averaged: 10 is the paper's ten-crop test (see `views.py`).
    `engine` is what computes (see `engines.py`); one of 8 bits is calibrated on the pictures in the folder `calibrate`,
    else on training pictures, and `say` gets a sentence on how far it was off. An exported file needs `data` or
    `labels`; `trust` opens one that nothing vouches for.
    Returns the figures of `metrics.measure`, with `runs`, `members` (each one's own top1), `split`, `views` (in all, of
    one network), `scales` and `engines`; and those of `calibration.describe_answers`, with the `calibration` that they
    are at, or None, and a `calibration_note` on where it comes from or why there is none. On the run's own data the
    exact logits of a single network and view are also kept in `evaluation/<split>.parquet`. Raises `UserError`, also
    where a member may have trained on what is measured.
    """
    looks = make_views(views, scales)
    check_engine(engine, device, calibrate)
    ensemble = load_ensemble(run, checkpoint, trust)
    first = ensemble.members[0]
    readings = ensemble.input_groups(looks)
    on = pick_device(device)
    own = data is None and labels is None
    if own:
        if first.run is None:
            raise UserError(
                f"{ensemble.names[0]} comes without data of its own; give --data with a folder of class folders."
            )
        source = run_dataset(first.run, progress)
    else:
        trained_on = str(_recipe(first.run).get("dataset", "folder")) if first.run else "folder"
        source = load_for_evaluation(
            trained_on, Path(data) if data else None, progress, labels=Path(labels) if labels else None
        )
    name = _choose_split(split, source)
    part = source.splits[name]
    if own:
        _check_unseen(ensemble, source, name)
    for member in ensemble.members:
        if source.channels != member.preprocess.channels and isinstance(part, ImageArrays):
            raise UserError(
                f"The data has {source.channels} channels and the network reads {member.preprocess.channels}."
            )
    known = match_classes(ensemble.classes, source.classes)
    computing = ensemble.networks(EngineConfig(engine, on, device, Path(calibrate) if calibrate else None, say))
    logits: list[list[torch.Tensor]] = [[] for _ in ensemble.members]
    for reading in readings:
        read, images = reading.preprocess, part
        workers, _ = choose_workers(None, EVAL_BATCH_SIZE * read.channels * read.size**2)
        if isinstance(part, ImageFiles) and fits_in_memory(source, read.size):
            images = decode_files(part, read, progress=progress)
        networks = [(computing[i], ensemble.members[i].preprocess) for i in reading.members]
        found = run_networks(networks, evaluation_batches(images, read, workers), on, progress, looks)
        for i, said in zip(reading.members, found, strict=True):
            logits[i].append(torch.from_numpy(said.logits))
    targets = known[found[0].targets]
    outputs = Outputs(found[0].ids, targets, ensemble.average(logits).numpy())
    only = len(ensemble.members) == 1 and looks == CENTER_CROP and engine == EXACT
    if own and only and first.run and _is_best(first):
        first.run.write_evaluation(name, [part.names[i] for i in outputs.ids], outputs.targets, outputs.logits)
    alone = [log_mean(at_scales)[:, order].numpy() for at_scales, order in zip(logits, ensemble.orders, strict=True)]
    members = [
        {"run": run_name, "top1": float(correct_at(said, targets, 1).mean())}
        for run_name, said in zip(ensemble.names, alone, strict=True)
    ]
    calibration, note = ensemble.calibration()
    if calibration and own and name == calibration.split:
        note = f"{note} It was fitted on these very pictures.".lstrip()
    return Evaluation(
        {
            "runs": list(ensemble.names),
            "split": name,
            "views": len(looks),
            "scales": list(looks.scales),
            "engines": [EXACT if isinstance(by, nn.Module) else by.name for by in computing],
            **outputs.measure(ensemble.classes),
            "members": members,
            "calibration": calibration.to_dict() if calibration else None,
            "calibration_note": note,
            **describe_answers(outputs.logits, targets, calibration),
        }
    )


def _is_best(opened: LoadedModel | Exported) -> bool:
    """Whether this is the network that the run's own evaluations are of."""
    best = opened.run.named_checkpoint("best") if opened.run else None
    return best is not None and opened.checkpoint is not None and opened.checkpoint.resolve() == best.resolve()


def run_dataset(run: Run, progress: Progress | None) -> ImageDataset:
    """The data that a run was trained on, divided as it was then."""
    recipe = _recipe(run)
    rows = read_split(run.split_csv) if run.split_csv.is_file() else None
    return load_dataset(
        recipe["dataset"],
        Path(recipe["data"]) if recipe["data"] else None,
        labels=Path(recipe["labels"]) if recipe["labels"] else None,
        seed=recipe["seed"],
        skip_bad=recipe["skip_bad"],
        hold_out=recipe["validate_on"] == "val",
        split=rows,
        progress=progress,
    )


def _check_unseen(ensemble: Ensemble, source: ImageDataset, split: str) -> None:
    """Raise `UserError` if `split` was held out of the first member's data and another member, trained on the same
    data, did not hold out the same: it may have learnt from what is measured here."""
    if split not in source.held_out:
        return
    first = ensemble.members[0].run
    assert first is not None, "it has data of its own"
    measured = set(source.splits[split].names)
    ours = _recipe(first)
    for other in (member.run for member in ensemble.members[1:] if member.run is not None):
        theirs = _recipe(other)
        if theirs["dataset"] != ours["dataset"] or (ours["dataset"] == "folder" and theirs["data"] != ours["data"]):
            continue  # trained on other pictures
        rows = read_split(other.split_csv) if other.split_csv.is_file() else []
        if missing := len(measured - {name for name, of in rows if of == split}):
            raise UserError(
                f"{missing} of the {len(measured)} {split} pictures of {first.path} are not in the {split} split of "
                f"{other.path}, which may have been trained on them; give --data with pictures that neither has seen, "
                "or divide the data into train/ and val/ before training."
            )


def _recipe(run: Run) -> dict[str, Any]:
    """What the run's recipe.json says of its data."""
    try:
        found = json.loads(run.recipe_json.read_text(encoding="utf-8"))
        known = {key: found[key] for key in ("dataset", "data", "seed", "skip_bad", "validate_on")}
        return {**known, "labels": found.get("labels")}  # earlier runs have none
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run.recipe_json} is damaged ({error!r}); give the pictures with --data.") from error


def _choose_split(wanted: str, source: ImageDataset) -> str:
    if wanted == "auto":
        return next(name for name in ("test", "val", "all", "train") if name in source.splits)
    if wanted not in source.splits:
        raise unknown_name("split", wanted, source.splits)
    return wanted


def match_classes(trained: tuple[str, ...], found: tuple[str, ...]) -> np.ndarray:
    """For each class index of a data set, the index that the network gives to the class of the same name.

    ImageNet's own folders are named by number (n01440764), and torchvision's classes by word (tench): both are in the
    order of the numbers, so that all 1000 folders together are matched by place. Raises `UserError` if the data set
    has a class that the network does not know.
    """
    if len(found) == len(trained) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in found):
        return np.arange(1000)
    index = {name: i for i, name in enumerate(trained)}
    missing = [name for name in found if name not in index]
    if missing:
        shown = ", ".join(repr(m) for m in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise UserError(
            f"The data has {len(found)} classes and the network {len(trained)}, and it does not know {shown}; "
            "evaluate on folders named as the classes that it was trained on."
        )
    return np.array([index[name] for name in found], dtype=np.int64)


def calibration_images(opened: LoadedModel, folder: Path | None, flag: str = "--calibrate") -> np.ndarray:
    """Up to 300 pictures to calibrate `opened` on, evenly from `folder`, else from those that it was trained on: uint8
    N×C×size×size. Raises `UserError` where there are none."""
    if folder is not None:
        found = []
        for path in _evenly(find_images([folder])):
            with contextlib.suppress(BadImage):
                found.append(opened.preprocess.eval_array(decode_image(path, opened.preprocess.channels)))
        if not found:
            raise UserError(f"None of the pictures in {folder} can be read; give others with {flag}.")
        return np.stack(found)
    if opened.run is None:
        raise UserError(
            "An engine of 8-bit activations needs pictures to see their ranges, and this network comes without any; "
            f"give {flag} with a folder of pictures like those that it will see."
        )
    part: ImageArrays | ImageFiles = run_dataset(opened.run, None).splits["train"]
    part = part.take(np.array(_evenly(list(range(len(part))))))
    return np.concatenate([b.images.cpu().numpy() for b in evaluation_batches(part, opened.preprocess).batches(0)])
