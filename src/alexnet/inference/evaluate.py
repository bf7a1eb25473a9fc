"""Evaluation of a network or an ensemble on a split of a dataset: logits and metrics.

Training validates through the same functions, always in float32 and in the same batches, so that
`alexnet eval` prints exactly the metrics that training reported.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from alexnet.data.dataset import ImageArrays, ImageDataset, read_split
from alexnet.data.datasets import load_for_evaluation
from alexnet.data.in_memory import decode_splits, fits_in_memory
from alexnet.data.loader import EVAL_BATCH_SIZE, BatchLoader, choose_workers, evaluation_batches
from alexnet.data.transforms import EvalTransform
from alexnet.data.value_range import describe_clipped, find_value_range
from alexnet.device import pick_device
from alexnet.errors import UserError, unknown_name
from alexnet.inference.crops import CENTER_CROP, Views, log_mean, make_views
from alexnet.inference.ensemble import Ensemble, RunNames, forward, load_ensemble
from alexnet.inference.load import explain_bad_files, load_run_dataset, read_recipe
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions
from alexnet.messages.translator import Translator
from alexnet.progress import Progress, split_name
from alexnet.runtimes.calibration import confidence_metrics, correct_at
from alexnet.runtimes.engines import EXACT, Engine, LoadedModel, check_engine
from alexnet.text import TextOptions, join_lines


@dataclass(frozen=True)
class Outputs:
    """The logits of each image of a split, in the split's order."""

    ids: np.ndarray  # (n,) int64: index of the image in its split
    targets: np.ndarray  # (n,) int64
    logits: np.ndarray  # (n, classes) float32

    def measure(self, classes: tuple[str, ...]) -> dict[str, Any]:
        """Return `compute_metrics` of these logits."""
        return compute_metrics(self.logits, self.targets, classes)


@torch.no_grad()
def run_networks(
    networks: Sequence[tuple[nn.Module | Engine, EvalTransform]],
    batches: BatchLoader,
    device: torch.device,
    progress: Callable[[int, int, str], None] | None = None,
    views: Views = CENTER_CROP,
) -> list[Outputs]:
    """Return the logits of each network for every image of `batches`, in float32; the images are
    read once, and the training mode of the networks is restored afterwards.

    With several `views`, `batches` must be uncropped, and the logits are the logarithm of the mean probability.
    """
    were_training = [(model, model.training) for model, _ in networks if isinstance(model, nn.Module)]
    ids, targets = [], []
    logits: list[list[torch.Tensor]] = [[] for _ in networks]
    done = 0
    try:
        for model, _ in were_training:
            model.eval()
        for batch in batches.batches(0):
            images = batch.images.to(device, non_blocking=device.type == "cuda")
            for batch_logits, (network, preprocess) in zip(logits, networks, strict=True):
                batch_logits.append(forward(network, images, preprocess, views).cpu())
            ids.append(batch.ids.cpu())
            targets.append(batch.targets.cpu())
            done += len(batch.ids)
            if progress:
                progress(done, batches.samples, "evaluating")
    finally:
        for model, was_training in were_training:
            model.train(was_training)
    all_ids, all_targets = torch.cat(ids).numpy(), torch.cat(targets).numpy()
    return [Outputs(all_ids, all_targets, torch.cat(batch_logits).numpy()) for batch_logits in logits]


