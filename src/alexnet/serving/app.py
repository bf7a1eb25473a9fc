"""The server: trained models behind HTTP, in one process that keeps no state between requests.

    create_app(models, settings)   the ASGI application, for any ASGI server
    serve(models, settings)        the same under uvicorn, until SIGTERM or Ctrl-C

Any number of such processes can stand behind a load balancer. Graceful shutdown: on SIGTERM /readyz returns 503 while
requests are still accepted for `drain` seconds; then the listening socket closes, accepted requests are answered, and
the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import selectors
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
import uvicorn
from fastapi import Depends, FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from alexnet.errors import UserError
from alexnet.serving import docs_page, routes, ui_routes
from alexnet.serving.batching import Batcher
from alexnet.serving.metrics import Metrics
from alexnet.serving.middleware import OriginCheck, RequestMiddleware, with_timeouts
from alexnet.serving.registry import ModelRegistry, warm_up
from alexnet.serving.requests import BodyBudget, json_response, service_unavailable
from alexnet.serving.settings import Settings

__all__ = ["Settings", "create_app", "serve"]

EXPLAIN_QUEUE = 8  # explanation requests in flight; they are computed one at a time
GIL_SWITCH_S = 0.0005  # Python's default of 5 ms adds up where a prediction takes 20 ms
KEEP_ALIVE_S = 75  # longer than load balancers keep idle connections, so that they close them, not the server
DRAIN_CONNECTIONS_S = 2.0  # limit, at shutdown, for requests to arrive on connections that are already open
SHUTDOWN_MARGIN_S = 30  # extra time at shutdown, beyond sending a body and waiting for its predictions
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def create_app(models: ModelRegistry, settings: Settings | None = None) -> FastAPI:
    """Return the application. Its threads live from ASGI startup to shutdown."""
    settings = settings or Settings()
    metrics, body_budget = Metrics(), BodyBudget(settings.body_budget)
    app = _App(
        title="alexnet serve", version=metadata.version("alexnet"), docs_url=None, redoc_url=None,
        description=f"Image classification with {', '.join(models)}.",
        lifespan=_lifespan(models, settings, metrics),
    )  # fmt: skip
    app.state.models, app.state.settings, app.state.metrics = models, settings, metrics
    app.state.body_budget = body_budget
    app.state.batcher = app.state.run_explanation = None  # set at startup
    # with CORS, responses need the headers that only the middleware inside the application adds
    shortcuts = {} if settings.cors else {"/v1/predict": routes.predict_directly}
    app.state.requests = RequestMiddleware(app.handle, metrics, body_budget, OriginCheck(settings), shortcuts)

    def in_flight() -> int:
        return app.state.batcher.in_flight if app.state.batcher else 0

    metrics.add_gauge("alexnet_queue_images", "Images in flight", in_flight)
    metrics.add_gauge("alexnet_held_bytes", "Bytes of request bodies in memory", lambda: body_budget.bytes)
    routes.add_error_handlers(app)
    app.include_router(routes.create_router(models, settings))
    app.include_router(ui_routes.create_router(models))
    _add_operations_routes(app, metrics)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"], expose_headers=["retry-after"],
        )  # fmt: skip
    return app


class _App(FastAPI):
    """FastAPI behind `RequestMiddleware`, which also sees what FastAPI's own middleware would."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = self
        await self.state.requests(scope, receive, send)

    async def handle(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


def _lifespan(models: ModelRegistry, settings: Settings, metrics: Metrics) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # torch reads the number of cores once per thread, and the batcher's compute threads change what it reads
        pool = ThreadPoolExecutor(1, thread_name_prefix="explain", initializer=torch.get_num_threads)
        pool.submit(int)
        batcher = Batcher(models, settings, metrics)
        app.state.batcher, app.state.run_explanation = batcher, _bounded(pool, EXPLAIN_QUEUE)
        yield
        await asyncio.to_thread(batcher.close)
        pool.shutdown(cancel_futures=True)

    return lifespan


def _bounded(pool: ThreadPoolExecutor, limit: int) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """Return a coroutine that runs a function in `pool`, or raises `HTTPError` (503) if `limit` are in flight."""
    in_flight = 0

    async def run(function: Callable[[], Any]) -> Any:
        nonlocal in_flight
        if in_flight >= limit:
            raise service_unavailable(2)
        in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function)
        finally:
            in_flight -= 1

    return run


