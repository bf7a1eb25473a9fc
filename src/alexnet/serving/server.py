"""The server process: the application under uvicorn, until SIGTERM or Ctrl-C.

Graceful shutdown: /readyz returns 503 while requests are still accepted for `drain` seconds; then the listening socket
closes, accepted requests are answered, and the exit code is 0. Any number of such processes can stand behind a load
balancer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from alexnet.serving.address import bind, to_url
from alexnet.serving.app import create_app
from alexnet.serving.registry import Models, warm_up
from alexnet.serving.settings import Settings
from alexnet.signals import STOP_SIGNALS, Stopped, handle_signals

GIL_SWITCH_S = 0.0005  # Python's default of 5 ms adds up where a prediction takes 20 ms
KEEP_ALIVE_S = 75  # longer than load balancers keep idle connections, so that they close them, not the server
LAST_REQUESTS_S = 2.0  # limit, at shutdown, for requests to arrive on connections that are already open
SHUTDOWN_MARGIN_S = 30  # extra time at shutdown, beyond sending a body and waiting for its predictions
DISCARD_S = 10.0  # for a client that was refused while it was sending, to read the response
MAX_HEAD = 64 << 10  # bytes, far above what browsers and load balancers send
HEAD_TOO_LARGE = f"The request head is larger than {MAX_HEAD:,} bytes; send fewer or shorter headers."
NOT_HTTP = "This is not an HTTP/1.1 request; see /docs for the API."


# ── connections ───────────────────────────────────────────────────────────────────────────────────


class HalfClosingTransport:
    """A transport that can close for writing only, while its client is still sending.

    Otherwise the kernel would answer what arrives with a reset, and the client would lose the response.
    """

    def __init__(self, transport: asyncio.Transport, protocol: Protocol) -> None:
        self._transport, self._protocol = transport, protocol
        self.half_closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self.half_closed or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        if not self.half_closed:
            self._transport.write(data)

    def close(self) -> None:
        if self._protocol.responded_early and not self.is_closing():
            self.half_close()
        else:
            self._transport.close()

    def half_close(self) -> None:
        self.half_closed = True
        self._transport.write_eof()
        self._protocol.ignore_input()


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol with what it lacks: limits for slow clients and large heads, and refusals that arrive.

    A response before the end of the request's body says `Connection: close`; what the client still sends is ignored
    until it closes the connection too. Invalid HTTP gets a JSON error like every other.
    """

    transport: Any

    def connection_made(self, transport: Any) -> None:
        super().connection_made(HalfClosingTransport(transport, self))  # type: ignore[arg-type]
        self._responded_at = self.loop.time()
        self._head_since: float | None = self._responded_at  # when the client began to send a head
        self._head_bytes = 0  # received since the last progress, in whole pieces

    def data_received(self, data: bytes) -> None:
        if self.transport.half_closed:
            return
        before = self._progress()
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if self._progress() == before else 0
        if self._in_request():
            self._head_since = None
        elif self._head_since is None:
            self._head_since = self.loop.time()
        if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self._refuse(431, HEAD_TOO_LARGE)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self._keep_alive, self.cycle.keep_alive = self.cycle.keep_alive, False

    def on_message_complete(self) -> None:
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()

    def on_response_complete(self) -> None:
        self._responded_at = self.loop.time()
        super().on_response_complete()

    def send_400_response(self, _: str) -> None:
        self._refuse(400, NOT_HTTP)

    @property
    def responded_early(self) -> bool:
        """Whether the last request had a response before its body was complete."""
        return self.cycle is not None and self.cycle.response_started and self.cycle.more_body

    def ignore_input(self) -> None:
        """Discard what arrives from now on; for a request without a response, the client has disconnected."""
        self._head_since = self.loop.time()
        self.flow.resume_reading()
        if self._in_request():
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def enforce_timeout(self, seconds: float) -> None:
        """Close the connection if a head takes longer than `seconds`, or the client to receive a response.

        A client that was refused while it was sending has `DISCARD_S` at least.
        """
        now = self.loop.time()
        limit = max(seconds, DISCARD_S) if self.transport.half_closed else seconds
        if self._head_since is not None and now - self._head_since > limit:
            self.transport.close()
        if self.transport.get_write_buffer_size() and now - self._responded_at > seconds:
            self.transport.abort()  # closing would wait until everything is received

    def _in_request(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _progress(self) -> object:
        """Return what changes when a head, a body or a piece of a body is complete."""
        return self.cycle and (self.cycle, len(self.cycle.body), self.cycle.more_body)

    def _refuse(self, status: int, message: str) -> None:
        """Respond without the application and close; never in the middle of another response."""
        if self._in_request() and self.cycle.response_started:
            self.transport.close()
            return
        body = json.dumps({"error": message})
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
        )
        self.transport.write((head + body).encode())
        self.transport.half_close()


