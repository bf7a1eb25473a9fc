import os
import signal
import threading

import pytest

from alexnet.training.signals import Interrupted, StopSignal


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_noted_and_the_old_handler_comes_back(signum, code):
    before = signal.getsignal(signum)
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum
    assert signal.getsignal(signum) is before
    assert Interrupted("saved", signum).exit_code == code


def test_a_second_ctrl_c_stops_at_once():
    def twice() -> None:
        with StopSignal():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()


def test_other_threads_do_not_touch_handlers():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with StopSignal() as stop:
            seen.append((stop.received, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, before)]
