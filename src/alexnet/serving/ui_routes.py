"""The web page of `alexnet serve`, and the routes that it needs beyond `/v1/predict`.

The page is plain files in `page/`, sent as they are, under a policy that lets a browser load nothing from elsewhere.
What its routes answer is computed in `looks.py` by the server's limited workers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from importlib import resources
from typing import Literal, TypeVar
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request, Response
from PIL import Image
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from alexnet.data.decode import TooManyPixels, decode_image
from alexnet.serving.explain import SHOWN, Explainer, NotAvailable
from alexnet.serving.registry import ModelRegistry
from alexnet.serving.requests import JSON, MULTIPART, RAW, HTTPError, check_type, read_body
from alexnet.serving.routes import allowed, pick, problems, unless_gone

FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/server.js": ("server.js", "text/javascript"),
    "/words.js": ("words.js", "text/javascript"),
}
"""The page: files by address, and their types."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # else an updated server would be asked by yesterday's page
}


class Saliency(BaseModel):
    """Where the network looks."""

    label: str
    probability: float
    method: str
    seen: str
    """What the network sees, as a data address."""
    picture: str
    """The same in grey, orange where it speaks for the label, blue where against it."""


class Stage(BaseModel):
    name: str
    shape: list[int]
    active: float
    """Share of the values above zero."""
    picture: str


class Activations(BaseModel):
    """What each stage of the network gives."""

    stages: list[Stage]


class Neighbour(BaseModel):
    label: str
    distance: float
    picture: str


class Similar(BaseModel):
    """The most alike training pictures, the nearest first."""

    layer: str
    """Whose activations were compared."""
    neighbours: list[Neighbour]


class Sample(BaseModel):
    label: str
    """The true one."""
    url: str
    """Relative to the page."""


class Samples(BaseModel):
    """Pictures that the run was not trained on."""

    samples: list[Sample]


Method = Literal["grad-cam", "occlusion", "integrated-gradients"]
BINARY = {"schema": {"type": "string", "format": "binary"}}
PICTURE = {"requestBody": {"required": True, "content": {"image/*": BINARY, RAW: BINARY}}}
ASKED = (401, 403, 404, 408, 413, 415, 422, 503)  # what may become of a question, beside an answer

T = TypeVar("T")


def router(models: ModelRegistry) -> APIRouter:
    """All routes of the page, for `serve.create_app`."""
    both = APIRouter()
    both.include_router(_page())
    both.include_router(_looks(models))
    return both


def _page() -> APIRouter:
    routes = APIRouter(include_in_schema=False)
    folder = resources.files("alexnet.export") / "page"

    def answer(content: bytes, kind: str) -> Callable[[], Response]:
        return lambda: Response(content, headers=HEADERS, media_type=kind)

    for address, (name, kind) in FILES.items():
        routes.api_route(address, methods=["GET", "HEAD"])(answer((folder / name).read_bytes(), kind))
    return routes


def _looks(models: ModelRegistry) -> APIRouter:
    routes = APIRouter(prefix="/v1", dependencies=[Depends(allowed)])
    looks = {name: Explainer(served) for name, served in models.items()}
    known = Query(None, json_schema_extra={"enum": [*models]})

    def of(name: str | None) -> Explainer:
        return looks[pick(models, name).name]

    @routes.post("/saliency", responses=problems(*ASKED), openapi_extra=PICTURE)
    async def saliency(
        request: Request, model: str | None = known, method: Method = "grad-cam", label: str | None = None
    ) -> Saliency:
        """Where a network looks, for the likeliest label unless one is given."""
        found = of(model)
        return Saliency(**await _look(request, found, lambda image: found.saliency(image, method, label)))

    @routes.post("/activations", responses=problems(*ASKED), openapi_extra=PICTURE)
    async def activations(request: Request, model: str | None = known) -> Activations:
        """What each stage of a network gives: its strongest maps."""
        found = of(model)
        return Activations(**await _look(request, found, found.activations))

    @routes.post("/similar", responses=problems(*ASKED), openapi_extra=PICTURE)
    async def similar(request: Request, model: str | None = known) -> Similar:
        """The most alike training pictures, where the run holds an index of them."""
        found = of(model)
        return Similar(**await _look(request, found, found.similar))

    @routes.get("/samples", responses=problems(401, 404))
    async def samples(model: str | None = known) -> Samples:
        """A few pictures that a run was not trained on."""
        found = of(model)
        listed = await _there(run_in_threadpool(lambda: found.samples))
        name = quote(found.served.name, safe="")
        return Samples(
            samples=[Sample(label=label, url=f"v1/samples/{i}?model={name}") for i, (_, label) in enumerate(listed)]
        )

    @routes.get(
        "/samples/{number}",
        response_class=Response,
        responses={200: {"content": dict.fromkeys(SHOWN.values(), BINARY)}, **problems(401, 404, 422)},
    )
    async def sample(number: int, model: str | None = known) -> Response:
        """One of them, as a file."""
        found = of(model)
        content, kind = await _there(run_in_threadpool(found.sample, number))
        return Response(content, headers=HEADERS, media_type=kind)

    return routes


async def _look(request: Request, looks: Explainer, function: Callable[[Image.Image], T]) -> T:
    """What `function` gives for the picture that a request brings, computed by the server's workers."""
    if check_type(request) in (MULTIPART, JSON):
        raise HTTPError(415, "One picture at a time is looked into; send it as the body itself, as image/jpeg, say.")
    body = await read_body(request)
    channels = looks.served.classifier.preprocess.channels
    most = request.app.state.settings.max_pixels
    try:
        work = request.app.state.work(lambda: function(decode_image(body, channels, max_pixels=most)))
        return await _there(unless_gone(request, asyncio.ensure_future(work)))
    except TooManyPixels as error:
        raise HTTPError(413, f"The picture is too large: {error.reason}; send a smaller one.") from error


async def _there(work: Awaitable[T]) -> T:
    """What `work` gives; 404 for what is not to be had."""
    try:
        return await work
    except NotAvailable as error:
        raise HTTPError(404, str(error)) from error
