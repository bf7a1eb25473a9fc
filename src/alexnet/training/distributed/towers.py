"""One process or several: all that the loop asks of them, so that it need not know how many there are.

`Single` is the ordinary case and does nothing; `data_parallel.Data` divides each batch among any number of processes.
`Towers` puts the two towers of 2012 into two processes, each with a device and half of every weight, bias and momentum
of its own. They talk where the paper's network talks and nowhere else: the first convolution without groups after conv1
(conv3) and the fully connected layers read both towers.

The one thing that is exchanged is what `exchange` sends. After the last layer both processes hold all logits and
compute the same loss; each propagates back its half of it, so that what flows back through the exchanges adds up to
the gradient of one process. Checkpoints are gathered into the form in which one process writes them.

Both towers see the same images. Of all processes only the first writes and speaks; they must share a file system.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from alexnet.device import rank
from alexnet.errors import UserError
from alexnet.models.layers import Dropout, LocalResponseNorm
from alexnet.models.model import AlexNet, Network, Spec
from alexnet.models.spec import AlexNetSpec, Layer, layers
from alexnet.training.distributed.base import GROUP_TIMEOUT, SingleProcess, T, load_optimizer_state

TOWERS = 2


class TowerParallel(SingleProcess):
    """Two processes, each with one tower: process 0 with the first halves of all channels and units."""

    world_size = TOWERS
    loss_scale = 1 / TOWERS

    def __init__(self, device: torch.device) -> None:
        self.tower = rank()
        if device.type == "cuda":
            torch.cuda.set_device(device.index or 0)  # none where it is the only process of its machine
        # What is on the CPU (gathering, agreeing) goes through Gloo in any case.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=GROUP_TIMEOUT)

    def check(self, spec: Spec) -> None:
        if why := _unfit(spec):
            raise UserError(
                f"--parallel towers cannot divide '{spec.name}', {why}; use paper, code2012 or cifar-towers."
            )

    def on_rank0(self, make: Callable[[], T]) -> T:
        found: list[Any] = [None, None]
        if self.tower == 0:
            try:
                found[0] = make()
            except Exception as error:
                found[1] = error
        dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        if found[1] is not None:
            raise found[1]
        return cast(T, found[0])

    def all_reduce_max(self, signum: int | None) -> int | None:
        largest = torch.tensor(signum or 0)
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest) or None

    def shard_model(self, model: Network) -> Network:
        spec = _spec(model)
        tower = _empty_tower(spec, self.tower)
        weights = {name: _cut(spec, name, full, self.tower) for name, full in model.state_dict().items()}
        tower.load_state_dict({name: part.clone() for name, part in weights.items()}, assign=True)
        return tower.train(model.training)

    def gather_model(self, model: Network) -> Network:
        spec = _spec(model)
        with torch.device("meta"):
            whole = AlexNet(spec)
        empty = whole.state_dict()
        weights = {name: self._gather(spec, name, part, empty[name]) for name, part in model.state_dict().items()}
        if self.tower == 0:
            whole.load_state_dict(weights, assign=True)
        return whole

    def load_weights(self, model: Network, weights: Mapping[str, Tensor]) -> None:
        spec = _spec(model)
        model.load_state_dict({name: _cut(spec, name, full, self.tower) for name, full in weights.items()})

    def gather_optimizer(self, optimizer: torch.optim.Optimizer, model: Network, /) -> dict[str, Any]:
        spec = _spec(model)
        with torch.device("meta"):
            empty = dict(AlexNet(spec).named_parameters())
        own = dict(model.named_parameters())

        def gather(name: str, value: Any) -> Any:
            like = isinstance(value, Tensor) and value.shape == own[name].shape
            return self._gather(spec, name, value, empty[name]) if like else value

        return _map_state(optimizer, model, optimizer.state_dict(), gather)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, model: Network, state: dict[str, Any], /) -> None:
        spec = _spec(model)
        with torch.device("meta"):
            empty = dict(AlexNet(spec).named_parameters())

        def cut(name: str, value: Any) -> Any:
            like = isinstance(value, Tensor) and value.shape == empty[name].shape
            return _cut(spec, name, value, self.tower) if like else value

        load_optimizer_state(optimizer, _map_state(optimizer, model, state, cut))

    def scaler(self, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type, enabled=enabled, process_group=dist.group.WORLD)

    def clip(self, model: Network, max_norm: float) -> None:
        squares = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]).square()
        dist.all_reduce(squares)
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, squares.sqrt())

    def close(self) -> None:
        # torch 2.6 joins Gloo's threads while it holds Python's lock, which a thread that is just giving back its last
        # tensor waits for: let it finish.
        time.sleep(0.1)
        dist.destroy_process_group()

    def _gather(self, spec: AlexNetSpec, name: str, part: Tensor, full: Tensor) -> Tensor:
        """The tensor called `name` with the shape of `full`, on the CPU of the first process; `part` in the others."""
        if full.ndim == 0:
            return part
        if self.tower > 0:
            dist.send(part.detach().cpu().contiguous(), dst=0)
            return part
        other = torch.empty(_cut(spec, name, full, 1).shape, dtype=part.dtype)
        dist.recv(other, src=1)
        return torch.cat([part.detach().cpu(), other], _dimension(spec, name))


# ── one tower ─────────────────────────────────────────────────────────────────────────────────────────────────


@torch.compiler.disable
def exchange(x: Tensor) -> tuple[Tensor, Tensor]:
    """The `x` of the first tower and that of the second, in both processes; all of one shape and dtype.

    Backward, a tower gets the sum of what both processes send back for its `x`.
    """
    from torch.distributed.nn.functional import all_to_all  # not in every build of torch

    first, second = all_to_all([torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(2)], [x, x])
    return first, second


class _ConvOfBoth(nn.Conv2d):
    """A convolution whose kernels read the maps of both towers."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.cat(exchange(input), 1))