class Evaluation(dict[str, Any]):
    """The metrics of one evaluation, as a dict with a text and an HTML representation in the language `lang`."""

    lang = "en"

    def __repr__(self) -> str:
        translate = Translator(self.lang)
        low, high = self["interval"]
        top5 = translate("result_top5", top5=self["top5"]) if has_top5(len(self["per_class"])) else ""
        values = {"top1": self["top1"], "low": low, "high": high, "top5": top5, "loss": self["loss"], "n": self["n"]}
        summary = translate("evaluation", **values, split=split_name(self["split"], translate))
        return join_lines(summary, self._confidence(translate))

    def _confidence(self, translate: Translator) -> str:
        calibration, note = self["calibration"], translate.sentence(self["calibration_note"])
        if calibration is None:
            return translate("evaluation_uncalibrated", ece=self["ece"], note=note)
        top1 = self["answered_top1"]
        correct = translate("evaluation_correct", top1=top1) if top1 is not None else ""
        values = {"t": calibration["temperature"], "threshold": calibration["threshold"], "coverage": self["coverage"]}
        values |= {"ece": self["ece"], "ece_calibrated": self["ece_calibrated"], "correct": correct}
        return translate.join([translate("evaluation_calibrated", **values), note]).rstrip()

    def _repr_html_(self) -> str:
        from alexnet.notebook.display import render_table

        rows = [
            (c["label"], c["n"], f"{c['precision']:.1%}", f"{c['recall']:.1%}", f"{c['f1']:.3f}")
            for c in self["per_class"]
        ]
        head = [Translator(self.lang)(key) for key in ("class", "images", "precision", "recall", "f1")]
        return render_table(repr(self), rows, head)


def evaluate(
    run: RunNames,
    *,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    encoding: str | None = None,
    columns: str | None = None,
    split: str = "auto",
    checkpoint: str = "best",
    device: str = "auto",
    views: int = 1,
    scales: Sequence[float] = (1.0,),
    engine: str = EXACT,
    calibrate: str | Path | None = None,
    trust: bool = False,
    file: FileOptions = NO_OPTIONS,
    progress: Progress | None = None,
    log: Callable[[str], object] = lambda _: None,
    lang: str = "en",
) -> Evaluation:
    """Evaluate a trained network, or several as an ensemble, on the data of the (first) run, on the
    class folders in `data`, or on the images listed in the table `labels`, read as `encoding` and
    `columns` say (`text.TextOptions`).

    `split` is train, val or test; `auto` is test where there is one, else val. `views` is the
    number of crops of an image at each of `scales`; their probabilities are averaged, and 10 is the
    paper's ten-crop test (see `crops.py`). `engine` names the runtime (see `runtimes/engines.py`);
    an int8 engine is calibrated on the images in the folder `calibrate`, else on training images,
    and `log` receives a sentence on how much it differs from `exact`. An exported file needs `data`
    or `labels`; `trust` opens one whose format can run code. A file of weights, which `file`
    describes, needs them too. A notebook shows the result in the language `lang`, en or zh.

    Returns the metrics of `compute_metrics`, with `runs`, `members` (the top1 of each), `split`,
    `views` (of one network, at all scales), `scales` and `engines`; and those of
    `confidence_metrics`, with the `calibration` that they use, or None, and a `calibration_note` on
    its source or why there is none. On the run's own data the exact logits of a single network and
    view are also stored in `evaluation/<split>.parquet`. Raises `UserError`, also if a member may
    have been trained on the images.

    >>> metrics = alexnet.evaluate("last", split="val")
    >>> metrics["n"], 0 <= metrics["top1"] <= metrics["top5"] <= 1
    (269, True)
    """
    Translator(lang)  # raises for an unknown one before anything is computed
    grid = make_views(views, scales)
    check_engine(engine, device, calibrate, [run] if isinstance(run, (str, Path)) else run)
    ensemble = load_ensemble(run, checkpoint, trust, file, log)
    first, torch_device = ensemble.members[0], pick_device(device)
    own_data = data is None and labels is None
    source = _load_source(ensemble, data, labels, TextOptions(encoding=encoding, columns=columns), progress)
    for note in [] if own_data else source.notes:
        log(note)
    name = _choose_split(split, source)
    images = source.splits[name]
    if own_data:
        _check_unseen(ensemble, source, name)
    for member in ensemble.members:
        if source.channels != member.preprocess.channels and isinstance(images, ImageArrays):
            raise UserError(
                f"The data has {source.channels} channels, but the network reads {member.preprocess.channels}."
            )
    class_indices = match_classes(ensemble.classes, source.classes)
    ensemble = ensemble.open(engine, device, calibrate, log)
    with explain_bad_files(own_data):
        found, logits, clipped = _run_members(ensemble, source, name, grid, torch_device, progress)
    if clipped:
        log(describe_clipped(clipped, first.preprocess.value_range))
    targets = class_indices[found.targets]
    outputs = Outputs(found.ids, targets, ensemble.average(logits).numpy())
    plain = len(ensemble.members) == 1 and grid == CENTER_CROP and engine == EXACT
    if own_data and plain and first.run and _is_best(first):
        first.run.write_evaluation(name, [images.names[i] for i in outputs.ids], outputs.targets, outputs.logits)
    members = [
        {"run": run_name, "top1": float(correct_at(log_mean(at_scales)[:, order].numpy(), targets, 1).mean())}
        for run_name, at_scales, order in zip(ensemble.names, logits, ensemble.orders, strict=True)
    ]
    calibration, note = ensemble.calibration()
    if calibration and own_data and name == calibration.split:
        note = f"{note} It was fitted on these images.".lstrip()
    evaluation = Evaluation(
        {
            "runs": list(ensemble.names),
            "split": name,
            "views": len(grid),
            "scales": list(grid.scales),
            "engines": [EXACT if member.engine is None else member.engine.name for member in ensemble.members],
            **outputs.measure(ensemble.classes),
            "members": members,
            **({"clipped": clipped} if clipped else {}),
            "calibration": calibration.to_dict() if calibration else None,
            "calibration_note": note,
            **confidence_metrics(outputs.logits, targets, calibration),
        }
    )
    evaluation.lang = lang
    return evaluation


