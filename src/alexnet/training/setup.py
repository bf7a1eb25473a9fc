"""From a recipe to everything that the trainer needs: data loaded and checked, architecture and settings chosen.

Nothing is written here. Choices that depend on data or machine (architecture, mean, precision,
workers) are put into the recipe, so that `recipe.json` reproduces the run elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

from alexnet.checkpoint import Checkpoint
from alexnet.data.augment import IMAGENET_PCA, Augment, ColorPCA
from alexnet.data.dataset import BadFiles, ImageArrays, ImageDataset, ImageFiles, SplitRows, list_bad
from alexnet.data.datasets import load_dataset
from alexnet.data.deep import UNMEASURED, RangeUnknown
from alexnet.data.in_memory import check_files, decode_splits, fits_in_memory, without_bad_files
from alexnet.data.loader import EVAL_BATCH_SIZE, BatchLoader, choose_workers, evaluation_batches
from alexnet.data.statistics import (
    IMAGENET_MEAN_IMAGE,
    color_pca,
    compute_statistics,
    mean_and_std,
    read_mean_image,
)
from alexnet.data.transforms import EvalTransform
from alexnet.data.value_range import find_value_range
from alexnet.device import Precision, pick_device, pick_precision
from alexnet.errors import UserError
from alexnet.inference.load import load_model
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions, is_weights_file
from alexnet.models.model import Network, Spec
from alexnet.progress import HoldingBack, Progress
from alexnet.runtimes.engines import LoadedModel
from alexnet.training.architecture import build_spec, choose_architecture
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.recipe import (
    PUBLISHED,
    TINY,
    Recipe,
    apply_augmentation_level,
    choose_settings,
    describe_lr_scaling,
)
from alexnet.training.settings import AugmentationSettings
from alexnet.training.transfer import (
    TINY_FOLDER,
    can_fit_last_layer,
    choose_tiny_settings,
    init_from_pretrained,
    starts_from_tiny,
)


@dataclass(frozen=True)
class TrainSetup:
    """A recipe with all choices made, and its data."""

    recipe: Recipe
    spec: Spec
    preprocess: EvalTransform
    augment: Augment
    dataset: ImageDataset
    train: BatchLoader
    evaluation: dict[str, BatchLoader]  # by split: val and test, as far as the dataset has them
    device: torch.device
    precision: Precision
    parallel: SingleProcess
    pca_basis: ColorPCA | None = None  # if the recipe uses PCA noise
    class_weights: torch.Tensor | None = None  # float32 (classes,), mean 1 over the training images; with --balance
    pretrained: LoadedModel | None = None  # the model that --weights names; None when resuming

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    def fits_last_layer(self, model: Network) -> bool:
        """Whether training of `model` begins with a linear classifier on the features of pretrained layers."""
        single = self.parallel.shard.world_size == 1
        return single and can_fit_last_layer(model, self.pretrained, self.dataset)


def prepare_training(
    recipe: Recipe,
    progress: Progress,
    split: SplitRows | None = None,
    saved: Checkpoint | None = None,
    parallel: SingleProcess | None = None,
    bad: Sequence[tuple[str, str]] | None = None,
) -> TrainSetup:
    """Load the data of `recipe` and choose what the recipe leaves open. Raises `UserError`.

    `split`, the checkpoint `saved` and the unreadable files `bad` are those of the run to resume,
    whose files are not checked again. What depends on measurements of this machine is chosen on
    rank 0 of `parallel` for all ranks.
    """

    skip_bad = recipe.data.skip_bad and bad is None

    def prepare(bad_files: Sequence[tuple[str, str]]) -> TrainSetup:
        with _final_messages(progress) if skip_bad else nullcontext(progress) as display:
            return _prepare(recipe, display, split, saved, parallel or SingleProcess(), bad_files, check=bad is None)

    try:
        return without_bad_files(prepare, skip_bad, bad or ())
    except BadFiles as error:
        if bad is None:
            raise
        raise error.without_skipping("restore them, or start a new run") from error


@contextmanager
def _final_messages(progress: Progress) -> Iterator[Progress]:
    """Yield a `Progress` that holds messages back, and drops them on `BadFiles`: the work is then done again."""
    held = HoldingBack(progress)
    try:
        yield held
    except BadFiles:
        held.messages.clear()
        raise
    finally:
        for message in held.messages:
            progress.log(message)


def _prepare(
    recipe: Recipe,
    progress: Progress,
    split: SplitRows | None,
    saved: Checkpoint | None,
    parallel: SingleProcess,
    bad: Sequence[tuple[str, str]],
    check: bool,
) -> TrainSetup:
    """Do the work of `prepare_training` without the files `bad`. Raises `BadFiles` for others."""
    device = pick_device(recipe.run.device)
    progress(0, 1, "choosing the precision")
    precision = parallel.broadcast_object(lambda: pick_precision(recipe.run.precision, device))
    pretrained = None if saved else _load_pretrained(recipe, parallel, progress)

    dataset = _load_data(recipe, split, bad, progress)
    if saved is None and starts_from_tiny(recipe, dataset):
        recipe, pretrained = _load_tiny(recipe, dataset, progress)
    if pretrained is not None and pretrained.checkpoint == TINY_FOLDER:
        recipe = choose_tiny_settings(recipe, dataset.images_per_class)
    long = False
    if saved is None and pretrained is None:
        recipe, long = choose_architecture(recipe, dataset, device, precision, progress)
    recipe = _complete_settings(recipe, dataset, long, device, precision, parallel, progress)
    recipe, spec, stored = _choose_network(recipe, dataset, saved, pretrained, progress)
    parallel.check(spec)
    recipe = apply_augmentation_level(recipe, spec.image_size)
    augment = build_augment(recipe.augmentation)
    recipe, geometry, mean_image = _choose_geometry(recipe, spec, dataset, stored)

    recipe, geometry, dataset = _read_images(recipe, dataset, geometry, augment, parallel, check, progress)
    batch_size = recipe.optimization.batch_size or 1  # chosen by now
    largest = max(batch_size, EVAL_BATCH_SIZE) * dataset.channels * geometry.resize_side**2
    workers, note = choose_workers(recipe.data.workers, largest)
    if note and dataset.files:
        progress.log(note)
    part = dataset.splits["train"]
    recipe, preprocess, pca_basis = parallel.broadcast_object(
        lambda: _measure_statistics(recipe, part, geometry, mean_image, workers, progress)
    )

    if isinstance(part, ImageFiles):
        recipe = recipe.replace(workers=workers)
    else:
        part = _move_to_gpu(part, device)
    train = BatchLoader(
        part, preprocess, augment, batch_size=batch_size, shuffle=True, fixed_order=recipe.data.order == "fixed",
        seed=recipe.run.seed, workers=workers, pin_memory=device.type == "cuda", shard=parallel.shard,
    )  # fmt: skip
    evaluation = {
        name: evaluation_batches(images, preprocess, workers, parallel.shard)
        for name, images in dataset.splits.items()
        if name != "train"
    }
    weights = class_weights(part.targets, len(dataset.classes)) if recipe.optimization.balance else None
    progress.log(
        f"{dataset.name}: {len(part):,} training images"
        + "".join(f", {len(dataset.splits[name]):,} {name}" for name in evaluation)
        + f", {len(dataset.classes)} classes; {spec.name} at {dataset.channels}×{spec.image_size}×{spec.image_size} "
        + (f"in {parallel.world_size} processes " if parallel.world_size > 1 else "")
        + f"on {device} in {precision.name} ({precision.reason})."
    )
    if note := describe_lr_scaling(recipe):
        progress.log(note)
    return TrainSetup(
        recipe, spec, preprocess, augment, dataset, train, evaluation, device, precision, parallel, pca_basis, weights,
        pretrained,
    )  # fmt: skip


def _load_pretrained(recipe: Recipe, parallel: SingleProcess, progress: Progress) -> LoadedModel | None:
    """Return the network that --weights names; without one, check --arch before any data is read."""
    arch, weights = recipe.model.arch, recipe.model.weights
    if not weights:
        if arch != "auto":
            parallel.check(build_spec(recipe, num_classes=2, channels=None))
        return None
    name, known = weights, None if arch == "auto" else arch
    if weights == TINY and not Path(TINY).exists():
        name = str(TINY_FOLDER)
    if PUBLISHED.fullmatch(weights) and not Path(weights).exists():
        if known is None or not known.startswith("torchvision"):
            raise UserError(
                f"--weights {weights} is the name of weights in torchvision; name their network, too, such as --arch "
                "torchvision/mobilenet_v3_small."
            )
        name = f"{known}:{weights}"
    data = recipe.data
    file = FileOptions(known, None, recipe.model.image_size, data.crop_pct, data.mean, data.std)
    pretrained = load_model(name, file=file if is_weights_file(name) else NO_OPTIONS, log=progress.log)
    if arch not in ("auto", pretrained.model.spec.name):
        raise UserError(f"--weights {weights} is a '{pretrained.model.spec.name}', not '{arch}'; leave --arch out.")
    return pretrained


def _load_tiny(recipe: Recipe, dataset: ImageDataset, progress: Progress) -> tuple[Recipe, LoadedModel | None]:
    """Return the recipe with `--weights tiny` and that network; if it cannot be read, say so, and return None."""
    try:
        pretrained = load_model(TINY_FOLDER)
    except (UserError, OSError) as error:
        progress.log(
            f"The pretrained network of this package cannot be used, and training starts from scratch: {error}"
        )
        return recipe, None
    progress.log(
        f"{dataset.images_per_class:.0f} images per class are few, so training starts from the small network of this "
        f"package, which knows {len(pretrained.classes)} classes of everyday things; --weights none starts from "
        "scratch."
    )
    return recipe.replace(weights=TINY), pretrained


def _load_data(
    recipe: Recipe, split: SplitRows | None, bad: Sequence[tuple[str, str]], progress: Progress
) -> ImageDataset:
    """Load the recipe's dataset without the files `bad`, and check its classes and splits."""
    data = recipe.data
    dataset = load_dataset(
        data.dataset,
        data.path,
        labels=data.labels,
        text=data.text,
        seed=recipe.run.seed,
        bad=bad,
        hold_out=data.validate_on == "val",
        split=split,
        progress=progress,
    )
    if recipe.model.in_channels is not None:
        dataset = dataset.with_channels(recipe.model.in_channels)
    if data.num_classes not in (None, len(dataset.classes)):
        raise UserError(
            f"--num-classes {data.num_classes} does not match the data, which has {len(dataset.classes)} classes: "
            f"{', '.join(dataset.classes[:9])}{' …' if len(dataset.classes) > 9 else ''}."
        )
    if data.validate_on not in dataset.splits:
        raise UserError(f"The recipe validates on the {data.validate_on} split, which {data.path} does not have.")
    return dataset