# ── process ───────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class ServerResult:
    """How a server ended."""

    accepted: int
    """Number of requests."""
    answered: int
    """Of these, those whose response was sent completely, or whose client disconnected."""
    cut_short: bool
    """Whether a second signal ended the graceful shutdown."""


class Server(uvicorn.Server):
    """uvicorn that drains before its graceful shutdown; a second signal ends both."""

    def __init__(self, app: FastAPI, settings: Settings, on_ready: Callable[[], object] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app, http=Protocol, lifespan="on", ws="none", access_log=False, server_header=False,
                log_config=None,  # uvicorn's would close the handlers of other libraries, and with them their streams
                log_level="error",  # uvicorn warns of every request that is not HTTP: scanners would fill the disk
                backlog=4096, timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(2 * settings.timeout) + SHUTDOWN_MARGIN_S,
                proxy_headers=False,  # the client's address is not used
            )
        )  # fmt: skip
        self._app, self._settings, self._on_ready = app, settings, on_ready
        self.stopped_by: int | None = None
        """The first signal."""
        self.was_up = False
        """Whether it has accepted requests."""

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002
        """Start the shutdown, or end it at the second call. The handler of all signals; tests call it."""
        self.stopped_by = self.stopped_by or sig
        self.force_exit = self.should_exit
        self.should_exit = self._app.state.stopping = True

    async def main_loop(self) -> None:
        """Serve until a signal, and for `drain` seconds after it."""
        self._timeouts = asyncio.create_task(self._enforce_timeouts())
        self.was_up = True
        self._on_ready()
        await super().main_loop()
        end = time.monotonic() + self._settings.drain
        while time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.05)

    async def _enforce_timeouts(self) -> None:
        while True:
            await asyncio.sleep(min(1.0, self._settings.timeout / 4))
            for connection in list(self.server_state.connections):
                connection.enforce_timeout(self._settings.timeout)  # type: ignore[union-attr]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept pending connections, close the listening sockets, wait for first requests, then shut down uvicorn.

        uvicorn itself would close all connections without a request, including those whose request is on its way.
        """
        start = time.monotonic()
        with selectors.DefaultSelector() as pending:
            for listener in sockets or ():
                pending.register(listener, selectors.EVENT_READ)
            while pending.select(0) and time.monotonic() - start < LAST_REQUESTS_S:
                await asyncio.sleep(0)  # one iteration of the loop, in which uvloop accepts one connection
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        start = time.monotonic()
        while (waited := time.monotonic() - start) < LAST_REQUESTS_S and not self.force_exit:
            silent = any(getattr(one, "cycle", None) is None for one in self.server_state.connections)
            if not silent and waited > LAST_REQUESTS_S / 10:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)
        if self.force_exit:  # the end of the application is not waited for; uvicorn would report that with a traceback
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)


def serve(
    models: Models,
    settings: Settings | None = None,
    on_ready: Callable[[str], object] = lambda _: None,
    listener: socket.socket | None = None,
    workers: int | None = None,
) -> ServerResult:
    """Serve `models` until SIGTERM or Ctrl-C. Calls `on_ready` with the URL when the server accepts requests.

    `listener` is a bound socket instead of the address in `settings`; `workers` as for `create_app`.

    Raises `UserError` if it cannot listen at the address, and `Stopped` for a signal before it was up.
    """
    settings = settings or Settings()
    sys.setswitchinterval(GIL_SWITCH_S)
    with contextlib.closing(listener or bind(settings.host, settings.port)) as listener:
        for classifier in models.values():
            warm_up(classifier, settings.max_batch)
        _raise_file_limit()
        app = create_app(models, settings, workers)
        url = to_url(*listener.getsockname()[:2])
        server = Server(app, settings, lambda: on_ready(url))
        before = handle_signals(server.handle_exit, STOP_SIGNALS[2:])  # uvicorn handles Ctrl-C and SIGTERM
        try:
            server.run(sockets=[listener])
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)
    if server.stopped_by is not None and not server.was_up:
        raise Stopped(server.stopped_by)
    return ServerResult(app.state.metrics.accepted, app.state.metrics.answered, server.force_exit)


def _raise_file_limit() -> None:
    """Raise the limit of open files: each connection is one, and many systems start programs with only 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
