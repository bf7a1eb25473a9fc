"""Routes under /v1 for programs (/v1/predict, /v1/models), and the JSON errors of all routes.

Every error is {"error": "one sentence"} with its status. Bodies are read here rather than by FastAPI, which would read
them completely, or spool them to disk, before any limit applies.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from alexnet.data.decode import BadImage
from alexnet.errors import UserError, unknown_name
from alexnet.inference.predict import Prediction
from alexnet.serving.batching import Batcher, DecodeFailure, Outcome, QueueFull
from alexnet.serving.metrics import FAILED, TOO_LARGE
from alexnet.serving.registry import ModelRegistry, ServedModel, explanations
from alexnet.serving.requests import (
    FIELD,
    JSON,
    MULTIPART,
    RAW,
    HTTPError,
    NamedImage,
    error_response,
    json_response,
    read_images,
    service_unavailable,
)
from alexnet.serving.settings import Settings

WATCH_AFTER_S = 0.5  # watching for a disconnect costs as much as a response, so fast requests are not watched
CLIENT_CLOSED = 499  # nginx's status of a disconnected client; only seen in the metrics


class Label(BaseModel):
    """A label and its probability."""

    label: str
    p: float


class ImagePrediction(BaseModel):
    """The labels of one image, or its error."""

    path: str
    labels: list[Label]
    unsure: bool | None
    confidence: float | None
    error: str | None


class Predictions(BaseModel):
    """Response of /v1/predict."""

    model: str
    predictions: list[ImagePrediction]


class Error(BaseModel):
    """What is wrong and how to fix it, in one sentence."""

    error: str


STATUS_DESCRIPTIONS = {
    401: "Missing or wrong token", 403: "Cross-site request", 404: "Unknown model", 408: "Body received too slowly",
    413: "Too many bytes, pixels or images", 415: "Unsupported media type", 421: "Wrong host name",
    422: "Unprocessable image or parameters", 500: "Internal server error", 503: "Server busy; see Retry-After",
}  # fmt: skip


def error_schemas(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of a route, as FastAPI declares them."""
    return {status: {"model": Error, "description": STATUS_DESCRIPTIONS[status]} for status in (*statuses, 421)}


async def require_token(request: Request) -> None:
    """Raise `HTTPError` (401) unless the request carries the server's token, if it has one. For FastAPI's `Depends`."""
    token = request.app.state.settings.token
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    if scheme.lower() != "bearer" or not same:
        raise HTTPError(
            401,
            "This server requires a token; send the header 'Authorization: Bearer <token>'.",
            {"WWW-Authenticate": "Bearer"},
        )


def get_model(models: ModelRegistry, name: str | None) -> ServedModel:
    """Return the model `name`, by default the first. Raises `HTTPError` (404)."""
    if name is not None and name not in models:
        raise HTTPError(404, str(unknown_name("model", name[:100], list(models))))
    return models[name or models.default]


def create_router(models: ModelRegistry, settings: Settings) -> APIRouter:
    """Return the routes under /v1 for programs."""
    router = APIRouter(prefix="/v1")
    max_classes = max(len(served.classifier.classes) for served in models.values())
    binary = {"schema": {"type": "string", "format": "binary"}}
    body = {
        MULTIPART: {"schema": _images_schema("binary", settings.max_images)},
        JSON: {"schema": _images_schema("byte", settings.max_images)},
        "image/*": binary,
        RAW: binary,
    }
    top_k = {"type": "integer", "minimum": 1, "maximum": max_classes}
    parameters = [
        _query_parameter("model", {"type": "string", "enum": [*models]}, "Default: the first model."),
        _query_parameter("top_k", top_k, "Number of labels; default 5."),
        _query_parameter("ten_crop", {"type": "boolean"}, "Average ten crops, as in the paper."),
    ]

    @router.post(
        "/predict",
        response_model=Predictions,
        responses=error_schemas(401, 403, 404, 408, 413, 415, 422, 503),
        openapi_extra={"parameters": parameters, "requestBody": {"required": True, "content": body}},
    )
    async def predict(request: Request) -> Response:
        """Classify images: one as the body itself, several as a multipart form or as base64 in JSON.

        An unreadable image gets an `error` and the others their labels; if no image is readable, the status is 422.
        """
        return await _predict(request)

    @router.get("/models", dependencies=[Depends(require_token)], responses=error_schemas(401))
    async def list_models() -> dict[str, Any]:
        """List the models and the request limits."""
        limits = {"bytes": settings.max_bytes, "pixels": settings.max_pixels, "images": settings.max_images}
        return {"default": models.default, "models": [_describe_model(served, limits) for served in models.values()]}

    return router


