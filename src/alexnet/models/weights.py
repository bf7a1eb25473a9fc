"""Weights in and out: ours, torchvision's, Caffe-named ones, and those that the tutorials' own code saves.

Everyone names the same eight layers differently (`conv1.weight`, `features.0.weight`, `0.weight`, `conv1_w`), but they
come in one order. So weights whose keys are not ours are put in the order of their layers and matched by order and
shape. A model is only changed once everything is known to fit. Nothing that could run code is read from a file.
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


N = TypeVar("N", bound=Network)


def load_weights(model: N, weights: Mapping[str, Any] | str | Path) -> N:
    """Copies `weights`, a state dict or the path of one (.safetensors, .pt, .pth), into `model` and returns it.

    Takes our own names, or any others in the order of the layers: torchvision's, a tutorial's `nn.Sequential`, Caffe's
    (whose networks read BGR pixels of 0-255 less their mean: the weights are not turned round), with or without the
    prefix of DataParallel or torch.compile, or wrapped under "state_dict" or "model". Values are tensors or arrays and
    take the model's dtype and device. For a network of torchvision (`torchvision/NAME`) the names must be its own.

    Raises `UserError` naming the first mismatch, both names and both shapes; the model is then as it was. Shapes do
    not tell whether the network has the same LRN, order and activations: that is the caller's to choose.
    """
    where = "the weights"
    if isinstance(weights, (str, Path)):
        where = f"'{weights}'"
        weights = read_weights(weights)
    state = _tensors(weights, where)
    own = model.state_dict()
    if isinstance(model, TorchvisionNetwork):  # its layers have no one order, so only names can be trusted
        state = {key if key in own else f"network.{key}": value for key, value in state.items()}
        if odd := sorted(set(state) ^ set(own)):
            holder = where if odd[0] in state else f"'{model.spec.name}'"
            raise UserError(
                f"'{model.spec.name}' cannot take {where}: '{odd[0].removeprefix('network.')}' is only in {holder}; "
                "choose the network that the weights were trained with."
            )
    elif set(state) != set(own):
        state = _matched(own, _in_order(state), model.spec.name, where)
    for name, target in own.items():
        value = state[name]
        if _plain_shape(value) != _plain_shape(target):
            raise _mismatch(model.spec.name, where, name, target, name, value)
        if value.is_floating_point() != target.is_floating_point():
            raise UserError(f"In {where}, '{name}' holds {value.dtype}; convert it to floating point first.")
    model.load_state_dict({name: state[name].reshape(target.shape) for name, target in own.items()})
    return model


def read_weights(path: str | Path) -> dict[str, Any]:
    """What a .safetensors, .pt or .pth file holds, on the CPU. Raises `UserError` if it cannot be read safely."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"There is no file '{path}'; check the path of the weights.")
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; give the .safetensors or .pt file inside it.")
    if path.stat().st_size == 0:
        raise UserError(f"'{path}' is empty; copy or save the weights again.")
    damaged = UserError(f"'{path}' is damaged, cut short or holds no weights; copy or save it again.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol of files that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's text for anything but tensors names what the file wants called, or an opcode of older or newer pickles
        # (which begin with these bytes); other opcodes only mean that this is no pickle.
        with path.open("rb") as file:
            pickled = file.read(1) in (b"(", b"\x80")
        if re.search(r"GLOBAL|global|class", str(error)) or (pickled and "operand" in str(error)):
            raise UserError(
                f"'{path}' holds pickled Python objects, which can run code when opened, and is refused; where you "
                "trust it, load it there and save only its tensors with torch.save(model.state_dict(), 'weights.pt')."
            ) from error
        raise damaged from error
    except Exception as error:  # bytes that only look like a pickle can fail in any way
        raise damaged from error
    if not isinstance(state, dict):
        raise UserError(f"'{path}' holds a {type(state).__name__}, not a state dict; save model.state_dict().")
    return state


def to_torchvision(model: AlexNet) -> dict[str, Tensor]:
    """The state dict of `model` under torchvision's names, for `torchvision.models.alexnet(num_classes=…)`.

    The tensors share the model's memory. Raises `UserError` if the network is not that of torchvision.
    """
    spec = model.spec
    twin = architecture("torchvision", num_classes=spec.num_classes, image_size=spec.image_size, dropout=spec.dropout)
    for ours, theirs in zip(layers(spec), layers(twin), strict=False):
        if ours != theirs:
            what = next(f.name for f in fields(Layer) if getattr(ours, f.name) != getattr(theirs, f.name))
            raise UserError(
                f"'{spec.name}' as built here is not torchvision's network: {what} of {ours.name} is "
                f"{getattr(ours, what)} and there {getattr(theirs, what)}; only 'torchvision' can be converted."
            )
    names = {"conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8"}
    names |= {"conv5": "features.10", "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6"}
    split = (key.rsplit(".", 1) for key in model.state_dict())
    return {f"{names[layer]}.{tensor}": model.state_dict()[f"{layer}.{tensor}"] for layer, tensor in split}


def torchvision_weights(name: str) -> tuple[dict[str, Tensor], list[str]]:
    """Torchvision's published weights called `name` ("IMAGENET1K_V1") and their 1000 class names.

    Torchvision downloads them on first use, 233 MB, into torch's cache (`TORCH_HOME`). Raises `UserError` if the name
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
            f"The weights '{name}' could not be downloaded from {published.url} ({error}); try again with a network, "
            f"or put the file into {torch.hub.get_dir()}/checkpoints."
        ) from error
    return dict(state), list(published.meta["categories"])


def _tensors(weights: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """The entries of a state dict, unwrapped, without prefixes, as tensors."""
    if not isinstance(weights, Mapping):
        raise UserError(f"Weights are a state dict or a path, not a {type(weights).__name__}; give model.state_dict().")
    for wrapper in _WRAPPERS:
        if isinstance(weights.get(wrapper), Mapping):
            return _tensors(weights[wrapper], where)
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


def _in_order(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state` in the order of its layers, by their names where these are known (files may have sorted them)."""
    places = {name: _place(name) for name in state}
    if None in places.values():
        return state
    return dict(sorted(state.items(), key=lambda entry: places[entry[0]] or ()))


def _place(name: str) -> tuple[int, int, int] | None:
    """Part of the network, number of the layer in it, number of the tensor in the layer; None for unknown names."""
    found = re.fullmatch(r"(features\.|classifier\.|conv|fc|)(\d+)[._](\w+)", name)
    if found is None or found[3] not in _TENSORS:
        return None
    return int(found[1] in ("classifier.", "fc")), int(found[2]), _TENSORS[found[3]]


def _matched(own: dict[str, Tensor], given: dict[str, Tensor], arch: str, where: str) -> dict[str, Tensor]:
    """`given` under the names of `own`, matched by order and shape."""
    for (name, target), (other, value) in zip(own.items(), given.items(), strict=False):
        if _plain_shape(value) != _plain_shape(target):
            raise _mismatch(arch, where, name, target, other, value)
    if len(own) != len(given):
        longer, holder = (own, f"'{arch}'") if len(own) > len(given) else (given, where)
        extra = list(longer)[min(len(own), len(given))]
        raise UserError(
            f"'{arch}' has {len(own)} tensors and there are {len(given)} in {where}: '{extra}' is only in {holder}; "
            "choose the architecture that the weights were trained with."
        )
    return dict(zip(own, given.values(), strict=True))


def _plain_shape(value: Tensor) -> tuple[int, ...]:
    """The shape without the leading ones that old Caffe files carry: (1, 1, 4096, 9216) is (4096, 9216)."""
    shape = tuple(value.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _mismatch(arch: str, where: str, name: str, target: Tensor, other: str, value: Tensor) -> UserError:
    return UserError(
        f"'{arch}' cannot take {where}: its '{name}' has shape {tuple(target.shape)} and their '{other}' has "
        f"{tuple(value.shape)}; choose the architecture and num_classes that the weights were trained with."
    )
