"""Data parallel training: each process trains on its shard of every batch, and all take the same step.

torch's `DistributedDataParallel` all-reduces the gradients during the backward pass, through Gloo
on CPUs and NCCL on GPUs. Random numbers depend on the sample, not on the process, and the loss of a
shard is weighted by its number of images. So any number of processes takes the same step as one,
except for the order of sums; batch norm is the exception (see `batch_norm_warning`).

All other communication (signals, errors, results) uses a separate Gloo process group on the CPU. A
process that is silent for `dist_timeout` seconds counts as lost: the others raise `ProcessLost`,
and torchrun may restart all of them from the last checkpoint.
"""

from __future__ import annotations

import datetime
import inspect
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from alexnet.data.loader import Shard
from alexnet.device import cpu_count, local_world_size, rank, world_size
from alexnet.errors import ProcessLost, TrainingFailed, UserError
from alexnet.models.model import Network
from alexnet.training.distributed.base import GROUP_TIMEOUT, ProcessGroup, SingleProcess, T

BUSY, DONE = 0, 1  # status of rank 0, broadcast while the others wait for its result
ERROR_KEY = "alexnet/error"  # where in the store a failing process leaves its error


class DataParallel(ProcessGroup):
    """Any number of processes, each with the full network and a shard of every batch."""

    def __init__(self, device: torch.device, dist_timeout: float) -> None:
        self.world_size = world_size()
        self.rank = rank()
        self.shard = Shard(self.rank, self.world_size)
        self.loss_scale = float(self.world_size)  # DDP averages the gradients, but the shards' losses add up
        self.device = device
        self.dist_timeout = dist_timeout
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.set_device(device.index or 0)  # no index if it is the only process of its machine
        else:
            torch.set_num_threads(threads_per_process())
        timeout = datetime.timedelta(seconds=dist_timeout)
        # Processes may start minutes apart on a busy machine; only afterwards does silence mean that one is lost.
        try:
            rendezvous_store, _, _ = next(dist.rendezvous("env://", timeout=GROUP_TIMEOUT))
            self.store = _fresh_store(rendezvous_store, self.rank, self.world_size)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                store=self.store, rank=self.rank, world_size=self.world_size, timeout=GROUP_TIMEOUT,
            )  # fmt: skip
            self.gradient_group: Any = dist.new_group(backend="nccl" if gpu else "gloo", timeout=timeout)
            self.cpu_group = dist.new_group(backend="gloo", timeout=timeout)
        except RuntimeError as error:
            raise ProcessLost(
                f"Process {self.rank} of {self.world_size} could not connect to the others ({_summarize(error)}); "
                "restart all processes."
            ) from error

    def broadcast_object(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0; a heartbeat tells the others to wait, so it may take longer than `dist_timeout`."""

        def make_with_heartbeat() -> T:
            try:
                with _heartbeat(self._broadcast_status, self.dist_timeout / 4):
                    return make()
            finally:
                self._broadcast_status(DONE)

        while self.rank > 0 and self._broadcast_status(BUSY) != DONE:
            pass
        return super().broadcast_object(make_with_heartbeat)

    def _broadcast_status(self, status: int) -> int:
        """Return the status of rank 0; the other ranks wait for it."""
        tensor = torch.tensor(status)
        dist.broadcast(tensor, src=0, group=self.cpu_group)
        return int(tensor)

    def shard_model(self, model: Network) -> Network:
        if self.device.type == "cuda":  # no effect on a network without batch norm
            return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model, self.gradient_group))
        return model

    def wrap(self, model: Network) -> nn.Module:
        """Return `model` in torch's DistributedDataParallel."""
        if not any(p.requires_grad for p in model.parameters()):
            return model
        known = inspect.signature(DistributedDataParallel).parameters
        buffers_flag = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        no_buffers: dict[str, Any] = {buffers_flag: False}
        ddp = DistributedDataParallel(
            model, process_group=self.gradient_group, gradient_as_bucket_view=True, **no_buffers
        )
        # DDP rebuilds its gradient buckets after the first step, which may change the order of
        # sums. Take that step here, without changing anything, so that a resumed run adds in the
        # same order as an uninterrupted one.
        was_training = model.training
        spec, dtype = model.spec, next(model.parameters()).dtype
        image = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size, dtype=dtype, device=self.device)
        ddp.eval()
        ddp(image).sum().backward()
        ddp.train(was_training)
        ddp.zero_grad(set_to_none=True)
        return ddp

    def state_dict(self, model: Network, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the state dicts; the weights have the mean of batch norm's statistics, which differ per process."""
        state = super().state_dict(model, optimizer)
        if own := batch_norm_statistics(model):
            state["statistics"] = self.gather(own)
            state["model"] |= _mean(state["statistics"])
        return state

    def load_state_dict(self, model: Network, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        super().load_state_dict(model, optimizer, state)
        if len(statistics := state.get("statistics", [])) == self.world_size:
            _load_buffers(model, statistics[self.rank])

    def close(self, error: Exception | None = None) -> None:
        try:
            if error is not None and _is_communication_error(error):
                raise self._peer_error(error) from error
            if isinstance(error, (UserError, TrainingFailed)):
                _run_with_timeout(2.0, lambda: self.store.set(ERROR_KEY, f"{type(error).__name__}:{error}"))
        finally:
            time.sleep(0.1)  # as in TowerParallel.close
            _run_with_timeout(5.0, dist.destroy_process_group)

    def _peer_error(self, error: Exception) -> Exception:
        """Return the error another process has published, else `ProcessLost`."""
        time.sleep(0.2)  # a failing process publishes its error before it ends
        published = _run_with_timeout(
            2.0, lambda: self.store.get(ERROR_KEY).decode() if self.store.check([ERROR_KEY]) else ""
        )
        kind, _, message = (published or "").partition(":")
        if message:
            return UserError(message) if kind == "UserError" else TrainingFailed(message)
        return ProcessLost(
            f"Process {self.rank} of {self.world_size} cannot reach another one ({_summarize(error)}); the last "
            "checkpoint is complete: run the same command with --resume, in any number of processes."
        )


# ── batch norm ────────────────────────────────────────────────────────────────────────────────────


def average_batch_norm(parallel: SingleProcess, model: Network) -> None:
    """Set batch norm's running statistics to their mean over the processes that train on other images."""
    if parallel.shard.world_size > 1 and (own := batch_norm_statistics(model)):
        _load_buffers(model, parallel.broadcast_object(partial(_mean, parallel.gather(own))))


def batch_norm_warning(parallel: SingleProcess, device: torch.device, model: Network) -> str:
    """Return a warning if batch norm makes training in several processes differ from one, else ""."""
    if parallel.shard.world_size == 1 or device.type == "cuda" or not batch_norm_statistics(model):
        return ""
    return (
        f"Batch norm on CPUs uses the mean and variance of each process's shard, 1/{parallel.world_size} of a batch "
        "(torch has SyncBatchNorm for GPUs only): the learning curve will differ from that of one process."
    )


def batch_norm_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return the running means and variances of `model`, by name, on the CPU."""
    return {
        f"{name}.{kind}": buffer.cpu()
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        for kind, buffer in (("running_mean", module.running_mean), ("running_var", module.running_var))
        if buffer is not None
    }


def _mean(states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of state dicts; taken in float64, so the mean of equal numbers is exact."""
    names = states[0] if states else {}
    return {name: torch.stack([state[name].double() for state in states]).mean(0).float() for name in names}


def _load_buffers(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        model.get_buffer(name).copy_(value)


# ── connecting, and losing processes ──────────────────────────────────────────────────────────────


def _fresh_store(store: dist.Store, rank: int, world_size: int) -> dist.Store:
    """Return a part of `store` with an unused prefix, the same in all processes.

    torchrun keeps one store over all restarts, with the addresses of dead processes. So rank 0
    generates a prefix, every other rank writes its own id under it, and the prefix is valid for the
    ranks whose ids rank 0 has read.
    """
    own_id = uuid.uuid4().hex
    others = range(1, world_size)
    deadline = time.monotonic() + GROUP_TIMEOUT.total_seconds()
    if rank == 0:
        store.set("alexnet", own_id)
    while time.monotonic() < deadline:
        prefix = own_id if rank == 0 else store.get("alexnet").decode()
        if rank == 0 and store.check([f"{prefix}/{other}" for other in others]):
            store.set(f"{prefix}/all", b" ".join(store.get(f"{prefix}/{other}") for other in others).decode())
            return dist.PrefixStore(prefix, store)
        if rank > 0:
            store.set(f"{prefix}/{rank}", own_id)
            if store.check([f"{prefix}/all"]) and own_id in store.get(f"{prefix}/all").decode():
                return dist.PrefixStore(prefix, store)
        time.sleep(0.02)
    raise RuntimeError(f"not all processes have connected after {GROUP_TIMEOUT}")


@contextmanager
def _heartbeat(broadcast: Callable[[int], int], seconds: float) -> Iterator[None]:
    """Call `broadcast(BUSY)` every `seconds` in a thread."""
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(seconds):
            try:
                broadcast(BUSY)
            except RuntimeError:  # the others are lost; the main thread will get the same error
                return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def threads_per_process() -> int:
    """Return the number of threads for each process of this machine: an equal part of the cores.

    torchrun sets OMP_NUM_THREADS to 1 when it starts several processes, which would leave most
    cores of a large machine idle; any other value is the user's choice.
    """
    chosen = torch.get_num_threads()
    if local_world_size() == 1 or (chosen > 1 and chosen != cpu_count()):
        return chosen
    return max(1, cpu_count() // local_world_size())


def _is_communication_error(error: Exception) -> bool:
    """Whether torch raised `error` because another process, or the connection to it, is lost."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl", "peer"))


def _summarize(error: Exception) -> str:
    """Return the first sentence of torch's message, without source file and line."""
    text = str(error).partition("\n")[0].partition(". ")[0]
    return re.sub(r"^\[[^]]*\.(cc|cpp|h):\d+\] ", "", text) or type(error).__name__


def _run_with_timeout(seconds: float, function: Callable[[], Any]) -> Any:
    """Return the result of `function`, None if it fails or takes longer: a lost peer may block a store or group."""
    result: list[Any] = [None]

    def call() -> None:
        with suppress(Exception):
            result[0] = function()

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0]
