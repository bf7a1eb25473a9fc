"""Reading untrusted request bodies within limits, the images in them, JSON responses, and work that clients wait for.

Nothing is written to disk. A client's file name is only a label in the response and is never opened.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, Iterator
from pathlib import PurePosixPath
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from alexnet.serving.batching import ServerBusy
from alexnet.serving.settings import Settings

MULTIPART, JSON, RAW = "multipart/form-data", "application/json", "application/octet-stream"
FIELD = "images"  # field name in forms and in JSON
MAX_NAME_LENGTH = 255
WATCH_AFTER_S = 0.5  # watching for a disconnect costs as much as a response, so fast requests are not watched
LARGE_JSON = 256 << 10  # bytes; a larger body is parsed in a thread, so that it does not block the event loop

logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # it warns of every invalid form: they fill the disk

T = TypeVar("T")

NamedImage = tuple[str, bytes]
"""An image: its name in the response, and the bytes of the file."""


class TextResponse(JSONResponse):
    """JSON whose text is readable, with escapes only for lone surrogates, which UTF-8 cannot encode."""

    encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode

    def render(self, content: Any) -> bytes:
        return self.encode(content).encode("utf-8", "backslashreplace")


def error_response(error: HTTPException) -> Response:
    """Return the JSON response of an error: one sentence that says what is wrong and how to fix it."""
    return TextResponse({"error": error.detail}, error.status_code, error.headers)


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────


class BodyBudget:
    """The bytes of request bodies in memory, by the ASGI scope of their request, and the limit of their sum."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0

    def add(self, scope: Any, count: int) -> None:
        """Count `count` bytes until `release`. Raises `ServerBusy` beyond the limit."""
        if self.bytes + count > self.limit:
            raise ServerBusy(1)
        self.bytes += count
        scope["alexnet.held"] = scope.get("alexnet.held", 0) + count

    def release(self, scope: Any) -> None:
        """Subtract the bytes of a request."""
        self.bytes -= scope.pop("alexnet.held", 0)


