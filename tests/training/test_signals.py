"""Signals: recorded once, handlers restored, a second Ctrl-C is immediate."""

import os
import signal
import threading

import pytest

from alexnet.training.signals import Interrupted, StopSignal


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_recorded_and_the_old_handler_restored(signum, code):
    before = signal.getsignal(signum)
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum
    assert signal.getsignal(signum) is before
    assert Interrupted("saved", signum).exit_code == code


def test_a_second_ctrl_c_stops_immediately():
    def twice() -> None:
        with StopSignal():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_other_threads_leave_handlers_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def run() -> None:
        with StopSignal() as stop:
            seen.append((stop.received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
