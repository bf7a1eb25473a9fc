"""`alexnet show KIND`: one figure of a run, images or an architecture, written to a file.

`kinds.py` lists the kinds with their arguments and options. Each kind loads what its figure needs, from the run folder,
`inference.explain` or `inference.neighbors`; the other modules of this folder draw it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from alexnet.data.decode import decode_image
from alexnet.data.image_folder import find_images
from alexnet.data.label_table import SPLIT_NAMES
from alexnet.errors import UserError
from alexnet.inference import explain, neighbors
from alexnet.inference.ensemble import Ensemble
from alexnet.inference.load import is_run_reference, load_model
from alexnet.inference.predict import Classifier
from alexnet.inference.weights_file import NO_OPTIONS, FileOptions
from alexnet.messages.translator import Translator
from alexnet.models.architectures import TORCHVISION
from alexnet.models.architectures import architecture as find_architecture
from alexnet.models.spec import AlexNetSpec
from alexnet.plots import architecture, metrics, model
from alexnet.plots.kinds import MAX_IMAGES, check_arguments
from alexnet.plots.style import Draw, Drawing, check_path, get_theme
from alexnet.progress import Progress, Silent
from alexnet.run_dir import find_run
from alexnet.runtimes.engines import LoadedModel


@dataclass(frozen=True)
class Options:
    """The options of `alexnet show`; None if not given."""

    layer: str | None = None
    method: str | None = None
    label: str | None = None
    top: int | None = None
    split: str | None = None
    checkpoint: str = "best"
    device: str = "auto"
    file: FileOptions = NO_OPTIONS
    progress: Progress = field(default_factory=Silent)


FigureFile = tuple[Draw, Path]
"""A figure to be drawn, and its default file."""


def show(
    kind: str, args: Sequence[str], out: Path | None = None, theme: str = "light", lang: str = "en", **options: Any
) -> Path:
    """Draw a figure of `kind` and return its file, `out` (.png, .svg or .html) or a default.

    Arguments are those of `draw`. The default file is in the folder `show/` of the run, or in the current folder if
    there is no run. Raises `UserError` before anything is written.
    """
    if out is not None:
        check_path(out)
    return draw(kind, args, theme, lang, **options).save(out)


def draw(kind: str, args: Sequence[str], theme: str | None = None, lang: str = "en", **options: Any) -> Drawing:
    """Return a figure of `kind`; `args` are those of `KINDS[kind].usage` in `kinds.py`, `options` the fields of
    `Options`.

    Raises `UserError`.
    """
    check_arguments(kind, args, options)
    get_theme(theme or "light")
    Translator(lang)
    return Drawing(*_MAKE[kind](args, Options(**options)), theme, lang)


# ── kinds ─────────────────────────────────────────────────────────────────────────────────────────


def _filters(args: Sequence[str], options: Options) -> FigureFile:
    loaded = _load(args[0], options)
    model.check_filters(loaded.model, options.layer)
    figure = partial(model.filters_figure, loaded.model, options.layer, _model_name(args[0], loaded))
    return figure, _folder(loaded) / (f"filters-{options.layer}.png" if options.layer else "filters.png")


def _activations(args: Sequence[str], options: Options) -> FigureFile:
    loaded = _load(args[0], options)
    stages = explain.activations(loaded, args[1])
    image, _ = explain.network_input(loaded, args[1])
    (prediction,) = _predict(loaded, args[1:], 3)
    names = _model_name(args[0], loaded), Path(args[1]).name
    figure = partial(model.activations_figure, stages, image, prediction.labels, *names)
    return figure, _folder(loaded) / f"activations-{_file_stem(args[1])}.png"


def _saliency(args: Sequence[str], options: Options) -> FigureFile:
    loaded = _load(args[0], options)
    saliency = explain.saliency(loaded, args[1], options.method or "auto", options.label)
    path = _folder(loaded) / f"saliency-{_file_stem(args[1])}-{saliency.method}.png"
    return partial(model.saliency_figure, saliency), path


def _similar(args: Sequence[str], options: Options) -> FigureFile:
    loaded = _load(args[0], options)
    paths = _find_images(args[1:])
    queries = _predict(loaded, paths, 1)
    top = 6 if options.top is None else options.top
    found = neighbors.find_similar(loaded, paths, top, options.layer, options.device, options.progress)
    assert loaded.run is not None  # find_similar raises otherwise
    images = iter(neighbors.load_run_images(loaded.run, [neighbor.name for row in found for neighbor in row]))
    rows = [[(neighbor, next(images)) for neighbor in row] for row in found]
    layer = options.layer or neighbors.Features(loaded.model).layer
    figure = partial(model.similar_figure, queries, rows, layer, _model_name(args[0], loaded))
    return figure, _folder(loaded) / f"similar-{_file_stem(paths[0])}.png"


def _top5(args: Sequence[str], options: Options) -> FigureFile:
    loaded = _load(args[0], options)
    paths = _find_images(args[1:])
    figure = partial(model.top5_figure, _predict(loaded, paths, 5), _model_name(args[0], loaded))
    return figure, _folder(loaded) / f"top5-{_file_stem(paths[0])}.png"


def _mistakes(args: Sequence[str], options: Options) -> FigureFile:
    loaded = _load(args[0], options)
    run = loaded.run
    if run is None:
        raise UserError(f"{args[0]} comes without a run and its evaluations; name a run folder.")
    split = options.split or next((s for s in ("test", "val") if run.read_evaluation(s) is not None), "val")
    evaluation = run.read_evaluation(split)
    if evaluation is None:
        raise UserError(f"The run {run.path} has no {split} evaluation; create it with 'alexnet eval {run.path}'.")
    count = 6 if options.top is None else options.top
    if not 1 <= count <= MAX_IMAGES:
        raise UserError(f"--top must be from 1 to {MAX_IMAGES}, not {count}.")
    names, targets, logits = evaluation
    temperature = loaded.calibration.temperature if loaded.calibration else 1.0
    found = model.Predictions(names, targets, logits / temperature)
    examples = model.find_examples(found, loaded.classes, count)
    images = iter(neighbors.load_run_images(run, [example.name for group in examples for example in group]))
    mistakes, correct = ([(example, next(images)) for example in group] for group in examples)
    accuracy = float((found.predicted == found.targets).mean())
    values = (run.path.name, split, len(found.targets), accuracy)
    return partial(model.mistakes_figure, mistakes, correct, *values), _folder(loaded) / "mistakes.png"


def _curves(args: Sequence[str], _options: Options) -> FigureFile:
    histories: dict[str, Any] = {}
    for arg in args:
        run = find_run(arg)
        history = run.metrics()
        if not history:
            raise UserError(f"The run {run.path} has not finished an epoch yet, so there is no curve to draw.")
        histories[run.path.name if run.path.name not in histories else str(run.path)] = history
    folder = find_run(args[0]).path / "show" if len(args) == 1 else Path()
    return partial(metrics.curves_figure, histories), folder / "curves.png"


def _lrn(args: Sequence[str], options: Options) -> FigureFile:
    loaded = _load(args[0], options)
    images: Sequence[str | Image.Image] = _find_images(args[1:]) if len(args) > 1 else []
    if not images:
        if loaded.run is None or (evaluation := loaded.run.read_evaluation("val")) is None:
            raise UserError(f"{args[0]} comes without a validation set; name images: 'alexnet show lrn RUN IMAGE…'.")
        images = neighbors.load_run_images(loaded.run, list(evaluation[0][:MAX_IMAGES]))
    denominators = explain.lrn_denominators_of(loaded, images)
    if not denominators:
        raise UserError(f"'{loaded.model.spec.name}' as built here has no LRN; choose a run with --norm lrn.")
    return partial(model.lrn_figure, denominators, _model_name(args[0], loaded)), _folder(loaded) / "lrn.png"


def _architecture(args: Sequence[str], options: Options) -> FigureFile:
    spec, name = _find_spec(args[0], options)
    return partial(architecture.architecture_figure, spec), Path(f"architecture-{name}.svg")


def _receptive_field(args: Sequence[str], options: Options) -> FigureFile:
    spec, name = _find_spec(args[0], options)
    if len(args) > 1:
        image = decode_image(args[1])
    else:
        from sklearn.datasets import load_sample_image

        image = Image.fromarray(load_sample_image("china.jpg"))
    return partial(architecture.receptive_field_figure, spec, image), Path(f"receptive-field-{name}.png")


_MAKE: dict[str, Callable[[Sequence[str], Options], FigureFile]] = {
    "filters": _filters,
    "activations": _activations,
    "saliency": _saliency,
    "similar": _similar,
    "top5": _top5,
    "mistakes": _mistakes,
    "curves": _curves,
    "lrn": _lrn,
    "architecture": _architecture,
    "receptive-field": _receptive_field,
}

# ── arguments ─────────────────────────────────────────────────────────────────────────────────────


def _load(name: str, options: Options) -> LoadedModel:
    return load_model(name, options.checkpoint, options.file, options.progress.log)


def _find_spec(name: str, options: Options) -> tuple[AlexNetSpec, str]:
    """Return the specification of an architecture or of a run's network, and a name for the file."""
    if is_run_reference(name):
        loaded = _load(name, options)
        spec = loaded.model.spec
        file_name = loaded.run.path.name if loaded.run else spec.name.replace("/", "-")
    elif name.startswith(TORCHVISION):
        raise UserError(f"'{name}' is not an AlexNet and has no such figure; 'alexnet arch {name}' lists its layers.")
    else:
        return find_architecture(name), name
    if not isinstance(spec, AlexNetSpec):
        raise UserError(f"'{spec.name}' is not an AlexNet and has no such figure; choose an AlexNet.")
    return spec, file_name