def _complete_settings(
    recipe: Recipe,
    dataset: ImageDataset,
    long: bool,
    device: torch.device,
    precision: Precision,
    parallel: SingleProcess,
    progress: Progress,
) -> Recipe:
    """Choose the settings that follow from the images, the device and a `long` time budget; make paths absolute."""
    recipe = recipe.replace(lr_batch=recipe.optimization.lr_batch or recipe.optimization.batch_size)
    recipe, reasons = choose_settings(recipe, len(dataset.splits["train"]), len(dataset.classes), long)
    if reasons:
        progress.log(reasons)
    batch_size = recipe.optimization.batch_size or (32 if device.type == "cpu" else 128)
    if batch_size < parallel.shard.world_size:
        raise UserError(
            f"--batch-size {batch_size} is the total of all {parallel.shard.world_size} processes and leaves some "
            f"without an image; give {parallel.shard.world_size} or more."
        )
    data, labels = recipe.data.path, recipe.data.labels
    if labels and labels.is_file():  # otherwise it lies within the data
        labels = labels.absolute()
    return recipe.replace(
        precision=precision.name, batch_size=batch_size, data=data.absolute() if data else None, labels=labels
    )


def _choose_network(
    recipe: Recipe,
    dataset: ImageDataset,
    saved: Checkpoint | None,
    pretrained: LoadedModel | None,
    progress: Progress,
) -> tuple[Recipe, Spec, EvalTransform | None]:
    """Return the recipe, the specification of its network, and the preprocessing of `saved` or `pretrained`."""
    if saved is not None:
        return recipe, saved.model.spec, saved.preprocess
    if pretrained is not None:
        recipe, (spec, preprocess) = init_from_pretrained(pretrained, recipe, dataset, progress)
        return recipe, spec, preprocess
    return recipe, build_spec(recipe, len(dataset.classes), dataset.channels), None