def _load_source(
    ensemble: Ensemble,
    data: str | Path | None,
    labels: str | Path | None,
    text: TextOptions,
    progress: Progress | None,
) -> ImageDataset:
    """Return the dataset in `data` or `labels`, read like that of the first network's run; without both, that one."""
    first = ensemble.members[0]
    if data is not None or labels is not None:
        trained_on = read_recipe(first.run)["dataset"] if first.run else "folder"
        path, table = (Path(name) if name else None for name in (data, labels))
        return load_for_evaluation(trained_on, path, progress, labels=table, text=text)
    if first.run is None:
        raise UserError(f"{ensemble.names[0]} has no data of its own; give --data with a folder of class folders.")
    return load_run_dataset(first.run, progress)


def _run_members(
    ensemble: Ensemble, source: ImageDataset, split: str, views: Views, device: torch.device, progress: Progress | None
) -> tuple[Outputs, list[list[torch.Tensor]], int]:
    """Compute all networks on a split of `source`, reading it once for each group of networks with the same input.

    Return the outputs of one of them, the logits of each at each scale, and the number of images that are clipped.
    """
    logits: list[list[torch.Tensor]] = [[] for _ in ensemble.members]
    clipped = 0
    for group in ensemble.input_groups(views):
        transform = group.preprocess
        _check_range(source, transform)
        measured = replace(source, splits={split: source.splits[split]}, channels=transform.channels)
        workers, _ = choose_workers(None, EVAL_BATCH_SIZE * transform.channels * transform.size**2)
        if transform.value_range and (deep := find_value_range(measured, transform.value_range, progress)):
            clipped = max(clipped, deep.beyond)
        if fits_in_memory(measured, transform.size):
            measured = decode_splits(measured, transform, progress=progress)
        pairs = [(ensemble.members[i].computes, ensemble.members[i].preprocess) for i in group.members]
        batches = evaluation_batches(measured.splits[split], transform, workers)
        found = run_networks(pairs, batches, device, progress, views)
        for i, member_outputs in zip(group.members, found, strict=True):
            logits[i].append(torch.from_numpy(member_outputs.logits))
    return found[0], logits, clipped


def _check_range(source: ImageDataset, preprocess: EvalTransform) -> None:
    """Raise `UserError` if images of more than 8 bits were packed with another range than the network's."""
    packed, own = source.value_range, preprocess.value_range
    if packed is not None and packed != own:
        low, high = own or (0.0, 65535.0)
        raise UserError(
            f"The values {packed[0]:g} to {packed[1]:g} were packed as 0 to 255, but the network was trained with "
            f"{low:g} to {high:g}; pack the images with --value-range={low:g},{high:g}."
        )


