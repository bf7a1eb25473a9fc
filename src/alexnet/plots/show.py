"""`alexnet show KIND`: from words (a run, pictures, an architecture) to a picture file.

`KINDS` says what each kind is given and which settings it takes. Computing is `inference.explain`'s and its
neighbours', drawing is done in the modules beside this one; here they meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from alexnet.data.decode import decode_image
from alexnet.data.image_folder import SPLIT_NAMES, find_images
from alexnet.errors import UserError, unknown_name
from alexnet.inference import explain, neighbors
from alexnet.inference.ensemble import Ensemble
from alexnet.inference.load import is_run_reference, load_model
from alexnet.inference.predict import Classifier
from alexnet.models.architectures import TORCHVISION
from alexnet.models.architectures import architecture as find_architecture
from alexnet.models.spec import AlexNetSpec
from alexnet.plots import architecture, model, predictions
from alexnet.plots.style import Draw, check_out, save, theme_named
from alexnet.run_dir import find_run
from alexnet.runtimes.engines import LoadedModel

Progress = Callable[[int, int, str], None]
MOST_PICTURES = 24  # in one figure


@dataclass(frozen=True)
class Settings:
    """What may be said beside the words; None: not said."""

    layer: str | None = None
    method: str | None = None
    label: str | None = None
    top: int | None = None
    split: str | None = None
    checkpoint: str = "best"
    device: str = "auto"
    progress: Progress | None = None
    say: Callable[[str], object] = lambda _: None


@dataclass(frozen=True)
class Drawing:
    """A picture ready to be drawn, and where it goes unless told."""

    draw: Draw
    folder: Path
    name: str
    """With a suffix."""


@dataclass(frozen=True)
class Kind:
    """One of the words after `alexnet show`."""

    takes: str
    """What follows it, as in its usage line."""
    least: int
    most: int
    """How many words."""
    settings: tuple[str, ...]
    make: Callable[[Sequence[str], Settings], Drawing]
    about: str


def show(kind: str, what: Sequence[str], out: Path | None = None, theme: str = "light", **settings: Any) -> Path:
    """Draw a picture of `kind` and return its file: `out` (.png, .svg or .html), or one with a sensible name.

    `what` are the words of `KINDS[kind].takes`, `settings` the fields of `Settings`. Without `out` the file goes into
    the run's folder `show/`, or here if there is no run. Raises `UserError` before anything is written.
    """
    if kind not in KINDS:
        raise unknown_name("kind of picture", kind, KINDS)
    found = KINDS[kind]
    theme_named(theme)
    if out is not None:
        check_out(out)
    for name in ("layer", "method", "label", "top", "split"):
        if settings.get(name) is not None and name not in found.settings:
            raise UserError(f"'alexnet show {kind}' takes no --{name}; leave it out.")
    usage = f"'alexnet show {kind} {found.takes}'"
    if len(what) < found.least:
        raise UserError(f"There is something missing after 'show {kind}'; it is {usage}.")
    if len(what) > found.most:
        raise UserError(f"'alexnet show {kind}' has no use for '{what[found.most]}'; it is {usage}.")
    drawing = found.make(what, Settings(**settings))
    return save(drawing.draw, out or drawing.folder / drawing.name, theme)


# ── the kinds ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _filters(what: Sequence[str], settings: Settings) -> Drawing:
    opened = load_model(what[0], settings.checkpoint)
    weights = model.conv_weights(opened.model)
    if settings.layer is not None and settings.layer not in weights:
        raise unknown_name("convolution", settings.layer, weights, f" in '{opened.model.spec.name}'")
    title = f"Filters of {_title(what[0], opened)}"
    name = f"filters-{settings.layer}.png" if settings.layer else "filters.png"
    return Drawing(lambda theme: model.filters_figure(opened.model, settings.layer, theme, title), _place(opened), name)


def _activations(what: Sequence[str], settings: Settings) -> Drawing:
    opened = load_model(what[0], settings.checkpoint)
    stages = explain.activations(opened, what[1])
    image, _ = explain.network_input(opened, what[1])
    (answer,) = _ask(opened, what[1:], 3)
    title = f"{Path(what[1]).name} on its way through {_title(what[0], opened)}"
    return Drawing(
        lambda theme: model.activations_figure(stages, image, answer.labels, theme, title),
        _place(opened), f"activations-{_stem(what[1])}.png",
    )  # fmt: skip


def _saliency(what: Sequence[str], settings: Settings) -> Drawing:
    opened = load_model(what[0], settings.checkpoint)
    found = explain.saliency(opened, what[1], settings.method or "grad-cam", settings.label)
    return Drawing(
        lambda theme: model.saliency_figure(found, theme),
        _place(opened), f"saliency-{_stem(what[1])}-{found.method}.png",
    )  # fmt: skip


def _similar(what: Sequence[str], settings: Settings) -> Drawing:
    opened = load_model(what[0], settings.checkpoint)
    paths = _pictures(what[1:])
    queries = _ask(opened, paths, 1)
    top = 6 if settings.top is None else settings.top
    found = neighbors.find_similar(
        opened, paths, top, settings.layer, settings.device, settings.progress, settings.say
    )  # fmt: skip
    assert opened.run is not None  # or similar would have said so
    images = iter(neighbors.load_run_images(opened.run, [near.name for row in found for near in row]))
    rows = [[(near, next(images)) for near in row] for row in found]
    layer = settings.layer or neighbors.Features(opened.model).layer
    title = f"Most alike, as {_title(what[0], opened)} sees it"
    return Drawing(
        lambda theme: predictions.similar_figure(queries, rows, layer, theme, title),
        _place(opened), f"similar-{_stem(paths[0])}.png",
    )  # fmt: skip


def _top5(what: Sequence[str], settings: Settings) -> Drawing:
    opened = load_model(what[0], settings.checkpoint)
    paths = _pictures(what[1:])
    found = _ask(opened, paths, 5)
    return Drawing(
        lambda theme: predictions.top5_figure(found, theme, f"What {_title(what[0], opened)} says"),
        _place(opened), f"top5-{_stem(paths[0])}.png",
    )  # fmt: skip


def _mistakes(what: Sequence[str], settings: Settings) -> Drawing:
    opened = load_model(what[0], settings.checkpoint)
    run = opened.run
    if run is None:
        raise UserError(f"{what[0]} comes without a run, and so without an evaluation to look for mistakes in.")
    split = settings.split or next((s for s in ("test", "val") if run.read_evaluation(s) is not None), "val")
    stored = run.read_evaluation(split)
    if stored is None:
        raise UserError(
            f"The run {run.path} has no evaluation of its {split} split; 'alexnet eval {run.path}' makes it."
        )
    count = 6 if settings.top is None else settings.top
    if not 1 <= count <= MOST_PICTURES:
        raise UserError(f"--top must be from 1 to {MOST_PICTURES}, not {count}.")
    both = predictions.find_examples(*stored, opened.classes, count)
    images = iter(neighbors.load_run_images(run, [case.name for cases in both for case in cases]))
    mistakes, lucky = ([(case, next(images)) for case in cases] for cases in both)
    right = float((stored[2].argmax(1) == stored[1]).mean())
    title = f"{run.path.name}: {right:.1%} of {len(stored[1]):,} {split} pictures are right"
    return Drawing(
        lambda theme: predictions.mistakes_figure(mistakes, lucky, theme, title), _place(opened), "mistakes.png"
    )  # fmt: skip


def _curves(what: Sequence[str], _settings: Settings) -> Drawing:
    runs: dict[str, Any] = {}
    for word in what:
        run = find_run(word)
        rows = run.metrics()
        if not rows:
            raise UserError(f"The run {run.path} has not finished an epoch yet, so there is no curve to draw.")
        name = run.path.name if run.path.name not in runs else str(run.path)
        runs[name] = rows
    alone = find_run(what[0]).path / "show" if len(what) == 1 else Path()
    title = f"How {next(iter(runs))} learned" if len(runs) == 1 else "How they learned"
    return Drawing(lambda theme: predictions.curves_figure(runs, theme, title), alone, "curves.png")


def _architecture(what: Sequence[str], settings: Settings) -> Drawing:
    spec, name = _spec(what[0], settings)
    return Drawing(lambda theme: architecture.architecture_figure(spec, theme), Path(), f"architecture-{name}.svg")


def _receptive_field(what: Sequence[str], settings: Settings) -> Drawing:
    spec, name = _spec(what[0], settings)
    if len(what) > 1:
        image = decode_image(what[1])
    else:
        from sklearn.datasets import load_sample_image

        image = Image.fromarray(load_sample_image("china.jpg"))
    return Drawing(
        lambda theme: model.receptive_field_figure(spec, image, theme), Path(), f"receptive-field-{name}.png"
    )


KINDS: dict[str, Kind] = {
    "filters": Kind("RUN", 1, 1, ("layer",), _filters, "what each convolution looks for: figure 3 of the paper"),
    "activations": Kind("RUN IMAGE", 2, 2, (), _activations, "what each stage makes of a picture, with sizes"),
    "saliency": Kind("RUN IMAGE", 2, 2, ("method", "label"), _saliency, "which pixels the answer hangs on"),
    "similar": Kind("RUN IMAGE…", 2, 99, ("top", "layer"), _similar, "the nearest training pictures: figure 4, right"),
    "top5": Kind("RUN IMAGE…", 2, 99, (), _top5, "the likeliest labels as bars: figure 4, left"),
    "mistakes": Kind("RUN", 1, 1, ("split", "top"), _mistakes, "the most confident mistakes, the least sure successes"),
    "curves": Kind("RUN…", 1, 20, (), _curves, "loss and top-1 by epoch, of several runs in one picture"),
    "architecture": Kind("NAME", 1, 1, (), _architecture, "boxes in perspective, one row for each tower: figure 2"),
    "receptive-field": Kind("NAME [IMAGE]", 1, 2, (), _receptive_field, "what one unit of each stage sees"),
}  # fmt: skip

# ── words into things ─────────────────────────────────────────────────────────────────────────────────────────────


def _spec(name: str, settings: Settings) -> tuple[AlexNetSpec, str]:
    """The specification of an architecture, or of a run's network, and a name for the file."""
    if is_run_reference(name):
        opened = load_model(name, settings.checkpoint)
        spec = opened.model.spec
        label = opened.run.path.name if opened.run else spec.name.replace("/", "-")
    elif name.startswith(TORCHVISION):
        raise UserError(
            f"'{name}' is no AlexNet, and this picture is of AlexNets; 'alexnet arch {name}' lists its parts."
        )
    else:
        return find_architecture(name), name
    if not isinstance(spec, AlexNetSpec):
        raise UserError(f"'{spec.name}' is no AlexNet, and this picture is of AlexNets.")
    return spec, label


