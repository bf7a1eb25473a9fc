"""Loading of whatever RUN may be on the command line: a run, a checkpoint folder, torchvision's
published weights, or an exported file; and of a run's data. Needs no torch until weights or data
are loaded."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, TypeVar

import numpy as np
from PIL import Image

from alexnet.checkpoint import MODEL, WEIGHTS, checkpoint_id, load_checkpoint
from alexnet.data.decode import BadImage, decode_image
from alexnet.data.image_folder import find_images
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError, unknown_name
from alexnet.files import read_json
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions, is_weights_file, load_weights_file, refuse_options
from alexnet.progress import Progress
from alexnet.run_dir import Run, find_run
from alexnet.runtimes.calibration import find_calibration
from alexnet.runtimes.engines import LoadedModel
from alexnet.runtimes.exported import open_exported
from alexnet.runtimes.manifest import is_exported_model
from alexnet.runtimes.select import open_cached
from alexnet.text import TextOptions

if TYPE_CHECKING:
    from alexnet.data.dataset import ImageDataset

T = TypeVar("T")

ImageInput = str | Path | bytes | Image.Image

# torchvision's AlexNet_Weights.IMAGENET1K_V1.transforms(): ImageClassification(crop_size=224), its defaults
TORCHVISION_PREPROCESS = EvalTransform(
    size=224, resize=256, channels=3, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bilinear"
)
CALIBRATION_IMAGES = 300  # for 8-bit activations: NNCF's default `subset_size`
OTHER_WEIGHTS = {".h5", ".keras", ".pkl", ".npz"}
INCEPTIONS = ("torchvision/googlenet", "torchvision/inception_v3")
"""With their published weights torchvision's modules normalize images again (`transform_input`):
after ImageNet's mean and deviation, to (x - .5) / .5 of the pixels."""
_PUBLISHED = re.compile(r"(torchvision(?:/[^:]*)?):(.*)")


def is_run_reference(word: str) -> bool:
    """Whether `word` names what `load_network` loads, and not an image or a folder of images."""
    path = Path(word)
    return (
        published_name(word) is not None
        or is_weights_file(path)
        or is_exported_model(path)
        or (word == "last" and not path.exists())
        or any((path / name).is_file() for name in ("recipe.json", MODEL))
    )


def published_name(name: str | Path) -> tuple[str, str] | None:
    """Return network and weights of a name such as `torchvision/resnet18:DEFAULT`, None for another name."""
    found = _PUBLISHED.fullmatch(str(name))
    return (found[1], found[2]) if found else None


def load_network(
    name: str | Path,
    checkpoint: str = "best",
    trust: bool = False,
    file: FileOptions = NO_OPTIONS,
    log: Callable[[str], object] = lambda _: None,
) -> LoadedModel:
    """Load what `load_model` does, or an exported file; `trust` opens one in a format that can run
    code. Raises `UserError`."""
    if not is_exported_model(name):
        return load_model(name, checkpoint, file, log)
    loaded = open_exported(name, trust)
    refuse_options(name, file)
    return loaded


def load_model(
    name: str | Path,
    checkpoint: str = "best",
    file: FileOptions = NO_OPTIONS,
    log: Callable[[str], object] = lambda _: None,
) -> LoadedModel:
    """Load the network called `name`, on the CPU and in evaluation mode, with its calibration.

    `name`: a run folder (its `checkpoint`, `best` or `last`), `last` for the newest run, a
    checkpoint folder, weights that torchvision downloads, `torchvision:IMAGENET1K_V1` or
    `torchvision/resnet18:DEFAULT`, or a file of weights that `file` describes; `log` receives what
    was assumed about that. Raises `UserError` for everything else.
    """
    path = Path(name)
    if is_weights_file(path) and not is_exported_model(path):
        if path.name != WEIGHTS or not path.with_name(MODEL).is_file():
            return load_weights_file(path, file, log)
        name = path.parent  # of a checkpoint
    refuse_options(name, file)
    if published := published_name(name):
        return _with_calibration(_load_published(*published))
    folder, run = resolve_checkpoint(name, checkpoint)
    found = load_checkpoint(folder)
    loaded = LoadedModel(found.model, found.classes, found.preprocess, run, folder, _model_id(name, folder))
    return _with_calibration(loaded)


def _load_published(arch: str, weights: str) -> LoadedModel:
    """Load weights that torchvision publishes for `arch`, with their preprocessing. Raises `UserError`."""
    from alexnet.models.model import create_model
    from alexnet.models.weights import find_published, load_weights, torchvision_weights

    published = find_published(arch, weights)
    transforms = published.transforms()
    preprocess = replace(
        TORCHVISION_PREPROCESS,
        size=transforms.crop_size[0],
        resize=transforms.resize_size[0],
        mean=(0.5,) * 3 if arch in INCEPTIONS else transforms.mean,
        std=(0.5,) * 3 if arch in INCEPTIONS else transforms.std,
        interpolation=transforms.interpolation.value,
    )
    state, categories = torchvision_weights(weights, arch)
    size = None if arch == "torchvision" else preprocess.size
    model = load_weights(create_model(arch, num_classes=len(categories), image_size=size), state)
    model_id = f"{arch}-{published.name}".replace("/", "-")
    return LoadedModel(model.eval(), tuple(categories), preprocess, None, None, model_id)


def _with_calibration(loaded: LoadedModel) -> LoadedModel:
    calibration, note = find_calibration(loaded.checkpoint, loaded.run)
    return replace(loaded, calibration=calibration, calibration_note=note)


