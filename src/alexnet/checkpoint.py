"""The run folder: the names in it, how they are written, and how a checkpoint is read back.

    runs/<recipe>-<time>/
      recipe.json  env.json  metrics.jsonl  summary.json  split.csv  bad_files.csv
      checkpoints/<step>/{model.safetensors, model.json, training.pt}, preprocess.safetensors with a mean image
      best  last                      names of checkpoints, in text files
      evaluation/<split>.parquet      path, target, logits
      report.html  report/            the page, and its plots and tables as files

Every file is written beside its place, flushed and renamed into it, so that a reader, or a restart after a crash,
finds either the old file or the new one. Nothing here can run code: weights are safetensors, the rest is JSON,
and `training.pt` goes through torch's restricted loader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.files import fsync_file, sha256_file, write_json

if TYPE_CHECKING:
    import torch

    from alexnet.models.model import Network

FORMAT = "alexnet-1"  # of model.json; a reader refuses what it does not know
WEIGHTS, MODEL, TRAINING = "model.safetensors", "model.json", "training.pt"
PREPROCESS = "preprocess.safetensors"  # beside model.json where there is a mean image
DESCRIBED = "described"  # in training.pt: the checksum of what model.json says


# ── a run ─────────────────────────────────────────────────────────────────────────────────────────────────────


class CheckpointUnreadable(UserError):
    """A checkpoint that the system cannot read now, which does not say that it is damaged."""

    def __init__(self, folder: Path, error: OSError) -> None:
        why = error.strerror or error
        super().__init__(
            f"{folder} cannot be read ({why}); it may be whole all the same: try again once it can be read."
        )


@dataclass(frozen=True)
class Checkpoint:
    """A network as it was saved, with all that is needed to use it."""

    path: Path
    model: Network
    classes: tuple[str, ...]
    preprocess: EvalTransform
    step: int
    epoch: int


# ── a checkpoint ──────────────────────────────────────────────────────────────────────────────────────────────


def save_model(
    folder: Path,
    model: Network,
    classes: Sequence[str],
    preprocess: EvalTransform,
    *,
    step: int = 0,
    epoch: int = 0,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write `model.safetensors`, `model.json` and, with a mean image, `preprocess.safetensors` into `folder`: all that
    using the network needs. `weights` are those of `model` unless given."""
    from safetensors.torch import save_file

    state = model.state_dict() if weights is None else weights
    save_file({name: tensor.detach().contiguous().cpu() for name, tensor in state.items()}, folder / WEIGHTS)
    fsync_file(folder / WEIGHTS)
    if preprocess.mean_image is not None:
        save_file({"mean_image": preprocess.mean_image.contiguous()}, folder / PREPROCESS)
        fsync_file(folder / PREPROCESS)
    files = [name for name in (WEIGHTS, PREPROCESS, TRAINING) if (folder / name).exists()]
    write_json(
        folder / MODEL,
        {
            **_description(model, classes, preprocess, step, epoch),
            "sha256": {name: sha256_file(folder / name) for name in files},
        },
    )


def _description(
    model: Network, classes: Sequence[str], preprocess: EvalTransform, step: int, epoch: int
) -> dict[str, Any]:
    """What `model.json` says of a network, but for checksums and what is added later."""
    return {
        "format": FORMAT,
        "spec": model.spec.to_dict(),
        "classes": list(classes),
        "preprocess": preprocess.to_dict(),
        "step": step,
        "epoch": epoch,
    }


def _digest(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True, default=str).encode()).hexdigest()


