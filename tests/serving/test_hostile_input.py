"""Untrusted clients on real sockets: thousands of requests, disconnects, and input that must not touch any file."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import site
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from test_app import running_uvicorn, wait_until

import alexnet
from alexnet.serving.registry import Models
from forks import serve_audited, server_process
from server_client import encode_jpeg

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def post(data: bytes, path: str = "/v1/predict", kind: str = "image/jpeg") -> bytes:
    """Return the bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode("utf-8", "surrogateescape") + data


@LINUX
@pytest.mark.slow
def test_memory_is_bounded_under_ten_thousand_requests(checkpoint: Path) -> None:
    request, statuses = post(encode_jpeg()), Counter[bytes]()

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(20):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            statuses[head.split(b" ", 2)[1]] += 1
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length[15:]))
        writer.close()

    async def run_clients(port: int) -> None:
        await asyncio.gather(*(client(port) for _ in range(500)))

    def resident_mb(process: Any) -> float:
        return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    with server_process(str(checkpoint), "--queue", "320") as (document, process, _):
        port = urlsplit(document["url"]).port
        before = resident_mb(process)
        asyncio.run(run_clients(port))
        assert sum(statuses.values()) == 10_000
        assert statuses.keys() <= {b"200", b"503"}
        assert statuses[b"200"] > 0
        assert resident_mb(process) - before < 200


@pytest.mark.parametrize("sent", [0.01, 0.5, 1.0], ids=["in the head", "in the body", "before the response"])
def test_disconnected_clients_leave_nothing_behind(
    models: Models, sent: float, caplog: pytest.LogCaptureFixture
) -> None:
    request = post(encode_jpeg(size=(400, 300)))
    with running_uvicorn(models) as (port, server):
        for i in range(60):
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                client.sendall(request[: int(len(request) * sent)])
                if i % 2:
                    time.sleep(0.01)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close with a reset
        state = server._app.state
        wait_until(lambda: not server.server_state.connections and not state.batcher.in_flight)
        wait_until(lambda: state.body_budget.bytes == 0 and state.metrics.accepted == state.metrics.answered)
        assert b"alexnet_errors_total 0.0" in state.metrics.render()
    assert "Traceback" not in caplog.text


def hostile_requests(all_pairs: bool) -> Iterator[bytes]:
    """Yield requests that try to make the server open, write or run a file.

    Forms combine each file name with each body, or without `all_pairs` only with the first of the other.
    """
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
        encode_jpeg(), encode_jpeg()[:200], b"",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) (w) file\n", b"%PDF-1.4\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', b"GIF89a" + b"\xff" * 99,
        b"II*\0" + b"\xff" * 99, b"\x89PNG\r\n\x1a\n" + b"\0" * 99, b"P6 9 9 255\n", b"\x80\x04cos\nsystem\n",
        b"BM" * 99, b"/etc/passwd", b"file:///etc/passwd",
    ]  # fmt: skip
    for name in names:
        for data in bodies if all_pairs or name == names[0] else bodies[:1]:
            part = f'Content-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'.encode() + data
            yield post(
                b"--x\r\n" + part + b"\r\n--x--\r\n",
                kind="multipart/form-data; boundary=x; charset=os.path",
            )
        yield post(encode_jpeg(), f"/v1/predict?model={name}".replace(" ", "+").replace("\0", "%00"))
        yield f"GET /{name} HTTP/1.1\r\nHost: localhost\r\n\r\n".replace("|touch x", "%7Ctouch").encode()
        yield f"GET /v1/samples/{name.replace(' ', '+')} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for data in bodies:
        for path in ("/v1/predict", "/v1/predict?ten_crop=1", "/v1/saliency", "/v1/activations", "/v1/similar"):
            yield post(data, path)
        yield post(json.dumps({"images": [data.decode("latin-1")]}).encode(), kind="application/json")
    for path in ("/", "/page.js", "/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/samples", "/nothing"):
        yield f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("all_pairs", [False, True])
def test_no_request_touches_a_file(checkpoint: Path, all_pairs: bool) -> None:
    source = Path(alexnet.__file__).parents[1]
    code = [
        source,
        *map(Path, (sys.prefix, sys.base_prefix, *site.getsitepackages())),
        Path("/proc/self"),
    ]
    statuses: Counter[int] = Counter()
    with server_process(str(checkpoint), function=serve_audited) as (document, process, output):
        for request in hostile_requests(all_pairs):
            with socket.create_connection(("127.0.0.1", urlsplit(document["url"]).port), 60) as client:
                client.sendall(request)
                response = http.client.HTTPResponse(client)
                with contextlib.suppress(http.client.HTTPException):
                    response.begin()
                    response.read()
                    statuses[response.status] += 1
        process.terminate()
        printed = [json.loads(line) for line in output]
    assert {200, 400, 404, 422} <= statuses.keys()
    assert not {status for status in statuses if status >= 500}
    events: list[Any] = [event for event in printed if isinstance(event, list)]
    # only our own code is opened: modules that are imported lazily
    assert {event for event, *_ in events} <= {"open", "ctypes.dlopen"}
    for event, path, *how in events:
        if event == "open":
            assert not int(how[1]) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC), path
            assert any(Path(path).is_relative_to(root) for root in code), path
