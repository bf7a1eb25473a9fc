"""What a stranger sends, taken with care: the body with its limits, and the pictures in it.

Nothing is written to the disk. A file name is a label in the answer, and never opened.
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
FIELD = "images"  # of a form, and of a JSON document
LONGEST_NAME = 255
LARGE = 256 << 10
"""Bytes, a multiple of 4: a document beyond that is read in a thread, so that nobody else waits for it."""

Named = tuple[str, bytes]
"""A picture: what to call it in the answer, and the bytes of its file."""


class HTTPError(Exception):
    """A request that is not answered as it asks: `status`, and one sentence that says why and what helps."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, sentence)
        self.status, self.sentence, self.headers = status, sentence, headers or {}


_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def json_response(document: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON."""
    text = _JSON.encode(document)
    return Response(text.encode("utf-8", "backslashreplace"), status, headers, "application/json")


def error_response(error: HTTPError) -> Response:
    """The answer that tells it."""
    return json_response({"error": error.sentence}, error.status, error.headers)


def service_unavailable(seconds: int) -> HTTPError:
    """There is too much to do already."""
    return HTTPError(503, f"The server is busy; ask again in {seconds} s.", {"Retry-After": str(seconds)})


class BodyBudget:
    """The bytes of all bodies in memory, of which there may be so many."""

    def __init__(self, most: int) -> None:
        self.most, self.bytes = most, 0


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises `Refused` for one that is too large (413), too slow (408) or too much beside the
    others (503), and starlette's `ClientDisconnect`.

    What is held is given back by `release`, when the request is answered.
    """
    settings: Settings = request.app.state.settings
    held: BodyBudget = request.app.state.held
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise HTTPError(415, f"The body is encoded as {encoding[:40]}; send it as it is.")
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > settings.max_bytes:
        raise _too_large(settings)
    chunks: list[bytes] = []
    size = 0
    with _Deadline(settings.timeout):
        async for chunk in request.stream():
            size += len(chunk)
            if size > settings.max_bytes:
                raise _too_large(settings)
            if held.bytes + len(chunk) > held.most:
                raise service_unavailable(1)
            held.bytes += len(chunk)
            request.scope["alexnet.held"] = request.scope.get("alexnet.held", 0) + len(chunk)
            chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class _Deadline:
    """Raises `Refused` (408) in the task inside it after so many seconds. What `asyncio.timeout` is, which Python 3.10
    lacks, in a tenth of the time of anyio's."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._late = seconds, False

    def __enter__(self) -> None:
        self._task = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._expire)

    def _expire(self) -> None:
        self._late = True
        assert self._task is not None
        self._task.cancel()

    def __exit__(self, kind: Any, *_: object) -> None:
        self._timer.cancel()
        if kind is asyncio.CancelledError and self._late:
            if uncancel := getattr(self._task, "uncancel", None):  # from Python 3.11 on
                uncancel()
            sentence = f"The body did not arrive within {self._seconds:g} s; send less at once."
            raise HTTPError(408, sentence, {"Connection": "close"}) from None


def release_body(scope: Any, held: BodyBudget) -> None:
    """Give back what the body of a request took."""
    held.bytes -= scope.pop("alexnet.held", 0)


def check_type(request: Request) -> str:
    """The media type of a request's body, in lower case. Raises `Refused` (415) for one that holds no pictures."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in (MULTIPART, JSON, RAW) or kind.startswith("image/"):
        return kind
    given = f"as {kind[:60]}" if kind else "without a type"
    raise HTTPError(
        415, f"The body came {given}; send a picture as image/jpeg, image/png …, several as {MULTIPART} or {JSON}."
    )


async def pictures_in(request: Request, settings: Settings) -> list[Named]:
    """The pictures that a request brings. Raises `Refused`."""
    kind = check_type(request)
    body = await read_body(request)
    if kind == MULTIPART:
        found = await _form(request, body, settings.max_images)
    elif kind == JSON:
        found = _json(body) if len(body) <= LARGE else await asyncio.to_thread(_json, body)
    else:
        found = [("1", body)]
    if not found:
        raise HTTPError(422, f"The body holds no pictures; name them {FIELD}.")
    if len(found) > settings.max_images:
        raise _too_many(settings.max_images)
    return found


def _too_large(settings: Settings) -> HTTPError:
    return HTTPError(
        413, f"The body is larger than {settings.max_bytes:,} bytes; send fewer or smaller pictures at once."
    )


def _too_many(most: int) -> HTTPError:
    return HTTPError(413, f"The request has more than {most} pictures; send them in several.")


# ── forms ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _not_a_form(why: str) -> HTTPError:
    return HTTPError(422, f"The form cannot be read ({why}); send it as curl -F does.")


class _InMemory(MultiPartParser):
    spool_max_size = 0  # no temporary files: the body is in memory anyway, and limited


async def _form(request: Request, body: bytes, most: int) -> list[Named]:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    # UTF-8 whatever charset is named: some codecs fail, and others take the square of a text's length
    _, told = parse_options_header(request.headers["content-type"])
    boundary = told.get(b"boundary", b"").decode("latin-1")
    if not boundary or '"' in boundary or "\\" in boundary:
        raise _not_a_form("its type names no boundary that could be one")
    headers = Headers({"content-type": f'{MULTIPART}; boundary="{boundary}"'})
    # one more than allowed is read, so that the limit is told as that
    parser = _InMemory(headers, whole(), max_files=most + 1, max_fields=most + 1, max_part_size=len(body) + 1)
    try:
        parts = (await parser.parse()).multi_items()
    except MultiPartException as error:
        if "Too many" in error.message:
            raise _too_many(most) from None
        raise _not_a_form(error.message.rstrip(".")) from None
    found: list[Named] = []
    for name, part in parts:
        if name != FIELD:
            raise HTTPError(
                422, f"The form has a field {label(name, '?')!r}; pictures are sent as files named {FIELD}."
            )
        if not isinstance(part, UploadFile):
            raise HTTPError(422, f"The field {FIELD} must be a file, not text; with curl: -F '{FIELD}=@photo.jpg'.")
        found.append((label(part.filename, str(len(found) + 1)), part.file.read()))
    return found


def label(name: str | None, otherwise: str) -> str:
    """What to call a file whose sender calls it `name`: the last part of that, as text that can be shown."""
    last = PurePosixPath((name or "").replace("\\", "/")).name
    shown = "".join(c for c in last if c.isprintable())[:LONGEST_NAME]
    return shown if shown.strip(". ") else otherwise


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _json(body: bytes) -> list[Named]:
    shape = f'{{"{FIELD}": ["<base64>", …]}}'
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise HTTPError(422, f"The body is not JSON; send {shape}.") from None
    given = document.get(FIELD) if isinstance(document, dict) else None
    if not isinstance(given, list) or len(document) != 1:
        raise HTTPError(422, f"The document must be {shape} and nothing else.")
    found: list[Named] = []
    for number, text in enumerate(given, 1):
        try:
            found.append((str(number), _base64(text.encode("ascii"))))
        except (AttributeError, UnicodeError, binascii.Error):
            raise HTTPError(422, f"Picture {number} is not base64; send the bytes of its file in that form.") from None
    return found


def _base64(text: bytes) -> bytes:
    """What it holds, decoded in pieces, between which other threads have their turn. Raises `binascii.Error`."""
    if b"=" in text[:-2]:
        raise binascii.Error
    return b"".join(base64.b64decode(text[i : i + LARGE], validate=True) for i in range(0, len(text), LARGE))
