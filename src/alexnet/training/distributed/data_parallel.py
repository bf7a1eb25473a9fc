"""Data parallel training: each process learns from its part of every batch, and all take the same step.

torch's `DistributedDataParallel` adds up the gradients, through Gloo on CPUs and NCCL on GPUs, while they are being
computed. Draws depend on the sample and not on the process, and the loss of a part counts by its share of the pictures.
So any number of processes takes the step that one would, but for the order in which numbers are added up; what a
network with batch norm knows of its batch is another matter (see `Data.remarks`).

What processes tell each other besides gradients (a signal, an error, a result) goes through Gloo on the CPU, in a group
of its own. A process that does not answer for `dist_timeout` seconds is taken for lost: everything raises `ProcessLost`
then, and torchrun may start the work again from the last checkpoint.
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
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from alexnet.data.loader import Batch, Shard
from alexnet.device import cpu_count, local_world_size, rank, world_size
from alexnet.errors import ProcessLost, ReaderDied, TrainingFailed, UserError
from alexnet.inference.evaluate import Outputs
from alexnet.models.model import Network
from alexnet.training.distributed.base import GROUP_TIMEOUT, SingleProcess, mean_buffers

BUSY, DONE = 0, 1  # what the first process says while the others wait for what it makes
REASON = "alexnet/error"  # the key in the store under which a process that fails leaves the reason

T = TypeVar("T")


class DataParallel(SingleProcess):
    """Any number of processes, each with the whole network and a part of every batch."""

    def __init__(self, device: torch.device, dist_timeout: float) -> None:
        self.world_size = world_size()
        self.rank = rank()
        self.shard = Shard(self.rank, self.world_size)
        self.loss_scale = float(self.world_size)  # the gradients are averaged, and parts of the loss add up
        self.device = device
        self.dist_timeout = dist_timeout
        self._ddp: DistributedDataParallel | None = None
        gpu = device.type == "cuda"
        if gpu:
            torch.cuda.set_device(device.index or 0)  # none where it is the only process of its machine
        else:
            torch.set_num_threads(threads_per_process())
        soon = datetime.timedelta(seconds=dist_timeout)
        # Processes may begin minutes apart, on a busy machine; only afterwards is silence a sign.
        try:
            shared, _, _ = next(dist.rendezvous("env://", timeout=GROUP_TIMEOUT))
            self.store = _place_of_our_own(shared, self.rank, self.world_size)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if gpu else "gloo",
                store=self.store, rank=self.rank, world_size=self.world_size, timeout=GROUP_TIMEOUT,
            )  # fmt: skip
            self.gradients: Any = dist.new_group(backend="nccl" if gpu else "gloo", timeout=soon)
            self.talk: Any = dist.new_group(backend="gloo", timeout=soon)
        except RuntimeError as error:
            raise ProcessLost(
                f"Process {self.rank} of {self.world_size} could not connect to the others ({_cause(error)}); "
                "restart all processes."
            ) from error

    # ── acting as one ─────────────────────────────────────────────────────────────────────────────────────────

    def on_rank0(self, make: Callable[[], T]) -> T:
        """The others wait as long as it takes, if only the first shows that it is there."""
        found: list[Any] = [None, None]
        if self.rank == 0:
            with _Beating(self._say, self.dist_timeout / 4):
                try:
                    found[0] = make()
                except Exception as error:
                    found[1] = error
            self._say(DONE)
        else:
            while self._say(BUSY) != DONE:
                pass
        dist.broadcast_object_list(found, src=0, group=self.talk)
        if found[1] is not None:
            raise found[1]
        return cast(T, found[0])

    def all_reduce_max(self, signum: int | None) -> int | None:
        largest = torch.tensor(signum or 0)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.talk)
        return int(largest) or None

    def sync_data_errors(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        try:
            while True:
                error: UserError | ReaderDied | None = None
                batch = None
                try:
                    batch = next(batches, None)
                except (UserError, ReaderDied) as found:
                    error = found
                if self.all_reduce_max(int(error is not None)):
                    errors: list[UserError | ReaderDied | None] = [None] * self.world_size
                    dist.all_gather_object(errors, error, group=self.talk)
                    raise next(e for e in errors if e is not None)
                if batch is None:
                    return
                yield batch
        finally:
            if isinstance(batches, Generator):
                batches.close()  # as the loop does

    def all_reduce_sum(self, sums: Tensor) -> Tensor:
        parts = [torch.empty_like(sums, device="cpu") for _ in range(self.world_size)]
        dist.all_gather(parts, sums.cpu(), group=self.talk)
        return torch.stack(parts).sum(0)

    def gather(self, outputs: Outputs | None) -> Outputs | None:
        found: list[Outputs | None] | None = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(outputs, found, dst=0, group=self.talk)
        if found is None:
            return None
        parts = [part for part in found if part is not None]
        order = np.argsort(np.concatenate([part.ids for part in parts]))
        columns = ([getattr(part, name) for part in parts] for name in ("ids", "targets", "logits"))
        return Outputs(*(np.concatenate(column)[order] for column in columns))

    # ── the network ───────────────────────────────────────────────────────────────────────────────────────────

    def shard_model(self, model: Network) -> Network:
        if self.device.type == "cuda":  # a network without batch norm stays as it is
            return cast(Network, nn.SyncBatchNorm.convert_sync_batchnorm(model, self.gradients))
        return model

    def wrap(self, model: Network) -> nn.Module:
        if not any(p.requires_grad for p in model.parameters()):
            return model
        known = inspect.signature(DistributedDataParallel).parameters
        per_step: dict[str, Any] = {
            "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False
        }
        self._ddp = DistributedDataParallel(
            model, process_group=self.gradients, gradient_as_bucket_view=True, **per_step
        )
        # DDP groups the gradients anew after its first step, and the order of a sum may change with the group: so that
        # a run that goes on adds as the unbroken one, this step is taken here, without a trace.
        was_training = model.training
        spec, dtype = model.spec, next(model.parameters()).dtype
        picture = torch.zeros(1, spec.in_channels, spec.image_size, spec.image_size, dtype=dtype, device=self.device)
        self._ddp.eval()
        self._ddp(picture).sum().backward()
        self._ddp.train(was_training)
        self._ddp.zero_grad(set_to_none=True)
        return self._ddp

    def no_sync(self, last: bool, /) -> AbstractContextManager[None]:
        return nullcontext() if last or self._ddp is None else self._ddp.no_sync()

    def sync_buffers(self, model: Network) -> None:
        """Batch norm's running statistics: their mean over the processes, to which each batch added a part in each."""
        _load_buffers(model, mean_buffers(self.buffers_state(model)))

    def buffers_state(self, model: Network, /) -> list[dict[str, Tensor]]:
        own = {
            f"{name}.{kind}": buffer.cpu()
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm)
            for kind, buffer in (("running_mean", module.running_mean), ("running_var", module.running_var))
            if buffer is not None
        }
        if not own:
            return []
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, own, group=self.talk)
        return found

    def load_buffers_state(self, model: Network, saved: list[dict[str, Tensor]]) -> None:
        if len(saved) == self.world_size:
            _load_buffers(model, saved[self.rank])

    def warnings(self, model: Network, /) -> list[str]:
        if self.device.type == "cuda" or not any(isinstance(m, _BatchNorm) for m in model.modules()):
            return []
        return [
            f"Batch norm takes its mean and deviation from each process's part of a batch, 1/{self.world_size} of it "
            "(on GPUs from the whole; torch has no such layer for the CPU): the curve is not that of one process."
        ]

    # ── when one is lost ──────────────────────────────────────────────────────────────────────────────────────

    def raise_peer_error(self, error: Exception) -> None:
        if _from_the_others(error):
            raise self._reason(error) from error
        if isinstance(error, (UserError, TrainingFailed)):
            _within(2.0, lambda: self.store.set(REASON, f"{type(error).__name__}:{error}"))

    def _reason(self, error: Exception) -> Exception:
        """What another process left as the reason why it went, else that it went."""
        time.sleep(0.2)  # the one that failed writes down why before it goes
        reason = _within(2.0, lambda: self.store.get(REASON).decode() if self.store.check([REASON]) else "")
        kind, _, sentence = (reason or "").partition(":")
        if sentence:
            return UserError(sentence) if kind == "UserError" else TrainingFailed(sentence)
        return ProcessLost(
            f"Process {self.rank} of {self.world_size} cannot reach another one ({_cause(error)}); the last checkpoint "
            "is whole: give the same command with --resume, in any number of processes."
        )

    def close(self) -> None:
        time.sleep(0.1)  # as in Towers.close
        _within(5.0, dist.destroy_process_group)

    def _say(self, what: int) -> int:
        """The first process's `what`, in all; the others wait for it."""
        word = torch.tensor(what)
        dist.broadcast(word, src=0, group=self.talk)
        return int(word)


