"""Processes that form a process group as torchrun's do, to call functions in."""

from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch

from forks import fork_context


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _serve(rank: int, inbox: Any, outbox: Any) -> None:
    """Run in each process: call what is sent until None is. Only the environment holds the rank."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1"}
    while (call := inbox.get()) is not None:
        function, arguments, count, port = call
        os.environ |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_PORT": str(port)}
        try:
            outbox.put((function(*arguments), None))
        except BaseException:
            outbox.put((None, traceback.format_exc()))


class Ranks:
    """Up to `most` processes, each started when first needed, from one that has torch imported."""

    def __init__(self, most: int) -> None:
        context = fork_context()
        self.queues = [(context.Queue(), context.Queue()) for _ in range(most)]
        self.processes = [context.Process(target=_serve, args=(r, *self.queues[r]), daemon=True) for r in range(most)]

    def __call__(self, count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Return the results of a function of a test module in each of `count` processes, by rank."""
        port = free_port()
        for process, (inbox, _) in zip(self.processes[:count], self.queues, strict=False):
            if process.pid is None:
                process.start()
            inbox.put((function, arguments, count, port))
        results = [self._result(rank) for rank in range(count)]
        for rank, (_, error) in enumerate(results):
            assert error is None, f"process {rank}: {error}"
        return [result for result, _ in results]

    def _result(self, rank: int, timeout: float = 300) -> Any:
        """Wait for the result of `rank`; fail at once if its process died."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            alive = self.processes[rank].is_alive()  # before the last look, so that a result is not missed
            with suppress(queue.Empty):
                return self.queues[rank][1].get(timeout=1)
            assert alive, f"process {rank} died with exit code {self.processes[rank].exitcode}"
        raise AssertionError(f"process {rank} did not answer within {timeout:g} s")

    def close(self) -> None:
        for process, (inbox, _) in zip(self.processes, self.queues, strict=True):
            if process.pid is not None:
                inbox.put(None)
                process.join(timeout=10)


def torchrun(count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `torchrun --nproc-per-node COUNT -m alexnet …`, as a user types it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run([*command, "-m", "alexnet", *arguments], capture_output=True, text=True, timeout=300)
