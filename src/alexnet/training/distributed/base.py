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

import datetime
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from alexnet.data.loader import ALL, Batch
from alexnet.inference.evaluate import Outputs
from alexnet.models.model import Network, Spec

GROUP_TIMEOUT = datetime.timedelta(minutes=10)  # how long one process waits for the other before it gives up

T = TypeVar("T")


class SingleProcess:
    """One process: everything stays as it is. Other arrangements say here what they do instead."""

    world_size = 1
    shard = ALL
    """Which part of each batch this process learns from."""
    loss_scale = 1.0
    """What the loss is multiplied by before it is propagated back, so that the gradient comes out as of one process."""

    def check(self, spec: Spec) -> None:
        """Raise `UserError` if this network cannot be trained so."""

    def on_rank0(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, where alone it runs; what it raises is raised in all."""
        return make()

    def all_reduce_max(self, signum: int | None) -> int | None:
        """The signal that any process has received, so that all stop after the same step."""
        return signum

    def shard_model(self, model: Network) -> Network:
        """The part of `model` that this process trains; it takes the same images and gives the same logits."""
        return model

    def wrap(self, model: Network) -> nn.Module:
        """What computes the forward pass of `model`, which `split` gave and which is on its device."""
        return model

    def no_sync(self, _last: bool, /) -> AbstractContextManager[None]:
        """In it a part of a batch runs forward and backward; the gradients are exchanged in the last part alone."""
        return nullcontext()

    def sync_data_errors(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """`batches`; a `UserError` in reading one is raised in all processes, before the same step."""
        return batches

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """`sums` added up over the processes that learn from different pictures, in their order; on the CPU."""
        return sums.cpu()

    def gather(self, outputs: Outputs | None) -> Outputs | None:
        """What all processes say of their parts of a split, in the split's order, in the first; else maybe None."""
        return outputs

    def sync_buffers(self, model: Network) -> None:
        """Make alike in all processes what the network knows of the pictures besides its weights."""

    def buffers_state(self, _model: Network, /) -> list[dict[str, Tensor]]:
        """What `level` makes alike, of each process by name; empty where no process has any of its own."""
        return []

    def load_buffers_state(self, model: Network, saved: list[dict[str, Tensor]]) -> None:
        """Give each process its own back; without effect where `saved` are those of another number of processes."""

    def warnings(self, _model: Network, /) -> list[str]:
        """Sentences about training this network so, to be said once."""
        return []

    def raise_peer_error(self, error: Exception) -> None:
        """Let the others know of an error that ends this process's work; raise another one, where they caused it."""

    def gather_model(self, model: Network) -> Network:
        """The network whose part `model` is. Complete in the first process only."""
        return model

    def load_weights(self, model: Network, weights: Mapping[str, Tensor]) -> None:
        """Load the state dict of a whole network."""
        model.load_state_dict(weights)

    def gather_optimizer(self, optimizer: torch.optim.Optimizer, _model: Network, /) -> dict[str, Any]:
        """The state dict of the whole network's optimizer. Complete in the first process only."""
        return optimizer.state_dict()

    def load_optimizer(self, optimizer: torch.optim.Optimizer, _model: Network, state: dict[str, Any], /) -> None:
        """Load the state dict of a whole network's optimizer."""
        load_optimizer_state(optimizer, state)

    def scaler(self, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
        """The scaler of fp16 losses; whether a step is skipped is decided for all processes together."""
        return torch.amp.GradScaler(device.type, enabled=enabled)

    def clip(self, model: Network, max_norm: float) -> None:
        """Shorten the gradient of the whole network to `max_norm` where it is longer."""
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def close(self) -> None:
        """Leave the other processes."""


def mean_buffers(statistics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of what `Single.statistics` gives. In float64, so that the mean of equal numbers is that number."""
    names = statistics[0] if statistics else {}
    return {name: torch.stack([own[name].double() for own in statistics]).mean(0).float() for name in names}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict into tensors laid out in memory as their parameters are.

    Fused updates walk through both in the order of memory: of a kernel in channels_last and a contiguous momentum they
    would pair the wrong numbers.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
