"""The /v1 routes for programs: accepted bodies, responses, limits and errors."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import random
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image
from starlette.exceptions import HTTPException
from starlette.requests import Request

from alexnet.errors import UserError
from alexnet.serving import requests, routes
from alexnet.serving.batching import ServerBusy
from alexnet.serving.registry import Models, open_models
from alexnet.serving.requests import cancel_on_disconnect
from alexnet.serving.settings import Settings
from damaged_images import decompression_bomb
from server_client import Client, DecodeGate, encode, encode_jpeg, http_scope, running_server


@pytest.fixture(scope="module")
def server(models: Models) -> Iterator[Client]:
    with running_server(models, max_bytes=300_000, max_pixels=1_000_000, max_images=4) as client:
        yield client


JSON = "application/json"
TOP_K = "The parameter top_k must be an integer from 1 to 3, the number of classes of fruit."


def form(*lines: str) -> bytes:
    """Return a form with one part and the boundary x."""
    return "\r\n".join(("--x", *lines, "--x--", "")).encode()


def error_message(response: Any, status: int) -> str:
    """Return the message of a response that must be an error."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    assert message[0].isupper()
    assert "\n" not in message
    return message


def predictions(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


async def until_done(tasks: list[asyncio.Future[Any]], count: int) -> None:
    """Wait until `count` of the tasks are done."""
    while sum(task.done() for task in tasks) < count:
        await asyncio.sleep(0.01)


# ── accepted requests ─────────────────────────────────────────────────────────────────────────────


def test_all_body_types_give_the_same_prediction(server: Client, models: Models) -> None:
    data = encode_jpeg(1, 5)
    expected = models["fruit"].predict(data)
    text = json.dumps({"images": [base64.b64encode(data).decode()]}).encode()
    responses = [
        server.post("/v1/predict", data),
        server.post("/v1/predict", data, "application/octet-stream"),
        server.post("/v1/predict", text, "application/json; charset=utf-8"),
        server.predict(data),
    ]
    for response in responses:
        assert response.json()["model"] == "fruit"
        (prediction,) = predictions(response)
        assert [x["label"] for x in prediction["labels"]] == [label for label, _ in expected.labels]
        assert [x["p"] for x in prediction["labels"]] == pytest.approx([p for _, p in expected.labels], abs=1e-5)
        assert prediction["error"] is prediction["unsure"] is prediction["confidence"] is None


def test_several_images_keep_order_and_names(server: Client, models: Models) -> None:
    images = [(f"{i}.jpg", encode_jpeg(i, i)) for i in range(3)]
    expected = [models["fruit"].predict(data, top=1).labels[0][0] for _, data in images]
    found = predictions(server.predict(*images, top_k=1))
    assert [x["path"] for x in found] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [x["labels"][0]["label"] for x in found] == expected
    assert all(len(x["labels"]) == 1 for x in found)


def test_ten_crop_equals_that_of_predict(server: Client, models: Models) -> None:
    data = encode_jpeg(2, 7, (64, 48))
    (ten_crop,) = predictions(server.predict(data, ten_crop="true"))
    expected = models["fruit"].predict(data, views=10)
    assert [x["p"] for x in ten_crop["labels"]] == pytest.approx([p for _, p in expected.labels], abs=1e-5)
    (plain,) = predictions(server.predict(data, ten_crop="false"))
    assert plain["labels"] != ten_crop["labels"]


def test_calibrated_model_returns_confidence_and_unsure(small_run: Path) -> None:
    digit = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)), "PNG")
    with running_server(open_models([small_run])) as client:
        (prediction,) = predictions(client.predict(digit))
    assert prediction["unsure"] in (True, False)
    assert 0 <= prediction["confidence"] <= 1


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "C:\\x\\passwd", "a/b/../passwd", "passwd"],
)
def test_file_name_is_reduced_to_last_path_component(server: Client, name: str) -> None:
    (prediction,) = predictions(server.predict((name, encode_jpeg())))
    assert prediction["path"] in ("passwd", "boot.ini")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("..", "1"), ("", "1"), ("a\x00b\x1b[31m.jpg", "ab[31m.jpg"), ("猫.jpg", "猫.jpg")],
)
def test_file_name_loses_unprintable_characters(name: str, expected: str) -> None:
    assert requests.display_name(name, "1") == expected