def find_cached(name: str | Path, checkpoint: str, engine: str, device: str, single: bool) -> LoadedModel | None:
    """Return the network called `name` in `engine` if its file is in the engine cache; needs no torch.

    Arguments as for `load_network` and `open_cached`. Raises `UserError` as `load_network` does.
    """
    published = published_name(name)
    if published is None and is_weights_file(name):  # to know its network it must be read
        return None
    folder, run = (None, None) if published else resolve_checkpoint(name, checkpoint)
    found = open_cached(_model_id(name, folder), engine, device, single)
    return None if found is None else _with_calibration(replace(found, run=run, checkpoint=folder))


def _model_id(name: str | Path, folder: Path | None) -> str:
    """Return a file name that identifies the network `name`, or that of a checkpoint `folder`, with
    its classes and preprocessing."""
    return checkpoint_id(folder) if folder else str(name).replace(":", "-").replace("/", "-")


def resolve_checkpoint(name: str | Path, checkpoint: str = "best") -> tuple[Path, Run | None]:
    """Return the checkpoint folder that `name` (see `load_model`) refers to, and its run if it is in one.

    Raises `UserError`.
    """
    path = Path(name)
    if is_exported_model(path):
        raise UserError(f"{path} is an exported file, which only predict and eval take; give the run instead.")
    if path.is_file():
        if path.suffix.lower() in OTHER_WEIGHTS:
            raise UserError(
                f"{path} is a file of weights of other software; save them in Python as a state dict for "
                "alexnet.load_weights(alexnet.create_model(…), state_dict), or torch.save it as .pth."
            )
        raise UserError(f"{path} is a file; give a run folder or a checkpoint folder.")
    if (path / MODEL).is_file():
        run = Run(path.resolve().parent.parent)
        return path, run if run.recipe_json.is_file() else None
    if path.is_dir() and not (path / "recipe.json").is_file():
        raise UserError(f"{path} is neither a run (it has no recipe.json) nor a checkpoint (it has no {MODEL}).")
    run = find_run(name)
    if checkpoint not in ("best", "last"):
        raise unknown_name("checkpoint", checkpoint, ("best", "last"))
    folder = run.named_checkpoint(checkpoint)
    if folder is None:
        raise UserError(f"The run {run.path} has no checkpoint yet; 'alexnet resume {run.path}' restarts it.")
    return folder, run


# ── the data of a run ─────────────────────────────────────────────────────────────────────────────


class DataRecipe(TypedDict):
    """The settings of a run that describe its data."""

    dataset: str
    data: str | None
    labels: str | None
    encoding: str | None
    columns: str | None
    value_range: tuple[float, float] | None
    seed: int
    validate_on: str


def read_recipe(run: Run) -> DataRecipe:
    """Return the fields of the run's recipe.json that describe its data. Raises `UserError`."""
    try:
        return read_json(run.recipe_json, DataRecipe)
    except (OSError, UserError) as error:
        reason = str(error).rstrip(".")
        raise UserError(f"{run.recipe_json} is damaged ({reason}); give the images with --data.") from error


def load_run_dataset(run: Run, progress: Progress | None) -> ImageDataset:
    """Load the data that a run was trained on, with the same splits, which were checked before
    training: images that have become unreadable since are found when they are decoded."""
    from alexnet.data.dataset import read_bad_files, read_split
    from alexnet.data.datasets import load_dataset

    recipe = read_recipe(run)
    rows = read_split(run.split_csv) if run.split_csv.is_file() else None
    with explain_bad_files(own_data=True):
        return load_dataset(
            recipe["dataset"],
            Path(recipe["data"]) if recipe["data"] else None,
            labels=Path(recipe["labels"]) if recipe["labels"] else None,
            text=TextOptions(encoding=recipe["encoding"], columns=recipe["columns"]),
            seed=recipe["seed"],
            bad=read_bad_files(run.path / "bad_files.csv"),
            hold_out=recipe["validate_on"] == "val",
            split=rows,
            progress=progress,
        )


@contextlib.contextmanager
def explain_bad_files(own_data: bool) -> Iterator[None]:
    """Turn `BadFiles` into an error without --skip-bad, which evaluation does not have."""
    from alexnet.data.dataset import BadFiles

    try:
        yield
    except BadFiles as error:
        fix = "restore them, or give other images with --data" if own_data else "replace or remove them"
        raise error.without_skipping(fix) from error


def calibration_images(loaded: LoadedModel, folder: Path | None, flag: str = "--calibrate") -> np.ndarray:
    """Return up to 300 images to calibrate 8-bit activations on, evenly from `folder`, else from
    the training images: uint8 N×C×size×size. Raises `UserError` where there are none."""
    if folder is not None:
        images = []
        for path in evenly_spaced(find_images([folder]), CALIBRATION_IMAGES):
            with contextlib.suppress(BadImage):
                images.append(load_image(path, loaded.preprocess))
        if not images:
            raise UserError(f"None of the images in {folder} can be read; give another folder with {flag}.")
        return np.stack(images)
    if loaded.run is None:
        raise UserError(
            "8-bit activations must be calibrated on images, and this network has no data of its own; give "
            f"{flag} with a folder of images like those it will classify."
        )
    from alexnet.data.loader import evaluation_batches

    part = load_run_dataset(loaded.run, None).splits["train"]
    part = part.take(np.array(evenly_spaced(range(len(part)), CALIBRATION_IMAGES)))
    return np.concatenate([b.images.cpu().numpy() for b in evaluation_batches(part, loaded.preprocess).batches(0)])


def evenly_spaced(items: Sequence[T], count: int) -> list[T]:
    """Return `count` of `items`, or all if there are fewer."""
    return [items[i] for i in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def load_image(image: ImageInput, preprocess: EvalTransform) -> np.ndarray:
    """Return what the network reads of an image: uint8 C×size×size. Raises `BadImage`."""
    return preprocess.eval_array(decode_image(image, preprocess.channels, value_range=preprocess.value_range))
