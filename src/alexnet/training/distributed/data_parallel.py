"""Data parallel training: each process trains on its shard of every batch, and all take the same step.

torch's `DistributedDataParallel` all-reduces the gradients during the backward pass, through Gloo
on CPUs and NCCL on GPUs. Random numbers depend on the sample, not on the process, and the loss of a
shard is weighted by its number of images. So any number of processes takes the same step as one,
except for the order of sums; batch norm is the exception (see `DataParallel.warnings`).

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
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from alexnet.data.loader import Batch, Shard
from alexnet.device import cpu_count, local_world_size, rank, world_size
from alexnet.errors import ProcessLost, TrainingFailed, UserError, WorkerDied
from alexnet.inference.evaluate import Outputs
from alexnet.models.model import Network
from alexnet.training.distributed.base import GROUP_TIMEOUT, SingleProcess, T, mean_buffers

BUSY, DONE = 0, 1  # status of rank 0, broadcast while the others wait for its result
ERROR_KEY = "alexnet/error"  # where in the store a failing process leaves its error


class DataParallel(SingleProcess):
    """Any number of processes, each with the full network and a shard of every batch."""

    def __init__(self, device: torch.device, dist_timeout: float) -> None:
        self.world_size = world_size()
        self.rank = rank()
        self.shard = Shard(self.rank, self.world_size)
        self.loss_scale = float(self.world_size)  # DDP averages the gradients, but the shards' losses add up
        self.device = device
        self.dist_timeout = dist_timeout
        self._ddp: DistributedDataParallel | None = None
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
            self.cpu_group: Any = dist.new_group(backend="gloo", timeout=timeout)
        except RuntimeError as error:
            raise ProcessLost(
                f"Process {self.rank} of {self.world_size} could not connect to the others ({_summarize(error)}); "
                "restart all processes."
            ) from error

    # ── collectives ───────────────────────────────────────────────────────────────────────────────

    def on_rank0(self, make: Callable[[], T]) -> T:
        """Call `make` on rank 0 and broadcast its result; a heartbeat lets it take longer than `dist_timeout`."""
        result: list[Any] = [None, None]  # value, exception
        if self.rank == 0:
            with _Heartbeat(self._broadcast_status, self.dist_timeout / 4):
                try:
                    result[0] = make()
                except Exception as error:
                    result[1] = error
            self._broadcast_status(DONE)
        else:
            while self._broadcast_status(BUSY) != DONE:
                pass
        dist.broadcast_object_list(result, src=0, group=self.cpu_group)
        if result[1] is not None:
            raise result[1]
        return cast(T, result[0])

    def _broadcast_status(self, status: int) -> int:
        """Return the status of rank 0; the other ranks wait for it."""
        tensor = torch.tensor(status)
        dist.broadcast(tensor, src=0, group=self.cpu_group)
        return int(tensor)

    def all_reduce_max(self, value: int | None) -> int | None:
        largest = torch.tensor(value or 0)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.cpu_group)
        return int(largest) or None

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        parts = [torch.empty_like(sums, device="cpu") for _ in range(self.world_size)]
        dist.all_gather(parts, sums.cpu(), group=self.cpu_group)
        return torch.stack(parts).sum(0)

    def sync_data_errors(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            while True:
                error: UserError | WorkerDied | None = None
                batch = None
                try:
                    batch = next(batches, None)
                except (UserError, WorkerDied) as caught:
                    error = caught
                if self.all_reduce_max(int(error is not None)):
                    errors: list[UserError | WorkerDied | None] = [None] * self.world_size
                    dist.all_gather_object(errors, error, group=self.cpu_group)
                    raise next(e for e in errors if e is not None)
                if batch is None:
                    return
                yield batch
        finally:
            if isinstance(batches, Generator):
                batches.close()

    def gather(self, outputs: Outputs | None) -> Outputs | None:
        gathered: list[Outputs | None] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(outputs, gathered, dst=0, group=self.cpu_group)
        if gathered is None:
            return None
        parts = [part for part in gathered if part is not None]
        order = np.argsort(np.concatenate([part.ids for part in parts]))
        columns = ([getattr(part, name) for part in parts] for name in ("ids", "targets", "logits"))
        return Outputs(*(np.concatenate(column)[order] for column in columns))

    # ── the network ───────────────────────────────────────────────────────────────────────────────

    def shard_model(self, model: Network) -> Network:
        if self.device.type == "cuda":  # no effect on a network without batch norm
            return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model, self.gradient_group))
        return model

    def wrap(self, model: Network) -> nn.Module:
        if not any(p.requires_grad for p in model.parameters()):
            return model
        known = inspect.signature(DistributedDataParallel).parameters
        buffers_flag = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        no_buffers: dict[str, Any] = {buffers_flag: False}
        self._ddp = DistributedDataParallel(
            model, process_group=self.gradient_group, gradient_as_bucket_view=True, **no_buffers
        )
        # DDP rebuilds its gradient buckets after the first step, which may change the order of
        # sums. Take that step here, without changing anything, so that a resumed run adds in the
        # same order as an uninterrupted one.
        was_training = model.training
        spec, dtype = model.spec, next(model.parameters()).dtype
        image = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size, dtype=dtype, device=self.device)
        self._ddp.eval()
        self._ddp(image).sum().backward()
        self._ddp.train(was_training)
        self._ddp.zero_grad(set_to_none=True)
        return self._ddp

    def no_sync(self, *, unless: bool) -> AbstractContextManager[None]:
        return nullcontext() if unless or self._ddp is None else self._ddp.no_sync()

    def sync_buffers(self, model: Network) -> None:
        """Set batch norm's running statistics to their mean over the processes."""
        _load_buffers(model, mean_buffers(self.buffers_state(model)))

    def buffers_state(self, model: Network) -> list[dict[str, Tensor]]:
        own = {
            f"{name}.{kind}": buffer.cpu()
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            for kind, buffer in (("running_mean", module.running_mean), ("running_var", module.running_var))
            if buffer is not None
        }
        if not own:
            return []
        states: list[Any] = [None] * self.world_size
        dist.all_gather_object(states, own, group=self.cpu_group)
        return states

    def load_buffers_state(self, model: Network, saved: list[dict[str, Tensor]]) -> None:
        if len(saved) == self.world_size:
            _load_buffers(model, saved[self.rank])

    def warnings(self, model: Network) -> list[str]:
        if self.device.type == "cuda" or not any(isinstance(m, _BatchNorm) for m in model.modules()):
            return []
        return [
            f"Batch norm on CPUs uses the mean and variance of each process's shard, 1/{self.world_size} of a batch "
            "(torch has SyncBatchNorm for GPUs only): the learning curve will differ from that of one process."
        ]

    # ── lost processes ────────────────────────────────────────────────────────────────────────────

    def raise_peer_error(self, error: Exception) -> None:
        if _is_communication_error(error):
            raise self._peer_error(error) from error
        if isinstance(error, (UserError, TrainingFailed)):
            _run_with_timeout(2.0, lambda: self.store.set(ERROR_KEY, f"{type(error).__name__}:{error}"))

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

    def close(self) -> None:
        time.sleep(0.1)  # as in TowerParallel.close
        _run_with_timeout(5.0, dist.destroy_process_group)


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


class _Heartbeat:
    """A context manager in which a thread calls `broadcast(BUSY)` every `seconds`."""

    def __init__(self, broadcast: Callable[[int], int], seconds: float) -> None:
        self._broadcast, self._seconds = broadcast, seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self._broadcast(BUSY)
            except RuntimeError:  # the others are lost; the main thread will get the same error
                return


def threads_per_process() -> int:
    """Return the number of threads for each process of this machine: an equal part of the cores.

    torchrun sets OMP_NUM_THREADS to 1 when it starts several processes, which would leave most
    cores of a large machine idle; any other value is the user's choice.
    """
    chosen = torch.get_num_threads()
    if local_world_size() == 1 or (chosen > 1 and chosen != cpu_count()):
        return chosen
    return max(1, cpu_count() // local_world_size())


def _load_buffers(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        model.get_buffer(name).copy_(value)


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