class _LinearOfBoth(nn.Linear):
    """A fully connected layer whose units read both towers."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.cat(exchange(input), 1))


class _LastOfBoth(nn.Linear):
    """The last layer: what the classes get from the units of this tower, and from those of the other.

    The matrix is divided by what it reads, and so less is sent: logits instead of units. Each tower adds the biases
    of its part of the classes.
    """

    def __init__(self, in_features: int, num_classes: int, tower: int) -> None:
        super().__init__(in_features, num_classes)
        parts = self.bias.detach().tensor_split(TOWERS)
        self.around = (0, len(parts[1])) if tower == 0 else (len(parts[0]), 0)  # classes before and after these
        self.bias = nn.Parameter(parts[tower].clone())

    def forward(self, input: Tensor) -> Tensor:
        first, second = exchange(F.linear(input, self.weight, F.pad(self.bias, self.around)))
        return first + second


def _empty_tower(spec: AlexNetSpec, tower: int) -> AlexNet:
    """One tower of `spec`, on the meta device: the whole network with every layer that has a half replaced by it."""
    plan = layers(spec)
    convs = [layer.name for layer in plan if layer.kind == "conv"]
    with torch.device("meta"):
        model = AlexNet(spec)
        for layer in plan:
            half = _half(layer, tower, reads_images=layer.name == convs[0], last=layer is plan[-1])
            if half is not None:
                setattr(model, layer.name, half)
    return model


def _half(layer: Layer, tower: int, *, reads_images: bool, last: bool) -> nn.Module | None:
    """What one tower has of `layer`; None where that is the same module."""
    inputs, outputs = layer.input[0], layer.output[0]
    match layer.kind:
        case "conv":
            apart = layer.groups == TOWERS
            kind = nn.Conv2d if apart or reads_images else _ConvOfBoth
            reads = inputs // TOWERS if apart else inputs
            return kind(
                reads, outputs // TOWERS, layer.kernel, stride=layer.stride, padding=layer.padding, bias=layer.bias
            )
        case "linear":
            if last:
                return _LastOfBoth(inputs // TOWERS, outputs, tower)
            return _LinearOfBoth(inputs, outputs // TOWERS, bias=layer.bias)
        case "lrn" if layer.norm is not None:
            return LocalResponseNorm(layer.norm.size, layer.norm.alpha, layer.norm.beta, layer.norm.k)
        case "batchnorm":
            return nn.BatchNorm2d(outputs // TOWERS)
        case "dropout":
            half = outputs // TOWERS
            return Dropout(layer.p, outputs, slice(tower * half, (tower + 1) * half))
    return None


def _spec(model: Network) -> AlexNetSpec:
    """What `check` has found fit to be divided."""
    assert isinstance(model.spec, AlexNetSpec)
    return model.spec


def _unfit(spec: Spec) -> str:
    """Why `spec` cannot be divided into two towers; empty if it can."""
    if not isinstance(spec, AlexNetSpec) or {conv.groups for conv in spec.convs} != {1, TOWERS}:
        return "which is not made of two towers"
    if any(layer.norm.towers != TOWERS for layer in layers(spec) if layer.kind == "lrn" and layer.norm):
        return "whose LRN reads across its towers"
    return ""


def _dimension(spec: AlexNetSpec, name: str) -> int:
    """Along which dimension a tensor is divided: by what it computes; the last matrix, by what it reads."""
    return int(name == f"{layers(spec)[-1].name}.weight")


def _cut(spec: AlexNetSpec, name: str, full: Tensor, tower: int) -> Tensor:
    """What one tower holds of a tensor of the whole network: half, or all of a single number."""
    return full.tensor_split(TOWERS, _dimension(spec, name))[tower] if full.ndim else full


def _map_state(
    optimizer: torch.optim.Optimizer, model: Network, state: dict[str, Any], change: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """An optimizer's state dict with every value passed through `change`, with the name of its parameter."""
    called = {parameter: name for name, parameter in model.named_parameters()}
    names = [called[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    changed = {
        number: {key: change(name, value) for key, value in state["state"][number].items()}
        for number, name in zip(numbers, names, strict=True)
        if number in state["state"]
    }
    return {**state, "state": changed}