def load_checkpoint(folder: Path) -> Checkpoint:
    """The network in a checkpoint folder, on the CPU. Raises `UserError` on damage or another program's files."""
    from safetensors.torch import load_file

    from alexnet.models.model import build, spec_from_dict

    described = folder / MODEL
    found = read_model_json(folder)
    mean_image = _mean_image(folder, found)
    try:
        spec = spec_from_dict(found["spec"])
        preprocess = EvalTransform.from_dict(found["preprocess"], mean_image)
        classes = tuple(str(c) for c in found["classes"])
        step, epoch = int(found["step"]), int(found["epoch"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{described} is damaged ({error}); use another checkpoint of the run.") from error
    if len(classes) != spec.num_classes:
        raise UserError(f"{described} names {len(classes)} classes for a network with {spec.num_classes}.")
    path = _intact(folder, WEIGHTS, found)
    model = build(spec)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} does not hold the network that {MODEL} describes: {first}.") from error
    return Checkpoint(folder, model.eval(), classes, preprocess, step, epoch)


def _mean_image(folder: Path, found: dict[str, Any]) -> torch.Tensor | None:
    """The mean image of a checkpoint whose `model.json` says, in `found`, that it has one."""
    described = found.get("preprocess")
    if not isinstance(described, dict) or not described.get("mean_image"):
        return None
    from safetensors.torch import load_file

    path = _intact(folder, PREPROCESS, found)
    try:
        return load_file(path)["mean_image"].clone()  # free of the file, which Windows could not delete else
    except (SafetensorError, KeyError) as error:
        raise UserError(f"{path} holds no mean image; use another checkpoint of the run.") from error


def _intact(folder: Path, name: str, found: dict[str, Any]) -> Path:
    """The file `name` of a checkpoint, there and with the checksum that `model.json`, in `found`, gives."""
    path, sums = folder / name, found.get("sha256")
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} has no {name}; use another checkpoint of the run.")
    if not isinstance(sums, dict) or sha256_file(path) != sums.get(name):
        raise UserError(f"{path} is truncated or damaged: its checksum is not the one in {MODEL}.")
    return path


def update_model_json(folder: Path, key: str, value: Any) -> None:
    """Set one `key` of a checkpoint's `model.json`, which is written anew as a whole."""
    write_json(folder / MODEL, {**read_model_json(folder), key: value})


def read_model_json(folder: Path) -> dict[str, Any]:
    """What `model.json` says. Raises `UserError` if it is missing, damaged or another program's."""
    path = folder / MODEL
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not a checkpoint of ours: it has no {MODEL}.") from None
    except OSError as error:
        raise CheckpointUnreadable(folder, error) from error
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); use another checkpoint of the run.") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UserError(f"{path} was written by other software: its format is not '{FORMAT}'.")
    return found


def checkpoint_id(folder: Path) -> str:
    """16 hexadecimal digits that change with the weights, classes or preprocessing of a checkpoint; `model.json` alone
    is read, and no torch needed. Raises `UserError` where that is missing or damaged."""
    found = read_model_json(folder)
    told = [found.get(key) for key in ("spec", "classes", "preprocess")]
    sums = found.get("sha256")
    told += [sums.get(name) for name in (WEIGHTS, PREPROCESS)] if isinstance(sums, dict) else []
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def read_training_state(folder: Path) -> dict[str, Any]:
    """What `training.pt` holds, read without running anything in it. Raises `UserError`."""
    import torch

    path = folder / TRAINING
    if not path.is_file():
        raise UserError(f"The checkpoint {folder} has no {TRAINING}, so that training cannot go on from it.")
    told = read_model_json(folder)
    expected = told["sha256"].get(TRAINING) if isinstance(told.get("sha256"), dict) else None
    if expected != sha256_file(path):
        raise UserError(f"{path} is truncated or damaged: its checksum is not the one in {MODEL}.")
    try:
        found = dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, MemoryError):  # tells of the machine, not of the file
        raise
    except Exception as error:  # torch raises pickle, zip, EOF and runtime errors here
        raise UserError(f"{path} holds a pickle that could run code, which is refused.") from error
    said = {key: told.get(key) for key in ("format", "spec", "classes", "preprocess", "step", "epoch")}
    if found.pop(DESCRIBED, None) not in (None, _digest(said)):  # earlier versions did not keep it
        raise UserError(f"{folder / MODEL} is damaged: it does not say what {TRAINING} was saved with.")
    return found