def _title(word: str, opened: LoadedModel) -> str:
    return opened.run.path.name if opened.run else Path(word).name


def _place(opened: LoadedModel) -> Path:
    return opened.run.path / "show" if opened.run else Path()


def _stem(path: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(path).stem)[:60]


def _pictures(words: Sequence[str]) -> list[str]:
    found = [str(path) for path in find_images(words)]
    if len(found) > MOST_PICTURES:
        raise UserError(f"That is {len(found):,} pictures, and {MOST_PICTURES} fit into one; name fewer.")
    return found


def _ask(opened: LoadedModel, paths: Sequence[str], top: int) -> list[predictions.Answered]:
    """What the network says of pictures; the true label where a folder's name is one of its classes. Raises
    `UserError` for a picture that cannot be read."""
    network = Classifier(_alone(opened), "cpu")
    images = [decode_image(path) for path in paths]
    found = []
    for path, image, prediction in zip(paths, images, network.predict_many(paths, top), strict=True):
        parents = [p for p in Path(path).absolute().parent.parts if p.lower() not in SPLIT_NAMES]
        true = parents[-1] if parents and parents[-1] in opened.classes else None
        found.append(predictions.Answered(image, Path(path).name, prediction.labels, true))
    return found


def _alone(opened: LoadedModel) -> Ensemble:
    import torch

    return Ensemble((opened.model.spec.name,), (opened,), (torch.arange(len(opened.classes)),))
