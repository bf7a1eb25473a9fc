"""The server under uvicorn, with real sockets: its farewell, clients that do not speak, files that change under it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.serving.app import Server, bind, create_app
from alexnet.serving.registry import ModelRegistry, open_models
from alexnet.serving.settings import Settings
from asking import jpeg

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")


@contextlib.contextmanager
def listening(models: ModelRegistry, **settings: Any) -> Iterator[tuple[int, Server]]:
    """A server in a thread of this process, and its port."""
    chosen = Settings(port=0, **settings)
    up = threading.Event()
    server = Server(create_app(models, chosen), chosen, up.set)
    with contextlib.closing(bind(chosen.host, 0)) as at:
        thread = threading.Thread(target=server.run, args=([at],))
        thread.start()
        try:
            assert up.wait(20)
            yield at.getsockname()[1], server
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join(20)
            assert not thread.is_alive()


def ask(port: int, method: str = "POST", path: str = "/v1/predict") -> tuple[int, dict[str, Any], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, jpeg() if method == "POST" else None, {"Content-Type": "image/jpeg"})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), json.loads(answer.read())


@POSIX
def test_sigterm_loses_nothing_that_was_accepted(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "alexnet", "serve", str(checkpoint), "--port", "0", "--json", "--drain", "0.5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        port = int(first["url"].rsplit(":", 1)[1])
        assert first["models"] == [checkpoint.name]
        answers: list[tuple[int, str]] = []
        torn: list[Exception] = []
        ready: list[int] = []

        def client() -> None:
            while True:
                try:
                    status, headers, _ = ask(port)
                    answers.append((status, headers.get("connection", "")))
                except ConnectionRefusedError:
                    return
                except (OSError, http.client.HTTPException) as error:  # closed before it was accepted
                    torn.append(error)

        clients = [threading.Thread(target=client) for _ in range(24)]
        for one in clients:
            one.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        ready.append(ask(port, "GET", "/readyz")[0])
        for one in clients:
            one.join(30)
        last = json.loads(process.stdout.readlines()[-1])
    assert process.returncode == 0
    assert not torn
    assert ready == [503]
    assert {status for status, _ in answers} == {200}
    assert answers[0][1] == ""
    assert "close" in {connection for _, connection in answers}
    assert last == {"accepted": len(answers) + 1, "answered": len(answers) + 1, "cut_short": False}


@POSIX
def test_a_request_on_its_way_at_sigterm_is_answered(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexnet.serving import batching

    event, began, real = threading.Event(), threading.Event(), batching.load_crops

    def slow(*given: Any) -> Any:
        began.set()
        event.wait(10)
        return real(*given)

    monkeypatch.setattr(batching, "read_squares", slow)
    found: list[int] = []
    with listening(models, drain=0) as (port, server):
        asking = threading.Thread(target=lambda: found.append(ask(port)[0]))
        asking.start()
        assert began.wait(10)
        server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.4)
        with pytest.raises(ConnectionRefusedError):
            ask(port, "GET", "/readyz")
        event.set()
        asking.join(10)
    assert found == [200]
    door = server._app.state.door
    assert door.accepted == door.answered == 1


@pytest.mark.parametrize("before", [b"", b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"], ids=["first", "second"])
@pytest.mark.parametrize("words", [b"", b"POST /v1/predict HTT"], ids=["silent", "half a head"])
def test_who_does_not_speak_is_shown_out(models: ModelRegistry, before: bytes, words: bytes) -> None:
    if before and not words:
        pytest.skip("a connection without use is kept for a while")
    with listening(models, timeout=0.5) as (port, _), socket.create_connection(("127.0.0.1", port), 10) as client:
        if before:
            client.sendall(before)
            assert b" 200 " in client.recv(1000)
        client.sendall(words)
        began = time.perf_counter()
        assert client.recv(1000) == b""
        assert 0.3 < time.perf_counter() - began < 5
        assert ask(port)[0] == 200


def test_a_body_that_drips_is_408_and_the_connection_closed(models: ModelRegistry) -> None:
    with listening(models, timeout=0.5) as (port, _), socket.create_connection(("127.0.0.1", port), 10) as client:
        head = (
            "POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n"
        )
        client.sendall(head.encode())
        with contextlib.suppress(OSError):
            for _ in range(20):
                client.sendall(b"x")
                time.sleep(0.05)
        answer = b""
        while data := client.recv(1000):
            answer += data
        assert b" 408 " in answer.splitlines()[0]
        assert b"did not arrive" in answer


def answer_to(port: int, *pieces: bytes) -> bytes:
    """All that comes back on a connection until it is closed."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), 10) as client, contextlib.suppress(ConnectionError):
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                client.sendall(piece)
        while data := client.recv(1 << 16):
            answer += data
    return answer


