"""Loading and converting weights: ours, torchvision's, Caffe's, and those saved by the tutorials' code.

The same eight layers have many names (`conv1.weight`, `features.0.weight`, `0.weight`, `conv1_w`) but one order, so
weights with other keys are sorted by layer and matched by order and shape. A model is changed only after everything is
known to fit. Files are never unpickled in a way that can run code.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from alexnet.errors import UserError, unknown_name
from alexnet.models.architectures import architecture
from alexnet.models.model import AlexNet, Network
from alexnet.models.spec import Layer, layers
from alexnet.models.torchvision_models import TorchvisionNetwork

_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's and torch.compile's
_TENSORS = {"weight": 0, "w": 0, "0": 0, "bias": 1, "b": 1, "1": 1, "running_mean": 2, "running_var": 3}


AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def load_weights(model: AnyNetwork, weights: Mapping[str, Any] | str | Path) -> AnyNetwork:
    """Copy `weights`, a state dict or the path of one (.safetensors, .pt, .pth), into `model` and return the model.

    Accepts our names, or any others in layer order: torchvision's, a tutorial's `nn.Sequential`, or Caffe's (whose
    networks expect BGR pixels of 0-255 minus their mean; the weights are not converted), with or without the prefixes
    of DataParallel and torch.compile, or nested under "state_dict" or "model". Values are tensors or arrays and are
    cast to the model's dtype and device. For a network `torchvision/NAME` the names must be torchvision's.

    Raises `UserError` naming the first mismatch, with both names and shapes, and leaves the model unchanged. Shapes do
    not reveal differences in LRN, layer order or activations; the caller must choose the right architecture.
    """
    where = "the weights"
    if isinstance(weights, (str, Path)):
        where = f"'{weights}'"
        weights = read_weights(weights)
    state = _unwrap(weights, where)
    own = model.state_dict()
    if isinstance(model, TorchvisionNetwork):  # layers in parallel branches have no order, so match by name
        state = {key if key in own else f"network.{key}": value for key, value in state.items()}
        if unmatched := sorted(set(state) ^ set(own)):
            holder = where if unmatched[0] in state else f"'{model.spec.name}'"
            raise UserError(
                f"'{model.spec.name}' cannot load {where}: '{unmatched[0].removeprefix('network.')}' is only in "
                f"{holder}; choose the network the weights were trained with."
            )
    elif set(state) != set(own):
        state = _match_by_order(own, _sort_by_layer(state), model.spec.name, where)
    for name, target in own.items():
        value = state[name]
        if _squeeze_leading(value) != _squeeze_leading(target):
            raise _shape_error(model.spec.name, where, name, target, name, value)
        if value.is_floating_point() != target.is_floating_point():
            raise UserError(f"In {where}, '{name}' holds {value.dtype}; convert it to floating point first.")
    model.load_state_dict({name: state[name].reshape(target.shape) for name, target in own.items()})
    return model


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a .safetensors, .pt or .pth file to the CPU. Raises `UserError` if it cannot be read safely."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no file '{path}'; check the path of the weights.")
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; give the .safetensors or .pt file inside it.")
    if path.stat().st_size == 0:
        raise UserError(f"'{path}' is empty; copy or save the weights again.")
    damaged = UserError(f"'{path}' is damaged, truncated or contains no weights; copy or save it again.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols, which are handled below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # For anything but tensors torch's message names the callable that the file refers to, or an opcode of older or
        # newer pickles (which begin with these bytes); other opcodes only mean that the file is not a pickle.
        with path.open("rb") as file:
            pickled = file.read(1) in (b"(", b"\x80")
        if re.search(r"GLOBAL|global|class", str(error)) or (pickled and "operand" in str(error)):
            raise UserError(
                f"'{path}' contains pickled Python objects, which can run code when loaded, and is refused; if you "
                "trust it, load it yourself and save only the tensors: torch.save(model.state_dict(), 'weights.pt')."
            ) from error
        raise damaged from error
    except Exception as error:  # bytes that look like a pickle can fail in any way
        raise damaged from error
    if not isinstance(state, dict):
        raise UserError(f"'{path}' contains a {type(state).__name__}, not a state dict; save model.state_dict().")
    return state


def to_torchvision(model: AlexNet) -> dict[str, Tensor]:
    """Return the state dict of `model` under torchvision's names, for `torchvision.models.alexnet(num_classes=…)`.

    The tensors share the model's memory. Raises `UserError` if the network is not torchvision's.
    """
    spec = model.spec
    target = architecture("torchvision", num_classes=spec.num_classes, image_size=spec.image_size, dropout=spec.dropout)
    for ours, theirs in zip(layers(spec), layers(target), strict=False):
        if ours != theirs:
            what = next(f.name for f in fields(Layer) if getattr(ours, f.name) != getattr(theirs, f.name))
            raise UserError(
                f"'{spec.name}' as built here is not torchvision's network: {what} of {ours.name} is "
                f"{getattr(ours, what)} instead of {getattr(theirs, what)}; only 'torchvision' can be converted."
            )
    names = {"conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8"}
    names |= {"conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"}
    split = (key.rsplit(".", 1) for key in model.state_dict())
    return {f"{names[layer]}.{tensor}": model.state_dict()[f"{layer}.{tensor}"] for layer, tensor in split}


def torchvision_weights(name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Return torchvision's published weights called `name` ("IMAGENET1K_V1") and their 1000 class names.

    Torchvision downloads them on first use (233 MB) into torch's cache (`TORCH_HOME`). Raises `UserError` if the name
    is unknown or the download fails.
    """
    from torchvision.models import AlexNet_Weights

    if name not in AlexNet_Weights.__members__:
        raise unknown_name("set of torchvision weights", name, AlexNet_Weights.__members__)
    published = AlexNet_Weights[name]
    try:
        state = published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, a refused download, a wrong checksum
        raise UserError(
            f"The weights '{name}' could not be downloaded from {published.url} ({error}); check the network "
            f"connection and try again, or put the file into {torch.hub.get_dir()}/checkpoints."
        ) from error
    return dict(state), list(published.meta["categories"])


