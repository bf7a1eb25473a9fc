"""Signals that stop a process: noted while there is something to save, else raised at once."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from alexnet import cli
from alexnet.signals import STOP_SIGNALS, StopSignal, ignore_signals
from alexnet.training.trainer import Interrupted

pytestmark = pytest.mark.usefixtures("same_handlers_afterwards")


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_is_recorded_and_the_old_handler_restored(signum):
    before = signal.getsignal(signum)
    with StopSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), signum)
        assert stop.received == signum
    assert signal.getsignal(signum) is before
    assert Interrupted("saved", signum).exit_code == 128 + signum


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_command_with_nothing_to_save_stops(signum, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["alexnet", "wait"])
    monkeypatch.setitem(cli.COMMANDS, "wait", lambda _: os.kill(os.getpid(), signum))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 128 + signum
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err in ("Interrupted.\n", f"alexnet: Stopped by {signum.name}.\n")


def test_what_is_ignored_or_handled_by_a_script_stays():
    def mine(*_: object) -> None:
        pass

    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as under nohup
    signal.signal(signal.SIGUSR1, mine)
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.received is None
        assert signal.getsignal(signal.SIGUSR1) is mine


def test_workers_ignore_them():
    ignore_signals(3)
    for signum in STOP_SIGNALS:
        os.kill(os.getpid(), signum)


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
def test_the_first_process_of_a_container_stops():
    code = """if True:
        import os, signal, threading, time
        from alexnet.signals import raise_on_signals
        raise_on_signals()
        assert os.getpid() == 1
        threading.Timer(0.1, os.kill, (1, signal.SIGTERM)).start()
        try:
            time.sleep(30)
        except BaseException as stop:
            os._exit(stop.exit_code)
    """
    unshare = ["unshare", "--pid", "--fork", "--user", "--map-root-user"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("no namespaces here")
    assert subprocess.run([*unshare, sys.executable, "-c", code], check=False, timeout=120).returncode == 143


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
    thread.join(60)
    assert seen == [(None, before)]
