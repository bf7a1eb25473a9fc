"""The routes for programs: /v1/predict, /v1/models, /healthz, /readyz, /metrics.

Every error is {"error": "one sentence"} with its status. Bodies are read here and not by FastAPI, which would read
them whole, or onto the disk, before anybody counts.
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
from alexnet.serving.registry import ModelRegistry, ServedModel, looks_of
from alexnet.serving.requests import (
    FIELD,
    JSON,
    MULTIPART,
    RAW,
    HTTPError,
    Named,
    error_response,
    json_response,
    pictures_in,
    service_unavailable,
)
from alexnet.serving.settings import Settings

AT_ONCE = 0.5  # seconds; to watch a client costs as much as to answer it
GONE = 499  # for the counts: there is nobody to answer


class Label(BaseModel):
    """One label of a picture."""

    label: str
    p: float


class Labelled(BaseModel):
    """What the network says of one picture, or why nothing."""

    path: str
    labels: list[Label]
    unsure: bool | None
    confidence: float | None
    error: str | None


class Predictions(BaseModel):
    """The answer of /v1/predict."""

    model: str
    predictions: list[Labelled]


class Problem(BaseModel):
    """Why a request is not answered as it asks, and what helps, in one sentence."""

    error: str


SAYS = {
    401: "No token, or another one", 403: "A page of another web site asks", 404: "No network of that name",
    408: "The body came too slowly", 413: "Too many bytes, pixels or pictures", 415: "A body of another type",
    421: "The server has another name", 422: "Nothing that can be labelled", 500: "A fault of the server's own",
    503: "Too much to do; Retry-After tells when to ask again",
}  # fmt: skip


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may answer beside what it is for, as FastAPI declares it."""
    return {status: {"model": Problem, "description": SAYS[status]} for status in (*statuses, 421)}


async def allowed(request: Request) -> None:
    """Raise `Refused` (401) unless the request bears the server's token, if it has one; for FastAPI's `Depends`."""
    token = request.app.state.settings.token
    if token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), token.encode())
    if scheme.lower() != "bearer" or not same:
        raise HTTPError(
            401,
            "This server wants a token; send the header 'Authorization: Bearer <token>'.",
            {"WWW-Authenticate": "Bearer"},
        )


def pick(models: ModelRegistry, name: str | None) -> ServedModel:
    """The network called `name`, the first one unless given. Raises `Refused` (404)."""
    if name is not None and name not in models:
        raise HTTPError(404, str(unknown_name("model", name[:100], list(models))))
    return models[name or models.default]


async def label(request: Request) -> Response:
    """What /v1/predict answers, once FastAPI, or `Door` in its place, has found it. Raises what `tell_errors` knows."""
    state = request.app.state
    await allowed(request)
    served, top, views = _wanted(request, state.models)
    batcher: Batcher = state.batcher
    if batcher.full:  # before its body is read
        raise service_unavailable(batcher.retry_after())
    pictures = await pictures_in(request, state.settings)
    try:
        outcomes = await unless_gone(request, batcher.label(served, [data for _, data in pictures], views))
    except QueueFull as error:
        raise service_unavailable(error.seconds) from None
    _check(pictures, outcomes)
    predictions = [_prediction(served, *both, top) for both in zip(pictures, outcomes, strict=True)]
    return json_response({"model": served.name, "predictions": [p.to_dict() for p in predictions]})


async def label_directly(request: Request) -> Response:
    """`label`, without FastAPI's way to it and back, which takes longer than a small network for a small picture."""
    try:
        return await label(request)
    except HTTPError as error:
        return error_response(error)
    except UserError as error:
        return json_response({"error": str(error)}, 422)
    except ClientDisconnect:
        return Response(status_code=GONE)


def router(models: ModelRegistry, settings: Settings) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1")
    most = max(len(one.classifier.classes) for one in models.values())
    files = {"type": "array", "minItems": 1, "maxItems": settings.max_images}
    binary = {"schema": {"type": "string", "format": "binary"}}
    body = {
        MULTIPART: {"schema": _object({**files, "items": {"type": "string", "format": "binary"}})},
        JSON: {"schema": _object({**files, "items": {"type": "string", "format": "byte"}})},
        "image/*": binary,
        RAW: binary,
    }

    parameters = [
        _query("model", {"type": "string", "enum": [*models]}, "The first network unless given."),
        _query("top_k", {"type": "integer", "minimum": 1, "maximum": most}, "How many labels; 5 unless given."),
        _query("ten_crop", {"type": "boolean"}, "Average ten views, as the paper does."),
    ]

    @routes.post(
        "/predict",
        response_model=Predictions,
        responses=problems(401, 403, 404, 408, 413, 415, 422, 503),
        openapi_extra={"parameters": parameters, "requestBody": {"required": True, "content": body}},
    )
    async def predict(request: Request) -> Response:
        """Label pictures: one as the body itself, several as a form or as base64 in JSON.

        One that cannot be read has its `error`, and the rest their labels; if none can be read, that is 422.
        """
        return await label(request)

    @routes.get("/models", dependencies=[Depends(allowed)], responses=problems(401))
    async def list_models() -> dict[str, Any]:
        """What networks there are, and what may be sent."""
        limits = {"bytes": settings.max_bytes, "pixels": settings.max_pixels, "images": settings.max_images}
        return {"default": models.default, "models": [_describe(one, limits) for one in models.values()]}

    return routes


