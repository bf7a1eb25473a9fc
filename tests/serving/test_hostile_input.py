"""Strangers on real sockets: a crowd, clients that vanish, and whatever they send, no file is touched for it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import site
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_serve import listening

import alexnet
from alexnet.serving.registry import ModelRegistry
from asking import jpeg

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process holds")

WATCHED = """
import json, os, sys

TOLD = {"open", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
        "os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect",
        "shutil.rmtree", "tempfile.mkstemp", "tempfile.mkdtemp", "ctypes.dlopen"}

def tell(event, given):
    if event in TOLD:
        os.write(1, (json.dumps([event, *map(str, given[:3])]) + "\\n").encode())

from alexnet.cli import run
sys.addaudithook(tell)
run(["serve", *sys.argv[1:], "--port", "0", "--json"])
"""


@contextlib.contextmanager
def serving(command: list[str]) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server in a process of its own, and its port; its output after that is left to be read."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if isinstance(told := json.loads(line), dict):
                    yield int(told["url"].rsplit(":", 1)[1]), process
                    return
            raise AssertionError("it did not start")
        finally:
            process.terminate()


def post(data: bytes, path: str = "/v1/predict", kind: str = "image/jpeg") -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + data


@LINUX
@pytest.mark.slow
def test_ten_thousand_small_requests_at_once(checkpoint: Path) -> None:
    request, statuses = post(jpeg()), Counter[bytes]()

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            statuses[head.split(b" ", 2)[1]] += 1
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length[15:]))
        writer.close()

    async def crowd(port: int) -> None:
        await asyncio.gather(*(client(port) for _ in range(500)))

    def resident(process: subprocess.Popen[str]) -> float:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    with serving(["-m", "alexnet", "serve", str(checkpoint), "--port", "0", "--json", "--queue", "320"]) as found:
        port, process = found
        before = resident(process)
        asyncio.run(crowd(port))
        assert sum(statuses.values()) == 10_000
        assert statuses.keys() <= {b"200", b"503"}
        assert statuses[b"200"] > 0
        assert resident(process) - before < 200


@pytest.mark.parametrize("sent", [0.01, 0.5, 1.0], ids=["in the head", "in the body", "before the answer"])
def test_clients_that_vanish_leave_nothing_behind(
    models: ModelRegistry, sent: float, capfd: pytest.CaptureFixture[str]
) -> None:
    request = post(jpeg(size=(400, 300)))
    with listening(models) as (port, server):
        for i in range(60):
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(request[: int(len(request) * sent)])
                if i % 2:
                    time.sleep(0.01)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no farewell
        state, deadline = server._app.state, time.monotonic() + 10
        while (server.server_state.connections or state.batcher.inside) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not server.server_state.connections
        assert state.batcher.inside == state.held.bytes == 0
        assert state.door.accepted == state.door.answered
        assert b"alexnet_errors_total 0.0" in state.metrics.text()
    assert "Traceback" not in capfd.readouterr().err


def strange() -> Iterator[bytes]:
    """Requests that would like a file to be opened, written or run."""
    names = [
        "../../etc/passwd",
        "/etc/passwd",
        "|touch x",
        "$(touch x)",
        "C:\\x",
        "\\\\host\\share",
        "%2e%2e/x",
        "a\0b",
    ]
    bodies = [
        jpeg(), jpeg()[:200], b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n", b"%PDF-1.4\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', b"GIF89a" + b"\xff" * 99,
        b"II*\0" + b"\xff" * 99, b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"P6 9 9 255\n", b"\x80\x04cos\nsystem\n",
        b"BM" * 99, b"/etc/passwd", b"file:///etc/passwd",
    ]  # fmt: skip
    for name in names:
        for data in bodies:
            part = f'Content-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode() + data
            yield post(b"--x\r\n" + part + b"\r\n--x--\r\n", kind="multipart/form-data; boundary=x; charset=os.path")
        yield post(jpeg(), f"/v1/predict?model={name}".replace(" ", "+").replace("\0", "%00"))
        yield f"GET /{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".replace("|touch x", "%7Ctouch").encode()
        yield f"GET /v1/samples/{name.replace(' ', '+')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for data in bodies:
        for path in ("/v1/predict", "/v1/predict?ten_crop=1", "/v1/saliency", "/v1/activations", "/v1/similar"):
            yield post(data, path)
        yield post(json.dumps({"images": [data.decode("latin-1")]}).encode(), kind="application/json")
    for path in ("/", "/page.js", "/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/samples", "/nothing"):
        yield f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@LINUX
def test_no_file_is_touched_while_it_answers(checkpoint: Path) -> None:
    source = Path(alexnet.__file__).parents[1]
    code = [source, *map(Path, (sys.prefix, sys.base_prefix, *site.getsitepackages())), Path("/proc/self")]
    statuses: Counter[int] = Counter()
    with serving(["-c", WATCHED, str(checkpoint)]) as (port, process):
        for request in strange():
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                client.sendall(request)
                answer = http.client.HTTPResponse(client)
                with contextlib.suppress(http.client.HTTPException):
                    answer.begin()
                    answer.read()
                    statuses[answer.status] += 1
        process.terminate()
        assert process.stdout is not None
        told = [json.loads(line) for line in process.stdout]
    assert {200, 400, 404, 422} <= statuses.keys()
    assert not {status for status in statuses if status >= 500}
    events: list[Any] = [one for one in told if isinstance(one, list)]
    # what is opened is our own code, of parts that are not needed at the start
    assert {event for event, *_ in events} <= {"open", "ctypes.dlopen"}
    for event, path, *how in events:
        if event == "open":
            assert not int(how[1]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC), path
            assert any(Path(path).is_relative_to(root) for root in code), path
