"""The routes: /v1/predict and /v1/models for programs, explanations and files of the web page, operations, errors.

Every error is {"error": "one sentence"} with its status. Bodies are read here rather than by FastAPI, which would read
them completely, or spool them to disk, before any limit applies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, Response

from alexnet.data.decode import BadImage, TooManyPixels, decode_image
from alexnet.errors import UserError, unknown_name
from alexnet.inference.predict import Classifier, Prediction
from alexnet.messages.translator import Translator
from alexnet.runtimes.engines import EXACT
from alexnet.serving import pages
from alexnet.serving.access import authorize, newest_model
from alexnet.serving.batching import Batcher, DecodeFailure, Outcome, ServerBusy
from alexnet.serving.explain import BROWSER_TYPES, Activations, Explainer, NotAvailable, SaliencyMap, Similar
from alexnet.serving.metrics import FAILED, TOO_LARGE
from alexnet.serving.registry import Models, explanations
from alexnet.serving.requests import (
    FIELD,
    JSON,
    MULTIPART,
    RAW,
    NamedImage,
    TextResponse,
    cancel_on_disconnect,
    error_response,
    media_type,
    read_body,
    read_images,
)
from alexnet.serving.settings import Settings

CLIENT_CLOSED = 499  # nginx's status of a disconnected client; only seen in the metrics
METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # otherwise an old page could call an updated server
}
"""Headers of files that a browser shows: it loads nothing from elsewhere."""

T = TypeVar("T")


# ── schemas ───────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Label:
    """A label and its probability: the network's own, and calibrated."""

    label: str
    p: float
    confidence: float


@dataclass
class ImagePrediction:
    """The labels of one image, or its error."""

    path: str
    labels: list[Label]
    unsure: bool | None
    confidence: float | None
    error: str | None
    clipped: bool = False
    """Whether it has values beyond the range of the training images; only present if so."""


@dataclass
class Predictions:
    """Response of /v1/predict."""

    model: str
    predictions: list[ImagePrediction]
    threshold: float | None
    """Predictions of lower confidence are unsure; null if the model has no calibration."""


@dataclass
class Sample:
    """An image that the run was not trained on, its true label, and its URL relative to the page."""

    label: str
    url: str


@dataclass
class Samples:
    """Images that the run was not trained on."""

    samples: list[Sample]


@dataclass
class Error:
    """What is wrong and how to fix it, in one sentence."""

    error: str


STATUS_DESCRIPTIONS = {
    401: "Missing or wrong token", 403: "Cross-site request", 404: "Unknown model", 408: "Body received too slowly",
    413: "Too many bytes, pixels or images", 415: "Unsupported media type", 421: "Wrong host name",
    422: "Unprocessable image or parameters", 500: "Internal server error", 503: "Server busy; see Retry-After",
}  # fmt: skip
BINARY = {"schema": {"type": "string", "format": "binary"}}
IMAGE_BODY = {"requestBody": {"required": True, "content": {"image/*": BINARY, RAW: BINARY}}}


