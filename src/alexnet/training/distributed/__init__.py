"""Distributed training behind one interface, whether one process trains or several started by torchrun.

`connect` yields the implementation of `--parallel`: `SingleProcess`, `DataParallel` or `TowerParallel`.
Read `base.py` (the interface, one process), then `data_parallel.py` (any number of processes, each
with a shard of every batch), then `towers.py` (model parallel: the two towers of 2012, one process
each). All processes must share a file system; only rank 0 writes and prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alexnet.device import pick_device, world_size
from alexnet.errors import UserError
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.distributed.data_parallel import DataParallel
from alexnet.training.distributed.towers import TOWERS, TowerParallel


@contextmanager
def connect(parallel: str, device: str, dist_timeout: float = 120.0) -> Iterator[SingleProcess]:
    """Connect with the other processes, in the way of --parallel, for a `with` statement.

    An error that ends one process ends all. `dist_timeout`: seconds of silence after which `DataParallel` considers a
    process lost. Raises the same `UserError` in all processes.
    """
    count = world_size()
    if parallel == "none" and count > 1:
        raise UserError(
            f"torchrun started {count} processes, and --parallel none trains in one; give --parallel data, or start "
            "without torchrun."
        )
    if parallel == "towers" and count != TOWERS:
        there_are = "there is 1" if count == 1 else f"there are {count}"
        raise UserError(
            f"--parallel towers needs two processes, one for each tower, and {there_are}; start it with "
            "'torchrun --nproc-per-node 2 -m alexnet train … --parallel towers'."
        )
    group: SingleProcess
    if count == 1:
        group = SingleProcess()
    elif parallel == "towers":
        group = TowerParallel(pick_device(device))
    else:
        group = DataParallel(pick_device(device), dist_timeout)
    error: Exception | None = None
    try:
        yield group
    except Exception as caught:
        error = caught
        raise
    finally:
        group.close(error)
