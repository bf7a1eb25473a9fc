"""What every request passes, and every answer: counting, failures, farewells, and a limit for who does not speak.

A server that was told to stop (`Door.stopping`) still answers whatever comes, and closes each connection with its
answer: a client that sends its next request on a connection that is being closed would never know its fate.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from alexnet.deploy.bodies import Held, release
from alexnet.deploy.metrics import Metrics

log = logging.getLogger("alexnet.serve")

CLOSE = (b"connection", b"close")
NO_SNIFF = (b"x-content-type-options", b"nosniff")  # what we call JSON is not to be taken for a page
JSON = (b"content-type", b"application/json")
BROKEN = b'{"error":"The server failed, and should not have; its log tells why."}'
OTHER = "other"  # the route of a path that is none


class Door:
    """ASGI middleware, the outermost. `shortcuts` are what answers a POST to a path without the application's help."""

    def __init__(
        self, app: Any, metrics: Metrics, held: Held, shortcuts: Mapping[str, Callable[[Request], Awaitable[Response]]]
    ) -> None:
        self.app, self.metrics, self.held, self.shortcuts = app, metrics, held, shortcuts
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
                headers = [*message.get("headers", ()), NO_SNIFF]
                if self.stopping and CLOSE not in headers:
                    headers.append(CLOSE)
                message = {**message, "headers": headers}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.answered += 1

        try:
            shortcut = self.shortcuts.get(scope["path"]) if scope["method"] == "POST" else None
            if shortcut:
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
            release(scope, self.held)
            self.metrics.request(route, status, time.perf_counter() - began)


def patient(protocol: Any, seconds: float) -> Any:
    """uvicorn's HTTP `protocol`, which waits for ever for the head of a request, with a limit of `seconds` on it."""

    class Patient(protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._calm()

        def _watch(self) -> None:
            """Keep the time from the first byte of a head, or the connection itself, to the request."""
            if self.cycle is not None and not self.cycle.response_complete:
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

    return Patient
