"""Processes that read images for this one, for `check` and `pack`; training has those of torch's DataLoader."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.errors import UserError
from alexnet.signals import ignore_signals

if TYPE_CHECKING:
    from multiprocessing.synchronize import Event

GUARD = 'put the call below a line with if __name__ == "__main__": and indent it'
"""What a script has to do that starts processes, as each of them runs the script to import it."""


def check_main_module(work: str) -> None:
    """Raise `UserError` in a worker process that starts `work` again, as it runs the script of the main process."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # set, as in `spawn.py`, during that import
        raise UserError(
            f"A worker process has started {work} of this script again, as it runs the whole script; {GUARD}."
        )


@contextmanager
def process_pool(count: int) -> Iterator[ProcessPoolExecutor]:
    """Yield a pool of `count` processes that leave signals to this one, and exit if it is killed.

    Raises `BrokenProcessPool` if one of them dies, and `UserError` if that is since the script has no guard.
    """
    # Spawned, not forked: this process may hold torch's threads.
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_init_worker, initargs=(started,))
    try:
        yield pool
    except BrokenProcessPool:
        if started.is_set() or not Path(getattr(sys.modules["__main__"], "__file__", None) or "").is_file():
            raise
        raise UserError(f"The worker processes could not start, as each of them runs the script; {GUARD}.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _init_worker(started: Event) -> None:
    started.set()
    ignore_signals()
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as in the main process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # by which the pool ends its processes
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