def _object(images: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [FIELD], "properties": {FIELD: images}, "additionalProperties": False}


def _query(name: str, schema: dict[str, Any], what: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": what}


def _wanted(request: Request, models: ModelRegistry) -> tuple[ServedModel, int, int]:
    """The network, the number of labels and the number of views that a request asks for. Raises `Refused`."""
    asked = request.query_params
    if unknown := asked.keys() - {"model", "top_k", "ten_crop"}:
        raise HTTPError(422, str(unknown_name("parameter", min(unknown)[:100], ("model", "top_k", "ten_crop"))))
    served = pick(models, asked.get("model"))
    classes = len(served.classifier.classes)
    top_k = asked.get("top_k", str(min(5, classes)))
    if not (top_k.isascii() and top_k.isdecimal() and len(top_k) < 10 and 1 <= int(top_k) <= classes):
        raise HTTPError(
            422, f"The parameter top_k must be a number from 1 to {classes}, as many as {served.name} knows classes."
        )
    ten_crop = asked.get("ten_crop", "false").lower()
    if ten_crop not in ("true", "false", "1", "0"):
        raise HTTPError(422, "The parameter ten_crop must be true or false.")
    return served, int(top_k), 10 if ten_crop in ("true", "1") else 1


def _describe(one: ServedModel, limits: dict[str, int]) -> dict[str, Any]:
    preprocess = one.classifier.preprocess
    return {
        "name": one.name, "architecture": one.architecture, "classes": list(one.classifier.classes),
        "image_size": preprocess.size, "channels": preprocess.channels, "engine": one.engine,
        "precision": one.precision, "views": [1, 10], "looks": looks_of(one), "limits": limits,
    }  # fmt: skip


def _check(pictures: list[Named], outcomes: list[Outcome]) -> None:
    """Raise `Refused` if none of the pictures has an answer, or if one failed by a fault of ours."""
    bad = [outcome for outcome in outcomes if isinstance(outcome, DecodeFailure)]
    if any(one.result == FAILED for one in bad):
        raise HTTPError(500, "The server failed to label this; its log tells why.")
    if len(bad) < len(outcomes):
        return
    reasons = "; ".join(f"{name}: {one.reason}" for (name, _), one in zip(pictures[:3], bad, strict=False))
    if any(one.result == TOO_LARGE for one in bad):
        raise HTTPError(413, f"The picture is too large ({reasons}); send a smaller one.")
    raise HTTPError(422, f"No picture could be read ({reasons}); send JPEG, PNG or another plain format.")


def _prediction(served: ServedModel, picture: Named, outcome: Outcome, top: int) -> Prediction:
    name = picture[0]
    if isinstance(outcome, DecodeFailure):
        return Prediction(name, error=outcome.reason)
    return served.classifier.to_prediction(name, outcome, top)


async def unless_gone(request: Request, work: asyncio.Future[Any]) -> Any:
    """What `work` gives, which is cancelled if the client goes, or if it takes longer than a request may wait; then
    raises starlette's `ClientDisconnect`, or `Refused` (503).

    The body must have been read. Who is answered at once is not watched.
    """
    watching: list[asyncio.Task[bool]] = []
    patience = request.app.state.settings.timeout
    unwatched = min(AT_ONCE, patience / 2)

    def watch() -> None:
        watching.append(asyncio.ensure_future(_gone(request, patience - unwatched)))
        watching[0].add_done_callback(lambda _: work.cancel())  # nothing happens to what is done

    timer = asyncio.get_running_loop().call_later(unwatched, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if watching and watching[0].done() and not watching[0].cancelled():
            if watching[0].result():
                raise ClientDisconnect from None
            seconds = request.app.state.batcher.retry_after()
            raise HTTPError(
                503, f"The server did not come to it within {patience:g} s; ask again in {seconds} s.",
                {"Retry-After": str(seconds)},
            ) from None  # fmt: skip
        raise
    finally:
        timer.cancel()
        for task in watching:
            task.cancel()


async def _gone(request: Request, seconds: float) -> bool:
    """True when the client has gone, False if it is still there after so many seconds."""

    async def go() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(go(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


# ── errors ────────────────────────────────────────────────────────────────────────────────────────────────────


def tell_errors(app: FastAPI) -> None:
    """Make what is raised an answer; what should not have been raised is left to `Door`."""

    async def refuse(_: Request, error: Any) -> Response:
        return error_response(error)

    async def http(_: Request, error: Any) -> Response:
        known = {404: "There is nothing here; /docs tells what there is.", 405: "This path takes another method."}
        return json_response(
            {"error": known.get(error.status_code, str(error.detail))}, error.status_code, error.headers
        )

    async def invalid(_: Request, error: Any) -> Response:
        first = error.errors()[0]
        where, why = first["loc"][-1], first["msg"]
        return json_response(
            {"error": f"{where} cannot be that: {why[:1].lower()}{why[1:]}; /docs tells what it takes."}, 422
        )

    async def bad_input(_: Request, error: Any) -> Response:
        return json_response({"error": str(error)}, 422)

    async def gone(_: Request, __: Any) -> Response:
        return Response(status_code=GONE)

    for kind, handler in {
        HTTPError: refuse, HTTPException: http, RequestValidationError: invalid, UserError: bad_input,
        BadImage: bad_input, ClientDisconnect: gone,
    }.items():  # fmt: skip
        app.add_exception_handler(kind, handler)