def test_long_file_name_is_truncated(server: Client) -> None:
    (prediction,) = predictions(server.predict(("x" * 3000, encode_jpeg())))
    assert len(prediction["path"]) == requests.MAX_NAME_LENGTH


def animated_gif() -> bytes:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    return encode(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "image",
    [
        encode(Image.new("CMYK", (40, 40), (10, 200, 30, 0)), "JPEG"),
        encode(Image.fromarray(np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)), "PNG"),
        animated_gif(),
        encode(Image.new("RGBA", (40, 40), (1, 2, 3, 4)), "WEBP"),
        encode(Image.new("1", (1, 1)), "PNG"),
    ],
    ids=["CMYK", "16 bits", "animated", "transparent", "one pixel"],
)
def test_unusual_images_are_accepted_whatever_their_media_type(server: Client, image: bytes) -> None:
    (prediction,) = predictions(server.post("/v1/predict", image, "image/jpeg"))
    assert len(prediction["labels"]) == 3


# ── rejected requests ─────────────────────────────────────────────────────────────────────────────


def test_bad_image_gets_error_and_the_others_predictions(server: Client) -> None:
    found = predictions(server.predict(encode_jpeg(), ("bad.jpg", b"no image"), ("empty.jpg", b""), encode_jpeg(1)))
    assert [x["error"] for x in found] == [
        None, "it is not an image of a known format", "the file is empty", None,
    ]  # fmt: skip
    assert [len(x["labels"]) for x in found] == [3, 0, 0, 3]


def test_errors_of_single_images_are_in_the_language_of_the_request(server: Client) -> None:
    images = [base64.b64encode(data).decode() for data in (encode_jpeg(), b"no image")]
    body = json.dumps({"images": images}).encode()
    for language, error in (("en", "it is not an image of a known format"), ("zh-CN,zh", "这不是已知格式的图片")):
        response = server.post("/v1/predict", body, "application/json", **{"accept-language": language})
        assert [x["error"] for x in predictions(response)] == [None, error]


@pytest.mark.parametrize(
    "data",
    [b"no image", encode_jpeg()[:300], b"", b"\x00" * 1000],
    ids=["text", "cut", "empty", "0"],
)
def test_no_readable_image_is_422(server: Client, data: bytes) -> None:
    assert "No image could be read" in error_message(server.predict(("x.jpg", data), ("y.jpg", data)), 422)


def test_decompression_bomb_is_413_before_decoding(server: Client) -> None:
    assert "too large" in error_message(server.post("/v1/predict", decompression_bomb(8_000), "image/png"), 413)
    assert "1,000,000 pixels" in error_message(server.predict(encode(Image.new("L", (1001, 1000)), "PNG")), 413)


def test_too_many_images_are_413(server: Client) -> None:
    assert "more than 4 images" in error_message(server.predict(*[encode_jpeg()] * 5), 413)
    assert "more than 4 images" in error_message(server.predict(*[encode_jpeg()] * 50), 413)
    text = json.dumps({"images": [base64.b64encode(encode_jpeg()).decode()] * 5}).encode()
    assert "more than 4 images" in error_message(server.post("/v1/predict", text, "application/json"), 413)


def test_too_large_body_is_413_with_or_without_content_length(server: Client) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 10_000

    assert "300,000 bytes" in error_message(server.post("/v1/predict", b"x" * 300_001), 413)
    chunked = server.client.post("/v1/predict", content=endless(), headers={"content-type": "image/png"})
    assert "300,000 bytes" in error_message(server.run(chunked), 413)
    assert server.app.state.body_budget.bytes == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "imagejpeg", ""])
def test_other_media_types_are_415(server: Client, kind: str) -> None:
    assert "send one image as image/jpeg" in error_message(server.post("/v1/predict", encode_jpeg(), kind), 415)


