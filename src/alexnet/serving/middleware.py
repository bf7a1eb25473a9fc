"""What every request passes, and every answer: counting, failures, farewells, and a limit for who does not speak.

A server that was told to stop (`Door.stopping`) still answers whatever comes, and closes each connection with its
answer: a client that sends its next request on a connection that is being closed would never know its fate.
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
NO_SNIFF = (b"x-content-type-options", b"nosniff")  # what we call JSON is not to be taken for a page
JSON = (b"content-type", b"application/json")
BROKEN = b'{"error":"The server failed, and should not have; its log tells why."}'
HEAD = 64 << 10  # bytes; what all that browsers and load balancers send is far below
HEAD_TOO_LARGE = f"The head of the request is larger than {HEAD:,} bytes; send fewer or shorter headers."
NOT_HTTP = "This is not a request as HTTP/1.1 has them; /docs tells what there is to ask."
OTHER = "other"  # the route of a path that is none


class RequestMiddleware:
    """ASGI middleware, the outermost. `shortcuts` are what answers a POST to a path without the application's help."""

    def __init__(
        self, app: Any, metrics: Metrics, held: BodyBudget, pages: OriginCheck,
        shortcuts: Mapping[str, Callable[[Request], Awaitable[Response]]],
    ) -> None:  # fmt: skip
        self.app, self.metrics, self.held, self.pages, self.shortcuts = app, metrics, held, pages, shortcuts
        self.stopping = False
        self.accepted = 0
        self.answered = 0
        """Requests whose answer was sent whole, or whose client had gone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.accepted += 1
        began, status, started, route = time.perf_counter(), 500, False, OTHER

        async def answer(message: Any) -> None:
            nonlocal status, started
            if message["type"] == "http.response.start":
                status, started = message["status"], True
                release_body(scope, self.held)  # nobody needs the body any more, however slowly the answer is taken
                headers = [*message.get("headers", ()), NO_SNIFF]
                if self.stopping and CLOSE not in headers:
                    headers.append(CLOSE)
                message = {**message, "headers": headers}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.answered += 1

        try:
            shortcut = self.shortcuts.get(scope["path"]) if scope["method"] == "POST" else None
            if no := self.pages.check(scope):
                await error_response(no)(scope, receive, answer)
            elif shortcut:
                route = scope["path"]
                await (await shortcut(Request(scope, receive)))(scope, receive, answer)
            else:
                await self.app(scope, receive, answer)
                route = getattr(scope.get("route"), "path", OTHER)
        except Exception:
            log.exception("A request failed that should not have: %s %r", scope["method"], scope["path"][:200])
            self.metrics.error()
            if not started:
                await answer({"type": "http.response.start", "status": 500, "headers": [JSON]})
                await answer({"type": "http.response.body", "body": BROKEN})
        finally:
            release_body(scope, self.held)
            self.metrics.request(route, status, time.perf_counter() - began)


def with_timeouts(protocol: Any, seconds: float) -> Any:
    """uvicorn's `protocol` of httptools, with limits where it has none: `seconds` for the head of a request and for the
    taking of an answer, and `HEAD` bytes for a head. What is not HTTP is answered with a sentence, as all else is."""

    class Patient(protocol):
        _waiting: asyncio.TimerHandle | None = None
        _sending: asyncio.TimerHandle | None = None
        _head = 0  # bytes that came, in whole pieces, since the last that were a body or ended a head or a body
        _steps = 0  # such bytes' pieces
        _answers = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            steps = self._steps
            super().data_received(data)
            self._head = self._head + len(data) if steps == self._steps else 0
            if self._head > HEAD and not self.transport.is_closing():
                self._refuse(431, HEAD_TOO_LARGE)
            self._watch()

        def on_headers_complete(self) -> None:
            self._steps += 1
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._steps += 1
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._steps += 1
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._answers += 1
            if self._sending is None:
                self._sending = self.loop.call_later(seconds, self._hurry, self._answers)

        def send_400_response(self, _: str) -> None:
            self._refuse(400, NOT_HTTP)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._calm()
            if self._sending is not None:
                self._sending.cancel()

        def _asking(self) -> bool:
            """Whether there is a request that is not answered."""
            return self.cycle is not None and not self.cycle.response_complete

        def _refuse(self, status: int, sentence: str) -> None:
            """Answer without the application, and close; not while an answer is being written, which this would cut."""
            if not (self._asking() and self.cycle.response_started):
                body = json.dumps({"error": sentence})
                head = (
                    f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\nx-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
                )
                self.transport.write((head + body).encode())
            self.transport.close()

        def _watch(self) -> None:
            """Keep the time from the first byte of a head, or the connection itself, to the request."""
            if self._asking():
                self._calm()
            elif self._waiting is None:
                self._waiting = self.loop.call_later(seconds, self._give_up)

        def _calm(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _give_up(self) -> None:
            self._waiting = None
            if not self.transport.is_closing():
                self.transport.close()

        def _hurry(self, answers: int) -> None:
            """Give up who has not taken the last answer in all that time. A timer for each answer would cost more."""
            self._sending = None
            if not self.transport.get_write_buffer_size():
                return
            if answers == self._answers:
                self.transport.abort()  # to close would wait until all is taken
            else:
                self._sending = self.loop.call_later(seconds, self._hurry, self._answers)

    return Patient


# ─── Which web pages may ask: a browser sends what any page wants to wherever it wants, in the name of its user.

HERE = "localhost"


class OriginCheck:
    """What is asked of each request's headers."""

    def __init__(self, settings: Settings) -> None:
        self._sites = settings.cors
        self._here_alone = settings.token is None and is_here(settings.host)

    def check(self, scope: Any) -> HTTPError | None:
        """Why a request is not answered, if it is not."""
        found = dict(scope["headers"])  # names are in lower case, as ASGI has them
        host = found.get(b"host", b"").decode("latin-1").strip()
        if self._here_alone and host and not is_here(name_of(host)):
            return HTTPError(
                421,
                f"This server is for its own machine and is not called {host[:100]}; ask {HERE} at its port, or start "
                "it with a token or another --host.",
            )
        if scope["method"] != "POST" or self._may_send(found, host):
            return None
        return HTTPError(
            403, "Pages of other web sites may not ask; start the server with --cors and the address of yours."
        )

    def _may_send(self, found: dict[bytes, bytes], host: str) -> bool:
        site = found.get(b"sec-fetch-site", b"").lower()  # browsers tell it where the address is https or this machine
        if site in (b"same-origin", b"none"):
            return True
        if b"origin" not in found:
            return site != b"cross-site"
        origin = found[b"origin"].decode("latin-1").strip()
        own = bool(host) and origin.lower().partition("://")[2] == host.lower()
        return own or origin in self._sites or "*" in self._sites


def name_of(host: str) -> str:
    """The name or the address in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


@functools.lru_cache(64)  # it is asked for each request, and nearly always the same
def is_here(name: str) -> bool:
    """Whether a name can only be this machine's: localhost, 127.0.0.0/8, ::1."""
    if name.lower().rstrip(".") == HERE:
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
