"""Graceful stop: Ctrl-C and SIGTERM save after the current step; a second Ctrl-C stops immediately."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any


class Interrupted(Exception):
    """Training was stopped by a signal and saved; `exit_code` is 130 (Ctrl-C) or 143 (SIGTERM)."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


class StopSignal:
    """A context manager in which SIGINT and SIGTERM set `received` instead of ending the process.

    Python delivers signals to the main thread only; in any other thread (a notebook's worker) this
    does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.since = 0.0  # when, by time.monotonic()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.received, self.since = signum, time.monotonic()
