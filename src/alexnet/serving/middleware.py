"""The outermost ASGI middleware, and what uvicorn's protocol lacks.

    RequestMiddleware   counts requests, answers failures with 500, closes connections during shutdown
    OriginCheck         rejects requests that web pages of other sites make a browser send
    with_timeouts       limits the time and size of a request head, and the time to receive a response

While the server shuts down (`RequestMiddleware.stopping`) every request is still answered, with `Connection: close`:
a client that sent its next request on a connection being closed could not know whether it was processed.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from alexnet.serving.metrics import Metrics
from alexnet.serving.requests import BodyBudget, HTTPError, error_response, release_body
from alexnet.serving.settings import Settings

log = logging.getLogger("alexnet.serve")

CLOSE = (b"connection", b"close")
NO_SNIFF = (b"x-content-type-options", b"nosniff")  # keeps browsers from rendering our JSON as a page
JSON = (b"content-type", b"application/json")
INTERNAL_ERROR = b'{"error":"Internal server error; see the server log."}'
UNKNOWN_ROUTE = "other"  # metrics label of all paths without a route
LOCALHOST = "localhost"


class OriginCheck:
    """Checks Host, Origin and Sec-Fetch-Site of requests.

    A browser sends the requests of any page with its user's network access; pages of other sites must not reach a
    server that trusts this machine.
    """

    def __init__(self, settings: Settings) -> None:
        self._origins = settings.cors
        self._local_only = settings.token is None and is_loopback(settings.host)

    def check(self, scope: Any) -> HTTPError | None:
        """Return the error of a request that must be rejected (403 or 421), else None."""
        headers = dict(scope["headers"])  # ASGI guarantees lower-case names
        host = headers.get(b"host", b"").decode("latin-1").strip()
        if self._local_only and host and not is_loopback(host_name(host)):
            return HTTPError(
                421,
                f"This server only serves its own machine and is not called {host[:100]}; use {LOCALHOST} with its "
                "port, or start it with a token or another --host.",
            )
        if scope["method"] != "POST" or self._may_post(headers, host):
            return None
        return HTTPError(
            403, "Cross-site requests are not allowed; start the server with --cors and your site's origin."
        )

    def _may_post(self, headers: dict[bytes, bytes], host: str) -> bool:
        site = headers.get(b"sec-fetch-site", b"").lower()  # browsers send it to https and to this machine
        if site in (b"same-origin", b"none"):
            return True
        if b"origin" not in headers:
            return site != b"cross-site"
        origin = headers[b"origin"].decode("latin-1").strip()
        same = bool(host) and origin.lower().partition("://")[2] == host.lower()
        return same or origin in self._origins or "*" in self._origins


def host_name(host: str) -> str:
    """Return the name or address in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


@functools.lru_cache(64)  # called for every request, nearly always with the same name
def is_loopback(name: str) -> bool:
    """Return whether a host name is localhost, in 127.0.0.0/8, or ::1."""
    if name.lower().rstrip(".") == LOCALHOST:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class RequestMiddleware:
    """ASGI middleware. `shortcuts` maps paths to handlers of POST requests that bypass `app`."""

    def __init__(
        self, app: Any, metrics: Metrics, body_budget: BodyBudget, origin_check: OriginCheck,
        shortcuts: Mapping[str, Callable[[Request], Awaitable[Response]]],
    ) -> None:  # fmt: skip
        self.app, self.metrics, self.body_budget = app, metrics, body_budget
        self.origin_check, self.shortcuts = origin_check, shortcuts
        self.stopping = False
        self.accepted = 0
        self.answered = 0
        """Requests whose response was sent completely, or whose client disconnected."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.accepted += 1
        start, status, started, route = time.perf_counter(), 500, False, UNKNOWN_ROUTE

        async def respond(message: Any) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                release_body(scope, self.body_budget)  # not needed any more, however slowly the client reads
                headers = [*message.get("headers", ()), NO_SNIFF]
                if self.stopping and CLOSE not in headers:
                    headers.append(CLOSE)
                message = {**message, "headers": headers}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.answered += 1

        try:
            shortcut = self.shortcuts.get(scope["path"]) if scope["method"] == "POST" else None
            if error := self.origin_check.check(scope):
                await error_response(error)(scope, receive, respond)
            elif shortcut:
                route = scope["path"]
                await (await shortcut(Request(scope, receive)))(scope, receive, respond)
            else:
                await self.app(scope, receive, respond)
                route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
        except Exception:
            log.exception("Internal server error: %s %r", scope["method"], scope["path"][:200])
            self.metrics.count_error()
            if not started:
                await respond({"type": "http.response.start", "status": 500, "headers": [JSON]})
                await respond({"type": "http.response.body", "body": INTERNAL_ERROR})
        finally:
            release_body(scope, self.body_budget)
            self.metrics.count_request(route, status, time.perf_counter() - start)


MAX_HEAD = 64 << 10  # bytes, far above what browsers and load balancers send
HEAD_TOO_LARGE = f"The request head is larger than {MAX_HEAD:,} bytes; send fewer or shorter headers."
NOT_HTTP = "This is not an HTTP/1.1 request; see /docs for the API."


def with_timeouts(protocol: Any, seconds: float) -> Any:
    """Return uvicorn's httptools `protocol` with the limits that it lacks.

    A client gets `seconds` to send a request head and `seconds` to receive a response, and a head may have `MAX_HEAD`
    bytes. Invalid HTTP gets a JSON error like every other.
    """

    class TimeoutProtocol(protocol):
        _head_timer: asyncio.TimerHandle | None = None
        _send_timer: asyncio.TimerHandle | None = None
        _head_bytes = 0  # bytes received, in whole pieces, since the last piece with progress
        _progress = 0  # pieces that held a body or ended a head or a body
        _responses = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._update_head_timer()

        def data_received(self, data: bytes) -> None:
            progress = self._progress
            super().data_received(data)
            self._head_bytes = self._head_bytes + len(data) if progress == self._progress else 0
            if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
                self._reject(431, HEAD_TOO_LARGE)
            self._update_head_timer()

        def on_headers_complete(self) -> None:
            self._progress += 1
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._progress += 1
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._progress += 1
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._responses += 1
            if self._send_timer is None:
                self._send_timer = self.loop.call_later(seconds, self._check_sent, self._responses)

        def send_400_response(self, _: str) -> None:
            self._reject(400, NOT_HTTP)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._cancel_head_timer()
            if self._send_timer is not None:
                self._send_timer.cancel()

        def _in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _reject(self, status: int, message: str) -> None:
            """Respond without the application and close; never in the middle of another response."""
            if not (self._in_request() and self.cycle.response_started):
                body = json.dumps({"error": message})
                head = (
                    f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
                )
                self.transport.write((head + body).encode())
            self.transport.close()

        def _update_head_timer(self) -> None:
            """Limit the time from the connection, or the first byte of a head, to the complete head."""
            if self._in_request():
                self._cancel_head_timer()
            elif self._head_timer is None:
                self._head_timer = self.loop.call_later(seconds, self._on_head_timeout)

        def _cancel_head_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _on_head_timeout(self) -> None:
            self._head_timer = None
            if not self.transport.is_closing():
                self.transport.close()

        def _check_sent(self, responses: int) -> None:
            """Abort if the client has not received the last response in time. A timer per response would cost more."""
            self._send_timer = None
            if not self.transport.get_write_buffer_size():
                return
            if responses == self._responses:
                self.transport.abort()  # closing would wait until everything is received
            else:
                self._send_timer = self.loop.call_later(seconds, self._check_sent, self._responses)

    return TimeoutProtocol