async def read_body(request: Request) -> bytes:
    """Return the body of a request, whose bytes count against the server's budget until its response.

    Raises `HTTPException` for a body that is encoded (415), too large (413) or too slow (408), `ServerBusy` if it
    exceeds the budget, and starlette's `ClientDisconnect`.
    """
    settings: Settings = request.app.state.settings
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPException(415, f"Content-Encoding {encoding[:40]} is not supported; send the body unencoded.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > settings.max_bytes:
        raise _body_too_large(settings)
    chunks: list[bytes] = []
    size = 0
    with _time_limit(settings.timeout):
        async for chunk in request.stream():
            size += len(chunk)
            if size > settings.max_bytes:
                raise _body_too_large(settings)
            request.app.state.body_budget.add(request.scope, len(chunk))
            chunks.append(chunk)
    return b"".join(chunks)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `HTTPException` (408) in this task after `seconds`.

    Python 3.10 lacks `asyncio.timeout`; `wait_for` needs another task, which waits for the GIL twice.
    """
    task, expired = asyncio.current_task(), False

    def expire() -> None:
        nonlocal expired
        expired = True
        assert task is not None
        task.cancel()

    timer = asyncio.get_running_loop().call_later(seconds, expire)
    try:
        yield
    except asyncio.CancelledError:
        if not expired:
            raise
        if uncancel := getattr(task, "uncancel", None):  # Python 3.11 and later
            uncancel()
        message = f"The body did not arrive within {seconds:g} s; send fewer or smaller images."
        raise HTTPException(408, message, {"Connection": "close"}) from None
    finally:
        timer.cancel()


def _body_too_large(settings: Settings) -> HTTPException:
    return HTTPException(413, f"The body is larger than {settings.max_bytes:,} bytes; send fewer or smaller images.")


# ── images ────────────────────────────────────────────────────────────────────────────────────────


def media_type(request: Request) -> str:
    """Return the media type of the body in lower case. Raises `HTTPException` (415) if it cannot contain images."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in (MULTIPART, JSON, RAW) or kind.startswith("image/"):
        return kind
    given = f"Content-Type {kind[:60]} is not supported" if kind else "The Content-Type header is missing"
    raise HTTPException(415, f"{given}; send one image as image/jpeg, image/png …, several as {MULTIPART} or {JSON}.")


async def read_images(request: Request) -> list[NamedImage]:
    """Return the images of a request, at least one. Raises as `read_body`, and `HTTPException` for invalid bodies."""
    kind, limit = media_type(request), request.app.state.settings.max_images
    body = await read_body(request)
    if kind == MULTIPART:
        images = await _parse_form(request, body, limit)
    elif kind == JSON:
        images = _parse_json(body) if len(body) <= LARGE_JSON else await asyncio.to_thread(_parse_json, body)
    else:
        images = [("1", body)]
    if not images:
        raise HTTPException(422, f"The body contains no images; send them in the field {FIELD}.")
    if len(images) > limit:
        raise _too_many_images(limit)
    return images


def _too_many_images(limit: int) -> HTTPException:
    return HTTPException(413, f"The request has more than {limit} images; split it into several requests.")


def _bad_form(reason: str) -> HTTPException:
    return HTTPException(422, f"The form cannot be parsed ({reason}); send it the way curl -F does.")


async def _parse_form(request: Request, body: bytes, max_images: int) -> list[NamedImage]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    # always UTF-8: some codecs that a charset can name raise, others take time quadratic in the text's length
    _, options = parse_options_header(request.headers["content-type"])
    boundary = options.get(b"boundary", b"").decode("latin-1")
    if not boundary or '"' in boundary or "\\" in boundary:
        raise _bad_form("its Content-Type has no valid boundary")
    headers = Headers({"content-type": f'{MULTIPART}; boundary="{boundary}"'})
    # one part more than allowed is parsed, so that exceeding the limit gets its own error
    limit = max_images + 1
    parser = MultiPartParser(headers, stream(), max_files=limit, max_fields=limit, max_part_size=len(body) + 1)
    parser.spool_max_size = 0  # no temporary files: the body is in memory already, and limited
    try:
        parts = (await parser.parse()).multi_items()
    except MultiPartException as error:
        if "Too many" in error.message:
            raise _too_many_images(max_images) from None
        raise _bad_form(error.message.rstrip(".")) from None
    images: list[NamedImage] = []
    for name, part in parts:
        if name != FIELD:
            shown = display_name(name, "?")
            raise HTTPException(422, f"Unknown form field {shown!r}; send images as files named {FIELD}.")
        if not isinstance(part, UploadFile):
            raise HTTPException(422, f"The field {FIELD} must be a file, not text; with curl: -F '{FIELD}=@photo.jpg'.")
        images.append((display_name(part.filename, str(len(images) + 1)), part.file.read()))
    return images


def display_name(name: str | None, default: str) -> str:
    """Return the last path component of a client's file name without unprintable characters, or `default`."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    text = "".join(c for c in last if c.isprintable())[:MAX_NAME_LENGTH]
    return text if text.strip(". ") else default


class ImagesDocument(msgspec.Struct, forbid_unknown_fields=True):
    """The JSON document of a request."""

    images: list[bytes]
    """The bytes of image files, in base64."""


class LenientDocument(msgspec.Struct, forbid_unknown_fields=True):
    """The same with base64 in the forms that clients produce, which takes longer to read; see `_decode_base64`."""

    images: list[str]


def _parse_json(body: bytes) -> list[NamedImage]:
    body = body.removeprefix(codecs.BOM_UTF8)
    if body.count(b'"images"') > 1:  # msgspec would keep the last list only
        raise _bad_json(f"{FIELD} appears more than once")
    try:
        try:
            images = msgspec.json.decode(body, type=ImagesDocument).images
        except msgspec.ValidationError:
            images = [_decode_base64(text) for text in msgspec.json.decode(body, type=LenientDocument).images]
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _bad_json(str(error).replace("`", "")[:200]) from None
    return [(str(number), data) for number, data in enumerate(images, 1)]


def _bad_json(reason: str) -> HTTPException:
    return HTTPException(422, f'The JSON document must have the form {{"{FIELD}": ["<base64>", …]}} ({reason}).')


def _decode_base64(text: str) -> bytes:
    """Decode base64 as a data URL, in lines, with the alphabet for URLs or without padding. Raises `ValueError`."""
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("a data URL must contain ;base64 and a comma")
        text = unquote(text)
    text = "".join(text.split()).rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)


# ── results ───────────────────────────────────────────────────────────────────────────────────────


async def cancel_on_disconnect(request: Request, work: asyncio.Future[T]) -> T:
    """Return the result of `work`, and cancel it when the client disconnects or the request times out.

    Raises starlette's `ClientDisconnect`, or `HTTPException` (503). The body must have been read. Work that finishes
    within `WATCH_AFTER_S` is not watched.
    """
    timeout = request.app.state.settings.timeout
    delay = min(WATCH_AFTER_S, timeout / 2)
    watcher: asyncio.Future[bool] | None = None

    def watch() -> None:
        nonlocal watcher
        watcher = asyncio.ensure_future(_disconnects(request, timeout - delay))
        watcher.add_done_callback(lambda _: work.cancel())  # does nothing if the work is done

    timer = asyncio.get_running_loop().call_later(delay, watch)
    try:
        return await work
    except asyncio.CancelledError:
        if watcher is None or not watcher.done() or watcher.cancelled():
            raise
        if watcher.result():
            raise ClientDisconnect from None
        seconds = request.app.state.batcher.retry_after()
        message = f"The request timed out after {timeout:g} s in the queue; retry in {seconds} s."
        raise HTTPException(503, message, {"Retry-After": str(seconds)}) from None
    finally:
        timer.cancel()
        if watcher is not None:
            watcher.cancel()


async def _disconnects(request: Request, seconds: float) -> bool:
    """Return whether the client disconnects within `seconds`."""

    async def wait() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    try:
        await asyncio.wait_for(wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True
