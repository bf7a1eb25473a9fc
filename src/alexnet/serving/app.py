"""The server: networks behind HTTP, in one process that keeps nothing between requests.

    create_app(models, settings)   the application, for any ASGI server
    serve(models, settings)        the same under uvicorn, until SIGTERM or Ctrl-C

Any number of such processes can stand behind a load balancer. On SIGTERM /readyz turns 503 for `drain` seconds, in
which requests are still taken; then the door is closed, what was accepted is answered, and the exit code is 0.
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
from fastapi import Depends, FastAPI, Request
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import HTMLResponse, Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from alexnet.errors import UserError
from alexnet.serving import routes
from alexnet.serving.batching import Batcher
from alexnet.serving.docs_page import POLICY, page
from alexnet.serving.metrics import Metrics
from alexnet.serving.middleware import OriginCheck, RequestMiddleware, with_timeouts
from alexnet.serving.registry import ModelRegistry, warm_up
from alexnet.serving.requests import BodyBudget, service_unavailable
from alexnet.serving.settings import Settings
from alexnet.serving.ui_routes import router as looking_router

__all__ = ["Settings", "create_app", "serve"]

LOOKING = 8  # requests to look inside a network that may wait, while one is worked on
SWITCH = (
    0.0005  # seconds that a thread may keep the others waiting: Python's own 5 ms add up where a network comes to 20
)
KEEP_ALIVE = 75  # seconds: longer than load balancers keep a connection without use, so that they close it, not we
LAST_WORDS = 2.0  # seconds at most for a request to come on a connection that stood when the door closed
UNREAD = 30  # seconds, beyond those to send a body and to wait for its labels, that are left at the end
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


def create_app(models: ModelRegistry, settings: Settings | None = None) -> FastAPI:
    """The application. Its threads run from its startup to its shutdown, as the server tells it."""
    settings = settings or Settings()
    metrics, held = Metrics(), BodyBudget(settings.held_bytes)
    app = _App(
        title="alexnet serve", version=metadata.version("alexnet"), docs_url=None, redoc_url=None,
        description=f"Labels for pictures, by {', '.join(models)}.",
        lifespan=_lifespan(models, settings, metrics),
    )  # fmt: skip
    app.state.models, app.state.settings, app.state.metrics = models, settings, metrics
    app.state.held = held
    app.state.batcher = app.state.work = None  # until it is started
    # other web sites' requests need what the middleware for them adds
    shortcuts = {} if settings.cors else {"/v1/predict": routes.label_directly}
    app.state.door = RequestMiddleware(app.inside, metrics, held, OriginCheck(settings), shortcuts)

    def inside() -> int:
        return app.state.batcher.inside if app.state.batcher else 0

    metrics.watch("alexnet_queue_pictures", "Pictures that wait or are worked on", inside)
    metrics.watch("alexnet_held_bytes", "Bytes of request bodies in memory", lambda: held.bytes)
    routes.tell_errors(app)
    app.include_router(routes.router(models, settings))
    app.include_router(looking_router(models))
    _for_operators(app, metrics)
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"], expose_headers=["retry-after"],
        )  # fmt: skip
    return app


class _App(FastAPI):
    """An application with a `Door` before all that FastAPI does."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["app"] = self
        await self.state.door(scope, receive, send)

    async def inside(self, scope: Any, receive: Any, send: Any) -> None:
        await super().__call__(scope, receive, send)


def _lifespan(models: ModelRegistry, settings: Settings, metrics: Metrics) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # a thread asks torch once how many cores it has, and the threads that compute batches change what it is told
        looking = ThreadPoolExecutor(1, thread_name_prefix="looking", initializer=torch.get_num_threads)
        looking.submit(int)
        batcher = Batcher(models, settings, metrics)
        app.state.batcher, app.state.work = batcher, _limited(looking, LOOKING)
        yield
        await asyncio.to_thread(batcher.close)
        looking.shutdown(cancel_futures=True)

    return lifespan


def _limited(pool: ThreadPoolExecutor, most: int) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """What runs a function in `pool`, and raises `Refused` (503) while so many wait already."""
    waiting = 0

    async def work(function: Callable[[], Any]) -> Any:
        nonlocal waiting
        if waiting >= most:
            raise service_unavailable(2)
        waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function)
        finally:
            waiting -= 1

    return work