CHUNKED = (
    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
)
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [GET, *[b"A: " + b"b" * 60_000 + b"\r\n"] * 200],
        [GET + b"A: ", *[b"b" * 60_000] * 200],
        [b"GET /", *[b"a" * 60_000] * 200],
        [CHUNKED, *[b"A: " + b"b" * 60_000 + b"\r\n"] * 200],
        [CHUNKED + b"A: ", *[b"b" * 60_000] * 200],
        [GET + b"\r\n", GET, *[b"A: " + b"b" * 60_000 + b"\r\n"] * 200],
    ],
    ids=["many headers", "one header", "address", "trailers", "one trailer", "second request"],
)
def test_a_head_without_end_is_431(models: ModelRegistry, pieces: list[bytes]) -> None:
    with listening(models) as (port, server):
        answer = answer_to(port, *pieces)
        if answer:  # else it is lost in the reset of a connection on which more is being sent
            last = answer[answer.rindex(b"HTTP/1.1 ") :]
            assert last.startswith(b"HTTP/1.1 431 ")
            assert json.loads(last.split(b"\r\n\r\n")[1])["error"].startswith("The head of the request is larger")
        assert ask(port)[0] == 200
        assert server._app.state.door.accepted <= 2


def test_a_head_just_too_large_is_431(models: ModelRegistry) -> None:
    with listening(models) as (port, _):
        answer = answer_to(port, GET, *[b"A: " + b"b" * 1000 + b"\r\n"] * 70)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert answer_to(port, GET, *[b"A: " + b"b" * 1000 + b"\r\n"] * 50, b"Connection: close\r\n\r\n").startswith(
            b"HTTP/1.1 200 "
        )