def _choose_geometry(
    recipe: Recipe, spec: Spec, dataset: ImageDataset, stored: EvalTransform | None
) -> tuple[Recipe, EvalTransform, torch.Tensor | None]:
    """Return the recipe, the preprocessing without normalization, as `stored` if given, and the mean image if known."""
    channels, path = dataset.channels, recipe.data.mean_image
    if recipe.uses_pca_noise and channels == 1:
        raise UserError("PCA noise needs color images, and these are grayscale; give --set pca_noise=0.")
    if any(values is not None and len(values) != channels for values in (recipe.data.mean, recipe.data.std)):
        raise UserError(
            f"The recipe's mean and std are not for images of {channels} channel{'s' * (channels > 1)}; "
            "--set mean=null --set std=null measures them."
        )
    zeros, ones = (0.0,) * channels, (1.0,) * channels  # replaced by _measure_statistics
    mean_image = stored.mean_image if stored else None
    if stored is not None:
        geometry = replace(stored, mean=zeros, std=ones, mean_image=None)
    else:
        size, squash = spec.image_size, recipe.data.squash
        resize = round(size / recipe.data.crop_pct)
        geometry = EvalTransform(size, resize, channels, zeros, ones, squash=squash, value_range=UNMEASURED)
    if mean_image is None and path == "imagenet":
        mean_image = read_mean_image(IMAGENET_MEAN_IMAGE, geometry)
    elif mean_image is None and path not in ("none", "own"):
        mean_image = read_mean_image(path, geometry)
        recipe = recipe.replace(mean_image=str(Path(path).absolute()))
    return recipe, geometry, mean_image


