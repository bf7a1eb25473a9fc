"""Reading untrusted request bodies within limits, and the images in them.

Nothing is written to disk. A client's file name is only a label in the response and is never opened.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
from collections.abc import AsyncGenerator
from pathlib import PurePosixPath
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response

from alexnet.serving.settings import Settings

MULTIPART, JSON, RAW = "multipart/form-data", "application/json", "application/octet-stream"
FIELD = "images"  # field name in forms and in JSON
MAX_NAME_LENGTH = 255
CHUNK = 256 << 10
"""Bytes, a multiple of 4. A larger JSON body is parsed in a thread, so that it does not block the event loop."""

NamedImage = tuple[str, bytes]
"""An image: its name in the response, and the bytes of the file."""


class HTTPError(Exception):
    """An error response: `status`, and one sentence that says what is wrong and how to fix it."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, message)
        self.status, self.message, self.headers = status, message, headers or {}


_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return `document` as a JSON response; lone surrogates are written as escapes."""
    text = _ENCODER.encode(document)
    return Response(text.encode("utf-8", "backslashreplace"), status, headers, "application/json")


def error_response(error: HTTPError) -> Response:
    """Return the JSON response of an error."""
    return json_response({"error": error.message}, error.status, error.headers)


def service_unavailable(seconds: int) -> HTTPError:
    """Return the 503 of a busy server, with Retry-After."""
    return HTTPError(503, f"The server is busy; retry in {seconds} s.", {"Retry-After": str(seconds)})


# ── bodies ────────────────────────────────────────────────────────────────────────────────────────


class BodyBudget:
    """Total bytes of request bodies in memory (`bytes`), and their limit."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises `HTTPError` for a body that is too large (413), too slow (408) or exceeds the shared budget (503), and
    starlette's `ClientDisconnect`. Its bytes count against the budget until `release_body`.
    """
    settings: Settings = request.app.state.settings
    budget: BodyBudget = request.app.state.body_budget
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPError(415, f"Content-Encoding {encoding[:40]} is not supported; send the body unencoded.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > settings.max_bytes:
        raise _body_too_large(settings)
    chunks: list[bytes] = []
    size = 0
    with _Deadline(settings.timeout):
        async for chunk in request.stream():
            size += len(chunk)
            if size > settings.max_bytes:
                raise _body_too_large(settings)
            if budget.bytes + len(chunk) > budget.limit:
                raise service_unavailable(1)
            budget.bytes += len(chunk)
            request.scope["alexnet.held"] = request.scope.get("alexnet.held", 0) + len(chunk)
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def release_body(scope: Any, budget: BodyBudget) -> None:
    """Return the bytes of a request's body to the budget."""
    budget.bytes -= scope.pop("alexnet.held", 0)


class _Deadline:
    """Context manager that raises `HTTPError` (408) in its task after `seconds`.

    Does what `asyncio.timeout` does, which Python 3.10 lacks, in a tenth of the time of anyio's.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._expired = seconds, False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self._expired = True
        assert self._task is not None
        self._task.cancel()

    def __exit__(self, kind: Any, *_: object) -> None:
        self._timer.cancel()
        if kind is asyncio.CancelledError and self._expired:
            if uncancel := getattr(self._task, "uncancel", None):  # Python 3.11 and later
                uncancel()
            message = f"The body did not arrive within {self._seconds:g} s; send fewer or smaller images."
            raise HTTPError(408, message, {"Connection": "close"}) from None


def _body_too_large(settings: Settings) -> HTTPError:
    return HTTPError(413, f"The body is larger than {settings.max_bytes:,} bytes; send fewer or smaller images.")


# ── images ────────────────────────────────────────────────────────────────────────────────────────


def media_type(request: Request) -> str:
    """Return the media type of the body in lower case. Raises `HTTPError` (415) if it cannot contain images."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in (MULTIPART, JSON, RAW) or kind.startswith("image/"):
        return kind
    given = f"Content-Type {kind[:60]} is not supported" if kind else "The Content-Type header is missing"
    raise HTTPError(415, f"{given}; send one image as image/jpeg, image/png …, several as {MULTIPART} or {JSON}.")


async def read_images(request: Request, settings: Settings) -> list[NamedImage]:
    """Return the images of a request, at least one. Raises `HTTPError`."""
    kind = media_type(request)
    body = await read_body(request)
    if kind == MULTIPART:
        images = await _parse_form(request, body, settings.max_images)
    elif kind == JSON:
        images = _parse_json(body) if len(body) <= CHUNK else await asyncio.to_thread(_parse_json, body)
    else:
        images = [("1", body)]
    if not images:
        raise HTTPError(422, f"The body contains no images; send them in the field {FIELD}.")
    if len(images) > settings.max_images:
        raise _too_many_images(settings.max_images)
    return images


def _too_many_images(limit: int) -> HTTPError:
    return HTTPError(413, f"The request has more than {limit} images; split it into several requests.")


def _bad_form(reason: str) -> HTTPError:
    return HTTPError(422, f"The form cannot be parsed ({reason}); send it the way curl -F does.")


class _InMemoryParser(MultiPartParser):
    spool_max_size = 0  # no temporary files: the body is in memory already, and limited


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
    parser = _InMemoryParser(headers, stream(), max_files=limit, max_fields=limit, max_part_size=len(body) + 1)
    try:
        parts = (await parser.parse()).multi_items()
    except MultiPartException as error:
        if "Too many" in error.message:
            raise _too_many_images(max_images) from None
        raise _bad_form(error.message.rstrip(".")) from None
    images: list[NamedImage] = []
    for name, part in parts:
        if name != FIELD:
            raise HTTPError(422, f"Unknown form field {display_name(name, '?')!r}; send images as files named {FIELD}.")
        if not isinstance(part, UploadFile):
            raise HTTPError(422, f"The field {FIELD} must be a file, not text; with curl: -F '{FIELD}=@photo.jpg'.")
        images.append((display_name(part.filename, str(len(images) + 1)), part.file.read()))
    return images


def display_name(name: str | None, default: str) -> str:
    """Return the last path component of a client's file name without unprintable characters, or `default`."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    text = "".join(c for c in last if c.isprintable())[:MAX_NAME_LENGTH]
    return text if text.strip(". ") else default


def _parse_json(body: bytes) -> list[NamedImage]:
    example = f'{{"{FIELD}": ["<base64>", …]}}'
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPError(422, f"The body is not valid JSON; send {example}.") from None
    texts = document.get(FIELD) if isinstance(document, dict) else None
    if not isinstance(texts, list) or len(document) != 1:
        raise HTTPError(422, f"The JSON document must have the form {example}.")
    images: list[NamedImage] = []
    for number, text in enumerate(texts, 1):
        try:
            images.append((str(number), _decode_base64(text.encode("ascii"))))
        except (AttributeError, UnicodeError, binascii.Error):
            raise HTTPError(422, f"Image {number} is not valid base64; send the encoded bytes of its file.") from None
    return images


def _decode_base64(text: bytes) -> bytes:
    """Decode in chunks, so that other threads can run in between. Raises `binascii.Error`."""
    if b"=" in text[:-2]:
        raise binascii.Error
    return b"".join(base64.b64decode(text[i : i + CHUNK], validate=True) for i in range(0, len(text), CHUNK))