@pytest.mark.parametrize("words", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02" * 100])
def test_what_is_not_http_is_400_with_a_sentence_and_without_a_line(
    models: ModelRegistry, words: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with listening(models) as (port, _):
        head, _, body = answer_to(port, words).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"].startswith("This is not a request")
    assert "Invalid" not in capfd.readouterr().err


def test_who_never_reads_is_shown_out(models: ModelRegistry) -> None:
    with listening(models, timeout=0.5) as (port, server):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.settimeout(0.2)
            question = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
            with contextlib.suppress(OSError):
                for _ in range(5):
                    client.sendall(question)
            deadline = time.monotonic() + 15
            while server.server_state.connections and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not server.server_state.connections
        assert ask(port)[0] == 200


def test_a_slow_reader_does_not_hold_memory_for_bodies(models: ModelRegistry) -> None:
    async def slow() -> None:
        body, app = jpeg(), create_app(models)
        async with app.router.lifespan_context(app):
            held: list[int] = []
            scope = {
                "type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "http_version": "1.1",
                "headers": [(b"content-type", b"image/jpeg")], "scheme": "http", "server": ("s", 1), "client": None,
            }  # fmt: skip

            async def receive() -> Any:
                held.append(app.state.held.bytes)
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(_: Any) -> None:
                held.append(app.state.held.bytes)

            await app(scope, receive, send)
            assert held[1:] == [0, 0]

    asyncio.run(slow())


def test_a_connection_stays_open_for_the_next_request(models: ModelRegistry) -> None:
    with listening(models) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        with contextlib.closing(connection):
            for _ in range(3):
                connection.request("POST", "/v1/predict", jpeg(), {"Content-Type": "image/jpeg"})
                assert connection.getresponse().read()
            first = connection.sock
            connection.request("POST", "/v1/predict", b"x" * (33 << 20), {"Content-Type": "image/jpeg"})
            assert connection.getresponse().status == 413  # sent to its end, and then read
            assert first is not None


def test_many_at_once_get_an_answer_each_or_503(models: ModelRegistry) -> None:
    statuses: list[int] = []
    with listening(models, queue=10, max_images=1) as (port, _):
        clients = [threading.Thread(target=lambda: statuses.append(ask(port)[0])) for _ in range(60)]
        for one in clients:
            one.start()
        for one in clients:
            one.join(30)
        assert len(statuses) == 60
        assert set(statuses) <= {200, 503}
        assert ask(port)[0] == 200


def test_a_file_that_is_swapped_or_damaged_under_the_server_changes_nothing(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    models = open_models([folder])
    one = models["copy"]
    expected = one.classifier.predict(jpeg())
    for path in folder.iterdir():
        size = path.stat().st_size
        with path.open("r+b") as file:  # in place: a mapped file would change under us
            file.write(os.urandom(size))
            file.truncate(size // 2)
    assert one.classifier.predict(jpeg()) == expected
    with pytest.raises(UserError):
        open_models([folder])


def test_a_server_touches_no_file(models: ModelRegistry, checkpoint: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    here = set(Path.cwd().iterdir())
    with listening(models) as (port, _):
        assert ask(port)[0] == 200
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before
    assert set(Path.cwd().iterdir()) == here


def test_a_port_that_is_taken_is_told(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(checkpoint), "--port", str(port)]) == 2
    assert f"--port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "no-such-host.invalid", "é" * 70])
def test_a_host_that_is_none_is_told(capsys: pytest.CaptureFixture[str], checkpoint: Path, host: str) -> None:
    assert run(["serve", str(checkpoint), "--host", host]) == 2
    assert f"--host {host}" in capsys.readouterr().err


def test_a_port_that_is_taken_leaves_no_socket_open(recwarn: pytest.WarningsRecorder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UserError):
            bind("127.0.0.1", taken.getsockname()[1])
        gc.collect()
    assert not [one for one in recwarn if one.category is ResourceWarning]


@POSIX
def test_what_was_accepted_and_not_answered_is_not_exit_0(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    from alexnet.serving import app

    monkeypatch.setattr(app, "serve", lambda *_: app.Stopped(2, 1, False))
    monkeypatch.setattr("alexnet.serving.registry.open_models", lambda *_: models)
    assert run(["serve", str(checkpoint)]) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Name what to serve"),
        (["nowhere"], "nowhere"),
        (["nowhere", "--max-batch", "0"], "--max-batch must be at least 1"),
        (["nowhere", "--timeout", "inf"], "--timeout must be at most 3,600, not inf"),
        (["nowhere", "--max-delay-ms", "inf"], "--max-delay-ms must be at most 60,000, not inf"),
        (["nowhere", "--cors", "example.org"], "--cors example.org cannot be the address of a web site"),
        (["nowhere", "--token-file", "no-such-file"], "--token-file no-such-file cannot be read"),
    ],
)
def test_bad_commands_are_2_and_a_sentence(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    assert run(["serve", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


def test_the_token_comes_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexnet.cli.serve import _token

    monkeypatch.delenv("ALEXNET_TOKEN", raising=False)
    assert _token(None) is None
    monkeypatch.setenv("ALEXNET_TOKEN", "of the environment")
    assert _token(None) == "of the environment"
    monkeypatch.setenv("ALEXNET_TOKEN", " blanks \n")
    assert _token(None) == "blanks"
    for empty in ("", " "):
        monkeypatch.setenv("ALEXNET_TOKEN", empty)
        with pytest.raises(UserError, match="ALEXNET_TOKEN is empty"):
            _token(None)
    file = tmp_path / "token"
    file.write_text("of the file\n")
    assert _token(file) == "of the file"
    file.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        _token(file)