def _read_images(
    recipe: Recipe,
    dataset: ImageDataset,
    geometry: EvalTransform,
    augment: Augment,
    parallel: SingleProcess,
    check: bool,
    progress: Progress,
) -> tuple[Recipe, EvalTransform, ImageDataset]:
    """Decode the images into memory if they fit, else check them if `check`. Raises `BadFiles`.

    If an image has more than 8 bits, the range of values is measured first and becomes part of `geometry`.
    """
    if dataset.value_range is not None and recipe.data.value_range not in (None, dataset.value_range):
        low, high = dataset.value_range
        raise UserError(
            f"The values {low:g} to {high:g} were packed as 0 to 255, which --value-range cannot change; pack the "
            "images again with that range."
        )
    if dataset.value_range is not None or not dataset.files:
        geometry = replace(geometry, value_range=dataset.value_range)
    if dataset.files:
        known = recipe.data.in_memory
        in_memory = parallel.broadcast_object(lambda: fits_in_memory(dataset, geometry.resize_side, known))
        if known and not in_memory:
            progress.log("The images no longer fit in memory and are decoded on the fly; last digits may differ.")
        recipe = recipe.replace(in_memory=in_memory)

        def read() -> ImageDataset:
            if in_memory:
                return decode_splits(dataset, geometry, augment, progress)
            if check:
                check_files(dataset, recipe.data.skip_bad, geometry.value_range, progress)
            return dataset

        try:
            dataset = read()
        except RangeUnknown:
            found = parallel.broadcast_object(lambda: find_value_range(dataset, recipe.data.value_range, progress))
            assert found is not None
            progress.log(found.sentence)
            geometry = replace(geometry, value_range=found.value_range)
            dataset = read()
    if geometry.value_range == UNMEASURED:  # no deep images
        geometry = replace(geometry, value_range=recipe.data.value_range)
    recipe = recipe.replace(value_range=geometry.value_range)
    for text in dataset.notes:
        progress.log(text)
    if dataset.bad:
        progress.log(f"Skipped {list_bad(dataset.bad)}; the run's bad_files.csv lists them all.")
    return recipe, geometry, dataset


def class_weights(targets: torch.Tensor, classes: int) -> torch.Tensor:
    """Return float32 (classes,): loss weights inverse to the number of images of each class, with mean 1 over them."""
    counts = torch.bincount(targets.cpu(), minlength=classes)
    return (len(targets) / (counts > 0).sum() / counts.clamp(min=1)).float()


def build_augment(settings: AugmentationSettings) -> Augment:
    """Return the augmentation of a recipe's `settings`."""
    values = vars(settings)
    return Augment(**{field.name: values[field.name] for field in fields(Augment) if field.name in values})


def _move_to_gpu(part: ImageArrays, device: torch.device) -> ImageArrays:
    """Move `part` into GPU memory if it takes at most a quarter of what is free: then no step waits for a transfer."""
    if device.type != "cuda" or part.images.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return part
    return replace(part, images=part.images.to(device), targets=part.targets.to(device))


def _measure_statistics(
    recipe: Recipe,
    part: ImageArrays | ImageFiles,
    geometry: EvalTransform,
    mean_image: torch.Tensor | None,
    workers: int,
    progress: Progress,
) -> tuple[Recipe, EvalTransform, ColorPCA | None]:
    """Measure what the recipe leaves to the training images: mean and std of each channel, mean image, color PCA.

    The results are put into the recipe (the mean image is saved with the weights); what is there is not measured again.
    """
    basis, given = None, recipe.augmentation
    if recipe.uses_pca_noise and (given.pca_std is not None or given.pca_vectors is not None):
        basis = ColorPCA(given.pca_std or (), given.pca_vectors or ())
    elif recipe.uses_pca_noise and given.pca_basis == "imagenet":
        basis = IMAGENET_PCA
    own_image = recipe.data.mean_image == "own" and mean_image is None
    if own_image or (recipe.uses_pca_noise and basis is None):
        found = compute_statistics(part, geometry, workers=workers, progress=progress)
        mean_image = found.mean_image if own_image else mean_image
        basis = basis or (color_pca(found.covariance) if recipe.uses_pca_noise else None)
    if basis is not None:
        recipe = recipe.replace(pca_std=basis.std, pca_vectors=basis.vectors)
    mean, std = recipe.data.mean, recipe.data.std
    if mean is None and mean_image is not None:
        mean = tuple(round(float(m), 4) for m in mean_image.mean(dim=(1, 2)))
    if mean is None or std is None:
        found_mean, found_std = mean_and_std(part, geometry, recipe.run.seed)
        mean, std = mean or found_mean, std or found_std
    return recipe.replace(mean=mean, std=std), replace(geometry, mean=mean, std=std, mean_image=mean_image), basis
