"""Clients that send prediction requests as fast as the server responds, in their own process, started by serving.py.

    python benchmarks/load_clients.py JOB.json

Each client sends an image, waits for the response, and sends the next on a kept-alive connection. Sockets and HTTP are
handled by hand, since clients and server share the cores and every millisecond counts. Counted: complete responses by
status with their latency, and requests without a response by how far they got.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

DISCONNECT = b"disconnect"  # in place of a request: send all but the last byte of one, and close the connection


def unusual_requests(request: bytes) -> list[bytes]:
    """Return unusual requests: ten views, a damaged image, no image, a body too large, a client that disconnects."""
    head, _, image = request.partition(b"\r\n\r\n")
    line, rest = head.split(b"\r\n", 1)
    path, end = line.rsplit(b" ", 1)
    length = b"Content-Length: " + str(len(image)).encode()
    ten = path + (b"&" if b"?" in path else b"?") + b"ten_crop=1 " + end
    return [
        ten + b"\r\n" + rest + b"\r\n\r\n" + image,
        head + b"\r\n\r\n" + image[: len(image) // 2].ljust(len(image), b"\0"),
        head + b"\r\n\r\n" + b"x" * len(image),
        head.replace(length, b"Content-Length: 999999999\r\nConnection: close") + b"\r\n\r\n",
        DISCONNECT,
    ]


class Client(asyncio.Protocol):
    """One connection: a request, its response, the next request."""

    def __init__(self, load: Load) -> None:
        self.load, self.buffer, self.sent = load, b"", 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._send_request()

    def _send_request(self) -> None:
        request = self.load.next_request()
        if request is None:
            self.transport.close()
            return
        self.sent = time.perf_counter()
        if request is DISCONNECT:
            self.sent = 0.0
            self.transport.write(self.load.requests[0][:-1])
            asyncio.get_running_loop().call_later(0.02, self.transport.abort)  # once the bytes are sent
        else:
            self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if not found:
            return
        fields = head.lower().split(b"\r\n")
        length = next((int(line[15:]) for line in fields if line.startswith(b"content-length:")), 0)
        if len(rest) < length:
            return
        now = time.perf_counter()
        self.load.record_response(int(head[9:12]), now - self.sent, now)
        self.buffer, self.sent = b"", 0.0
        if b"connection: close" in fields:
            self.transport.close()
        else:
            self._send_request()

    def connection_lost(self, error: Exception | None) -> None:
        if self.sent:
            reason = type(error).__name__ if error else "closed"
            kind = "cut in the response" if self.buffer else f"no response ({reason})"
            self.load.lost[kind] += 1
        if not self.ended.done():
            self.ended.set_result(None)


class Load:
    """All clients together."""

    def __init__(self, job: dict[str, Any]) -> None:
        address = urlsplit(job["url"])
        self.host, self.port = address.hostname, address.port
        path = address.path + (f"?{address.query}" if address.query else "")
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: image/jpeg\r\nContent-Length: "
        images = [Path(name).read_bytes() for name in job["files"]]
        self.requests = [head.encode() + str(len(data)).encode() + b"\r\n\r\n" + data for data in images]
        if job.get("unusual"):
            self.requests = [sent for normal in self.requests for sent in (*[normal] * 4, *unusual_requests(normal))]
        self.clients, self.most = job["clients"], job.get("requests", 0)
        self.begin = time.perf_counter() + job.get("warm_up", 0.0)
        self.end = self.begin + job["seconds"] if job.get("seconds") else float("inf")
        self.sent = 0
        self.statuses: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.times: list[float] = []
        self.last = self.begin

    def next_request(self) -> bytes | None:
        if time.perf_counter() >= self.end or (self.most and self.sent >= self.most):
            return None
        self.sent += 1
        return self.requests[self.sent % len(self.requests)]

    def record_response(self, status: int, seconds: float, now: float) -> None:
        self.statuses[str(status)] += 1
        if self.begin <= now <= self.end:
            self.last = now
            if status == 200:
                self.times.append(seconds)

    async def client(self) -> None:
        loop = asyncio.get_running_loop()
        while time.perf_counter() < self.end and not (self.most and self.sent >= self.most):
            try:
                _, client = await loop.create_connection(lambda: Client(self), self.host, self.port)
            except OSError as error:
                self.lost[f"not connected ({type(error).__name__})"] += 1
                return
            await client.ended

    async def run(self) -> dict[str, Any]:
        await asyncio.gather(*(self.client() for _ in range(self.clients)))
        times = sorted(self.times)
        seconds = self.last - self.begin

        def percentile(share: float) -> float | None:
            return round(1000 * times[min(len(times) - 1, int(share * len(times)))], 2) if times else None

        return {
            "clients": self.clients, "seconds": round(seconds, 2), "images": len(times),
            "images_per_second": round(len(times) / seconds, 1) if seconds > 0 else None,
            "p50_ms": percentile(0.5), "p95_ms": percentile(0.95), "p99_ms": percentile(0.99),
            "statuses": dict(self.statuses), "lost": dict(self.lost),
        }  # fmt: skip


if __name__ == "__main__":
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    load = Load(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(asyncio.run(load.run())))
