"""From a recipe to everything the loop needs: data read and checked, architecture fitted, choices made and recorded.

Nothing is written here. What is chosen by looking (architecture, mean, precision, workers) goes back into the
recipe, so that `recipe.json` runs the same again elsewhere.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from alexnet.checkpoint import Checkpoint
from alexnet.data.augment import IMAGENET_PCA, Augment, ColorPCA
from alexnet.data.dataset import ImageArrays, ImageDataset, ImageFiles, SplitRows
from alexnet.data.datasets import decode_files, load_dataset
from alexnet.data.decode import image_size
from alexnet.data.loader import (
    EVAL_BATCH_SIZE,
    BatchLoader,
    FromFiles,
    InMemory,
    choose_workers,
    evaluation_batches,
    fits_in_memory,
)
from alexnet.data.statistics import SAMPLE_SIZE, color_pca, compute_statistics, mean_and_std, read_mean_image
from alexnet.data.transforms import EvalTransform
from alexnet.device import Precision, pick_device, pick_precision
from alexnet.errors import UserError
from alexnet.inference.load import load_model
from alexnet.models.architectures import TORCHVISION
from alexnet.models.model import Spec, specify
from alexnet.models.modifications import apply_modifications
from alexnet.models.spec import AlexNetSpec, layers
from alexnet.runtimes.loaded_model import LoadedModel
from alexnet.training.auto_config import augmented, fit, scaled
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.manual_schedule import check_layers
from alexnet.training.progress import Progress
from alexnet.training.recipe import Recipe
from alexnet.training.transfer import init_from_pretrained


@dataclass(frozen=True)
class TrainSetup:
    """A recipe with all its choices made, and the data under it."""

    recipe: Recipe
    spec: Spec
    preprocess: EvalTransform
    augment: Augment
    source: ImageDataset
    train: BatchLoader
    evaluation: dict[str, BatchLoader]  # val and test, where there are any
    device: torch.device
    precision: Precision
    parallel: SingleProcess
    pca_basis: ColorPCA | None = None  # there is one where the recipe asks for colour noise
    class_weights: torch.Tensor | None = None  # float32 (classes,), mean 1 over the training pictures; with --balance
    start: LoadedModel | None = None  # what --weights names, at the start of a run

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes


def prepare_training(
    recipe: Recipe,
    report: Progress,
    split: SplitRows | None = None,
    saved: Checkpoint | None = None,
    parallel: SingleProcess | None = None,
) -> TrainSetup:
    """Read the data, fit the rest to it. `split` and `saved`, a checkpoint, are those of an earlier run, to be used
    again. Raises `UserError`.

    What is chosen by measuring this machine is chosen by the first process of `parallel` for all.
    """
    parallel = parallel or SingleProcess()
    device = pick_device(recipe.device)
    precision = parallel.on_rank0(lambda: pick_precision(recipe.precision, device))
    start = load_model(recipe.weights) if recipe.weights and saved is None else None
    if start is not None and recipe.arch not in ("auto", start.model.spec.name):
        raise UserError(
            f"--weights {recipe.weights} is a '{start.model.spec.name}', not --arch {recipe.arch}; leave --arch out."
        )
    if recipe.arch != "auto" and start is None and saved is None:  # a misspelt name should not wait for the data
        parallel.check(build_spec(recipe, num_classes=2, channels=None))
    source = load_dataset(
        recipe.dataset,
        recipe.data,
        labels=recipe.labels,
        seed=recipe.seed,
        skip_bad=recipe.skip_bad,
        hold_out=recipe.validate_on == "val",
        split=split,
        progress=report.update,
    )
    if recipe.num_classes not in (None, len(source.classes)):
        raise UserError(
            f"--num-classes {recipe.num_classes} does not match the data, which has {len(source.classes)} classes: "
            f"{', '.join(source.classes[:9])}{' …' if len(source.classes) > 9 else ''}."
        )
    if recipe.validate_on not in source.splits:
        raise UserError(f"The recipe validates on the {recipe.validate_on} split, and {recipe.data} has none.")
    for note in source.notes:
        report.log(note)
    for name, reason in source.bad[:10]:
        report.log(f"Left out {name}: {reason}.")
    pictures = len(source.splits["train"])
    recipe, reasons = fit(recipe, pictures, len(source.classes))
    if reasons:
        report.log(reasons)
    batch_size = recipe.batch_size or (32 if device.type == "cpu" else 128)
    if batch_size < parallel.shard.world_size:
        raise UserError(
            f"--batch-size {batch_size} is for all {parallel.shard.world_size} processes together and leaves "
            f"some without a picture; give {parallel.shard.world_size} or more."
        )
    chosen = {"precision": precision.name, "batch_size": batch_size}
    recipe = replace(recipe, data=recipe.data.absolute() if recipe.data else None, **chosen)  # type: ignore[arg-type]
    if recipe.labels and recipe.labels.is_file():  # else it lies in the data
        recipe = replace(recipe, labels=recipe.labels.absolute())
    known = (saved.model.spec, saved.preprocess) if saved else None
    if start is not None:
        recipe, known = init_from_pretrained(start, recipe, source, report)
    elif recipe.arch == "auto":
        recipe = _fit_architecture(recipe, source, device)
        thinner = f", {recipe.width:g} of its width" if recipe.width != 1 else ""
        report.log(
            f"The pictures fit the architecture '{recipe.arch}' at {recipe.image_size}×{recipe.image_size}{thinner}; "
            "--arch and --image-size choose another."
        )
    elif recipe.arch.startswith(TORCHVISION) and recipe.image_size is None:
        recipe = replace(recipe, image_size=_fitting_size(source))
    spec = known[0] if known else build_spec(recipe, len(source.classes), source.channels)
    recipe = augmented(recipe, spec.image_size)
    parallel.check(spec)
    augment = Augment(
        crop=recipe.crop, padding=recipe.padding, padding_mode=recipe.padding_mode, scale=recipe.scale,
        flip=recipe.flip, crop_group=recipe.crop_group, rotate=recipe.rotate, jitter=recipe.jitter,
        mixup=recipe.mixup, cutmix=recipe.cutmix,
    )  # fmt: skip
    zeros, ones = (0.0,) * source.channels, (1.0,) * source.channels  # measured below
    if known is not None:
        geometry = replace(known[1], mean=zeros, std=ones, mean_image=None)
    else:
        geometry = EvalTransform(
            size=spec.image_size, resize=round(spec.image_size / recipe.crop_pct), channels=source.channels,
            mean=zeros, std=ones, squash=recipe.squash,
        )  # fmt: skip
    mean_image = known[1].mean_image if known else None
    if recipe.noisy and source.channels == 1:
        raise UserError("Colour noise needs pictures in colour, and these are grey; set pca_noise to 0.")
    if mean_image is None and recipe.mean_image not in ("none", "own"):
        mean_image = read_mean_image(recipe.mean_image, geometry)
        recipe = replace(recipe, mean_image=str(Path(recipe.mean_image).absolute()))
    if any(isinstance(part, ImageFiles) for part in source.splits.values()):
        kept = parallel.on_rank0(lambda: fits_in_memory(source, geometry.resize_side, recipe.in_memory))
        if recipe.in_memory and not kept:
            report.log(
                "The pictures no longer fit in memory and are decoded as they are needed; last digits may differ."
            )
        recipe = replace(recipe, in_memory=kept)
        if kept:
            source = replace(source, splits=_in_memory(source, geometry, augment, report))
    workers, sentence = choose_workers(
        recipe.workers, max(batch_size, EVAL_BATCH_SIZE) * source.channels * geometry.resize_side**2
    )
    if sentence and any(isinstance(part, ImageFiles) for part in source.splits.values()):
        report.log(sentence)
    part = source.splits["train"]
    recipe, preprocess, basis = parallel.on_rank0(
        lambda: _measured(recipe, part, geometry, mean_image, workers, report)
    )
    train: BatchLoader
    if isinstance(part, ImageFiles):
        recipe = replace(recipe, workers=workers)
        train = FromFiles(
            part, preprocess, augment, batch_size=batch_size, shuffle=True, seed=recipe.seed,
            workers=workers, pin_memory=device.type == "cuda", shard=parallel.shard,
        )  # fmt: skip
    else:
        part = _on_gpu(part, device)
        train = InMemory(
            part, preprocess, augment, batch_size=batch_size, shuffle=True, seed=recipe.seed, shard=parallel.shard
        )
    evaluation = {
        name: evaluation_batches(held, preprocess, workers, parallel.shard)
        for name, held in source.splits.items()
        if name != "train"
    }
    report.log(
        f"{source.name}: {len(part):,} training images"
        + "".join(f", {len(source.splits[name]):,} {name}" for name in evaluation)
        + f", {len(source.classes)} classes; {spec.name} at {source.channels}×{spec.image_size}×{spec.image_size} "
        + (f"in {parallel.world_size} processes " if parallel.world_size > 1 else "")
        + f"on {device} in {precision.name} ({precision.reason})."
    )
    for sentence in scaled(recipe):
        report.log(sentence)
    return TrainSetup(
        recipe, spec, preprocess, augment, source, train, evaluation, device, precision, parallel, basis,
        class_weights(part.targets, len(source.classes)) if recipe.balance else None, start,
    )  # fmt: skip


def class_weights(targets: torch.Tensor, classes: int) -> torch.Tensor:
    """float32 (classes,): what a picture of each class counts so that all classes count alike, 1 on average."""
    counts = torch.bincount(targets.cpu(), minlength=classes)
    return (len(targets) / (counts > 0).sum() / counts.clamp(min=1)).float()


def build_spec(recipe: Recipe, num_classes: int, channels: int | None) -> Spec:
    """The network that `recipe` names; `channels` None: as many as its architecture has. Raises `UserError`."""
    plain = specify(
        recipe.arch,
        num_classes=num_classes,
        in_channels=channels,
        image_size=recipe.image_size,
        norm=None if recipe.norm == "auto" else recipe.norm,
        activation=None if recipe.activation == "auto" else recipe.activation,
        init=None if recipe.init == "auto" else recipe.init,
        dropout=recipe.dropout,
        width=recipe.width,
    )
    if not isinstance(plain, AlexNetSpec):
        if recipe.spec_edits or any(change.layers for change in recipe.lr_changes):
            raise UserError(
                f"'{plain.name}' is built by torchvision: the recipe's edits and its changes of single layers are for "
                "AlexNets; leave them out."
            )
        return plain
    spec = apply_modifications(plain, recipe.spec_edits)
    if recipe.lr_changes:
        check_layers(recipe.lr_changes, spec.name, (layer.name for layer in layers(spec) if layer.parameters))
    return spec


def _fit_architecture(recipe: Recipe, source: ImageDataset, device: torch.device) -> Recipe:
    """The architecture and image size for pictures of this size: the 32-pixel network up to 100 pixels, where the
    stride of 4 and the three pools of the 224-pixel networks would leave nothing. On a CPU half the width, which
    trains almost four times as fast (CIFAR-10 on two cores: 1,210 images/s instead of 312), or a quarter."""
    wanted = recipe.image_size or _fitting_size(source)
    width = recipe.width
    if device.type == "cpu" and width == 1:
        width = 0.25 if 48 < wanted <= 128 else 0.5  # 64 pixels cost four times what 32 do
    return replace(recipe, arch="cifar" if wanted <= 128 else "torchvision", image_size=wanted, width=width)


def _fitting_size(source: ImageDataset) -> int:
    """The side of the input, in pixels, for pictures of this size: 32, 64 or 224, the next below or not far above."""
    part = source.splits["train"]
    if isinstance(part, ImageArrays):
        side = min(part.images.shape[-2:])
    else:
        chosen = part.take(np.linspace(0, len(part) - 1, min(SAMPLE_SIZE, len(part))).astype(int))
        side = int(statistics.median(min(image_size(chosen.raw(i))) for i in range(len(chosen))))
    return 32 if side <= 48 else 64 if side <= 100 else 224


def _in_memory(
    source: ImageDataset, geometry: EvalTransform, augment: Augment, report: Progress
) -> dict[str, ImageArrays | ImageFiles]:
    """All splits decoded: train as random crops need it, the others as they are evaluated."""
    return {
        name: decode_files(part, geometry, augment if name == "train" else None, progress=report.update)
        if isinstance(part, ImageFiles)
        else part
        for name, part in source.splits.items()
    }


def _on_gpu(part: ImageArrays, device: torch.device) -> ImageArrays:
    """`part` in the memory of the GPU that trains on it, if a quarter of what is free there holds it: then no step
    waits for pictures to be gathered and sent."""
    if device.type != "cuda" or part.images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return part
    return replace(part, images=part.images.to(device), targets=part.targets.to(device))


def _measured(
    recipe: Recipe,
    part: ImageArrays | ImageFiles,
    geometry: EvalTransform,
    mean_image: torch.Tensor | None,
    workers: int,
    report: Progress,
) -> tuple[Recipe, EvalTransform, ColorPCA | None]:
    """The numbers that the recipe leaves to the training images, put into it: mean and deviation of each channel, mean
    image (which stands with the weights) and colour basis. What is there already is not measured again."""
    basis = None
    if recipe.noisy and (recipe.pca_std is not None or recipe.pca_vectors is not None):
        basis = ColorPCA(recipe.pca_std or (), recipe.pca_vectors or ())
    elif recipe.noisy and recipe.pca_basis == "imagenet":
        basis = IMAGENET_PCA
    own_image = recipe.mean_image == "own" and mean_image is None
    if own_image or (recipe.noisy and basis is None):
        found = compute_statistics(part, geometry, workers=workers, progress=report.update)
        mean_image = found.mean_image if own_image else mean_image
        basis = basis or (color_pca(found.covariance) if recipe.noisy else None)
    if basis is not None:
        recipe = replace(recipe, pca_std=basis.std, pca_vectors=basis.vectors)
    mean, std = recipe.mean, recipe.std
    if mean is None and mean_image is not None:
        mean = tuple(round(float(m), 4) for m in mean_image.mean(dim=(1, 2)))
    if mean is None or std is None:
        found_mean, found_std = mean_and_std(part, geometry, recipe.seed)
        mean, std = mean or found_mean, std or found_std
    return replace(recipe, mean=mean, std=std), replace(geometry, mean=mean, std=std, mean_image=mean_image), basis