def _model_name(arg: str, loaded: LoadedModel) -> str:
    return loaded.run.path.name if loaded.run else Path(arg).name


def _folder(loaded: LoadedModel) -> Path:
    return loaded.run.path / "show" if loaded.run else Path()


def _file_stem(path: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(path).stem)[:60]


def _find_images(args: Sequence[str]) -> list[str]:
    paths = [str(path) for path in find_images(args)]
    if len(paths) > MAX_IMAGES:
        raise UserError(f"{len(paths):,} images do not fit into one figure; name at most {MAX_IMAGES}.")
    return paths


def _predict(loaded: LoadedModel, paths: Sequence[str], top: int) -> list[model.ImagePrediction]:
    """Predict the `top` labels of images, with calibrated probabilities.

    Their true label is the folder name if that is a class.

    Raises `UserError` for an unreadable image.
    """
    ensemble = Ensemble((loaded.model.spec.name,), (loaded,))
    images = [decode_image(path, value_range=loaded.preprocess.value_range) for path in paths]
    predicted = Classifier(ensemble, "cpu").predict_many(paths, top)
    found = []
    for path, image, prediction in zip(paths, images, predicted, strict=True):
        folders = [part for part in Path(path).absolute().parent.parts if part.lower() not in SPLIT_NAMES]
        true = folders[-1] if folders and folders[-1] in loaded.classes else None
        found.append(model.ImagePrediction(image, Path(path).name, prediction.confidences, true))
    return found
