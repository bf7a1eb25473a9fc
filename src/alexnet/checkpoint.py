"""A checkpoint folder: what it holds, and how it is written and read.

    model.safetensors        weights
    model.json               architecture, class names, preprocessing, step, epoch, and checksums of the other files
    preprocess.safetensors   the mean image, if preprocessing has one
    training.pt              optimizer, schedule and position; absent where training cannot resume

Reading never runs code: weights are safetensors, the rest is JSON, and `training.pt` goes through torch's
`weights_only` loader. Every file is checked against its checksum.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from safetensors import SafetensorError

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import convert, read_json, sha256_file, write_json
from alexnet.text import clean_label

if TYPE_CHECKING:
    import torch

    from alexnet.models.model import Network

FORMAT = "alexnet-1"  # of model.json; any other format is refused
WEIGHTS, MODEL, TRAINING, PREPROCESS = "model.safetensors", "model.json", "training.pt", "preprocess.safetensors"
DESCRIPTION_KEYS = ("format", "spec", "classes", "preprocess", "step", "epoch")  # of model.json, fixed when saved
DESCRIPTION_DIGEST = "described"  # in training.pt: the digest of those values


@dataclass(frozen=True)
class Checkpoint:
    """A saved model with everything needed to use it."""

    path: Path
    model: Network
    classes: tuple[str, ...]
    preprocess: EvalTransform
    step: int
    epoch: int


class _ModelJson(TypedDict):
    """What model.json must hold; there may be more."""

    spec: dict[str, Any]
    classes: list[str]
    preprocess: dict[str, Any]
    step: int
    epoch: int
    sha256: dict[str, str]


# ── writing ───────────────────────────────────────────────────────────────────────────────────────


def save_model(
    folder: Path,
    model: Network,
    classes: Sequence[str],
    preprocess: EvalTransform,
    *,
    step: int = 0,
    epoch: int = 0,
    training: dict[str, Any] | None = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the files of a checkpoint into `folder`; within `files.atomic_folder` all of them or none.

    `training` becomes training.pt. `weights` replace those of `model`, which may be changing meanwhile. Raises
    `OSError`, e.g. on a full disk.
    """
    import torch
    from safetensors.torch import save_file

    description = {
        "format": FORMAT,
        "spec": model.spec.to_dict(),
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "step": step,
        "epoch": epoch,
    }
    state = model.state_dict() if weights is None else weights
    try:
        if training is not None:
            with (folder / TRAINING).open("wb") as file:  # clearer errors than torch's own writer
                torch.save({**training, DESCRIPTION_DIGEST: _digest(description)}, file)
        save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, folder / WEIGHTS)
        if preprocess.mean_image is not None:
            save_file({"mean_image": preprocess.mean_image.contiguous()}, folder / PREPROCESS)
    except (SafetensorError, RuntimeError) as error:  # how these libraries report a full disk
        raise _as_os_error(error) from error
    checksums = {n: sha256_file(folder / n) for n in (WEIGHTS, PREPROCESS, TRAINING) if (folder / n).exists()}
    write_json(folder / MODEL, {**description, "sha256": checksums})


def update_model_json(folder: Path, key: str, value: Any) -> None:
    """Set one `key` of a checkpoint's model.json."""
    write_json(folder / MODEL, {**read_model_json(folder), key: value})


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def _as_os_error(error: Exception) -> OSError:
    """Return the system error behind an exception of torch or safetensors."""
    if isinstance(error.__context__, OSError):
        return OSError(error.__context__.errno, error.__context__.strerror)
    number = re.search(r"os error (\d+)", str(error))
    if number:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return OSError(errno.EIO, str(error).splitlines()[0])


# ── reading ───────────────────────────────────────────────────────────────────────────────────────


def load_checkpoint(folder: Path) -> Checkpoint:
    """Load the model of a checkpoint folder on the CPU, in eval mode.

    Raises `UserError` if a file is missing or damaged, and `OSError` if it cannot be read now.
    """
    from safetensors.torch import load_file

    from alexnet.models.model import build, spec_from_dict
    from alexnet.models.recognize import check_size, safetensors_shapes

    path = folder / MODEL
    values = read_model_json(folder)
    mean_image = None
    if values["preprocess"].get("mean_image"):
        saved = _verify(folder, PREPROCESS, values)
        try:
            mean_image = load_file(saved)["mean_image"].clone()  # not memory-mapped: Windows could not delete the file
        except (SafetensorError, KeyError) as error:
            raise UserError(f"{saved} holds no mean image; use another checkpoint of the run.") from error
    try:
        spec = spec_from_dict(values["spec"])
        preprocess = EvalTransform.from_dict(values["preprocess"], mean_image)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); use another checkpoint of the run.") from error
    classes = tuple(map(clean_label, values["classes"]))
    if len(classes) != spec.num_classes:
        raise UserError(f"{path} names {len(classes)} classes for a network with {spec.num_classes}.")
    weights = _verify(folder, WEIGHTS, values)
    try:
        check_size(spec, safetensors_shapes(weights), str(weights))
        model = build(spec)
        model.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{weights} does not hold the network that {MODEL} describes: {reason}.") from error
    return Checkpoint(folder, model.eval(), classes, preprocess, values["step"], values["epoch"])


def read_model_json(folder: Path) -> dict[str, Any]:
    """Return the content of model.json. Raises `UserError` if it is missing, damaged or another program's."""
    path = folder / MODEL
    try:
        values = read_json(path, dict[str, Any])
    except FileNotFoundError:
        raise UserError(f"{folder} is not an AlexNet checkpoint: it has no {MODEL}.") from None
    if values.get("format") != FORMAT:
        raise UserError(f"{path} was written by other software: its format is not '{FORMAT}'.")
    convert(values, _ModelJson, str(path))
    return values


def checkpoint_id(folder: Path) -> str:
    """Return 16 hexadecimal digits that change with a checkpoint's weights, classes or preprocessing.

    Reads model.json only and does not need torch. Raises `UserError` if that file is missing or damaged.
    """
    values = read_model_json(folder)
    parts = [values[key] for key in ("spec", "classes", "preprocess")]
    parts += [values["sha256"].get(name) for name in (WEIGHTS, PREPROCESS)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def read_training_state(folder: Path) -> dict[str, Any]:
    """Return the content of training.pt, loaded with `weights_only`.

    Raises `UserError` if the file is missing, damaged, holds a pickle, or does not match model.json.
    """
    import torch

    path = folder / TRAINING
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} has no {TRAINING}, so training cannot resume from it.")
    values = read_model_json(folder)
    _verify(folder, TRAINING, values)
    try:
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, MemoryError):  # the machine's fault, not the file's
        raise
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors here
        raise UserError(f"{path} holds a pickle that could run code, which is refused.") from error
    if DESCRIPTION_DIGEST not in state:
        raise UserError(f"{path} was written by other software; use another checkpoint of the run.")
    if state.pop(DESCRIPTION_DIGEST) != _digest({key: values.get(key) for key in DESCRIPTION_KEYS}):
        raise UserError(f"{folder / MODEL} is damaged: it differs from the one that {TRAINING} was saved with.")
    return state


def _verify(folder: Path, name: str, values: dict[str, Any]) -> Path:
    """Return the path of the checkpoint's file `name` after comparing its checksum with model.json's, in `values`."""
    path = folder / name
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} has no {name}; use another checkpoint of the run.")
    if sha256_file(path) != values["sha256"].get(name):
        raise UserError(f"{path} is truncated or damaged: its checksum is not the one in {MODEL}.")
    return path
