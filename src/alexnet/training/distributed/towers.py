"""Model parallel training: the two towers of 2012, one process (and device) each.

Each process holds half of every weight, bias and momentum. They communicate only where the towers
of the paper do: the first convolution without groups after conv1 (conv3) and the fully connected
layers read both towers. All of that goes through `exchange`.

Both processes read the same images. After the last layer both hold all logits and compute the same
loss; each backpropagates half of it, so that the gradients flowing back through the exchanges add
up to those of one process. Checkpoints are gathered into the form that one process writes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.device import rank
from alexnet.errors import UserError
from alexnet.models.layers import Dropout, LocalResponseNorm
from alexnet.models.model import AlexNet, Network, Spec
from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.training.distributed.base import GROUP_TIMEOUT, ProcessGroup, load_optimizer_state

TOWERS = 2


class TowerParallel(ProcessGroup):
    """Two processes with a tower each; rank 0 has the first halves of all channels and units."""

    world_size = TOWERS
    loss_scale = 1 / TOWERS

    def __init__(self, device: torch.device) -> None:
        self.rank = rank()
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)  # no index if it is the only process of its machine
        # CPU tensors (gathered states, flags) always go through Gloo.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=GROUP_TIMEOUT)
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        self.grad_scaler = partial(ShardedGradScaler, process_group=dist.group.WORLD)

    def check(self, spec: Spec) -> None:
        if why := _why_indivisible(spec):
            raise UserError(
                f"--parallel towers cannot divide '{spec.name}', {why}; use paper, code2012 or cifar-towers."
            )

    def all_reduce(self, values: Tensor, op: Literal["sum", "max"]) -> Tensor:
        # Both train on the same images, so each has the sums already.
        return super().all_reduce(values, op) if op == "max" else values.cpu()

    def shard_model(self, model: Network) -> Network:
        spec = _towers_spec(model)
        tower = _make_empty_tower(spec, self.rank)
        weights = {name: _half_of(spec, name, full, self.rank) for name, full in model.state_dict().items()}
        tower.load_state_dict({name: part.clone() for name, part in weights.items()}, assign=True)
        return tower.train(model.training)

    def clip_grad_norm(self, model: Network, max_norm: float) -> None:
        squares = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).square()
        dist.all_reduce(squares)
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, squares.sqrt())

    def state_dict(self, model: Network, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        spec, full, own = _towers_spec(model), _full_state(model), model.state_dict()

        def gather(name: str, value: Any) -> Any:
            """Return the full tensor on the CPU of rank 0, and `value` itself on the other rank or if not divided."""
            if not isinstance(value, Tensor) or value.shape != own[name].shape or full[name].ndim == 0:
                return value
            if self.rank > 0:
                dist.send(value.detach().cpu().contiguous(), dst=0)
                return value
            other = torch.empty(_half_of(spec, name, full[name], 1).shape, dtype=value.dtype)
            dist.recv(other, src=1)
            return torch.cat([value.detach().cpu(), other], _split_dim(spec, name))

        return {
            "model": {name: gather(name, part) for name, part in own.items()},
            "optimizer": _map_optimizer_state(optimizer, model, optimizer.state_dict(), gather),
        }

    def load_state_dict(self, model: Network, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        spec, full = _towers_spec(model), _full_state(model)

        def shard(name: str, value: Any) -> Any:
            divided = isinstance(value, Tensor) and value.shape == full[name].shape
            return _half_of(spec, name, value, self.rank) if divided else value

        if "model" in state:
            model.load_state_dict({name: shard(name, value) for name, value in state["model"].items()})
        if "optimizer" in state:
            load_optimizer_state(optimizer, _map_optimizer_state(optimizer, model, state["optimizer"], shard))

    def close(self, error: Exception | None = None) -> None:  # noqa: ARG002
        # torch 2.6 joins Gloo's threads while holding the GIL, which a thread releasing its last
        # tensor needs: let it finish first.
        time.sleep(0.1)
        dist.destroy_process_group()


# ── one tower ─────────────────────────────────────────────────────────────────────────────────────


@torch.compiler.disable
def exchange(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first tower's `x` and the second's, in both processes; same shape and dtype.

    The gradient of a tower's `x` is the sum of both processes' gradients for it.
    """
    from torch.distributed.nn.functional import all_to_all  # not in every build of torch

    first, second = all_to_all([torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2)], [x, x])
    return first, second