def error_schemas(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, as FastAPI declares them."""
    return {status: {"model": Error, "description": STATUS_DESCRIPTIONS[status]} for status in (*statuses, 421)}


POST_ERRORS = error_schemas(401, 403, 404, 408, 413, 415, 422, 503)


def add_routes(app: FastAPI) -> None:
    """Add all routes to the application, which has its state already."""
    _add_prediction_routes(app)
    _add_explanation_routes(app)
    _add_operations_routes(app)
    for path, (content, kind) in pages.page_files(app.state.settings.lang).items():
        _add_file(app, path, content, kind)


def _add_file(app: FastAPI, path: str, content: bytes, kind: str) -> None:
    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def file() -> Response:
        return Response(content, headers=HEADERS, media_type=kind)


# ── predictions ───────────────────────────────────────────────────────────────────────────────────


class DirectRoute(APIRoute):
    """A route whose endpoint gets the request and returns the response, without FastAPI's parameters and validation.

    They take longer than a small network takes for a small image.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.app = self._respond

    async def _respond(self, scope: Any, receive: Any, send: Any) -> None:
        response = await self.endpoint(Request(scope, receive))
        await response(scope, receive, send)


def _add_prediction_routes(app: FastAPI) -> None:
    models: Models = app.state.models
    settings: Settings = app.state.settings
    body = {
        MULTIPART: {"schema": _images_schema("binary", settings.max_images)},
        JSON: {"schema": _images_schema("byte", settings.max_images)},
        "image/*": BINARY,
        RAW: BINARY,
    }
    top_k: dict[str, Any] = {"type": "integer", "minimum": 1}
    if models:  # otherwise the number of classes is not known yet
        top_k["maximum"] = max(len(model.classes) for model in models.values())
    parameters = [
        _query_parameter("model", {"type": "string", "enum": models.names}, "Default: the first model."),
        _query_parameter("top_k", top_k, "Number of labels; default 5."),
        _query_parameter("ten_crop", {"type": "boolean"}, "Average ten crops, as in the paper."),
    ]
    app.router.add_api_route(
        "/v1/predict", predict, methods=["POST"], response_model=Predictions, responses=POST_ERRORS,
        openapi_extra={"parameters": parameters, "requestBody": {"required": True, "content": body}},
        route_class_override=DirectRoute,
    )  # fmt: skip

    @app.get("/v1/models", dependencies=[Depends(authorize)], responses=error_schemas(401))
    async def list_models() -> dict[str, Any]:
        """List the models and the request limits. A run without a checkpoint is not listed yet."""
        for name in filter(models.is_outdated, models.names):
            await run_in_threadpool(models.refresh, name)
        limits = {"bytes": settings.max_bytes, "pixels": settings.max_pixels, "images": settings.max_images}
        described = [{"name": name, **_describe_model(model), "limits": limits} for name, model in models.items()]
        return {"default": next(iter(models), None), "models": described}


def _images_schema(form: str, max_images: int) -> dict[str, Any]:
    images = {
        "type": "array", "minItems": 1, "maxItems": max_images, "items": {"type": "string", "format": form},
    }  # fmt: skip
    return {"type": "object", "required": [FIELD], "properties": {FIELD: images}, "additionalProperties": False}


def _query_parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _describe_model(model: Classifier) -> dict[str, Any]:
    loaded, preprocess = model.ensemble.members[0], model.preprocess
    if manifest := loaded.manifest:
        precision: str | None = manifest.precision
        architecture, engine = manifest.network, manifest.kind
    else:
        architecture, engine = loaded.model.spec.name, loaded.engine.name if loaded.engine else EXACT
        precision = "fp32" if engine in (EXACT, "onnxruntime", "openvino") else None
    return {
        "architecture": architecture, "classes": list(model.classes), "image_size": preprocess.size,
        "channels": preprocess.channels, "engine": engine, "precision": precision, "views": [1, 10],
        "looks": explanations(model),
    }  # fmt: skip


async def predict(request: Request) -> Response:
    """Classify images: one as the body itself, several as a multipart form or as base64 in JSON.

    An unreadable image gets an `error` and the others their labels; if no image is readable, the status is 422.
    """
    await authorize(request)
    models: Models = request.app.state.models
    name = await newest_model(models, request.query_params.get("model"))
    top, views = _parse_query(request, name, len(models[name].classes))
    batcher: Batcher = request.app.state.batcher
    batcher.check_capacity()  # before the body is read
    images = await read_images(request)
    outcomes = await cancel_on_disconnect(request, batcher.predict(name, [data for _, data in images], views))
    _raise_failures(images, outcomes)
    translate = _translator(request)
    predictions = [
        Prediction(path, error=translate.sentence(outcome.reason))
        if isinstance(outcome, DecodeFailure)
        else models[name].to_prediction(path, outcome, top, outcome.clipped)
        for (path, _), outcome in zip(images, outcomes, strict=True)
    ]
    calibration = models[name].calibration
    threshold = calibration.threshold if calibration else None
    return TextResponse({"model": name, "predictions": [p.to_dict() for p in predictions], "threshold": threshold})


def _parse_query(request: Request, name: str, classes: int) -> tuple[int, int]:
    """Return the number of labels and of views that a request wants of the model `name`. Raises `HTTPException`."""
    query = request.query_params
    if unknown := query.keys() - {"model", "top_k", "ten_crop"}:
        raise unknown_name("parameter", min(unknown)[:100], ("model", "top_k", "ten_crop"))
    top_k = query.get("top_k", str(min(5, classes)))
    if not (top_k.isascii() and top_k.isdecimal() and len(top_k) < 10 and 1 <= int(top_k) <= classes):
        raise HTTPException(
            422, f"The parameter top_k must be an integer from 1 to {classes}, the number of classes of {name}."
        )
    ten_crop = query.get("ten_crop", "false").lower()
    if ten_crop not in ("true", "false", "1", "0"):
        raise HTTPException(422, "The parameter ten_crop must be true or false.")
    return int(top_k), 10 if ten_crop in ("true", "1") else 1


def _raise_failures(images: list[NamedImage], outcomes: list[Outcome]) -> None:
    """Raise `HTTPException` if no image has a prediction, or if one failed by an internal error."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, DecodeFailure)]
    if any(failure.result == FAILED for failure in failures):
        raise HTTPException(500, "Internal server error; see the server log.")
    if len(failures) < len(outcomes):
        return
    reasons = failures[0].reason
    if len(images) > 1:
        named = zip(images[:3], failures, strict=False)
        reasons = "; ".join(f"{name}: {failure.reason}" for (name, _), failure in named)
    if any(failure.result == TOO_LARGE for failure in failures):
        raise HTTPException(413, f"The image is too large ({reasons}); send a smaller one.")
    raise HTTPException(422, f"No image could be read ({reasons}); send JPEG, PNG or another common format.")


# ── explanations ──────────────────────────────────────────────────────────────────────────────────


def _add_explanation_routes(app: FastAPI) -> None:
    models: Models = app.state.models
    explainers: dict[str, Explainer] = {}
    model_query = Query(None, json_schema_extra={"enum": models.names})
    token = [Depends(authorize)]
    post: Any = {"dependencies": token, "responses": POST_ERRORS, "openapi_extra": IMAGE_BODY}

    async def get_explainer(name: str | None) -> Explainer:
        name = await newest_model(models, name)
        if name not in explainers or explainers[name].classifier is not models[name]:
            explainers[name] = Explainer(name, models[name])
        return explainers[name]

    @app.post("/v1/saliency", **post)
    async def saliency(
        request: Request,
        model: str | None = model_query,
        method: Literal["auto", "grad-cam", "occlusion", "integrated-gradients"] = "auto",
        label: str | None = None,
    ) -> SaliencyMap:
        """Show which regions of the image the prediction depends on, by default for the most likely label."""
        explainer = await get_explainer(model)
        return await _explain(request, explainer, lambda image: explainer.saliency(image, method, label))

    @app.post("/v1/activations", **post)
    async def activations(request: Request, model: str | None = model_query) -> Activations:
        """Show the strongest feature maps of each stage."""
        explainer = await get_explainer(model)
        return await _explain(request, explainer, explainer.activations)

    @app.post("/v1/similar", **post)
    async def similar(request: Request, model: str | None = model_query) -> Similar:
        """Return the most similar training images, if the run has an index of them."""
        explainer = await get_explainer(model)
        return await _explain(request, explainer, explainer.similar)

    @app.get("/v1/samples", dependencies=token, responses=error_schemas(401, 404))
    async def samples(model: str | None = model_query) -> Samples:
        """List some images that the run was not trained on."""
        explainer = await get_explainer(model)
        listed = await run_in_threadpool(lambda: explainer.samples)
        name = quote(explainer.name, safe="")
        return Samples([Sample(label, f"v1/samples/{i}?model={name}") for i, (_, label) in enumerate(listed)])

    @app.get(
        "/v1/samples/{number}", dependencies=token, response_class=Response,
        responses={200: {"content": dict.fromkeys(BROWSER_TYPES.values(), BINARY)}, **error_schemas(401, 404, 422)},
    )  # fmt: skip
    async def sample(number: int, model: str | None = model_query) -> Response:
        """Return the file of one sample."""
        content, kind = await run_in_threadpool((await get_explainer(model)).sample, number)
        return Response(content, headers=HEADERS, media_type=kind)


async def _explain(request: Request, explainer: Explainer, function: Callable[[Image.Image], T]) -> T:
    """Return `function(image)` for the image in the request's body, computed in the server's worker thread."""
    if media_type(request) in (MULTIPART, JSON):
        raise HTTPException(415, "This route takes one image; send it as the body itself, for example as image/jpeg.")
    body = await read_body(request)
    preprocess = explainer.classifier.preprocess
    max_pixels = request.app.state.settings.max_pixels
    work: Awaitable[T] = request.app.state.run_explanation(
        lambda: function(
            decode_image(body, preprocess.channels, value_range=preprocess.value_range, max_pixels=max_pixels)
        )
    )
    return await cancel_on_disconnect(request, asyncio.ensure_future(work))


# ── operations ────────────────────────────────────────────────────────────────────────────────────


def _add_operations_routes(app: FastAPI) -> None:
    state = app.state

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", response_model=dict[str, str], responses={503: {"description": "Restart the server"}})
    async def health() -> Any:
        """Liveness: 200 while the process and all of its threads are alive."""
        return {"status": "alive"} if state.batcher.alive else TextResponse({"status": "broken"}, 503)

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", response_model=dict[str, str], responses={503: {"description": "Stopping or broken"}})
    async def readiness() -> Any:
        """Readiness: 200 while the server should receive requests."""
        if state.stopping or not state.batcher.alive:
            return TextResponse({"status": "stopping" if state.stopping else "broken"}, 503)
        return {"status": "ready"}

    token = [Depends(authorize)]

    @app.get("/metrics", dependencies=token, response_class=Response, responses=error_schemas(401))
    async def prometheus_metrics() -> Response:
        """Metrics in Prometheus format."""
        return Response(state.metrics.render(), media_type=METRICS_TYPE)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        lang = pages.preferred_language(request.headers.get("accept-language", ""))
        headers = {"Content-Security-Policy": pages.DOCS_POLICY, "Vary": "Accept-Language"}
        return HTMLResponse(pages.render_docs(app.openapi(), lang), headers=headers)


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


def add_error_handlers(app: FastAPI) -> None:
    """Convert expected exceptions to JSON errors, in the language that Accept-Language prefers.

    `RequestMiddleware` handles unexpected ones.
    """

    def handle(kind: type[Exception], describe: Callable[[Any], HTTPException]) -> None:
        async def handler(request: Request, error: Any) -> Response:
            described = describe(error)
            translate = _translator(request)
            described.detail = translate.sentence(described.detail)
            response = error_response(described)
            response.headers["Content-Language"] = translate.tag
            return response

        app.add_exception_handler(kind, handler)

    def http_error(error: HTTPException) -> HTTPException:
        known = {"Not Found": "Not found; see /docs for the routes.",
                 "Method Not Allowed": "Method not allowed; see /docs for the routes."}  # fmt: skip
        return HTTPException(error.status_code, known.get(error.detail, error.detail), error.headers)

    def invalid_parameter(error: RequestValidationError) -> HTTPException:
        first = error.errors()[0]
        name, reason = first["loc"][-1], first["msg"]
        return HTTPException(422, f"Invalid {name}: {reason[:1].lower()}{reason[1:]}; see /docs.")

    def busy(error: ServerBusy) -> HTTPException:
        message = f"The server is busy; retry in {error.seconds} s."
        return HTTPException(503, message, {"Retry-After": str(error.seconds)})

    async def disconnected(_: Request, __: Exception) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    handle(HTTPException, http_error)
    handle(RequestValidationError, invalid_parameter)
    handle(ServerBusy, busy)
    handle(NotAvailable, lambda error: HTTPException(404, str(error)))
    handle(UserError, lambda error: HTTPException(422, str(error)))
    handle(BadImage, lambda error: HTTPException(422, str(error)))
    handle(
        TooManyPixels, lambda error: HTTPException(413, f"The image is too large ({error.reason}); send a smaller one.")
    )
    app.add_exception_handler(ClientDisconnect, disconnected)


def _translator(request: Request) -> Translator:
    return Translator(pages.preferred_language(request.headers.get("accept-language", "")))