def _add_operations_routes(app: FastAPI, metrics: Metrics) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_model=dict[str, str], responses={503: {"description": "Restart the server"}})
    async def health() -> Any:
        """Liveness: 200 while the process and all of its threads are alive."""
        if not app.state.batcher.alive:
            return json_response({"status": "broken"}, 503)
        return json_response({"status": "alive"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", response_model=dict[str, str], responses={503: {"description": "Stopping or broken"}})
    async def readiness() -> Any:
        """Readiness: 200 while the server should receive requests."""
        if app.state.requests.stopping:
            return json_response({"status": "stopping"}, 503)
        return await health() if not app.state.batcher.alive else json_response({"status": "ready"})

    token = [Depends(routes.require_token)]

    @app.get("/metrics", dependencies=token, response_class=Response, responses=routes.error_schemas(401))
    async def prometheus_metrics() -> Response:
        """Metrics in Prometheus format."""
        return Response(metrics.render(), media_type=METRICS_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page.render(app.openapi()), headers={"Content-Security-Policy": docs_page.POLICY})


# ── under uvicorn ─────────────────────────────────────────────────────────────────────────────────


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
    """uvicorn with graceful shutdown: the first signal starts it, a second one ends it."""

    def __init__(self, app: FastAPI, settings: Settings, on_ready: Callable[[], object] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app, lifespan="on", ws="none", access_log=False, server_header=False,
                log_level="error",  # uvicorn warns of every request that is not HTTP: scanners would fill the disk
                http=with_timeouts(HttpToolsProtocol, settings.timeout), backlog=4096, timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=int(2 * settings.timeout) + SHUTDOWN_MARGIN_S,
                proxy_headers=False,  # the client's address is not used
            )
        )  # fmt: skip
        self._app, self._settings, self._on_ready = app, settings, on_ready
        self._shutdown_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002
        """Start the shutdown, or end it at the second call. uvicorn's handler of SIGTERM and SIGINT; tests call it."""
        if self._shutdown_at is not None:
            self.should_exit = self.force_exit = True
            return
        self._app.state.requests.stopping = True
        self._shutdown_at = time.monotonic() + self._settings.drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept pending connections, close the listening sockets, wait for first requests, then shut down uvicorn.

        uvicorn itself would close all connections without a request, including those whose request is on its way.
        """
        start = time.monotonic()
        with selectors.DefaultSelector() as accepting:
            for listener in sockets or ():
                accepting.register(listener, selectors.EVENT_READ)
            while accepting.select(0) and time.monotonic() - start < DRAIN_CONNECTIONS_S:
                await asyncio.sleep(0)  # one iteration of the loop, in which uvloop accepts one connection
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        start = time.monotonic()
        while (waited := time.monotonic() - start) < DRAIN_CONNECTIONS_S and not self.force_exit:
            silent = any(getattr(one, "cycle", None) is None for one in self.server_state.connections)
            if not silent and waited > DRAIN_CONNECTIONS_S / 10:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        due = self._shutdown_at is not None and time.monotonic() >= self._shutdown_at
        return await super().on_tick(counter) or due


def serve(
    models: ModelRegistry, settings: Settings | None = None, on_ready: Callable[[str], object] = lambda _: None
) -> ServerResult:
    """Serve `models` until SIGTERM or Ctrl-C. Calls `on_ready` with the URL when the server accepts requests.

    Raises `UserError` if it cannot listen at the address.
    """
    settings = settings or Settings()
    sys.setswitchinterval(GIL_SWITCH_S)
    with contextlib.closing(bind(settings.host, settings.port)) as listener:
        for served in models.values():
            warm_up(served, settings.max_batch)
        _raise_file_limit()
        app = create_app(models, settings)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        server = Server(app, settings, lambda: on_ready(url))
        server.run(sockets=[listener])
    middleware: RequestMiddleware = app.state.requests
    return ServerResult(middleware.accepted, middleware.answered, server.force_exit)


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to the address, not listening yet. Raises `UserError` if the address cannot be used."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # UnicodeError: not a possible host name
        raise UserError(f"--host {host[:100]} is not an address of this machine ({error}).") from error
    listener = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(
            f"Cannot listen at --host {host} --port {port} ({error.strerror or error}); choose another port, such as "
            "--port 0 for a free one, or stop the program that uses it."
        ) from error
    return listener


def _raise_file_limit() -> None:
    """Raise the limit of open files: each connection is one, and many systems start programs with only 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
