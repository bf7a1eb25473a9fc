"""Routes of the web page: its files, and /v1/saliency, /v1/activations, /v1/similar and /v1/samples.

The page is plain files in `web/`, sent unchanged under a policy that lets a browser load nothing from elsewhere. The
explanations are computed by `explain.py` in the server's bounded worker thread.
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
from alexnet.serving.explain import BROWSER_TYPES, Explainer, NotAvailable
from alexnet.serving.registry import ModelRegistry
from alexnet.serving.requests import JSON, MULTIPART, RAW, HTTPError, media_type, read_body
from alexnet.serving.routes import cancel_on_disconnect, error_schemas, get_model, require_token

WEB = resources.files("alexnet.serving") / "web"
FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/server.js": ("server.js", "text/javascript"),
    "/words.js": ("words.js", "text/javascript"),
}
"""Files of the page and their media types, by URL path."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # otherwise an old page could call an updated server
}


class Saliency(BaseModel):
    """Which image regions the prediction depends on."""

    label: str
    probability: float
    method: str
    input: str
    """The network's input, as a data URI."""
    image: str
    """The same in gray: orange regions support the label, blue ones oppose it."""


class Stage(BaseModel):
    """Activations of one stage."""

    name: str
    shape: list[int]
    active: float
    """Share of values above zero."""
    image: str


class Activations(BaseModel):
    """Activations of each stage of the network."""

    stages: list[Stage]


class Neighbor(BaseModel):
    """A training image near the query."""

    label: str
    distance: float
    image: str


class Similar(BaseModel):
    """The most similar training images, nearest first."""

    layer: str
    """Layer whose activations are compared."""
    neighbors: list[Neighbor]


class Sample(BaseModel):
    """An image that the run was not trained on."""

    label: str
    """True label."""
    url: str
    """Relative to the page."""


class Samples(BaseModel):
    """Images that the run was not trained on."""

    samples: list[Sample]


Method = Literal["grad-cam", "occlusion", "integrated-gradients"]
BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE_BODY = {"requestBody": {"required": True, "content": {"image/*": BINARY, RAW: BINARY}}}
ERRORS = error_schemas(401, 403, 404, 408, 413, 415, 422, 503)

T = TypeVar("T")


def create_router(models: ModelRegistry) -> APIRouter:
    """Return all routes of the page."""
    router = APIRouter()
    router.include_router(_file_routes())
    router.include_router(_explain_routes(models))
    return router


def _file_routes() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    def sender(content: bytes, kind: str) -> Callable[[], Response]:
        return lambda: Response(content, headers=HEADERS, media_type=kind)

    for path, (name, kind) in FILES.items():
        router.api_route(path, methods=["GET", "HEAD"])(sender((WEB / name).read_bytes(), kind))
    return router


def _explain_routes(models: ModelRegistry) -> APIRouter:
    router = APIRouter(prefix="/v1", dependencies=[Depends(require_token)])
    explainers = {name: Explainer(served) for name, served in models.items()}
    model_query = Query(None, json_schema_extra={"enum": [*models]})

    def get_explainer(name: str | None) -> Explainer:
        return explainers[get_model(models, name).name]

    @router.post("/saliency", responses=ERRORS, openapi_extra=IMAGE_BODY)
    async def saliency(
        request: Request, model: str | None = model_query, method: Method = "grad-cam", label: str | None = None
    ) -> Saliency:
        """Show which regions of the image the prediction depends on, by default for the most likely label."""
        explainer = get_explainer(model)
        return Saliency(**await _explain(request, explainer, lambda image: explainer.saliency(image, method, label)))

    @router.post("/activations", responses=ERRORS, openapi_extra=IMAGE_BODY)
    async def activations(request: Request, model: str | None = model_query) -> Activations:
        """Show the strongest feature maps of each stage."""
        explainer = get_explainer(model)
        return Activations(**await _explain(request, explainer, explainer.activations))

    @router.post("/similar", responses=ERRORS, openapi_extra=IMAGE_BODY)
    async def similar(request: Request, model: str | None = model_query) -> Similar:
        """Return the most similar training images, if the run has an index of them."""
        explainer = get_explainer(model)
        return Similar(**await _explain(request, explainer, explainer.similar))

    @router.get("/samples", responses=error_schemas(401, 404))
    async def samples(model: str | None = model_query) -> Samples:
        """List some images that the run was not trained on."""
        explainer = get_explainer(model)
        listed = await _or_404(run_in_threadpool(lambda: explainer.samples))
        name = quote(explainer.served.name, safe="")
        return Samples(
            samples=[Sample(label=label, url=f"v1/samples/{i}?model={name}") for i, (_, label) in enumerate(listed)]
        )

    @router.get(
        "/samples/{number}",
        response_class=Response,
        responses={200: {"content": dict.fromkeys(BROWSER_TYPES.values(), BINARY)}, **error_schemas(401, 404, 422)},
    )
    async def sample(number: int, model: str | None = model_query) -> Response:
        """Return the file of one sample."""
        content, kind = await _or_404(run_in_threadpool(get_explainer(model).sample, number))
        return Response(content, headers=HEADERS, media_type=kind)

    return router


async def _explain(request: Request, explainer: Explainer, function: Callable[[Image.Image], T]) -> T:
    """Return `function(image)` for the image in the request's body, computed in the server's worker thread."""
    if media_type(request) in (MULTIPART, JSON):
        raise HTTPError(415, "This route takes one image; send it as the body itself, for example as image/jpeg.")
    body = await read_body(request)
    channels = explainer.served.classifier.preprocess.channels
    max_pixels = request.app.state.settings.max_pixels
    try:
        work = request.app.state.run_explanation(lambda: function(decode_image(body, channels, max_pixels=max_pixels)))
        return await _or_404(cancel_on_disconnect(request, asyncio.ensure_future(work)))
    except TooManyPixels as error:
        raise HTTPError(413, f"The image is too large: {error.reason}; send a smaller one.") from error


async def _or_404(work: Awaitable[T]) -> T:
    """Return the result of `work`, turning `NotAvailable` into a 404."""
    try:
        return await work
    except NotAvailable as error:
        raise HTTPError(404, str(error)) from error
