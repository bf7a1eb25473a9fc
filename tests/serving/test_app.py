"""The server under uvicorn with real sockets: graceful shutdown, stalled clients, files that change, the command."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import logging
import os
import select
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alexnet.cli import run
from alexnet.errors import UserError
from alexnet.serving.app import create_app
from alexnet.serving.registry import Models, open_models
from alexnet.serving.server import Server, bind
from alexnet.serving.settings import Settings
from forks import server_process
from server_client import DecodeGate, encode_jpeg, http_scope

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"  # a head without its empty line
POST = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n"
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")


@contextlib.contextmanager
def running_uvicorn(models: Models, **options: Any) -> Iterator[tuple[int, Server]]:
    """Yield the port of a server in a thread of this process, and the server."""
    settings = Settings(port=0, **{"drain": 0, **options})
    ready = threading.Event()
    server = Server(create_app(models, settings), settings, ready.set)
    with contextlib.closing(bind(settings.host, 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert ready.wait(60)
            yield listener.getsockname()[1], server
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join(60)
            assert not thread.is_alive()


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.01)


def request(port: int, method: str = "POST", path: str = "/v1/predict") -> tuple[int, dict[str, Any], Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, encode_jpeg() if method == "POST" else None, {"Content-Type": "image/jpeg"})
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), json.loads(response.read())


@pytest.mark.slow
@POSIX
def test_sigterm_drops_no_accepted_request(checkpoint: Path) -> None:
    with server_process(str(checkpoint), "--drain", "1.5", "--max-batch", "4") as (first, process, output):
        port = int(first["url"].rsplit(":", 1)[1])
        assert first["models"] == [checkpoint.name]
        responses: list[tuple[int, str]] = []
        broken: list[Exception] = []

        def send_until_refused() -> None:
            while len(broken) < 100:
                try:
                    status, headers, _ = request(port)
                    responses.append((status, headers.get("connection", "")))
                except ConnectionRefusedError:
                    return
                except (
                    OSError,
                    http.client.HTTPException,
                ) as error:  # closed before it was accepted
                    broken.append(error)

        clients = [threading.Thread(target=send_until_refused) for _ in range(12)]
        for client in clients:
            client.start()
        wait_until(lambda: len(responses) >= 12)
        process.terminate()
        ready = [request(port, "GET", "/readyz")[0]]
        while ready[-1] == 200:
            ready.append(request(port, "GET", "/readyz")[0])
        for client in clients:
            client.join(60)
        last = json.loads(output.readlines()[-1])
    assert process.exitcode == 0
    assert not broken
    assert ready[-1] == 503
    assert {status for status, _ in responses} == {200}
    assert responses[0][1] == ""
    assert "close" in {connection for _, connection in responses}
    count = len(responses) + len(ready)
    assert last == {"accepted": count, "answered": count, "cut_short": False}


def test_second_signal_ends_the_drain_without_a_traceback(models: Models, caplog: pytest.LogCaptureFixture) -> None:
    with running_uvicorn(models, drain=3600) as (_, server):
        server.handle_exit(signal.SIGTERM, None)
        server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit
    assert [record.getMessage() for record in caplog.records] == []


@POSIX
def test_request_in_flight_at_sigterm_is_answered(models: Models, decode_gate: DecodeGate) -> None:
    statuses: list[int] = []
    with running_uvicorn(models) as (port, server):
        client = threading.Thread(target=lambda: statuses.append(request(port)[0]))
        client.start()
        assert decode_gate.reached.wait(60)
        server.handle_exit(signal.SIGTERM, None)
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                statuses.append(request(port, "GET", "/readyz")[0])
        decode_gate.open()
        client.join(60)
    assert statuses[-1] == 200
    assert set(statuses[:-1]) <= {503}
    metrics = server._app.state.metrics
    assert metrics.accepted == metrics.answered == len(statuses)


@pytest.mark.parametrize(
    ("complete", "partial"),
    [(b"", b""), (b"", b"POST /v1/predict HTT"), (GET + b"\r\n", b"POST /v1/predict HTT")],
    ids=["silent", "first request", "second request"],
)
def test_connection_without_complete_request_head_is_closed(models: Models, complete: bytes, partial: bytes) -> None:
    with (
        running_uvicorn(models, timeout=0.3) as (port, _),
        socket.create_connection(("127.0.0.1", port), 60) as client,
    ):
        if complete:
            client.sendall(complete)
            received = b""
            while not received.endswith(b"}"):  # head and body may arrive apart
                received += (data := client.recv(1000))
                assert data, received
            assert b" 200 " in received
        client.sendall(partial)
        start = time.perf_counter()
        assert client.recv(1000) == b""
        assert time.perf_counter() - start > 0.2
        assert request(port)[0] == 200


def test_slow_body_is_408_and_closes_connection(models: Models) -> None:
    with (
        running_uvicorn(models, timeout=0.3) as (port, _),
        socket.create_connection(("127.0.0.1", port), 60) as client,
    ):
        client.sendall(
            b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: 10000\r\n\r\n"
        )
        response = b""
        for _ in range(1000):  # a byte now and then until the server responds
            client.sendall(b"x")
            if select.select([client], [], [], 0.05)[0]:
                break
        while data := client.recv(1000):
            response += data
        assert b" 408 " in response.splitlines()[0]
        assert b"did not arrive" in response


def exchange(port: int, *pieces: bytes) -> bytes:
    """Send `pieces` and return everything received until the connection is closed."""
    received = b""
    with (
        socket.create_connection(("127.0.0.1", port), 60) as client,
        contextlib.suppress(ConnectionError),
    ):
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                client.sendall(piece)
        while data := client.recv(1 << 16):
            received += data
    return received


CHUNKED = (
    b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
)


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
    ids=["many headers", "one header", "URL", "trailers", "one trailer", "second request"],
)
def test_endless_request_head_is_431(models: Models, pieces: list[bytes]) -> None:
    with running_uvicorn(models) as (port, server):
        received = exchange(port, *pieces)
        last = received[received.rindex(b"HTTP/1.1 ") :]
        assert last.startswith(b"HTTP/1.1 431 ")
        assert json.loads(last.split(b"\r\n\r\n")[1])["error"].startswith("The request head is larger")
        assert request(port)[0] == 200
        assert server._app.state.metrics.accepted <= 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "settings", "status"),
    [
        (b"Transfer-Encoding: chunked\r\n", {"max_bytes": 100_000}, 413),
        (b"Content-Length: 100000000\r\n", {"max_bytes": 100_000}, 413),
        (b"Content-Length: 100000000\r\n", {"max_bytes": 1 << 30, "timeout": 0.2}, 408),
        (b"Transfer-Encoding: chunked\r\n", {"max_bytes": 1 << 30, "timeout": 0.2}, 408),
        (b"Transfer-Encoding: chunked\r\n", {"token": "t"}, 401),
        (b"Transfer-Encoding: chunked\r\nContent-Encoding: gzip\r\n", {}, 415),
        (b"Transfer-Encoding: chunked\r\nOrigin: http://other.example\r\n", {}, 403),
    ],
)
def test_refusal_reaches_a_client_that_is_still_sending(
    models: Models, head: bytes, settings: dict[str, Any], status: int
) -> None:
    head = POST + head + b"\r\n"
    piece = b"x" * 50_000
    if b"chunked" in head:
        piece = b"%x\r\n%b\r\n" % (len(piece), piece)
    with running_uvicorn(models, **settings) as (port, server):
        received = b""
        with socket.create_connection(("127.0.0.1", port), 60) as client:
            client.sendall(head)
            for _ in range(200):  # it reads only after it has sent 10 MB
                client.sendall(piece)
                if status == 408:
                    time.sleep(0.01)
            while data := client.recv(1 << 16):
                received += data
        assert received.startswith(b"HTTP/1.1 %d " % status), received[:200]
        assert b"\r\nconnection: close\r\n" in received.lower()
        assert list(json.loads(received.split(b"\r\n\r\n", 1)[1])) == ["error"]
        wait_until(lambda: not server.server_state.connections)
        assert server._app.state.body_budget.bytes == 0


def test_busy_server_refuses_a_client_that_is_still_sending(models: Models, decode_gate: DecodeGate) -> None:
    with running_uvicorn(models, queue=10, max_images=1) as (port, server):
        waiting = [threading.Thread(target=request, args=(port,)) for _ in range(10)]
        for client in waiting:
            client.start()
        wait_until(lambda: server._app.state.batcher.in_flight == 10)
        received = exchange(port, POST + b"Content-Length: 9999999\r\n\r\n", b"x" * 5_000_000)
        decode_gate.open()
        for client in waiting:
            client.join(60)
    assert received.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: " in received.lower()


def test_refused_client_that_never_stops_sending_is_disconnected(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet.serving.server.DISCARD_S", 0.3)
    with running_uvicorn(models, timeout=0.3) as (port, server):
        with socket.create_connection(("127.0.0.1", port), 60) as client:
            client.sendall(POST + b"Content-Length: 9999999999\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
            start = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - start < 60:
                    client.sendall(b"x" * 1000)
                    time.sleep(0.01)
            assert 0.2 < time.monotonic() - start < 60
        assert not server.server_state.connections


def test_slightly_too_large_request_head_is_431(models: Models) -> None:
    with running_uvicorn(models) as (port, _):
        header = b"A: " + b"b" * 1000 + b"\r\n"
        assert exchange(port, GET, *[header] * 70).startswith(b"HTTP/1.1 431 ")
        assert exchange(port, GET, *[header] * 50, b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("data", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02" * 100])
def test_invalid_http_is_400_with_json_error_and_no_log_line(
    models: Models, data: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    with running_uvicorn(models) as (port, _):
        head, _, body = exchange(port, data).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body)["error"].startswith("This is not an HTTP/1.1 request")
    assert "Invalid" not in capfd.readouterr().err


def test_connection_of_client_that_never_reads_is_closed(models: Models) -> None:
    with running_uvicorn(models, timeout=0.3) as (port, server):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", port))
            client.settimeout(0.2)
            requests = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 1000
            with contextlib.suppress(OSError):
                for _ in range(5):
                    client.sendall(requests)
            wait_until(lambda: not server.server_state.connections)
        assert request(port)[0] == 200


def test_body_is_released_before_response_is_sent(models: Models) -> None:
    async def predict() -> None:
        body, app = encode_jpeg(), create_app(models)
        async with app.router.lifespan_context(app):
            held: list[int] = []

            async def receive() -> Any:
                held.append(app.state.body_budget.bytes)
                return {"type": "http.request", "body": body, "more_body": False}

            async def send(_: Any) -> None:
                held.append(app.state.body_budget.bytes)

            await app(http_scope("/v1/predict", b"image/jpeg"), receive, send)
            assert held[1:] == [0, 0]

    asyncio.run(predict())


def test_connection_stays_open_for_next_request(models: Models) -> None:
    with running_uvicorn(models) as (port, _):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        with contextlib.closing(connection):
            for _ in range(3):
                connection.request("POST", "/v1/predict", encode_jpeg(), {"Content-Type": "image/jpeg"})
                assert connection.getresponse().read()
            first = connection.sock
            connection.request("POST", "/v1/predict", b"x" * (33 << 20), {"Content-Type": "image/jpeg"})
            assert connection.getresponse().status == 413  # the body is sent completely before the response is read
            assert first is not None


def test_each_of_many_concurrent_requests_gets_200_or_503(models: Models) -> None:
    statuses: list[int] = []
    with running_uvicorn(models, queue=10, max_images=1) as (port, _):
        clients = [threading.Thread(target=lambda: statuses.append(request(port)[0])) for _ in range(60)]
        for client in clients:
            client.start()
        for client in clients:
            client.join(60)
        assert len(statuses) == 60
        assert set(statuses) <= {200, 503}
        assert request(port)[0] == 200


def test_damaged_checkpoint_does_not_affect_running_server(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    models = open_models([folder])
    classifier = models["copy"]
    expected = classifier.predict(encode_jpeg())
    for path in folder.iterdir():
        size = path.stat().st_size
        with path.open("r+b") as file:  # in place: a memory-mapped file would change
            file.write(os.urandom(size))
            file.truncate(size // 2)
    assert classifier.predict(encode_jpeg()) == expected
    with pytest.raises(UserError):
        open_models([folder])


def test_server_writes_no_file(models: Models, checkpoint: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")}
    here = set(Path.cwd().iterdir())
    with running_uvicorn(models) as (port, _):
        assert request(port)[0] == 200
    assert {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*")} == before
    assert set(Path.cwd().iterdir()) == here


def test_error_names_port_in_use(capsys: pytest.CaptureFixture[str], checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve", str(checkpoint), "--port", str(port)]) == 2
    assert f"--port {port}" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a" * 64 + ".example", "no-such-host.invalid", "é" * 70])
def test_error_names_invalid_host(capsys: pytest.CaptureFixture[str], checkpoint: Path, host: str) -> None:
    assert run(["serve", str(checkpoint), "--host", host]) == 2
    assert f"--host {host}" in capsys.readouterr().err


def test_failed_bind_leaves_no_socket_open(recwarn: pytest.WarningsRecorder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(UserError):
            bind("127.0.0.1", taken.getsockname()[1])
        gc.collect()
    assert not [warning for warning in recwarn if warning.category is ResourceWarning]


@POSIX
def test_unanswered_request_is_exit_code_1(models: Models, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    from alexnet.serving import server

    monkeypatch.setattr(server, "serve", lambda *_: server.ServerResult(2, 1, False))
    monkeypatch.setattr("alexnet.serving.registry.open_models", lambda *_: models)
    assert run(["serve", str(checkpoint)]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name what to serve"),
        (["nowhere"], "nowhere"),
        (["nowhere", "--max-batch", "0"], "--max-batch must be at least 1"),
        (["nowhere", "--timeout", "inf"], "--timeout must be at most 3,600, not inf"),
        (["nowhere", "--max-delay-ms", "inf"], "--max-delay-ms must be at most 60,000, not inf"),
        (["nowhere", "--cors", "example.org"], "--cors example.org is not a web origin"),
        (["nowhere", "--token-file", "no-such-file"], "--token-file no-such-file cannot be read"),
    ],
)
def test_bad_arguments_are_exit_code_2_and_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run(["serve", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_token_is_read_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from alexnet.cli.serve import _token

    monkeypatch.delenv("ALEXNET_TOKEN", raising=False)
    assert _token(None) is None
    monkeypatch.setenv("ALEXNET_TOKEN", "from environment")
    assert _token(None) == "from environment"
    monkeypatch.setenv("ALEXNET_TOKEN", " padded \n")
    assert _token(None) == "padded"
    for empty in ("", " "):
        monkeypatch.setenv("ALEXNET_TOKEN", empty)
        with pytest.raises(UserError, match="ALEXNET_TOKEN is empty"):
            _token(None)
    file = tmp_path / "token"
    file.write_text("from file\n")
    assert _token(file) == "from file"
    file.write_text("\n")
    with pytest.raises(UserError, match="is empty"):
        _token(file)


def test_server_leaves_the_log_handlers_of_other_libraries_open(models: Models) -> None:
    handler = logging.FileHandler(os.devnull)
    closed = threading.Event()
    handler.close = closed.set  # type: ignore[method-assign]
    with running_uvicorn(models):
        pass
    assert not closed.is_set()
