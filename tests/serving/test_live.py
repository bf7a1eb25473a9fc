"""`alexnet train --live`: the page opens when training begins, stays after its end, and ends with it otherwise."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alexnet.cli import run
from alexnet.cli.train import live_page as open_live_page
from alexnet.errors import UserError
from alexnet.run_dir import Run
from alexnet.serving import live
from alexnet.serving.address import bind
from alexnet.serving.live import live_page

LIMIT_S = 600  # for a training and its page on a busy machine


class Process:
    """In place of the server's process, which answers one request, or none unless `answers`."""

    def __init__(self, listener: socket.socket, answers: bool = True) -> None:
        self.port, self.calls = listener.getsockname()[1], []
        if answers:
            threading.Thread(target=self.answer, args=(listener,), daemon=True).start()
        else:
            listener.close()

    def answer(self, listener: socket.socket) -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def is_alive(self) -> bool:
        return "terminate" not in self.calls

    def join(self) -> None:
        self.calls.append("join")
        if self.calls == ["join"]:
            raise KeyboardInterrupt

    def terminate(self) -> None:
        self.calls.append("terminate")


class Pipe:
    """In place of the connection to the server's process."""

    def __init__(self) -> None:
        self.sent: list[Path] = []

    def send(self, run: Path) -> None:
        self.sent.append(run)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Process, Pipe]]:
    """The processes that were started, and what was sent to them."""
    found: list[tuple[Process, Pipe]] = []

    def start(listener: socket.socket, _: str | None) -> tuple[Process, Pipe]:
        found.append((Process(listener), Pipe()))
        return found[-1]

    monkeypatch.setattr(live, "_start", start)
    return found


def test_page_stays_until_ctrl_c(
    started: list[tuple[Process, Pipe]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", shown.append)
    with live_page(in_browser=True) as open_page:
        open_page(tmp_path, log.append)
    ((process, pipe),) = started
    assert (pipe.sent, process.calls) == ([tmp_path], ["join", "terminate", "join"])
    assert log == [f"The page of this run: {shown[0]}"]
    assert shown == [f"http://127.0.0.1:{process.port}/"]
    assert capsys.readouterr().err == f"The page stays at http://127.0.0.1:{process.port}/ until Ctrl-C.\n"


def test_a_page_that_does_not_open_leaves_the_training_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    monkeypatch.setattr("webbrowser.open", log.append)
    monkeypatch.setattr(live, "_start", lambda listener, _: (Process(listener, answers=False), Pipe()))
    with live_page(in_browser=True) as open_page:
        open_page(tmp_path, log.append)
    assert log == ["The page of this run did not open; training continues without it."]
    assert capsys.readouterr().err == ""  # no address


@pytest.mark.parametrize("error", [UserError("x"), KeyboardInterrupt()])
def test_page_ends_with_a_training_that_fails(
    started: list[tuple[Process, Pipe]], tmp_path: Path, error: BaseException
) -> None:
    page = live_page()
    page.__enter__()(tmp_path, print)
    process, _ = started[0]
    process.calls.append("")
    assert not page.__exit__(type(error), error, None)
    assert process.calls == ["", "terminate", "join"]


def test_nothing_stays_open_where_no_training_began(started: list[tuple[Process, Pipe]]) -> None:
    with live_page():
        pass  # the run had finished before
    ((process, pipe),) = started
    assert (pipe.sent, process.calls) == ([], ["terminate", "join"])


def test_page_takes_a_free_port_if_its_own_is_taken(
    started: list[tuple[Process, Pipe]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as other:
        other.listen()
        monkeypatch.setattr(live, "PORT", taken := other.getsockname()[1])
        with live_page() as open_page:
            open_page(tmp_path, print)
    assert started[0][0].port not in (0, taken)


def test_command_opens_the_page_of_its_run_when_training_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Path, bool]] = []
    languages: list[str] = []

    @contextlib.contextmanager
    def page(_: bool, lang: str) -> Iterator[Any]:
        languages.append(lang)
        yield lambda run, _: seen.append((run, Run(run).is_locked()))

    monkeypatch.setattr(live, "live_page", page)
    monkeypatch.setattr("alexnet.api.write_page", lambda result: languages.append(result.lang) or result)
    command = ["train", "digits", "--width", "0.1", "--limit-steps", "1", "--threads", "1", "--live", "--lang", "zh"]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    assert run(["resume", str(tmp_path / "run"), "--live"]) == 0  # has finished
    assert seen == [(tmp_path / "run", True)]
    assert languages == ["zh", "zh", "en", "en"]  # the page's and the report's


def test_one_of_several_processes_has_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with open_live_page(True, False, "en") as open_page:
        assert open_page is None


def test_page_needs_the_packages_of_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "fastapi" else find_spec(name))
    assert run(["train", "digits", "--live", "--out", str(tmp_path / "run")]) == 2
    assert "install it with: pip install 'alexnet[serve]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@contextlib.contextmanager
def training(*arguments: str) -> Iterator[tuple[Any, str]]:
    """Run `alexnet train --live`; yield the process and the URL of its page."""
    command = [sys.executable, "-m", "alexnet", "train", "digits", "--width", "0.1", "--threads", "1", "--live"]
    process = subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(LIMIT_S, process.kill)  # then reading its stderr ends
    watchdog.start()
    try:
        assert process.stderr is not None
        lines: list[str] = []
        while not (found := re.search(r"page of this run: (http://\S+)/", line := process.stderr.readline())):
            lines.append(line)
            assert line, "".join(lines)
            assert "did not open" not in line
        yield process, found[1]
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=300) as response:
        return json.load(response)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_page_survives_the_training(tmp_path: Path) -> None:
    with training("--epochs", "1", "--limit-steps", "2", "--out", str(tmp_path / "run")) as (process, url):
        for line in process.stderr:
            if line == f"The page stays at {url}/ until Ctrl-C.\n":
                break
        assert get(f"{url}/v1/training")["state"] == "finished"
        assert get(f"{url}/v1/models")["default"] == "run"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    with pytest.raises(OSError, match="refused"):
        get(f"{url}/v1/training")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_page_ends_with_an_interrupted_training(tmp_path: Path, signum: signal.Signals) -> None:
    with training("--epochs", "100000", "--out", str(tmp_path / "run")) as (process, url):
        process.send_signal(signum)
        process.stderr.read()  # until both have ended
        assert process.wait(60) == (-signum if signum == signal.SIGKILL else 128 + signum)
    with pytest.raises(OSError, match="refused"):
        get(f"{url}/v1/training")