def _is_best(loaded: LoadedModel) -> bool:
    """Return whether this is the best checkpoint of its run; only its evaluations are stored."""
    best = loaded.run.named_checkpoint("best") if loaded.run else None
    return best is not None and loaded.checkpoint is not None and loaded.checkpoint.resolve() == best.resolve()


def _check_unseen(ensemble: Ensemble, source: ImageDataset, split: str) -> None:
    """Raise `UserError` if `split` was held out of the first member's data and another member,
    trained on the same data, did not hold out the same images: it may have trained on some of
    them."""
    if split not in source.held_out:
        return
    first = ensemble.members[0].run
    assert first is not None, "only a run has data"
    measured = set(source.splits[split].names)
    ours = read_recipe(first)
    for other in (member.run for member in ensemble.members[1:] if member.run is not None):
        theirs = read_recipe(other)
        if theirs["dataset"] != ours["dataset"] or (ours["dataset"] == "folder" and theirs["data"] != ours["data"]):
            continue  # trained on other images
        rows = read_split(other.split_csv) if other.split_csv.is_file() else []
        if missing := len(measured - {name for name, row_split in rows if row_split == split}):
            raise UserError(
                f"{missing} of the {len(measured)} {split} images of {first.path} are not in the {split} split of "
                f"{other.path}, which may have been trained on them; give --data with other images, or "
                "split the data into train/ and val/ before training."
            )


def _choose_split(name: str, source: ImageDataset) -> str:
    if name == "auto":
        return next(name for name in ("test", "val", "all", "train") if name in source.splits)
    if name not in source.splits:
        raise unknown_name("split", name, source.splits)
    return name


def match_classes(trained: tuple[str, ...], found: tuple[str, ...]) -> np.ndarray:
    """Return for each class index of a dataset the network's index of the class with the same name.

    ImageNet's own folders are named by number (n01440764), torchvision's classes by word (tench).
    Both are in numerical order, so all 1000 folders together are matched by position. Raises
    `UserError` if the dataset has a class that the network does not have.
    """
    if len(found) == len(trained) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in found):
        return np.arange(1000)
    index = {name: i for i, name in enumerate(trained)}
    missing = [name for name in found if name not in index]
    if missing:
        shown = ", ".join(repr(m) for m in missing[:5]) + (" …" if len(missing) > 5 else "")
        raise UserError(
            f"The data has {len(found)} classes and the network {len(trained)}, which do not include {shown}; evaluate "
            "on folders named like the classes it was trained on, or name those of a file of weights with --classes."
        )
    return np.array([index[name] for name in found], dtype=np.int64)


# ── metrics ───────────────────────────────────────────────────────────────────────────────────────


def wilson_interval(hits: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's confidence interval of the proportion `hits`/`n`, valid also for small n and near 0 and 1."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    ci = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return float(ci.low), float(ci.high)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean negative log-probability of the targets, in nats, computed in float64."""
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(z).sum(axis=1))
    return float(np.mean(log_sum - z[np.arange(len(z)), targets]))


def has_top5(classes: int) -> bool:
    """Return whether top-5 accuracy says anything; with five classes or fewer it is 100 %."""
    return classes > 5


def compute_metrics(logits: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Return all metrics of an evaluation; accuracies are fractions of 1.

    `logits` (n, classes) float, `targets` (n,) int → `top1`, `top5`, `loss`, `n`, `interval` (95 %
    of top1), `per_class`: label, n, precision, recall, f1 in class order (0 where nothing was
    predicted or present).
    """
    from sklearn.metrics import precision_recall_fscore_support

    n = len(targets)
    top1 = correct_at(logits, targets, 1)
    precision, recall, f1, support = precision_recall_fscore_support(
        targets, logits.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0
    )
    return {
        "top1": float(top1.mean()),
        "top5": float(correct_at(logits, targets, min(5, len(classes))).mean()),
        "loss": cross_entropy(logits, targets),
        "n": n,
        "interval": list(wilson_interval(int(top1.sum()), n)),
        "per_class": [
            {"label": label, "n": int(support[i]), "precision": float(precision[i]),
             "recall": float(recall[i]), "f1": float(f1[i])}
            for i, label in enumerate(classes)
        ],
    }  # fmt: skip