def _images_schema(form: str, max_images: int) -> dict[str, Any]:
    images = {
        "type": "array", "minItems": 1, "maxItems": max_images, "items": {"type": "string", "format": form},
    }  # fmt: skip
    return {"type": "object", "required": [FIELD], "properties": {FIELD: images}, "additionalProperties": False}


def _query_parameter(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _describe_model(served: ServedModel, limits: dict[str, int]) -> dict[str, Any]:
    preprocess = served.classifier.preprocess
    return {
        "name": served.name, "architecture": served.architecture, "classes": list(served.classifier.classes),
        "image_size": preprocess.size, "channels": preprocess.channels, "engine": served.engine,
        "precision": served.precision, "views": [1, 10], "looks": explanations(served), "limits": limits,
    }  # fmt: skip


# ── /v1/predict ───────────────────────────────────────────────────────────────────────────────────


async def _predict(request: Request) -> Response:
    """Return the response of /v1/predict. Raises the exceptions that `add_error_handlers` handles."""
    state = request.app.state
    await require_token(request)
    served, top, views = _parse_query(request, state.models)
    batcher: Batcher = state.batcher
    if batcher.full:  # checked before the body is read
        raise service_unavailable(batcher.retry_after())
    images = await read_images(request, state.settings)
    try:
        outcomes = await cancel_on_disconnect(request, batcher.predict(served, [data for _, data in images], views))
    except QueueFull as error:
        raise service_unavailable(error.seconds) from None
    _raise_failures(images, outcomes)
    predictions = [
        _to_prediction(served, name, outcome, top) for (name, _), outcome in zip(images, outcomes, strict=True)
    ]
    return json_response({"model": served.name, "predictions": [p.to_dict() for p in predictions]})


async def predict_directly(request: Request) -> Response:
    """Handle /v1/predict without FastAPI's routing, which takes longer than a small network takes for a small image."""
    try:
        return await _predict(request)
    except HTTPError as error:
        return error_response(error)
    except UserError as error:
        return json_response({"error": str(error)}, 422)
    except ClientDisconnect:
        return Response(status_code=CLIENT_CLOSED)


def _parse_query(request: Request, models: ModelRegistry) -> tuple[ServedModel, int, int]:
    """Return the model, the number of labels and the number of views. Raises `HTTPError`."""
    query = request.query_params
    if unknown := query.keys() - {"model", "top_k", "ten_crop"}:
        raise HTTPError(422, str(unknown_name("parameter", min(unknown)[:100], ("model", "top_k", "ten_crop"))))
    served = get_model(models, query.get("model"))
    classes = len(served.classifier.classes)
    top_k = query.get("top_k", str(min(5, classes)))
    if not (top_k.isascii() and top_k.isdecimal() and len(top_k) < 10 and 1 <= int(top_k) <= classes):
        raise HTTPError(
            422, f"The parameter top_k must be an integer from 1 to {classes}, the number of classes of {served.name}."
        )
    ten_crop = query.get("ten_crop", "false").lower()
    if ten_crop not in ("true", "false", "1", "0"):
        raise HTTPError(422, "The parameter ten_crop must be true or false.")
    return served, int(top_k), 10 if ten_crop in ("true", "1") else 1


def _raise_failures(images: list[NamedImage], outcomes: list[Outcome]) -> None:
    """Raise `HTTPError` if no image has a prediction, or if one failed by an internal error."""
    failures = [outcome for outcome in outcomes if isinstance(outcome, DecodeFailure)]
    if any(failure.result == FAILED for failure in failures):
        raise HTTPError(500, "Internal server error; see the server log.")
    if len(failures) < len(outcomes):
        return
    reasons = "; ".join(f"{name}: {failure.reason}" for (name, _), failure in zip(images[:3], failures, strict=False))
    if any(failure.result == TOO_LARGE for failure in failures):
        raise HTTPError(413, f"The image is too large ({reasons}); send a smaller one.")
    raise HTTPError(422, f"No image could be read ({reasons}); send JPEG, PNG or another common format.")


def _to_prediction(served: ServedModel, name: str, outcome: Outcome, top: int) -> Prediction:
    if isinstance(outcome, DecodeFailure):
        return Prediction(name, error=outcome.reason)
    return served.classifier.to_prediction(name, outcome, top)


async def cancel_on_disconnect(request: Request, work: asyncio.Future[Any]) -> Any:
    """Return the result of `work`, and cancel it when the client disconnects or the request times out.

    Raises starlette's `ClientDisconnect`, or `HTTPError` (503). The body must have been read. Work that finishes within
    `WATCH_AFTER_S` is not watched.
    """
    watchers: list[asyncio.Task[bool]] = []
    timeout = request.app.state.settings.timeout
    delay = min(WATCH_AFTER_S, timeout / 2)

    def watch() -> None:
        watchers.append(asyncio.ensure_future(_wait_for_disconnect(request, timeout - delay)))
        watchers[0].add_done_callback(lambda _: work.cancel())  # does nothing if the work is done

    timer = asyncio.get_running_loop().call_later(delay, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if watchers and watchers[0].done() and not watchers[0].cancelled():
            if watchers[0].result():
                raise ClientDisconnect from None
            seconds = request.app.state.batcher.retry_after()
            raise HTTPError(
                503, f"The request timed out after {timeout:g} s in the queue; retry in {seconds} s.",
                {"Retry-After": str(seconds)},
            ) from None  # fmt: skip
        raise
    finally:
        timer.cancel()
        for task in watchers:
            task.cancel()


async def _wait_for_disconnect(request: Request, seconds: float) -> bool:
    """Return True when the client disconnects, False if it is still connected after `seconds`."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


# ── errors ────────────────────────────────────────────────────────────────────────────────────────


def add_error_handlers(app: FastAPI) -> None:
    """Convert expected exceptions to JSON errors; `RequestMiddleware` handles unexpected ones."""

    async def on_http_error(_: Request, error: Any) -> Response:
        return error_response(error)

    async def on_http_exception(_: Request, error: Any) -> Response:
        known = {404: "Not found; see /docs for the routes.", 405: "Method not allowed; see /docs for the routes."}
        return json_response(
            {"error": known.get(error.status_code, str(error.detail))}, error.status_code, error.headers
        )

    async def on_invalid_parameter(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        name, reason = first["loc"][-1], first["msg"]
        return json_response({"error": f"Invalid {name}: {reason[:1].lower()}{reason[1:]}; see /docs."}, 422)

    async def on_bad_input(_: Request, error: Any) -> Response:
        return json_response({"error": str(error)}, 422)

    async def on_disconnect(_: Request, __: Any) -> Response:
        return Response(status_code=CLIENT_CLOSED)

    for kind, handler in {
        HTTPError: on_http_error, HTTPException: on_http_exception, RequestValidationError: on_invalid_parameter,
        UserError: on_bad_input, BadImage: on_bad_input, ClientDisconnect: on_disconnect,
    }.items():  # fmt: skip
        app.add_exception_handler(kind, handler)
