"""A file of weights that another program saved, as a network: what the file does not say is in `FileOptions`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.errors import UserError
from alexnet.text import clean_label, decode_file, strip_blanks

if TYPE_CHECKING:
    from alexnet.data.transforms import EvalTransform
    from alexnet.models.model import Spec
    from alexnet.runtimes.engines import LoadedModel

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".pth.tar", ".pt.tar", ".caffemodel")
"""Of files of weights; those of pytorch/examples end in `.pth.tar` and are no archives."""


_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True)
class FileOptions:
    """What a file of weights (.pth, .pt, .ckpt, .safetensors, .caffemodel) does not say; other RUNs say it."""

    arch: str | None = None
    """Architecture of a file of weights, such as torchvision or torchvision/resnet18; by default
    the only one that has its shapes."""
    classes: Path | None = None
    """Class names of a file of weights in the order of its outputs: a line each, or JSON, a list or
    {"0": "cat"}; by default they are numbers."""
    image_size: int | None = None
    """Side of the input of a file of weights, in pixels; the architecture's own by default."""
    crop_pct: float | None = None
    """Side of the center crop as a share of the resized image's short side, for a file of weights;
    .875 by default, 1 up to 128 pixels."""
    mean: tuple[float, ...] | None = None
    """Subtracted from each channel before a file of weights, as fractions of 1; ImageNet's by
    default, for gray images 0, for a .caffemodel the .binaryproto beside it or Caffe's own."""
    std: tuple[float, ...] | None = None
    """Divides each channel after that; ImageNet's by default, for gray images 1, for a .caffemodel
    1/255."""
    classes_encoding: str | None = None
    """Encoding of the file of class names, such as gb18030; by default the one that fits, if only one does."""


NO_OPTIONS = FileOptions()


def refuse_options(name: str | Path, options: FileOptions) -> None:
    """Raise `UserError` if `options` are given for something else than a file of weights."""
    for option, value in vars(options).items():
        if value is not None:
            flag = f"--{option.replace('_', '-')}"
            raise UserError(f"{flag} describes a file of weights, and {name} is none; omit it.")


def options_for(name: str | Path, names: Sequence[str | Path], options: FileOptions) -> FileOptions:
    """Return `options` for a file of weights among `names`; without one, for all, which then refuse them."""
    return options if is_weights_file(name) or not any(map(is_weights_file, names)) else NO_OPTIONS


def is_weights_file(name: str | Path) -> bool:
    """Whether `name` is a file of weights, by its suffix; an exported file may have it, too."""
    path = Path(name)
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def load_weights_file(path: Path, options: FileOptions, log: Callable[[str], object]) -> LoadedModel:
    """Load a file of weights, on the CPU and in evaluation mode; `log` receives all that was assumed.

    Raises `UserError` if it cannot be read safely, no architecture or not the given one fits it, or
    the number of class names is another.
    """
    from alexnet.files import sha256_file
    from alexnet.models.caffemodel import SUFFIX, read_caffemodel
    from alexnet.models.model import build
    from alexnet.models.recognize import recognize
    from alexnet.models.state_dicts import find_state_dict
    from alexnet.models.weights import check_file, copy_tensors, read_weights
    from alexnet.runtimes.engines import LoadedModel

    where = f"'{path}'"
    if path.suffix.lower() == SUFFIX:
        check_file(path)
        caffe = read_caffemodel(path)
        tensors = find_state_dict(caffe.tensors, where, log)
        arch = options.arch or caffe.find_architecture()
        spec, note = recognize(tensors, arch, options.image_size, where)
        caffe.check(spec, where)
        preprocess, source = _caffe_preprocess(spec, options, path)
        note = note or f"{where} is taken as '{spec.name}', its conv1 as one for RGB; {source}."
    else:
        tensors = find_state_dict(read_weights(path), where, log)
        spec, note = recognize(tensors, options.arch, options.image_size, where)
        preprocess = _preprocess(spec, options)
    if note:
        log(note)
    model = build(spec)
    copy_tensors(model, tensors, where)
    classes = tuple(map(str, range(spec.num_classes)))
    if options.classes is not None:
        classes = read_classes(options.classes, options.classes_encoding, log)
        if len(classes) != spec.num_classes:
            raise UserError(
                f"{options.classes} has {len(classes)} class names and {where} {spec.num_classes} outputs; give a name "
                "for each output."
            )
    mean, std = (" ".join(f"{value:g}" for value in values) for values in (preprocess.mean, preprocess.std))
    if preprocess.mean_image is not None:
        mean = "image"
    log(
        f"{where} does not say how its images were prepared: assuming a resized short side of {preprocess.resize_side} "
        f"and a crop of {preprocess.size} pixels, mean {mean}, std {std}; --image-size, --crop-pct, --mean and --std "
        "change this."
    )
    described = [spec.to_dict(), classes, preprocess.to_dict(), sha256_file(path)]
    if preprocess.mean_image is not None:
        described.append(hashlib.sha256(preprocess.mean_image.numpy().tobytes()).hexdigest())
    identity = json.dumps(described, sort_keys=True)
    digest = hashlib.sha256(identity.encode()).hexdigest()
    return LoadedModel(
        model.eval(), classes, preprocess, None, None, f"file-{digest[:16]}",
        calibration_note=f"{path} has no confidence threshold: only runs have one.",
    )  # fmt: skip