def _unwrap(weights: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Return the entries of a possibly nested state dict as tensors, without prefixes."""
    if not isinstance(weights, Mapping):
        raise UserError(f"Weights are a state dict or a path, not a {type(weights).__name__}; give model.state_dict().")
    for wrapper in _WRAPPERS:
        if isinstance(weights.get(wrapper), Mapping):
            return _unwrap(weights[wrapper], where)
    state = {}
    for key, value in weights.items():
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(value)
        if not isinstance(value, Tensor):
            raise UserError(
                f"In {where}, '{key}' is of type {type(value).__name__}, not a tensor; give model.state_dict()."
            )
        name = str(key)
        while name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        state[name] = value
    if not state:
        raise UserError(f"There are no tensors in {where}; save model.state_dict() again.")
    return state


def _sort_by_layer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` in layer order if its names are known, since files may have sorted them."""
    positions = {name: _layer_position(name) for name in state}
    if None in positions.values():
        return state
    return dict(sorted(state.items(), key=lambda entry: positions[entry[0]] or ()))


def _layer_position(name: str) -> tuple[int, int, int] | None:
    """Return (part of the network, layer number in it, tensor number in the layer), or None for unknown names."""
    found = re.fullmatch(r"(features\.|classifier\.|conv|fc|)(\d+)[._](\w+)", name)
    if found is None or found[3] not in _TENSORS:
        return None
    return int(found[1] in ("classifier.", "fc")), int(found[2]), _TENSORS[found[3]]


def _match_by_order(own: dict[str, Tensor], given: dict[str, Tensor], arch: str, where: str) -> dict[str, Tensor]:
    for (name, target), (other, value) in zip(own.items(), given.items(), strict=False):
        if _squeeze_leading(value) != _squeeze_leading(target):
            raise _shape_error(arch, where, name, target, other, value)
    if len(own) != len(given):
        longer, holder = (own, f"'{arch}'") if len(own) > len(given) else (given, where)
        extra = list(longer)[min(len(own), len(given))]
        raise UserError(
            f"'{arch}' has {len(own)} tensors, but there are {len(given)} in {where}: '{extra}' is only in {holder}; "
            "choose the architecture the weights were trained with."
        )
    return dict(zip(own, given.values(), strict=True))


def _squeeze_leading(value: Tensor) -> tuple[int, ...]:
    """Return the shape without the leading ones of old Caffe files: (1, 1, 4096, 9216) becomes (4096, 9216)."""
    shape = tuple(value.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _shape_error(arch: str, where: str, name: str, target: Tensor, other: str, value: Tensor) -> UserError:
    return UserError(
        f"'{arch}' cannot load {where}: its '{name}' has shape {tuple(target.shape)} and their '{other}' has "
        f"{tuple(value.shape)}; choose the architecture and num_classes the weights were trained with."
    )