def _place_of_our_own(store: dist.Store, rank: int, processes: int) -> dist.Store:
    """A part of `store` that nobody has written to, the same in all processes.

    torchrun keeps one store for all its restarts, with the addresses of processes that are dead. So the first process
    makes up a name, each other one writes under it who it is, and the name holds for those whom the first has read.
    """
    me = uuid.uuid4().hex
    others = range(1, processes)
    until = time.monotonic() + GROUP_TIMEOUT.total_seconds()
    if rank == 0:
        store.set("alexnet", me)
    while time.monotonic() < until:
        name = me if rank == 0 else store.get("alexnet").decode()
        if rank == 0 and store.check([f"{name}/{other}" for other in others]):
            store.set(f"{name}/all", b" ".join(store.get(f"{name}/{other}") for other in others).decode())
            return dist.PrefixStore(name, store)
        if rank > 0:
            store.set(f"{name}/{rank}", me)
            if store.check([f"{name}/all"]) and me in store.get(f"{name}/all").decode():
                return dist.PrefixStore(name, store)
        time.sleep(0.02)
    raise RuntimeError(f"after {GROUP_TIMEOUT} not all processes are there")


class _Beating:
    """A context in which a thread calls `say(BUSY)` every `seconds`."""

    def __init__(self, say: Callable[[int], int], seconds: float) -> None:
        self._say, self._seconds = say, seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._seconds):
            try:
                self._say(BUSY)
            except RuntimeError:  # the others are gone, as the main thread will find too
                return


