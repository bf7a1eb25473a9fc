"""The network that a state dict belongs to, by the shapes of its tensors and, where names tell
them, by the places of its layers: `features.4.weight` after `features.0.weight` leaves room for
LRN, which has no tensors.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from alexnet.errors import UserError
from alexnet.models.architectures import ARCHITECTURES, TORCHVISION, architecture
from alexnet.models.model import Spec
from alexnet.models.spec import AlexNetSpec, layers
from alexnet.models.state_dicts import is_counter
from alexnet.models.torchvision_models import TorchvisionSpec, build_on_meta, to_current_names
from alexnet.models.weights import sort_by_layer, squeeze_leading

NEAREST = 10  # torchvision's networks that are tried: each is built in up to a second
Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(spec: Spec) -> Shapes:
    """Return the shape of each tensor in the state dict of the network of `spec`, without memory for its values."""
    if isinstance(spec, TorchvisionSpec):
        return {f"network.{name}": tuple(t.shape) for name, t in build_on_meta(spec).state_dict().items()}
    shapes: Shapes = {}
    for layer in layers(spec):
        if layer.kind in ("conv", "linear"):
            kernel = (layer.kernel, layer.kernel) if layer.kind == "conv" else ()
            shapes[f"{layer.name}.weight"] = (layer.output[0], layer.input[0] // layer.groups, *kernel)
            shapes |= {f"{layer.name}.bias": (layer.output[0],)} if layer.bias else {}
        elif layer.kind == "batchnorm":
            names = ("weight", "bias", "running_mean", "running_var")
            shapes |= {f"{layer.name}.{name}": (layer.output[0],) for name in names}
            shapes[f"{layer.name}.num_batches_tracked"] = ()
    return shapes


def check_size(spec: Spec, given: Shapes, where: str) -> None:
    """Raise `UserError` unless the tensors in the file `where`, of the shapes `given`, can be those
    of the network of `spec`, under any names.

    A specification from a file may name sizes that no memory holds, so this is checked before the network is built.
    """
    wrong = f"{where} does not hold the network that is described beside it"
    if isinstance(spec, AlexNetSpec) and len(spec.convs) + len(spec.hidden) > len(given):
        raise UserError(f"{wrong}: it has only {len(given)} tensors; use another copy.")
    try:
        own = tensor_shapes(spec)
    except (AssertionError, RuntimeError, ValueError, OverflowError, TypeError) as error:  # torchvision's own checks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"{wrong}: {reason}; use another copy.") from error
    described, there = (sum(map(math.prod, shapes.values())) for shapes in (own, given))
    if described > there:
        raise UserError(f"{wrong}: that has {described:,} numbers, and there are {there:,}; use another copy.")


def safetensors_shapes(path: Path) -> Shapes:
    """Return the shape of each tensor in `path`, from its header. Raises `SafetensorError`."""
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping


def recognize(
    state: Mapping[str, Tensor], arch: str | None = None, image_size: int | None = None, where: str = "the weights"
) -> tuple[Spec, str]:
    """Return the specification of the network whose tensors are `state`, and a sentence if shapes decided on it.

    `arch` is its architecture if that is known; classes, channels, width and batch norm follow from
    the shapes. Raises `UserError` for an unknown name and, without one, unless exactly one
    architecture fits.
    """
    state = {name: tensor for name, tensor in state.items() if not is_counter(name)}
    if arch is not None and arch.startswith(TORCHVISION):
        named = TorchvisionSpec(arch, image_size=image_size or TorchvisionSpec.image_size)
        return _fit_torchvision(named, state) or named, ""
    state = sort_by_layer(dict(state))
    shapes = {name: squeeze_leading(tensor) for name, tensor in state.items()}
    weights = [shape for shape in shapes.values() if len(shape) > 1]
    fitting = {name: spec for name in ARCHITECTURES if (spec := _fit(name, shapes, weights, image_size))}
    placed = [name for name, spec in fitting.items() if _layer_places(spec, state) == _given_places(state)]
    if arch is not None:
        elsewhere = f"The layer numbers in {where} are those of {' or '.join(placed)}, not of {arch}."
        known = fitting.get(arch) or architecture(
            arch, num_classes=weights[-1][0] if weights else None, image_size=image_size
        )
        return known, elsewhere if placed and arch not in placed else ""
    if len(names := placed or list(fitting)) == 1:
        return fitting[names[0]], f"The shapes in {where} are those of '{names[0]}'; --arch overrides this."
    if names:
        options = ", ".join(f"'{name}'" for name in names)
        raise UserError(
            f"The shapes in {where} are those of several architectures, {options}; name the one it was "
            f"trained with, such as --arch {names[0]}."
        )
    return _find_torchvision(state, image_size, where)


def _fit(name: str, shapes: Shapes, weights: list[tuple[int, ...]], image_size: int | None) -> AlexNetSpec | None:
    """Return the architecture with the classes, channels, width and batch norm that `shapes` shows, if it fits them.

    `weights` are the shapes with more than one dimension.
    """
    if len(weights) < 2 or len(weights[0]) != 4:
        return None
    first = ARCHITECTURES[name].convs[0]
    for width in dict.fromkeys((1.0, weights[0][0] / first.out_channels)):
        try:
            spec = architecture(
                name, num_classes=weights[-1][0], in_channels=weights[0][1] * first.groups, image_size=image_size,
                norm="batch" if len(shapes) > 2 * len(weights) else None, width=width,
            )  # fmt: skip
            expected = [shape for key, shape in tensor_shapes(spec).items() if not is_counter(key)]
        except UserError:  # images too small, channels that do not fit into the groups
            continue
        if expected == list(shapes.values()):
            return spec
    return None


def _given_places(state: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Return part and number of the layers in names such as features.3.weight or 3.weight, [] if one has others."""
    found = [re.fullmatch(r"(features|classifier|)\.?(\d+)\.(weight|bias)", name) for name in state]
    return [(match[1], int(match[2])) for match in found if match and match[3] == "weight"] if all(found) else []


