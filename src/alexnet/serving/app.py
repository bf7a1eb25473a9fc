"""The ASGI application of a server, which keeps no state between requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

import torch
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from alexnet.inference.predict import Classifier
from alexnet.serving.address import is_loopback
from alexnet.serving.batching import Batcher, ServerBusy
from alexnet.serving.metrics import Metrics
from alexnet.serving.middleware import LoopbackHostMiddleware, RequestMiddleware
from alexnet.serving.registry import Models
from alexnet.serving.requests import BodyBudget, TextResponse
from alexnet.serving.routes import add_error_handlers, add_routes
from alexnet.serving.settings import Settings
from alexnet.serving.training import add_training_routes

EXPLAIN_QUEUE = 8  # explanation requests in flight; they are computed one at a time


def create_app(
    models: Mapping[str, Classifier], settings: Settings | None = None, workers: int | None = None
) -> FastAPI:
    """Return the application, for any ASGI server. Its threads live from ASGI startup to shutdown.

    `workers` threads decode and compute; by default as many as there are cores.
    """
    settings = settings or Settings()
    models = models if isinstance(models, Models) else Models(models)
    app = FastAPI(
        title="alexnet serve", version=metadata.version("alexnet"), docs_url=None, redoc_url=None,
        description=f"Image classification with {', '.join(models.names)}.", default_response_class=TextResponse,
        lifespan=_lifespan,
    )  # fmt: skip
    state = app.state
    state.models, state.settings, state.workers, state.stopping = models, settings, workers, False
    state.metrics, state.body_budget = Metrics(), BodyBudget(settings.body_budget)
    state.batcher = state.run_explanation = None  # set at startup
    state.metrics.add_gauge(
        "alexnet_queue_images", "Images in flight", lambda: state.batcher.in_flight if state.batcher else 0
    )
    state.metrics.add_gauge("alexnet_held_bytes", "Bytes of request bodies in memory", lambda: state.body_budget.bytes)
    add_error_handlers(app)
    add_routes(app)
    add_training_routes(app)
    # the last one added sees a request first
    if settings.cors:
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors, allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"], expose_headers=["retry-after"],
        )  # fmt: skip
    if settings.token is None and is_loopback(settings.host):
        app.add_middleware(LoopbackHostMiddleware)
    app.add_middleware(RequestMiddleware, state=state)
    return app


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # torch reads the number of cores once per thread, and the batcher's compute threads change what it reads
    pool = ThreadPoolExecutor(1, thread_name_prefix="explain", initializer=torch.get_num_threads)
    pool.submit(int)
    state = app.state
    state.batcher = Batcher(state.models, state.settings, state.metrics, state.workers)
    state.run_explanation = _bounded(pool, EXPLAIN_QUEUE)
    yield
    await asyncio.to_thread(state.batcher.close)
    pool.shutdown(cancel_futures=True)


def _bounded(pool: ThreadPoolExecutor, limit: int) -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    """Return a coroutine that runs a function in `pool`, or raises `ServerBusy` if `limit` are in flight."""
    in_flight = 0

    async def run(function: Callable[[], Any]) -> Any:
        nonlocal in_flight
        if in_flight >= limit:
            raise ServerBusy(2)
        in_flight += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(pool, function)
        finally:
            in_flight -= 1

    return run