def threads_per_process() -> int:
    """Threads for each of the processes on this machine: its part of the cores.

    torchrun sets OMP_NUM_THREADS to 1 where it starts several, which would leave most cores of a large machine idle;
    another number there is the user's own.
    """
    chosen = torch.get_num_threads()
    if local_world_size() == 1 or (chosen > 1 and chosen != cpu_count()):
        return chosen
    return max(1, cpu_count() // local_world_size())


def _load_buffers(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        model.get_buffer(name).copy_(value)


def _from_the_others(error: Exception) -> bool:
    """Whether this is how torch reports that a process or the way to it is gone."""
    if isinstance(error, (dist.DistBackendError, dist.DistNetworkError, dist.DistStoreError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in ("gloo", "nccl", "peer"))


def _cause(error: Exception) -> str:
    """The first sentence of what torch says, without its source files."""
    text = str(error).partition("\n")[0].partition(". ")[0]
    return re.sub(r"^\[[^]]*\.(cc|cpp|h):\d+\] ", "", text) or type(error).__name__


def _within(seconds: float, do: Callable[[], Any]) -> Any:
    """What `do` returns, None where it fails or takes longer: a store or a group behind a cut link may block."""
    found: list[Any] = [None]

    def work() -> None:
        with suppress(Exception):
            found[0] = do()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0]
