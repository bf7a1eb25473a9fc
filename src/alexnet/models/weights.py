"""Loading and converting weights: ours, torchvision's, Caffe's, and those saved by the tutorials' code.

The same eight layers have many names (`conv1.weight`, `features.0.weight`, `0.weight`, `conv1_w`)
but one order, so weights with other keys are sorted by layer and matched by order and shape. A
model is changed only after everything is known to fit. Files are never unpickled in a way that can
run code.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from alexnet.errors import UserError, unknown_name
from alexnet.files import read_json
from alexnet.models.architectures import TORCHVISION, architecture
from alexnet.models.caffemodel import SUFFIX as CAFFE_SUFFIX
from alexnet.models.caffemodel import read_caffemodel
from alexnet.models.model import AlexNet, Network, Spec, spec_from_dict
from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.models.state_dicts import find_state_dict, is_counter
from alexnet.models.torchvision_models import TorchvisionNetwork, check_torchvision_name, to_current_names

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

_TENSORS = {"weight": 0, "w": 0, "0": 0, "bias": 1, "b": 1, "1": 1, "running_mean": 2, "running_var": 3}
_BESIDE = (
    "argparse.Namespace",
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows")),
    *(f"numpy.{core}.multiarray.{function}" for core in ("core", "_core") for function in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
)
"""Classes and functions that pickles of other programs refer to for options, paths and results beside the weights."""

_KINDS = ("weight", "bias", "running_mean", "running_var")  # in a batch norm all have the same shape

AnyNetwork = TypeVar("AnyNetwork", bound=Network)


def load_weights(model: AnyNetwork, weights: Mapping[str, Any] | str | Path) -> AnyNetwork:
    """Copy `weights`, a state dict or the path of one (.safetensors, .pt, .pth, .caffemodel), into `model` and return
    the model.

    Accepts our names, or any others in layer order: torchvision's, a tutorial's `nn.Sequential`, or
    Caffe's, under any prefix and nested in a checkpoint (see `find_state_dict`). Values are tensors
    or arrays and are cast to the model's dtype and device. For a network `torchvision/NAME` the
    names must be torchvision's.

    Caffe's networks expect pixels of 0-255 minus their mean, BGR. From a `.caffemodel` conv1 is
    converted to RGB; a state dict under Caffe's names is taken as it is.

    Raises `UserError` naming the first mismatch, with both names and shapes, and leaves the model
    unchanged. Shapes do not reveal differences in LRN, layer order or activations, so the caller
    must choose the right architecture; only a `.caffemodel`, and the weights of a checkpoint folder
    of ours, say what they belong to, and are refused elsewhere.

    >>> trained, fresh = (alexnet.create_model("lenet") for _ in range(2))
    >>> torch.save(trained.state_dict(), "lenet.pt")
    >>> _ = alexnet.load_weights(fresh, "lenet.pt")
    >>> torch.equal(fresh.conv1.weight, trained.conv1.weight)  # both (6, 1, 5, 5)
    True
    """
    where = "the weights"
    if isinstance(weights, (str, Path)):
        where = f"'{weights}'"
        path = Path(weights)
        if path.suffix.lower() == CAFFE_SUFFIX:
            check_file(path)
            network = read_caffemodel(path)
            network.check(model.spec, where)
            weights = dict(network.tensors)
        else:
            weights = read_weights(path)
            _check_described(path, model.spec)
    copy_tensors(model, find_state_dict(weights, where), where)
    return model


def copy_tensors(model: Network, state: dict[str, Tensor], where: str = "the weights") -> None:
    """Do the work of `load_weights` with the tensors of `find_state_dict`."""
    complete = model.state_dict()
    own = {name: value for name, value in complete.items() if not is_counter(name)}
    counters = {name: value for name, value in state.items() if is_counter(name)}
    state = {name: value for name, value in state.items() if name not in counters}
    if isinstance(model, TorchvisionNetwork):  # layers in parallel branches have no order, so match by name
        state = {f"network.{name}": value for name, value in to_current_names(state).items()}
        counters = {f"network.{name}": value for name, value in counters.items()}
        if unmatched := sorted(set(state) ^ set(own)):
            holder = where if unmatched[0] in state else f"'{model.spec.name}'"
            raise UserError(
                f"'{model.spec.name}' cannot load {where}: '{unmatched[0].removeprefix('network.')}' is only in "
                f"{holder}; choose the network the weights were trained with."
            )
    elif set(state) != set(own):
        state = _match_by_order(own, sort_by_layer(state), model.spec.name, where)
    for name, target in own.items():
        value = state[name]
        if squeeze_leading(value) != squeeze_leading(target):
            raise _shape_error(model.spec.name, where, name, target, name, value)
        if not value.is_floating_point():
            raise UserError(f"In {where}, '{name}' holds {value.dtype}; convert it to floating point first.")
        if not value.float().isfinite().all():
            raise UserError(f"In {where}, '{name}' holds values that are not finite; use an earlier checkpoint.")
    known = {name: value for name, value in counters.items() if name in complete and value.shape == ()}
    matched = {name: state[name].reshape(target.shape) for name, target in own.items()}
    model.load_state_dict({**complete, **known, **matched})


class _Ignored:
    """What becomes of an object beside the weights: nothing in it is used or run."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def check_file(path: Path) -> None:
    """Raise `UserError` unless `path` is a file with contents."""
    if not path.exists():
        raise UserError(f"There is no file '{path}'; check the path of the weights.")
    if path.is_dir():
        raise UserError(f"'{path}' is a folder; give the .safetensors or .pt file inside it.")
    if path.stat().st_size == 0:
        raise UserError(f"'{path}' is empty; copy or save the weights again.")


