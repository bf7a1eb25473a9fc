"""Signals that ask a process to stop: Ctrl-C, those of schedulers and of a closed terminal.

Each is handled at any moment. `raise_on_signals` ends a command while it has nothing to save;
`StopSignal` only notes the signal while training or a server runs, which then saves or answers
first. The exit code is 128 + the signal.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

# Besides Ctrl-C and SIGTERM: a closed terminal, Slurm's --signal, a limit on CPU time. Windows lacks these.
NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
STOP_SIGNALS: tuple[signal.Signals, ...] = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


class Stopped(BaseException):
    """A signal asked to stop while there was nothing to save. Not an `Exception`, so that nothing continues past it."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"Stopped by {signal.Signals(signum).name}.")
        self.exit_code = 128 + signum


def raise_on_signals() -> None:
    """From now on raise `Stopped` for each signal but Ctrl-C, for which Python raises `KeyboardInterrupt`.

    Without a handler the kernel would not deliver them to the first process of a container.
    """
    handle_signals(_raise_stopped, STOP_SIGNALS[1:])


def _raise_stopped(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_DFL)  # a second one ends the process immediately
    raise Stopped(signum)


def ignore_signals(*_: object) -> None:
    """Ignore all of them in a worker process, which they reach too: the main process decides what happens."""
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)


def handle_signals(
    handler: Callable[[int, FrameType | None], object], signals: tuple[signal.Signals, ...] = STOP_SIGNALS
) -> dict[int, Any]:
    """Let `handler` handle the `signals` and return their handlers so far, to restore.

    Except for Ctrl-C and SIGTERM, leaves alone what is ignored, as SIGHUP is under nohup, and what
    a script handles itself. Python delivers signals to the main thread only: in any other this does
    nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    before: dict[int, Any] = {}
    for signum in signals:
        found = signal.getsignal(signum)
        own = found in (signal.SIG_DFL, _raise_stopped)
        if own or (signum in (signal.SIGINT, signal.SIGTERM) and found is not None):
            before[signum] = found
            signal.signal(signum, handler)
    return before


class StopSignal:
    """A context manager in which signals set `received`; a second Ctrl-C ends the process immediately."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.since = 0.0  # when, by time.monotonic()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        self._previous = handle_signals(self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received, self.since = signum, time.monotonic()