def _for_operators(app: FastAPI, metrics: Metrics) -> None:
    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_model=dict[str, str], responses={503: {"description": "It should be started anew"}})
    async def alive() -> Any:
        """200 while the process and all of its threads live."""
        if not app.state.batcher.alive:
            return routes.json_response({"status": "broken"}, 503)
        return routes.json_response({"status": "alive"})

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", response_model=dict[str, str], responses={503: {"description": "It is stopping or broken"}})
    async def ready() -> Any:
        """Whether requests should come here."""
        if app.state.door.stopping:
            return routes.json_response({"status": "stopping"}, 503)
        return await alive() if not app.state.batcher.alive else routes.json_response({"status": "ready"})

    @app.get(
        "/metrics", dependencies=[Depends(routes.allowed)], response_class=Response, responses=routes.problems(401)
    )
    async def measured() -> Response:
        """Counts for Prometheus."""
        return Response(metrics.text(), media_type=METRICS_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs(_: Request) -> Response:
        return HTMLResponse(page(app.openapi()), headers={"Content-Security-Policy": POLICY})


# ── under uvicorn ─────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stopped:
    """How a server ended."""

    accepted: int
    """Requests."""
    answered: int
    """Of these, answered to the last byte, or left by their clients."""
    cut_short: bool
    """Whether a second signal ended it before all were answered."""


class Server(uvicorn.Server):
    """uvicorn, stopped gently: the first signal starts the farewell, a second one ends it."""

    def __init__(self, app: FastAPI, settings: Settings, up: Callable[[], object] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(  # uvicorn warns of each request that is not HTTP: strangers would fill the disk
                app, lifespan="on", ws="none", log_level="error", access_log=False, server_header=False,
                http=with_timeouts(HttpToolsProtocol, settings.timeout), backlog=4096, timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(2 * settings.timeout) + UNREAD,
                proxy_headers=False,  # nothing asks who a client is
            )
        )  # fmt: skip
        self._app, self._settings, self._up = app, settings, up
        self._leave: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._up()

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002
        """Called by uvicorn's handler of SIGTERM and SIGINT; tests call it too."""
        if self._leave is not None:
            self.should_exit = self.force_exit = True
            return
        self._app.state.door.stopping = True
        self._leave = time.monotonic() + self._settings.drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let in who stands before the door, close it, and hear who has not spoken yet, before uvicorn ends all
        connections that are without a request."""
        began = time.monotonic()
        with selectors.DefaultSelector() as before_the_door:
            for one in sockets or ():
                before_the_door.register(one, selectors.EVENT_READ)
            while before_the_door.select(0) and time.monotonic() - began < LAST_WORDS:
                await asyncio.sleep(0)  # a round of the loop, in which uvloop lets in one
        for one in (*self.servers, *(sockets or ())):
            one.close()
        began = time.monotonic()
        while (waited := time.monotonic() - began) < LAST_WORDS and not self.force_exit:
            silent = any(getattr(one, "cycle", None) is None for one in self.server_state.connections)
            if not silent and waited > LAST_WORDS / 10:
                break
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        leaving = self._leave is not None and time.monotonic() >= self._leave
        return await super().on_tick(counter) or leaving


def serve(
    models: ModelRegistry, settings: Settings | None = None, up: Callable[[str], object] = lambda _: None
) -> Stopped:
    """Answer requests until SIGTERM or Ctrl-C. `up` is told the address when the server answers.

    Raises `UserError` where it cannot listen.
    """
    settings = settings or Settings()
    sys.setswitchinterval(SWITCH)
    with contextlib.closing(bind(settings.host, settings.port)) as listening:
        for one in models.values():
            warm_up(one, settings.max_batch)
        _raise_file_limit()
        app = create_app(models, settings)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        server = Server(app, settings, lambda: up(f"http://{shown}:{port}"))
        server.run(sockets=[listening])
    door: RequestMiddleware = app.state.door
    return Stopped(door.accepted, door.answered, server.force_exit)


def bind(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet. Raises `UserError` where there can be none."""
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a name
        raise UserError(f"--host {host[:100]} is not the address of this machine ({error}).") from error
    found = socket.socket(family, kind, proto)
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        found.close()
        raise UserError(
            f"Nothing can be served at --host {host} --port {port} ({error.strerror or error}); choose another port, "
            "such as --port 0 for a free one, or end the program that has it."
        ) from error
    return found


def _raise_file_limit() -> None:
    """Each connection is an open file, and many systems start programs with room for 1,024."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