def test_content_encoding_is_415(server: Client) -> None:
    response = server.post("/v1/predict", encode_jpeg(), **{"content-encoding": "gzip"})
    assert "Content-Encoding gzip" in error_message(response, 415)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"{}", b'{"images": []}', b'{"images": "AAAA"}', b'{"images": [1]}',
        b'{"images": ["not base64!"]}', b'{"images": ["A=AA"]}', b'{"images": ["AAAA"], "more": 1}', b"\xff\xfe",
        b"[" * 100_000, b'{"images": [' + b"1" * 5000 + b"]}", b'{"images": ["\xc3\xa9\xc3\xa9"]}',
        b'{"images": ["AAAAA"]}', b'{"images": ["AAAA", NaN]}', b'{"images": ["AAAA"], "images": []}',
        b'{"images": ["data:image/png;base64"]}', b'{"images": ["data:image/svg+xml,<svg/>"]}',
        '{"images": ["AAAA"]}'.encode("utf-16"), b'{"images": ["\xd9\xa1\xd9\xa1\xd9\xa1\xd9\xa1"]}',
    ],
)  # fmt: skip
def test_invalid_json_is_422(server: Client, body: bytes) -> None:
    error_message(server.post("/v1/predict", body, "application/json"), 422)


@pytest.mark.parametrize(
    "encode_text",
    [
        lambda data: "data:image/jpeg;base64," + base64.b64encode(data).decode(),
        lambda data: "DATA:image/jpeg;charset=x;BASE64," + base64.b64encode(data).decode(),
        lambda data: "data:;base64," + quote(base64.b64encode(data), safe=""),
        lambda data: base64.encodebytes(data).decode(),
        lambda data: base64.encodebytes(data).decode().replace("\n", "\r\n"),
        lambda data: base64.b64encode(data).decode() + "\n",
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: base64.urlsafe_b64encode(data).decode().rstrip("="),
        lambda data: base64.b64encode(data).decode().rstrip("=") + "==",
    ],
    ids=["data URL", "upper case", "percent-encoded", "lines", "CRLF", "newline", "URL-safe", "no padding", "padded"],
)
def test_base64_is_taken_in_every_form_that_clients_send(
    server: Client, models: Models, encode_text: Callable[[bytes], str]
) -> None:
    jpeg = encode_jpeg()
    body = json.dumps({"images": [base64.b64encode(jpeg).decode(), encode_text(jpeg)]}).encode()
    labels = models["fruit"].predict(jpeg).labels
    for sent in (body, codecs.BOM_UTF8 + body.replace(b"/", rb"\/")):
        for image in predictions(server.post("/v1/predict", sent, JSON)):
            assert [label["label"] for label in image["labels"]] == [label for label, _ in labels]
    for length in range(300, 304):  # each length of the padding, each character of the alphabet
        data = random.Random(length).randbytes(length)
        assert requests._parse_json(json.dumps({"images": [encode_text(data)]}).encode()) == [("1", data)]


