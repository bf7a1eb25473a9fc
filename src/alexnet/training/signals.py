"""Stopping cleanly: Ctrl-C and SIGTERM ask the loop to save after the step it is in; a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Training was asked to stop and has saved; `exit_code` is 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopSignal:
    """A context in which SIGINT and SIGTERM set `received` instead of killing the process.

    Python delivers signals to the main thread alone; elsewhere (a notebook's worker) this does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.since = 0.0  # by time.monotonic()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received, self.since = signum, time.monotonic()
