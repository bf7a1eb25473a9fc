"""Who may send a request, and which model it is for."""

from __future__ import annotations

import hmac

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from alexnet.errors import unknown_name
from alexnet.serving.registry import Models
from alexnet.serving.settings import Settings


async def authorize(request: Request) -> None:
    """Raise `HTTPException` for a POST of another site's page (403) or a request without the server's token (401).

    A browser sends the requests of any page with its user's network access.
    """
    settings: Settings = request.app.state.settings
    if request.method == "POST" and not _is_same_site(request, settings.cors):
        raise HTTPException(
            403, "Cross-site requests are not allowed; start the server with --cors and your site's origin."
        )
    if settings.token is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(given.strip().encode("utf-8", "replace"), settings.token.encode())
    if scheme.lower() != "bearer" or not same:
        raise HTTPException(
            401,
            "This server requires a token; send the header 'Authorization: Bearer <token>'.",
            {"WWW-Authenticate": "Bearer"},
        )


def _is_same_site(request: Request, origins: tuple[str, ...]) -> bool:
    """Return whether a request comes from a program, our page or a page of one of `origins`."""
    headers = request.headers
    site = headers.get("sec-fetch-site", "").lower()  # browsers send it to https and to this machine
    if site in ("same-origin", "none"):
        return True
    if "origin" not in headers:
        return site != "cross-site"
    origin, host = headers["origin"].strip(), headers.get("host", "").strip()
    same = bool(host) and origin.lower().partition("://")[2] == host.lower()
    return same or origin in origins or "*" in origins


def model_name(models: Models, name: str | None) -> str:
    """Return the model `name`, by default the first. Raises `HTTPException` (404)."""
    if name is not None and name in models:  # nearly always
        return name
    if name is not None and name not in models.names:
        raise HTTPException(404, str(unknown_name("model", name[:100], models.names)))
    return name or models.names[0]


async def newest_model(models: Models, name: str | None) -> str:
    """Return the model `name`, by default the first, with the newest checkpoint of its run loaded.

    Raises `HTTPException` if it is unknown (404) or a run without a checkpoint (503).
    """
    name = model_name(models, name)
    if models.is_outdated(name):
        await run_in_threadpool(models.refresh, name)
    if name not in models:
        raise HTTPException(
            503, f"{name} has no checkpoint yet; its training writes one after each epoch.", {"Retry-After": "5"}
        )
    return name