def test_large_json_is_parsed_in_a_thread(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    parse = requests._parse_json

    def record_thread(body: bytes) -> Any:
        threads.append(threading.current_thread().name)
        return parse(body)

    monkeypatch.setattr(requests, "_parse_json", record_thread)
    noise = np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)
    large = encode(Image.fromarray(noise), "PNG")
    assert len(large) > 2 * requests.LARGE_JSON
    with running_server(models) as client:
        responses = [
            client.post(
                "/v1/predict",
                json.dumps({"images": [base64.b64encode(data).decode()]}).encode(),
                JSON,
            )
            for data in (encode_jpeg(), large)
        ]
        assert [predictions(response)[0]["error"] for response in responses] == [None, None]
        assert threads[0] != threads[1]
        assert client.predict(large).json()["predictions"][0]["labels"] == predictions(responses[1])[0]["labels"]
        text = base64.b64encode(large).decode()
        for wrong in (
            text[: requests.LARGE_JSON - 1] + "=" + text[requests.LARGE_JSON :],
            text.rstrip("=")[: len(text) // 4 * 4 - 3],
            "=" + text[1:],
        ):
            error_message(client.post("/v1/predict", json.dumps({"images": [wrong]}).encode(), JSON), 422)


DISPOSITION = "Content-Disposition: form-data; name="


@pytest.mark.parametrize(
    "body",
    [
        b"no form", b"", form("", "without a name"), form("Content-Disposition: form-data", "", "1"),
        form(f'{DISPOSITION}"images"', "", "text"), form(f'{DISPOSITION}"image"; filename="a"', "", "1"),
        form(*["A: b"] * 50, "", "1"), form("A" * 100_000, "", "1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [
        "; boundary=x", "", "; boundary=x; charset=nonsense", "; boundary=x; charset=undefined",
        "; boundary=x; charset=punycode", r'; boundary="x\"; charset=\"punycode"',
    ],
)  # fmt: skip
def test_invalid_form_is_422(server: Client, options: str, body: bytes) -> None:
    error_message(server.post("/v1/predict", body, f"multipart/form-data{options}"), 422)


@pytest.mark.parametrize("charset", ["undefined", "idna", "utf-16"])
@pytest.mark.parametrize("boundary", ["x", '"x y"', '"x;y"'])
def test_form_is_utf_8_whatever_its_charset(server: Client, charset: str, boundary: str) -> None:
    part = f'{DISPOSITION}"images"; filename="猫.jpg"\r\n\r\n'.encode() + encode_jpeg()
    line = b"--" + boundary.strip('"').encode()
    kind = f"multipart/form-data; charset={charset}; boundary={boundary}"
    (prediction,) = predictions(server.post("/v1/predict", line + b"\r\n" + part + b"\r\n" + line + b"--\r\n", kind))
    assert prediction["path"] == "猫.jpg"


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("top_k=0", 422, TOP_K),
        ("top_k=4", 422, TOP_K),
        ("top_k=many", 422, TOP_K),
        ("top_k=" + "9" * 5000, 422, TOP_K),
        ("top_k=000000001" + "9" * 5000, 422, TOP_K),
        ("top_k=0000000010", 422, TOP_K),
        ("top_k=²", 422, TOP_K),
        ("ten_crop=maybe", 422, "The parameter ten_crop must be true or false."),
        ("topk=1", 422, "There is no parameter 'topk'; did you mean 'top_k' or 'ten_crop'?"),
        ("model=fruits", 404, "There is no model 'fruits'; did you mean 'fruit'?"),
    ],
)
def test_invalid_parameters_get_an_error(server: Client, query: str, status: int, message: str) -> None:
    assert error_message(server.post(f"/v1/predict?{query}", encode_jpeg()), status) == message


def test_unknown_path_and_method_get_an_error(server: Client) -> None:
    error_message(server.get("/v2/predict"), 404)
    error_message(server.get("/../../etc/passwd"), 404)
    response = server.get("/v1/predict")
    error_message(response, 405)
    assert response.headers["allow"] == "POST"


# ── access and limits ─────────────────────────────────────────────────────────────────────────────