def read_classes(
    path: Path, encoding: str | None = None, log: Callable[[str], object] = lambda _: None
) -> tuple[str, ...]:
    """Return the class names in `path`; `log` receives a sentence if an encoding had to be found.

    There is one name per line, or JSON: a list, {"0": "cat"}, {"0": ["n02123045", "cat"]} as Keras
    has for ImageNet, or {"cat": 0} as torchvision's `class_to_idx`. Raises `UserError`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The class names {path} cannot be read: {error.strerror}.") from error
    text, found = decode_file(content, str(path), encoding, "--classes-encoding")
    if found != "utf-8" and encoding is None:
        log(f"Read {path} as {found}, the only encoding that fits.")
    try:
        names = _names_in(json.loads(text)) if path.suffix.lower() == ".json" else _LINE_END.split(text.rstrip())
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise UserError(
            f'{path} must be JSON, a list of names or {{"0": "cat", "1": "dog"}}, for --classes.'
        ) from error
    stored = tuple(clean_label(strip_blanks(name)) for name in names)  # as those of folders and tables
    if not stored or not all(stored):
        raise UserError(f"{path} has an empty class name; write one name per line.")
    return stored


def _names_in(value: object) -> list[str]:
    """Return the names in a JSON value, in the order of their numbers. Raises `ValueError` if a number is missing."""
    if isinstance(value, dict):
        numbered = {int(key): name for key, name in value.items()} if "0" in value else {}
        numbered = numbered or {number: name for name, number in value.items()}
        value = [numbered.get(number) for number in range(len(value))]
    names = [name[-1] if isinstance(name, list) else name for name in value]  # type: ignore[attr-defined]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("a name is missing")
    return names


def _preprocess(spec: Spec, options: FileOptions) -> EvalTransform:
    """Return the usual preprocessing for the input of `spec`, with what `options` changes."""
    from alexnet.data.transforms import IMAGENET_MEAN, IMAGENET_STD, EvalTransform

    channels, size = spec.in_channels, spec.image_size
    crop_pct = options.crop_pct if options.crop_pct is not None else 0.875 if size > 128 else 1.0
    if not 0 < crop_pct <= 1:
        raise UserError(f"--crop-pct is {crop_pct:g} and must be above 0 and at most 1.")
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,) * channels, (1.0,) * channels)
    mean, std = options.mean or mean, options.std or std
    mean, std = (values * channels if len(values) == 1 else values for values in (mean, std))
    return EvalTransform(size, round(size / crop_pct), channels, mean, std)


def _caffe_preprocess(spec: Spec, options: FileOptions, path: Path) -> tuple[EvalTransform, str]:
    """Return Caffe's preprocessing for the input of `spec`, with what `options` changes, and the source of its mean.

    Images are squashed to 256×256, the mean is subtracted, and values stay in the range of 0 to 255.
    """
    from alexnet.data.transforms import EvalTransform
    from alexnet.models.caffemodel import CHANNEL_MEAN, MEAN_SIDE, read_mean_image

    usual = _preprocess(spec, FileOptions(mean=options.mean, std=options.std or (1 / 255,)))
    channels, size = usual.channels, usual.size
    if options.crop_pct is not None:
        side = _preprocess(spec, options).resize_side
    else:
        side = MEAN_SIDE if size <= MEAN_SIDE else size
    made = partial(EvalTransform, size, side, channels, std=usual.std, squash=True)
    if options.mean is not None:
        return made(usual.mean), "its mean is that of --mean"
    if (file := _find_mean_image(path)) is None:
        mean = CHANNEL_MEAN if channels == 3 else (0.0,) * channels
        return made(tuple(value / 255 for value in mean)), "its mean is that of Caffe's ImageNet, per channel"
    mean_image = read_mean_image(file) / 255
    if len(mean_image) != channels:
        raise UserError(f"The mean image '{file}' has {len(mean_image)} channels, not {channels}; give --mean.")
    if mean_image.shape[1:] == (1, 1):
        return made(tuple(mean_image.flatten().tolist())), f"its mean is that of {file}"
    return made((0.0,) * channels, mean_image=mean_image), f"its mean is that of {file}"


def _find_mean_image(path: Path) -> Path | None:
    """Return the .binaryproto of the name of `path`, or else the only one in its folder. Raises `UserError`."""
    if (same := path.with_suffix(".binaryproto")).is_file():
        return same
    found = sorted(path.absolute().parent.glob("*.binaryproto"))
    if len(found) > 1:
        raise UserError(
            f"There are several mean images beside '{path}', {found[0].name} and {found[1].name}; rename the right one "
            f"{same.name}, or give --mean."
        )
    return found[0] if found else None
