"""ASGI middleware: what every request passes on its way to the routes."""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.parse import quote

from starlette.datastructures import Headers, State
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from alexnet.serving.address import host_name, is_loopback
from alexnet.serving.requests import error_response

log = logging.getLogger("alexnet.serve")

CLOSE = (b"connection", b"close")
TEMPORARY_REDIRECT = 307
NO_SNIFF = (b"x-content-type-options", b"nosniff")  # keeps browsers from rendering our JSON as a page
NO_HOST = "The request must have one Host header; send the name of this server with its port."
UNKNOWN_ROUTE = "other"  # metrics label of all paths without a route


class RequestMiddleware:
    """Counts requests, requires one Host, answers unexpected exceptions with 500, and closes connections at shutdown.

    While it stops (`state.stopping`) every request is still answered, with `Connection: close`: a client that sent its
    next request on a connection being closed could not know whether it was processed.
    """

    def __init__(self, app: Any, state: State) -> None:
        self.app, self.state, self.metrics = app, state, state.metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if root_path := self.state.settings.root_path:
            scope["root_path"] = root_path  # routes match with and without it
        self.metrics.accepted += 1
        start, status = time.perf_counter(), 0

        async def respond(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self.state.body_budget.release(scope)  # not needed any more, however slowly the client reads
                headers = [*message.get("headers", ()), NO_SNIFF]
                if status == TEMPORARY_REDIRECT:
                    headers = [(k, relative_redirect(scope) if k == b"location" else v) for k, v in headers]
                if self.state.stopping and CLOSE not in headers:
                    headers.append(CLOSE)
                message = {**message, "headers": headers}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                self.metrics.answered += 1

        try:
            if has_one_host(scope):
                await self.app(scope, receive, respond)
            else:
                await error_response(HTTPException(400, NO_HOST))(scope, receive, respond)
        except Exception:
            log.exception("Internal server error: %s %r", scope["method"], scope["path"][:200])
            self.metrics.count_error()
            if not status:
                error = HTTPException(500, "Internal server error; see the server log.")
                await error_response(error)(scope, receive, respond)
        finally:
            self.state.body_budget.release(scope)
            route = getattr(scope.get("route"), "path", UNKNOWN_ROUTE)
            self.metrics.count_request(route, status or 500, time.perf_counter() - start)


def has_one_host(scope: Any) -> bool:
    """Return whether a request has one Host header, as HTTP/1.1 requires (RFC 9112, 3.2); HTTP/1.0 has none or one."""
    count = sum(name == b"host" for name, _ in scope["headers"])
    return count == 1 or (count == 0 and scope["http_version"] == "1.0")


def relative_redirect(scope: Any) -> bytes:
    """Return the Location of Starlette's redirect that adds or removes the slash at the end of the path.

    Its own names the host and path of this process, which a load balancer's client cannot reach and need not know.
    """
    path, query = scope["path"], scope["query_string"]
    stripped = path.rstrip("/")
    name = quote(stripped.rpartition("/")[2], safe="")
    target = "../" * (len(path) - len(stripped)) + name if path != stripped else f"./{name}/"
    return target.encode() + (b"?" + query if query else b"")


class LoopbackHostMiddleware(TrustedHostMiddleware):
    """Starlette's check of the Host header, for a server that trusts its machine: it prevents DNS rebinding.

    It allows each name of this machine, which are too many to list, and requests without Host (HTTP/1.0), which no
    browser sends. Others get 421 and a JSON error.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        host = Headers(scope=scope).get("host", "").strip() if scope["type"] == "http" else ""
        if not host or is_loopback(host_name(host)):
            await self.app(scope, receive, send)
            return
        error = HTTPException(
            421,
            f"This server only serves its own machine and is not called {host[:100]}; use localhost with its port, or "
            "start it with a token or another --host.",
        )
        await error_response(error)(scope, receive, send)
