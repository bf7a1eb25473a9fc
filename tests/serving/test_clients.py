"""Requests as programs, browsers and load balancers send them, over sockets: connections, hosts, paths and origins."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from test_app import exchange, running_uvicorn

from alexnet.errors import UserError
from alexnet.serving.registry import Models
from alexnet.serving.settings import Settings
from server_client import encode_jpeg


@pytest.fixture(scope="module")
def port(models: Models) -> Iterator[int]:
    """The port of a server with a small limit, behind a proxy, which allows the pages of two web views."""
    origins = ("capacitor://localhost", "null")
    with running_uvicorn(models, max_bytes=100_000, root_path="/labels", cors=origins) as (port, _):
        yield port


def send(port: int, line: str, *headers: str, body: bytes = b"") -> tuple[int, dict[str, str], str]:
    """Return status, headers (names in lower case) and body of the response to a request on its own connection."""
    if "POST" in line and not any("length" in header.lower() for header in headers):
        headers = (*headers, f"Content-Length: {len(body)}")
    if "HTTP/1.1" in line:
        headers = (*headers, "Connection: close")
    received = exchange(port, "\r\n".join([line, *headers, "", ""]).encode() + body)
    head, _, text = received.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    return int(status.split()[1]), dict(field.lower().split(": ", 1) for field in fields), text.decode()


def error(text: str) -> str:
    document = json.loads(text)
    assert list(document) == ["error"]
    return document["error"]


# ── refusals before the body is read ──────────────────────────────────────────────────────────────


@pytest.mark.parametrize("size", [200_000, 1 << 20, 8 << 20])
@pytest.mark.parametrize(
    ("version", "connection"), [("1.1", "close"), ("1.1", "keep-alive"), ("1.0", "close"), ("1.0", "keep-alive")]
)
@pytest.mark.parametrize(("path", "status"), [("/v1/predict", 413), ("/v1/saliency", 413), ("/nothing", 404)])
def test_refusal_reaches_a_client_that_sends_all_first(
    port: int, version: str, connection: str, size: int, path: str, status: int
) -> None:
    head = f"POST {path} HTTP/{version}\r\nHost: localhost\r\nConnection: {connection}\r\nContent-Type: image/jpeg\r\n"
    received = exchange(port, f"{head}Content-Length: {size}\r\n\r\n".encode(), b"x" * size)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.endswith(b'"}')


@pytest.mark.parametrize("size", [1 << 20, 8 << 20])
def test_refusal_reaches_urllib(port: int, size: int) -> None:
    headers = {"Content-Type": "image/jpeg"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/predict", b"x" * size, headers)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 413
    assert "larger than 100,000 bytes" in error(refused.value.read().decode())
    refused.value.close()


def test_expected_continue_is_sent_only_for_a_body_that_is_read(port: int) -> None:
    jpeg = encode_jpeg()
    head = ("Host: localhost", "Content-Type: image/jpeg", "Expect: 100-continue")
    refused = send(port, "POST /v1/predict HTTP/1.1", *head, "Content-Length: 9999999")
    assert refused[0] == 413
    assert send(port, "POST /v1/predict HTTP/1.1", *head, body=jpeg)[0] == 100


# ── hosts ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("line", "hosts", "status"),
    [
        ("GET /healthz HTTP/1.1", [], 400),
        ("GET /healthz HTTP/1.1", ["localhost", "localhost"], 400),
        ("GET /healthz HTTP/1.1", ["localhost", "evil.example"], 400),
        ("POST /v1/predict HTTP/1.1", [], 400),
        ("GET /healthz HTTP/1.0", [], 200),
        ("GET /healthz HTTP/1.0", ["localhost", "localhost"], 400),
        ("GET /healthz HTTP/1.1", ["localhost.:1"], 200),
        ("GET /healthz HTTP/1.1", ["[::1]:1"], 200),
        ("GET /healthz HTTP/1.1", ["::1"], 421),
        ("GET /healthz HTTP/1.1", ["evil.example."], 421),
        ("GET http://localhost/healthz HTTP/1.1", ["localhost"], 200),
        ("HEAD /healthz HTTP/1.1", ["localhost"], 200),
        ("GET /%68ealthz HTTP/1.1", ["localhost"], 200),
    ],
)
def test_request_needs_one_host(port: int, line: str, hosts: list[str], status: int) -> None:
    code, _, text = send(
        port, line, *(f"Host: {host}" for host in hosts), body=encode_jpeg() if "POST" in line else b""
    )
    assert code == status
    if status == 400:
        assert error(text) == "The request must have one Host header; send the name of this server with its port."


# ── bodies whose length is unclear ────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "lengths",
    [
        ["Content-Length: 1", "Content-Length: 2"], ["Content-Length: 1", "Transfer-Encoding: chunked"],
        ["Content-Length: -1"], ["Content-Length: 1, 1"], ["Content-Length: 1x"],
        ["Transfer-Encoding: chunked, identity"],
    ],
)  # fmt: skip
def test_ambiguous_length_is_400(port: int, lengths: list[str]) -> None:
    status, _, text = send(port, "POST /v1/predict HTTP/1.1", "Host: localhost", *lengths, "X-Length: 1", body=b"xx")
    assert status == 400
    assert error(text).startswith("This is not an HTTP/1.1 request")


def test_chunked_body_is_read(port: int) -> None:
    jpeg = encode_jpeg()
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (jpeg[:9], jpeg[9:])) + b"0\r\n\r\n"
    head = ("Host: localhost", "Content-Type: image/jpeg", "Transfer-Encoding: chunked", "X-Length: unknown")
    assert send(port, "POST /v1/predict HTTP/1.1", *head, body=body)[0] == 200


# ── paths ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/v1/predict/", "../predict"), ("/v1/predict/?top_k=1", "../predict?top_k=1"), ("/docs/", "../docs"),
        ("/v1/predict//", "../../predict"), ("/labels/docs/", "../docs"), ("/labels", "./labels/"),
        ("/v1/samples/%25/", "../%25"),
    ],
)  # fmt: skip
def test_redirect_is_relative(port: int, path: str, location: str) -> None:
    method = "POST" if "predict" in path else "GET"
    status, headers, _ = send(port, f"{method} {path} HTTP/1.1", "Host: localhost:1")
    assert (status, headers["location"]) == (307, location)
    assert send(port, "GET /nothing/ HTTP/1.1", "Host: localhost")[0] == 404


@pytest.mark.parametrize("prefix", ["", "/labels"], ids=["the proxy strips the path", "the proxy keeps the path"])
def test_server_works_under_a_path(port: int, prefix: str) -> None:
    def get(path: str) -> str:
        status, _, text = send(port, f"GET {prefix}{path} HTTP/1.1", "Host: localhost")
        assert status == 200
        return text

    assert 'href="openapi.json"' in get("/docs")
    assert json.loads(get("/openapi.json"))["servers"] == [{"url": "/labels"}]
    assert 'src="page.js"' in get("/")
    assert "import" in get("/page.js")
    line = f"POST {prefix}/v1/predict HTTP/1.1"
    assert send(port, line, "Host: localhost", "Content-Type: image/jpeg", body=encode_jpeg())[0] == 200


# ── origins ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [("capacitor://localhost", True), ("null", True), ("ionic://localhost", False), ("https://localhost", False)],
)
def test_origins_of_web_views_are_allowed_where_asked_for(port: int, origin: str, allowed: bool) -> None:
    page = ("Host: 127.0.0.1", f"Origin: {origin}", "Sec-Fetch-Site: cross-site")
    post = send(port, "POST /v1/predict HTTP/1.1", *page, "Content-Type: image/jpeg", body=encode_jpeg())
    asked = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: content-type")
    preflight = send(port, "OPTIONS /v1/predict HTTP/1.1", *page, *asked)
    assert [post[0], preflight[0]] == ([200, 200] if allowed else [403, 400])
    for _, headers, _ in (post, preflight):
        assert headers.get("access-control-allow-origin") == (origin if allowed else None)


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "file://", "http://localhost:3000", "https://xn--bcher-kva.example", "tauri://localhost", "app://.",
     "chrome-extension://abc", "http://[::1]:8000"],
)  # fmt: skip
def test_origin_is_accepted(origin: str) -> None:
    assert Settings(cors=(origin,)).cors == (origin,)


@pytest.mark.parametrize(
    ("origin", "sent"),
    [
        ("https://x:443", "https://x"), ("http://x:80", "http://x"), ("http://[::1]:80", "http://[::1]"),
        ("https://x:80", "https://x:80"), ("http://x:443", "http://x:443"), ("https://x:8443", "https://x:8443"),
        ("capacitor://localhost:443", "capacitor://localhost:443"),
    ],
)  # fmt: skip
def test_origin_has_no_default_port_as_browsers_send_it(origin: str, sent: str) -> None:
    assert Settings(cors=(origin,)).cors == (sent,)


@pytest.mark.parametrize(
    "setting",
    [
        *({"cors": (origin,)} for origin in ("", "NULL", "localhost", "https://", "https://a.b/", "https://A.b",
                                             "https://u@a.b", "https://a.b?c", "https://bücher.example", "://a",
                                             "capacitor:localhost", "https://a b", "https://a:", "https://a:0443",
                                             "https://a:b", "https://:443")),
        *({"root_path": path} for path in ("labels", "/", "/labels/", "/a//b", "/a?b", "/a b", "/..", "//a")),
    ],
)  # fmt: skip
def test_invalid_origin_or_path_is_an_error(setting: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"--{next(iter(setting)).replace('_', '-')} "):
        Settings(**setting)