class _CrossTowerConv2d(nn.Conv2d):
    """A convolution that reads the feature maps of both towers."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.cat(exchange(input), 1))


class _CrossTowerLinear(nn.Linear):
    """A fully connected layer that reads both towers."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.cat(exchange(input), 1))


class _CrossTowerOutput(nn.Linear):
    """The last layer: the sum of the logits computed from each tower's units.

    Its weight is split along the input dimension, so that logits are exchanged instead of the more
    numerous units. Each tower adds the biases of its part of the classes.
    """

    def __init__(self, in_features: int, num_classes: int, tower: int) -> None:
        super().__init__(in_features, num_classes)
        parts = self.bias.detach().tensor_split(TOWERS)
        self.bias_padding = (0, len(parts[1])) if tower == 0 else (len(parts[0]), 0)  # classes before and after its own
        self.bias = nn.Parameter(parts[tower].clone())

    def forward(self, input: Tensor) -> Tensor:
        first, second = exchange(F.linear(input, self.weight, F.pad(self.bias, self.bias_padding)))
        return first + second


def _make_empty_tower(spec: AlexNetSpec, tower: int) -> AlexNet:
    """Return one tower of `spec`, on the meta device: the full network with its layers replaced by their halves."""
    plan = layers(spec)
    convs = [layer.name for layer in plan if layer.kind == "conv"]
    with torch.device("meta"):
        model = AlexNet(spec)
        for layer in plan:
            half = _half_layer(layer, tower, reads_images=layer.name == convs[0], last=layer is plan[-1])
            if half is not None:
                setattr(model, layer.name, half)
    return model


def _half_layer(layer: Layer, tower: int, *, reads_images: bool, last: bool) -> nn.Module | None:
    """Return one tower's half of `layer`; None if both towers have all of it."""
    inputs, outputs = layer.input[0], layer.output[0]
    match layer.kind:
        case "conv":
            separate = layer.groups == TOWERS  # each tower reads its own maps only
            kind = nn.Conv2d if separate or reads_images else _CrossTowerConv2d
            shape = (inputs // TOWERS if separate else inputs, outputs // TOWERS, layer.kernel)
            return kind(*shape, stride=layer.stride, padding=layer.padding, bias=layer.bias)
        case "linear":
            if last:
                return _CrossTowerOutput(inputs // TOWERS, outputs, tower)
            return _CrossTowerLinear(inputs, outputs // TOWERS, bias=layer.bias)
        case "lrn" if layer.norm is not None:
            return LocalResponseNorm(layer.norm.size, layer.norm.alpha, layer.norm.beta, layer.norm.k)
        case "batchnorm":
            return nn.BatchNorm2d(outputs // TOWERS)
        case "dropout":
            half = outputs // TOWERS
            return Dropout(layer.p, outputs, slice(tower * half, (tower + 1) * half))
    return None


def _towers_spec(model: Network) -> AlexNetSpec:
    """Return the spec of a network that `check` has accepted."""
    assert isinstance(model.spec, AlexNetSpec)
    return model.spec


def _full_state(model: Network) -> dict[str, Tensor]:
    """Return the state dict of the full network, on the meta device."""
    with torch.device("meta"):
        return AlexNet(_towers_spec(model)).state_dict()


def _why_indivisible(spec: Spec) -> str:
    """Return why `spec` cannot be divided into two towers; empty if it can."""
    if not isinstance(spec, AlexNetSpec) or {conv.groups for conv in spec.convs} != {1, TOWERS}:
        return "which is not made of two towers"
    if any(layer.norm.towers != TOWERS for layer in layers(spec) if layer.kind == "lrn" and layer.norm):
        return "whose LRN reads across its towers"
    return ""


def _split_dim(spec: AlexNetSpec, name: str) -> int:
    """Return the dimension to split a tensor along: the output dimension, or the input dimension of the last weight."""
    return int(name == f"{layers(spec)[-1].name}.weight")


def _half_of(spec: AlexNetSpec, name: str, full: Tensor, tower: int) -> Tensor:
    """Return one tower's half of a tensor of the full network; scalars are not divided."""
    return full.tensor_split(TOWERS, _split_dim(spec, name))[tower] if full.ndim else full


def _map_optimizer_state(
    optimizer: torch.optim.Optimizer, model: Network, state: dict[str, Any], convert: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """Return an optimizer's state dict with every value replaced by `convert(parameter name, value)`."""
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    names = [name_of[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    converted = {
        index: {key: convert(name, value) for key, value in state["state"][index].items()}
        for index, name in zip(indices, names, strict=True)
        if index in state["state"]
    }
    return {**state, "state": converted}