def _layer_places(spec: AlexNetSpec, state: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Return what `_given_places` would of this network as one `nn.Sequential`, or two where `state` has two."""
    stack = [layer for layer in layers(spec) if layer.kind not in ("pad", "adaptiveavgpool")]
    split = next(i for i, layer in enumerate(stack) if layer.kind == "flatten")
    one = not any(name.startswith(("features.", "classifier.")) for name in state)
    places = [
        ("", i) if one else ("features", i) if i < split else ("classifier", i - split - 1) for i in range(len(stack))
    ]
    return [place for place, layer in zip(places, stack, strict=True) if layer.kind in ("conv", "linear")]


def _fit_torchvision(spec: TorchvisionSpec, state: Mapping[str, Tensor]) -> TorchvisionSpec | None:
    """Return `spec` with the number of classes in `state`, if that has the tensors of this network."""
    network = build_on_meta(spec)
    own = {name: tensor.shape for name, tensor in network.state_dict().items() if not is_counter(name)}
    given = to_current_names(state)
    head = [name for name, _ in network.named_parameters()][-1].rpartition(".")[0]
    if given.keys() != own.keys() or f"{head}.weight" not in given:
        return None
    if any(given[name].shape != shape for name, shape in own.items() if not name.startswith(f"{head}.")):
        return None
    return TorchvisionSpec(spec.name, len(given[f"{head}.weight"]), image_size=spec.image_size)


def _find_torchvision(state: Mapping[str, Tensor], image_size: int | None, where: str) -> tuple[TorchvisionSpec, str]:
    from torchvision import models

    count = sum(t.numel() for name, t in state.items() if not name.endswith(("running_mean", "running_var")))

    def difference(name: str) -> int:  # between 1000 classes and those of the file, for the right network
        return abs(int(models.get_model_weights(name)["DEFAULT"].meta["num_params"]) - count)

    for name in sorted(models.list_models(module=models), key=difference)[:NEAREST]:
        spec = TorchvisionSpec(f"{TORCHVISION}{name}", image_size=image_size or TorchvisionSpec.image_size)
        if fitted := _fit_torchvision(spec, state):
            return fitted, f"The tensors in {where} are those of '{spec.name}'; --arch overrides this."
    shapes = ["×".join(map(str, tensor.shape)) for tensor in state.values()]
    raise UserError(
        f"The shapes in {where}, from {shapes[0]} to {shapes[-1]}, are those of no architecture that "
        "'alexnet arch' lists; name the nearest with --arch to see the first difference."
    )