def test_token_is_required_if_set(models: Models) -> None:
    with running_server(models, token="s3cret") as client:
        for header in (
            {},
            {"authorization": "Bearer other"},
            {"authorization": "Basic s3cret"},
            {"authorization": "s3cret"},
        ):
            response = client.post("/v1/predict", encode_jpeg(), **header)
            assert "requires a token" in error_message(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
            assert client.get("/v1/models", headers=header).status_code == 401
            assert client.get("/metrics", headers=header).status_code == 401
        right = {"authorization": "bearer s3cret"}
        assert len(predictions(client.post("/v1/predict", encode_jpeg(), **right))) == 1
        assert client.get("/v1/models", headers=right).status_code == 200
        assert client.get("/metrics", headers=right).status_code == 200
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
            assert client.get(path).status_code == 200
        assert "s3cret" not in repr(client.app.state.settings)


def test_cors_headers_only_for_configured_origins(models: Models, server: Client) -> None:
    site = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=site).headers
    with running_server(models, cors=("https://example.org",), token="t") as client:
        response = client.get("/v1/models", headers=site)
        assert response.status_code == 401  # and the site can read the error
        assert response.headers["access-control-allow-origin"] == "https://example.org"
        assert "access-control-allow-origin" not in client.get("/v1/models", headers={"origin": "https://a.b"}).headers
        preflight = {
            **site,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        }
        assert client.run(client.client.options("/v1/predict", headers=preflight)).status_code == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:1", True), ("127.9.9.9", True), ("[::1]:8000", True),
        ("[::1]", True), ("evil.example:8000", False), ("127.0.0.1.evil.example", False), ("localhost.evil", False),
        ("192.168.1.1", False), ("[::2]:8000", False), ("localhost@evil.example", False),
    ],
)  # fmt: skip
def test_local_server_rejects_other_host_names(server: Client, host: str, local: bool) -> None:
    for path in ("/", "/v1/samples", "/healthz"):
        response = server.get(path, headers={"host": host})
        assert response.status_code == 200 if local else "not called " + host in error_message(response, 421)


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"token": "t"}], ids=["network", "token"])
def test_other_servers_accept_any_host_name(models: Models, settings: dict[str, Any]) -> None:
    with running_server(models, **settings) as client:
        assert client.get("/healthz", headers={"host": "labels.example"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://public.proxy"}, True),
        ({"origin": "http://localhost:8000"}, True),
        ({"origin": "https://a.example", "sec-fetch-site": "cross-site"}, True),
        ({"origin": "http://localhost:9000", "sec-fetch-site": "same-site"}, False),
        ({"origin": "https://b.example", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://b.example"}, False),
        ({"origin": "null"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
    ],
)
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/saliency"])
def test_cross_site_post_is_403(models: Models, path: str, headers: dict[str, str], allowed: bool) -> None:
    with running_server(models, cors=("https://a.example",)) as client:
        response = client.post(path, encode_jpeg(), **headers)
        assert response.status_code == 200 if allowed else "Cross-site" in error_message(response, 403)
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_full_queue_is_503_with_retry_after(models: Models, decode_gate: DecodeGate) -> None:
    with running_server(models, queue=10, max_images=1) as client:

        async def send_all() -> list[Any]:
            waiting = [
                asyncio.ensure_future(
                    client.client.post("/v1/predict", content=encode_jpeg(), headers={"content-type": "image/png"})
                )
                for _ in range(40)
            ]
            await until_done(waiting, 30)
            decode_gate.open()
            return await asyncio.gather(*waiting)

        responses = client.run(send_all())
        rejected = [response for response in responses if response.status_code == 503]
        assert len(rejected) == 30
        assert all(1 <= int(response.headers["retry-after"]) <= 30 for response in rejected)
        assert "retry in" in error_message(rejected[0], 503)
        assert sum(response.status_code == 200 for response in responses) == 10
        assert predictions(client.predict(encode_jpeg()))
        assert client.metric('alexnet_requests_total{route="/v1/predict",status="503"}') == 30


def test_bodies_beyond_the_memory_budget_are_503(models: Models) -> None:
    with running_server(models, max_bytes=1000) as client:
        budget = client.app.state.body_budget
        budget.bytes = budget.limit - 500
        error_message(client.post("/v1/predict", b"x" * 900), 503)
        assert budget.bytes == budget.limit - 500


def test_body_that_stalls_is_408(models: Models) -> None:
    with running_server(models, timeout=0.2) as client:

        async def slow() -> Any:
            yield b"\xff\xd8"
            await asyncio.sleep(60)

        stalled = client.client.post("/v1/predict", content=slow(), headers={"content-type": "image/jpeg"})
        response = client.run(stalled)
        assert "within 0.2 s" in error_message(response, 408)
        assert response.headers["connection"].lower() == "close"
        assert client.app.state.body_budget.bytes == 0


def test_disconnected_client_gets_no_prediction(models: Models, decode_gate: DecodeGate) -> None:
    with running_server(models) as client:
        sent: list[Any] = []

        async def disconnect() -> None:
            messages: asyncio.Queue[Any] = asyncio.Queue()
            messages.put_nowait({"type": "http.request", "body": encode_jpeg(), "more_body": False})

            async def send(message: Any) -> None:
                sent.append(message)

            request = asyncio.ensure_future(client.app(http_scope("/v1/predict", b"image/jpeg"), messages.get, send))
            assert await asyncio.to_thread(decode_gate.reached.wait, 60)
            messages.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(request, 60)

        client.run(disconnect())
        decode_gate.open()
        assert predictions(client.predict(encode_jpeg(1)))
        assert client.metric('alexnet_requests_total{route="/v1/predict",status="499"}') == 1
        assert client.metric('alexnet_images_total{model="fruit",result="answered"}') == 1


# ── models, health, metrics, documentation ────────────────────────────────────────────────────────


def test_models_lists_classes_and_limits(server: Client) -> None:
    document = server.get("/v1/models").json()
    assert document["default"] == "fruit"
    (model,) = document["models"]
    assert model["classes"] == ["apple", "leaf", "sky"]
    assert (model["image_size"], model["channels"], model["engine"], model["precision"]) == (32, 3, "exact", "fp32")
    assert model["views"] == [1, 10]
    assert model["limits"] == {"bytes": 300_000, "pixels": 1_000_000, "images": 4}
    assert "activations" in model["looks"]
    assert "similar" not in model["looks"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/healthz", "/readyz"])
def test_head_requests_are_answered(server: Client, path: str) -> None:
    assert server.run(server.client.head(path)).status_code == 200


@pytest.mark.parametrize("dead", ["_computers", "_decoders"])
def test_health_is_503_after_a_thread_died(models: Models, monkeypatch: pytest.MonkeyPatch, dead: str) -> None:
    dead_thread = threading.Thread()
    with running_server(models) as client:
        batcher = client.app.state.batcher
        monkeypatch.setattr(batcher, dead, [*getattr(batcher, dead), dead_thread])
        for path in ("/healthz", "/readyz"):
            response = client.get(path)
            assert (response.status_code, response.json()) == (503, {"status": "broken"})
        monkeypatch.undo()
        assert client.get("/healthz").status_code == 200


def test_timed_out_request_is_503_and_gets_no_prediction(models: Models, decode_gate: DecodeGate) -> None:
    with running_server(models, timeout=0.3) as client:
        response = client.predict(encode_jpeg())
        assert "timed out after 0.3 s" in error_message(response, 503)
        assert int(response.headers["retry-after"]) >= 1
        assert client.app.state.body_budget.bytes == 0
        decode_gate.open()
        assert predictions(client.predict(encode_jpeg(1)))
        assert client.metric('alexnet_images_total{model="fruit",result="answered"}') == 1
        release = threading.Event()
        error = client.run(time_out(client, client.app.state.run_explanation(lambda: release.wait(60))))
        release.set()
        assert error.status_code == 503


async def time_out(server: Client, work: Any) -> Any:
    scope = {"type": "http", "app": server.app}
    with pytest.raises(HTTPException) as caught:
        await cancel_on_disconnect(Request(scope, asyncio.Event().wait), asyncio.ensure_future(work))  # type: ignore[arg-type]
    return caught.value


def test_metrics_count_requests_images_and_batches(models: Models) -> None:
    with running_server(models) as client:
        client.predict(encode_jpeg(), encode_jpeg(1), b"bad")
        client.get("/nothing/12345")
        client.get("/nothing/67890")
        assert client.metric('alexnet_requests_total{route="/v1/predict",status="200"}') == 1
        assert client.metric('alexnet_requests_total{route="other",status="404"}') == 2
        assert client.metric('alexnet_images_total{model="fruit",result="answered"}') == 2
        assert client.metric('alexnet_images_total{model="fruit",result="unreadable"}') == 1
        assert client.metric("alexnet_batch_images_sum") == 2
        assert client.metric("alexnet_request_seconds_count") >= 3
        assert client.metric("alexnet_queue_images") == client.metric("alexnet_held_bytes") == 0
        assert "12345" not in client.get("/metrics").text


def test_unexpected_exception_is_500_without_details(
    models: Models, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_server(models) as client:
        monkeypatch.setattr(models["fruit"], "to_prediction", lambda *_: 1 / 0)
        assert "ZeroDivision" not in error_message(client.predict(encode_jpeg()), 500)
        assert client.metric("alexnet_errors_total") == 1
    assert "ZeroDivisionError" in caplog.text


def test_openapi_lists_parameters_bodies_and_statuses(server: Client) -> None:
    document = server.get("/openapi.json").json()
    predict = document["paths"]["/v1/predict"]["post"]
    assert [parameter["name"] for parameter in predict["parameters"]] == ["model", "top_k", "ten_crop"]
    assert set(predict["requestBody"]["content"]) == {
        "multipart/form-data", "application/json", "image/*", "application/octet-stream",
    }  # fmt: skip
    assert set(predict["responses"]) == {str(status) for status in routes.STATUS_DESCRIPTIONS.keys() - {500} | {200}}


def test_docs_page_lists_each_route_and_loads_nothing(server: Client) -> None:
    page = server.get("/docs")
    for path in server.get("/openapi.json").json()["paths"]:
        assert f"{path}</code>" in page.text
    assert not re.search(r"(src|href)=.(https?:)?//|<script|@import|url\(", page.text)
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


@pytest.mark.parametrize(
    ("accepted", "tag", "heading"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh-CN", "请求体"), ("fr, ZH", "zh-CN", "请求体"),
        ("en-US,zh;q=0.5", "en", "request body"),
        ("*", "en", "request body"), (",;", "en", "request body"),
    ],
)  # fmt: skip
def test_docs_page_is_in_the_language_of_the_browser(server: Client, accepted: str, tag: str, heading: str) -> None:
    page = server.get("/docs", headers={"accept-language": accepted})
    assert f'<html lang="{tag}">' in page.text
    assert f"<th>{heading}</th>" in page.text
    assert page.headers["vary"] == "Accept-Language"


def test_invalid_form_is_not_logged(server: Client, caplog: pytest.LogCaptureFixture) -> None:
    error_message(server.post("/v1/predict", b"x", "multipart/form-data; boundary=a"), 422)
    assert not caplog.records


def test_explanations_have_their_own_queue_limit(server: Client) -> None:
    event = threading.Event()

    async def run_all() -> list[Any]:
        waiting = [asyncio.ensure_future(server.app.state.run_explanation(lambda: event.wait(60))) for _ in range(12)]
        await until_done(waiting, 4)
        event.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    results = server.run(run_all())
    assert [result for result in results if result is True] == [True] * 8
    assert {type(result) for result in results if result is not True} == {ServerBusy}


@pytest.mark.parametrize(
    "invalid",
    [
        {"port": 70000}, {"max_batch": 0}, {"timeout": float("nan")}, {"queue": 10}, {"token": "a\nb"},
        {"timeout": float("inf")}, {"max_delay_ms": float("inf")}, {"max_delay_ms": 1e9}, {"drain": float("inf")},
        {"queue": 10**30}, {"max_batch": 10**9}, {"max_bytes": 10**30}, {"max_pixels": 10**12}, {"token": " a"},
        {"max_bytes": -1}, {"token": ""}, {"cors": ("example.org",)}, {"cors": ("https://example.org/",)},
    ],
)  # fmt: skip
def test_invalid_settings_are_rejected(invalid: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Settings(**invalid)


def test_large_form_stays_in_memory(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette's own parser would write a file of more than 1 MB to disk."""
    spooled: list[object] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: spooled.append(self))
    large = encode(Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)), "PNG")
    assert len(large) > 1 << 20
    with running_server(models) as client:
        assert predictions(client.predict(large))
    assert not spooled
