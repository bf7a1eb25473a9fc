"""One process or several, behind one interface: `begin` chooses what `--parallel` names.

Read `base` (one process), `data_parallel` (any number, each with a part of every batch), then `towers`
(the two towers of 2012, one process each).
"""

from __future__ import annotations

from alexnet.device import pick_device, world_size
from alexnet.errors import UserError
from alexnet.training.distributed.base import SingleProcess
from alexnet.training.distributed.data_parallel import DataParallel
from alexnet.training.distributed.towers import TOWERS, TowerParallel


def make_parallel(how: str, device: str, dist_timeout: float = 120.0) -> SingleProcess:
    """The arrangement that --parallel names, with `device` as --device. Raises `UserError` in all processes alike.

    `dist_timeout`: the seconds after which `Data` takes a silent process for lost.
    """
    count = world_size()
    if how == "none" and count > 1:
        raise UserError(
            f"torchrun started {count} processes, and --parallel none trains in one; give --parallel data, or start "
            "without torchrun."
        )
    if how == "towers" and count != TOWERS:
        there_are = "there is 1" if count == 1 else f"there are {count}"
        raise UserError(
            f"--parallel towers needs two processes, one for each tower, and {there_are}; start it with "
            "'torchrun --nproc-per-node 2 -m alexnet train … --parallel towers'."
        )
    if count == 1:
        return SingleProcess()
    on = pick_device(device)
    if how == "towers":
        return TowerParallel(on)
    return DataParallel(on, dist_timeout)