def read_weights(path: str | Path) -> dict[str, Any]:
    """Read a .safetensors, .pt or .pth file to the CPU. Raises `UserError` if it cannot be read safely."""
    path = Path(path)
    check_file(path)
    damaged = UserError(f"'{path}' is damaged, truncated or contains no weights; copy or save it again.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise damaged from error
    ignored: list[Any] = [(_Ignored, name) for name in _BESIDE]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(ignored):
            warnings.simplefilter("ignore")  # about pickle protocols, which are handled below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # For anything but tensors torch's message names the callable that the file refers to, or an opcode of older or
        # newer pickles (which begin with these bytes); other opcodes only mean that the file is not a pickle.
        with path.open("rb") as file:
            pickled = file.read(1) in (b"(", b"\x80")
        if re.search(r"GLOBAL|global|class", str(error)) or (pickled and "operand" in str(error)):
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            objects = f"pickled Python objects ({named[1]})" if named else "pickled Python objects"
            raise UserError(
                f"'{path}' contains {objects}, which can run code when loaded, and is refused; if you trust it, "
                "load it yourself and save only the tensors: torch.save(model.state_dict(), 'weights.pt')."
            ) from error
        raise damaged from error
    except Exception as error:  # bytes that look like a pickle can fail in any way
        if "TorchScript" in str(error):
            raise UserError(
                f"'{path}' is a TorchScript archive, which holds code, and not a state dict; if you trust it, save "
                "only its tensors: torch.save(torch.jit.load(path).state_dict(), 'weights.pt')."
            ) from error
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


def find_published(arch: str, name: str) -> WeightsEnum:
    """Return torchvision's published weights called `name` ("IMAGENET1K_V1", or "DEFAULT" for the
    best) of the network `arch`, "torchvision" (its AlexNet) or "torchvision/NAME". Raises
    `UserError` if there are none."""
    from torchvision.models import get_model_weights

    check_torchvision_name(f"{TORCHVISION}alexnet" if arch == "torchvision" else arch)
    published = get_model_weights("alexnet" if arch == "torchvision" else arch.removeprefix(TORCHVISION))
    if name not in published.__members__:
        raise unknown_name(f"set of weights of '{arch}'", name, published.__members__)
    return published[name]


def torchvision_weights(name: str, arch: str = "torchvision") -> tuple[dict[str, Tensor], list[str]]:
    """Return torchvision's published weights called `name`, as for `find_published`, and their class names.

    Torchvision downloads them on first use (AlexNet's are 233 MB) into torch's cache
    (`TORCH_HOME`). Raises `UserError` if the name is unknown or the download fails.
    """
    published = find_published(arch, name)
    try:
        state = published.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, a refused download, a wrong checksum
        raise UserError(
            f"The weights '{name}' could not be downloaded from {published.url} ({error}); check the network "
            f"connection and try again, or put the file into {torch.hub.get_dir()}/checkpoints."
        ) from error
    return dict(state), list(published.meta["categories"])


def sort_by_layer(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `state` in layer order if its names are known, or are sorted as safetensors does; else
    as it is, since state dicts list their tensors in the order of the layers."""
    positions = {name: _layer_position(name) for name in state}
    if None in positions.values():
        if list(state) != sorted(state):
            return state
        positions = {name: _natural_position(name) for name in state}
    return dict(sorted(state.items(), key=lambda entry: positions[entry[0]] or ()))


def _natural_position(name: str) -> tuple[Any, ...]:
    """Return a key that sorts numbers in names by value, classifiers last, and tensors as torch registers them."""
    *module, tensor = name.split(".")
    parts = [(re.sub(r"\d+", "", part), int("0" + re.sub(r"\D", "", part)[:9])) for part in module]
    return name.startswith(("classifier", "fc", "linear", "head", "dense")), parts, _TENSORS.get(tensor, 4), tensor


def _layer_position(name: str) -> tuple[int, int, int] | None:
    """Return (part of the network, layer number in it, tensor number in the layer), or None for unknown names."""
    found = re.fullmatch(r"(features\.|classifier\.|conv|fc|)(\d+)[._](\w+)", name)
    if found is None or found[3] not in _TENSORS:
        return None
    return int(found[1] in ("classifier.", "fc")), int(found[2]), _TENSORS[found[3]]


def _match_by_order(own: dict[str, Tensor], given: dict[str, Tensor], arch: str, where: str) -> dict[str, Tensor]:
    for (name, target), (other, value) in zip(own.items(), given.items(), strict=False):
        kinds = {tensor for tensor in (n.rpartition(".")[2] for n in (name, other)) if tensor in _KINDS}
        if squeeze_leading(value) != squeeze_leading(target) or len(kinds) > 1:
            raise _shape_error(arch, where, name, target, other, value)
    if len(own) != len(given):
        longer, holder = (own, f"'{arch}'") if len(own) > len(given) else (given, where)
        extra = list(longer)[min(len(own), len(given))]
        raise UserError(
            f"'{arch}' has {len(own)} tensors, but there are {len(given)} in {where}: '{extra}' is only in {holder}; "
            "choose the architecture the weights were trained with."
        )
    return dict(zip(own, given.values(), strict=True))


def squeeze_leading(value: Tensor) -> tuple[int, ...]:
    """Return the shape without the leading ones of old Caffe files: (1, 1, 4096, 9216) becomes (4096, 9216)."""
    shape = tuple(value.shape)
    while len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return shape


def _check_described(path: Path, spec: Spec) -> None:
    """Raise `UserError` if `path` lies in a checkpoint folder of ours whose model.json describes a network that
    computes something else with the same weights than that of `spec`."""
    description = path.with_name("model.json")
    if path.name != "model.safetensors" or not description.is_file() or not isinstance(spec, AlexNetSpec):
        return
    described = spec_from_dict(read_json(description, dict[str, Any]).get("spec", {}))
    if isinstance(described, AlexNetSpec) and _computation(described) != _computation(spec):
        raise UserError(
            f"'{path}' holds weights of '{described.name}', and '{spec.name}' as built here has another LRN, "
            f"activation, padding or order of layers; create '{described.name}', or, to mix them on purpose, give the "
            "tensors themselves: safetensors.torch.load_file(path)."
        )


def _computation(spec: AlexNetSpec) -> list[tuple[Any, ...]]:
    """Return what each layer computes, without what weights show or only training or the size of images changes."""
    unimportant = ("dropout", "pad", "adaptiveavgpool")
    return [(x.kind, x.kernel, x.stride, x.padding, x.norm) for x in layers(spec) if x.kind not in unimportant]


def _shape_error(arch: str, where: str, name: str, target: Tensor, other: str, value: Tensor) -> UserError:
    return UserError(
        f"'{arch}' cannot load {where}: its '{name}' has shape {tuple(target.shape)} and their '{other}' has "
        f"{tuple(value.shape)}; choose the architecture and num_classes the weights were trained with."
    )
