"""What the trainer asks of the processes that train together, and the answers of a single process.

The trainer makes the same calls in every process, whatever their number. `DataParallel` and `TowerParallel` override
what differs with several.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alexnet.data.loader import ALL, Batch
from alexnet.errors import UserError, WorkerDied
from alexnet.models.model import Network, Spec

GROUP_TIMEOUT = datetime.timedelta(minutes=10)  # for collectives of the default process group, and for rendezvous

T = TypeVar("T")


class SingleProcess:
    """One process: nothing is exchanged."""

    rank = 0
    world_size = 1
    shard = ALL
    """The part of each batch this process trains on."""
    loss_scale = 1.0
    """Factor on the loss before the backward pass that makes the exchanged gradients those of one process."""
    grad_scaler: Callable[..., torch.amp.GradScaler] = torch.amp.GradScaler
    """The class of the gradient scaler for fp16; all processes skip the same steps."""

    def check(self, spec: Spec) -> None:
        """Raise `UserError` if this network cannot be trained this way."""

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 only and return its result in all processes; they raise its exception, too."""
        return make()

    def all_reduce(self, values: Tensor, op: Literal["sum", "max"]) -> Tensor:  # noqa: ARG002
        """Return, on the CPU, the largest `values` of all processes, or the sums over those that train on other images.

        Sums are taken in rank order, so that they do not depend on timing.
        """
        return values.cpu()

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, in rank order, on rank 0; the others get an empty list."""
        return [value]

    def shard_model(self, model: Network) -> Network:
        """Return the part of `model` this process trains; same images in, same logits out."""
        return model

    def wrap(self, model: Network) -> nn.Module:
        """Return the module that runs the forward pass of `model`, the result of `shard_model` on its device."""
        return model

    def clip_grad_norm(self, model: Network, max_norm: float) -> None:
        """Clip the gradient norm of the full network to `max_norm`."""
        nn.utils.clip_grad_norm_(model.parameters(), max_norm)

    def state_dict(self, model: Network, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state dicts of the full network and its optimizer as "model" and "optimizer"; complete on rank 0.

        "statistics", if there are any, are buffers that differ between the processes, a state dict for each rank.
        """
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}

    def load_state_dict(self, model: Network, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Load what `state` holds of the result of `state_dict`, saved by any number of processes."""
        if "model" in state:
            model.load_state_dict(state["model"])
        if "optimizer" in state:
            load_optimizer_state(optimizer, state["optimizer"])

    def close(self, error: Exception | None = None) -> None:
        """Leave the process group, after telling the others the `error` that ends this process, if any.

        If another process caused it, raise that process's error.
        """


class ProcessGroup(SingleProcess):
    """Several processes; `cpu_group` is their torch.distributed group for tensors on the CPU, None for the default."""

    cpu_group: Any = None

    def broadcast_object(self, make: Callable[[], T]) -> T:
        result: list[Any] = [None, None]  # value, exception
        if self.rank == 0:
            try:
                result[0] = make()
            except Exception as error:
                result[1] = error
        dist.broadcast_object_list(result, src=0, group=self.cpu_group, device=torch.device("cpu"))
        if result[1] is not None:
            raise result[1]
        return cast(T, result[0])

    def all_reduce(self, values: Tensor, op: Literal["sum", "max"]) -> Tensor:
        parts = [torch.empty_like(values, device="cpu") for _ in range(self.world_size)]
        dist.all_gather(parts, values.cpu(), group=self.cpu_group)
        return torch.stack(parts).sum(0) if op == "sum" else torch.stack(parts).amax(0)

    def gather(self, value: T) -> list[T]:
        values: list[Any] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(value, values, dst=0, group=self.cpu_group)
        return values or []


def read_together(parallel: SingleProcess, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    """Yield `batches`; an error in reading one is raised in all processes, before the same step."""
    try:
        while True:
            batch: Batch | None = None
            error: UserError | WorkerDied | None = None
            try:
                batch = next(batches, None)
            except (UserError, WorkerDied) as caught:
                error = caught
            if parallel.all_reduce(torch.tensor(int(error is not None)), "max"):
                parallel.broadcast_object(partial(_raise_first, parallel.gather(error)))
            if batch is None:
                return
            yield batch
    finally:
        if isinstance(batches, Generator):
            batches.close()  # ends the worker processes


def _raise_first(errors: list[UserError | WorkerDied | None]) -> NoReturn:
    raise next(error for error in errors if error is not None)


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
