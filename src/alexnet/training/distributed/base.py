"""The interface between the trainer and the processes that train together, and its implementation for one process.

`SingleProcess` needs no communication; `DataParallel` and `TowerParallel` override what differs with
several processes. The trainer makes the same calls in every process, whatever their number.
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

GROUP_TIMEOUT = datetime.timedelta(minutes=10)  # for collectives of the default process group, and for rendezvous

T = TypeVar("T")


class SingleProcess:
    """One process: nothing is exchanged."""

    world_size = 1
    shard = ALL
    """The part of each batch this process trains on."""
    loss_scale = 1.0
    """Factor on the loss before the backward pass that makes the exchanged gradients those of one process."""

    def check(self, spec: Spec) -> None:
        """Raise `UserError` if this network cannot be trained this way."""

    def on_rank0(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 only and broadcast its result; an exception is raised in all processes."""
        return make()

    def all_reduce_max(self, value: int | None) -> int | None:
        """Return the largest `value` of all processes. None counts as 0; several processes return None for 0."""
        return value

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        """Return `sums` added over the processes that train on different images, in rank order, on the CPU."""
        return sums.cpu()

    def sync_data_errors(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield `batches`; an error in reading one is raised in all processes, before the same step."""
        return batches

    def gather(self, outputs: Outputs | None) -> Outputs | None:
        """Return the outputs of all ranks in the order of the split, on rank 0; the other ranks may get None."""
        return outputs

    def shard_model(self, model: Network) -> Network:
        """Return the part of `model` this process trains; same images in, same logits out."""
        return model

    def wrap(self, model: Network) -> nn.Module:
        """Return the module that runs the forward pass of `model`, the result of `shard_model` on its device."""
        return model

    def gather_model(self, model: Network) -> Network:
        """Return the full network of which `model` is a part; complete on rank 0 only."""
        return model

    def load_weights(self, model: Network, weights: Mapping[str, Tensor]) -> None:
        """Load the state dict of the full network."""
        model.load_state_dict(weights)

    def gather_optimizer(self, optimizer: torch.optim.Optimizer, model: Network) -> dict[str, Any]:  # noqa: ARG002
        """Return the state dict of the full network's optimizer; complete on rank 0 only."""
        return optimizer.state_dict()

    def load_optimizer(self, optimizer: torch.optim.Optimizer, model: Network, state: dict[str, Any]) -> None:  # noqa: ARG002
        """Load the state dict of the full network's optimizer."""
        load_optimizer_state(optimizer, state)

    def no_sync(self, *, unless: bool) -> AbstractContextManager[None]:  # noqa: ARG002
        """Return a context for a forward and backward pass that exchanges gradients only if `unless` holds."""
        return nullcontext()

    def scaler(self, device: torch.device, enabled: bool) -> torch.amp.GradScaler:
        """Return the gradient scaler for fp16; all processes skip the same steps."""
        return torch.amp.GradScaler(device.type, enabled=enabled)

    def clip(self, model: Network, max_norm: float) -> None:
        """Clip the gradient norm of the full network to `max_norm`."""
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def sync_buffers(self, model: Network) -> None:
        """Average the buffers that depend on a process's images (batch norm's running statistics)."""

    def buffers_state(self, model: Network) -> list[dict[str, Tensor]]:  # noqa: ARG002
        """Return the buffers that `sync_buffers` averages, a dict per rank; empty if all ranks agree on them."""
        return []

    def load_buffers_state(self, model: Network, saved: list[dict[str, Tensor]]) -> None:
        """Load this rank's entry of `buffers_state`; no effect if `saved` is from another number of processes."""

    def warnings(self, model: Network) -> list[str]:  # noqa: ARG002
        """Return warnings about training this network this way, to be shown once."""
        return []

    def raise_peer_error(self, error: Exception) -> None:
        """Publish an error that ends this process; if another process caused it, raise that process's error."""

    def close(self) -> None:
        """Leave the process group."""


def mean_buffers(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of what `buffers_state` returns; taken in float64, so the mean of equal numbers is exact."""
    names = states[0] if states else {}
    return {name: torch.stack([state[name].double() for state in states]).mean(0).float() for name in names}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a state dict into tensors with the memory layout of their parameters.

    Fused updates walk both in memory order: for a channels_last kernel with contiguous momentum
    they would pair the wrong numbers.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)
