"""The routes for programs: what they take, what they answer, and what they refuse and how."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from alexnet.errors import UserError
from alexnet.serving import batching, requests, routes
from alexnet.serving.registry import ModelRegistry, open_models
from alexnet.serving.routes import unless_gone
from alexnet.serving.settings import Settings
from asking import Asking, asking, encoded, jpeg
from damaged_images import decompression_bomb


@pytest.fixture(scope="module")
def server(models: ModelRegistry) -> Iterator[Asking]:
    with asking(models, max_bytes=300_000, max_pixels=1_000_000, max_images=4) as found:
        yield found


JSON = "application/json"
TOP_K = "The parameter top_k must be a number from 1 to 3, as many as fruit knows classes."


def form(*lines: str) -> bytes:
    """The bytes of a form with one part, its boundary being x."""
    return "\r\n".join(("--x", *lines, "--x--", "")).encode()


def problem(response: Any, status: int) -> str:
    """The sentence of an answer that must be a refusal."""
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    sentence = response.json()["error"]
    assert sentence[0].isupper()
    assert "\n" not in sentence
    return sentence


def labels(response: Any) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


# ── what is taken ─────────────────────────────────────────────────────────────────────────────────────────────


def test_one_picture_sent_in_four_ways_has_the_same_labels(server: Asking, models: ModelRegistry) -> None:
    data = jpeg(1, 5)
    expected = models["fruit"].classifier.predict(data)
    text = json.dumps({"images": [base64.b64encode(data).decode()]}).encode()
    answers = [
        server.post("/v1/predict", data),
        server.post("/v1/predict", data, "application/octet-stream"),
        server.post("/v1/predict", text, "application/json; charset=utf-8"),
        server.predict(data),
    ]
    for answer in answers:
        assert answer.json()["model"] == "fruit"
        (told,) = labels(answer)
        assert [one["label"] for one in told["labels"]] == [label for label, _ in expected.labels]
        assert [one["p"] for one in told["labels"]] == pytest.approx([p for _, p in expected.labels], abs=1e-5)
        assert told["error"] is told["unsure"] is told["confidence"] is None


def test_several_pictures_are_answered_in_order_by_name(server: Asking, models: ModelRegistry) -> None:
    pictures = [(f"{i}.jpg", jpeg(i, i)) for i in range(3)]
    expected = [models["fruit"].classifier.predict(data, top=1).labels[0][0] for _, data in pictures]
    told = labels(server.predict(*pictures, top_k=1))
    assert [one["path"] for one in told] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [one["labels"][0]["label"] for one in told] == expected
    assert all(len(one["labels"]) == 1 for one in told)


def test_ten_crop_is_that_of_predict(server: Asking, models: ModelRegistry) -> None:
    data = jpeg(2, 7, (64, 48))
    (told,) = labels(server.predict(data, ten_crop="true"))
    expected = models["fruit"].classifier.predict(data, views=10)
    assert [one["p"] for one in told["labels"]] == pytest.approx([p for _, p in expected.labels], abs=1e-5)
    (plain,) = labels(server.predict(data, ten_crop="false"))
    assert plain["labels"] != told["labels"]


def test_what_it_is_unsure_of_is_said(small_run: Path) -> None:
    digit = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)), "PNG")
    with asking(open_models([small_run])) as found:
        (told,) = labels(found.predict(digit))
    assert told["unsure"] in (True, False)
    assert 0 <= told["confidence"] <= 1


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "..\\..\\boot.ini", "/etc/passwd", "C:\\x\\passwd", "a/b/../passwd", "passwd"]
)
def test_a_path_in_a_name_is_cut_off(server: Asking, name: str) -> None:
    (told,) = labels(server.predict((name, jpeg())))
    assert told["path"] in ("passwd", "boot.ini")


@pytest.mark.parametrize(
    ("name", "shown"), [("..", "1"), ("", "1"), ("a\x00b\x1b[31m.jpg", "ab[31m.jpg"), ("猫.jpg", "猫.jpg")]
)
def test_names_are_shown_without_what_cannot_be(name: str, shown: str) -> None:
    assert requests.label(name, "1") == shown


def test_long_names_are_cut(server: Asking) -> None:
    (told,) = labels(server.predict(("x" * 3000, jpeg())))
    assert len(told["path"]) == requests.LONGEST_NAME


def _moving() -> bytes:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    "picture",
    [
        encoded(Image.new("CMYK", (40, 40), (10, 200, 30, 0)), "JPEG"),
        encoded(Image.fromarray(np.linspace(0, 65535, 1600).reshape(40, 40).astype(np.uint16)), "PNG"),
        _moving(),
        encoded(Image.new("RGBA", (40, 40), (1, 2, 3, 4)), "WEBP"),
        encoded(Image.new("1", (1, 1)), "PNG"),
    ],
    ids=["CMYK", "16 bits", "animated", "transparent", "one pixel"],
)
def test_unusual_pictures_are_labelled_whatever_they_are_called(server: Asking, picture: bytes) -> None:
    (told,) = labels(server.post("/v1/predict", picture, "image/jpeg"))
    assert len(told["labels"]) == 3


# ── what is refused ───────────────────────────────────────────────────────────────────────────────────────────


def test_one_bad_picture_has_its_error_and_the_rest_go_on(server: Asking) -> None:
    told = labels(server.predict(jpeg(), ("bad.jpg", b"no picture"), ("empty.jpg", b""), jpeg(1)))
    assert [one["error"] for one in told] == [
        None, "it is not an image of a known format", "the file is empty", None,
    ]  # fmt: skip
    assert [len(one["labels"]) for one in told] == [3, 0, 0, 3]


@pytest.mark.parametrize("data", [b"no picture", jpeg()[:300], b"", b"\x00" * 1000], ids=["text", "cut", "empty", "0"])
def test_if_none_can_be_read_that_is_422(server: Asking, data: bytes) -> None:
    assert "No picture could be read" in problem(server.predict(("x.jpg", data), ("y.jpg", data)), 422)


def test_a_bomb_is_413_before_it_is_decoded(server: Asking) -> None:
    assert "too large" in problem(server.post("/v1/predict", decompression_bomb(8_000), "image/png"), 413)
    assert "1,000,000 pixels" in problem(server.predict(encoded(Image.new("L", (1001, 1000)), "PNG")), 413)


def test_too_many_pictures_are_413(server: Asking) -> None:
    assert "more than 4 pictures" in problem(server.predict(*[jpeg()] * 5), 413)
    assert "more than 4 pictures" in problem(server.predict(*[jpeg()] * 50), 413)
    text = json.dumps({"images": [base64.b64encode(jpeg()).decode()] * 5}).encode()
    assert "more than 4 pictures" in problem(server.post("/v1/predict", text, "application/json"), 413)


def test_too_many_bytes_are_413_told_or_not(server: Asking) -> None:
    async def endless() -> Any:
        for _ in range(100):
            yield b"x" * 10_000

    assert "300,000 bytes" in problem(server.post("/v1/predict", b"x" * 300_001), 413)
    asked = server.client.post("/v1/predict", content=endless(), headers={"content-type": "image/png"})
    assert "300,000 bytes" in problem(server.run(asked), 413)
    assert server.app.state.held.bytes == 0


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "video/mp4", "imagejpeg", ""])
def test_other_types_are_415(server: Asking, kind: str) -> None:
    assert "send a picture as image/jpeg" in problem(server.post("/v1/predict", jpeg(), kind), 415)


def test_encoded_bodies_are_415(server: Asking) -> None:
    answer = server.post("/v1/predict", jpeg(), **{"content-encoding": "gzip"})
    assert "encoded as gzip" in problem(answer, 415)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"{}", b'{"images": []}', b'{"images": "AAAA"}', b'{"images": [1]}',
        b'{"images": ["not base64!"]}', b'{"images": ["AAA"]}', b'{"images": ["AAAA"], "more": 1}', b"\xff\xfe",
        b"[" * 100_000, b'{"images": [' + b"1" * 5000 + b"]}", b'{"images": ["\xc3\xa9\xc3\xa9"]}',
    ],
)  # fmt: skip
def test_wrong_json_is_422(server: Asking, body: bytes) -> None:
    problem(server.post("/v1/predict", body, "application/json"), 422)


def test_large_json_is_read_beside_the_event_loop(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[str] = []
    real = requests._json
    monkeypatch.setattr(requests, "_json", lambda body: (where.append(threading.current_thread().name), real(body))[1])
    noise = np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8)
    large = encoded(Image.fromarray(noise), "PNG")
    assert len(large) > 2 * requests.LARGE
    with asking(models) as found:
        answers = [
            found.post("/v1/predict", json.dumps({"images": [base64.b64encode(one).decode()]}).encode(), JSON)
            for one in (jpeg(), large)
        ]
        assert [labels(answer)[0]["error"] for answer in answers] == [None, None]
        assert where[0] != where[1]
        assert found.predict(large).json()["predictions"][0]["labels"] == labels(answers[1])[0]["labels"]
        text = base64.b64encode(large).decode()
        for wrong in (text[: requests.LARGE - 1] + "=" + text[requests.LARGE :], text[:-1], "=" + text[1:]):
            problem(found.post("/v1/predict", json.dumps({"images": [wrong]}).encode(), JSON), 422)


FIELD = "Content-Disposition: form-data; name="


@pytest.mark.parametrize(
    "body",
    [
        b"no form", b"", form("", "without a name"), form("Content-Disposition: form-data", "", "1"),
        form(f'{FIELD}"images"', "", "text"), form(f'{FIELD}"image"; filename="a"', "", "1"),
        form(*["A: b"] * 50, "", "1"), form("A" * 100_000, "", "1"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "more",
    [
        "; boundary=x", "", "; boundary=x; charset=nonsense", "; boundary=x; charset=undefined",
        "; boundary=x; charset=punycode", r'; boundary="x\"; charset=\"punycode"',
    ],
)  # fmt: skip
def test_wrong_forms_are_422(server: Asking, more: str, body: bytes) -> None:
    problem(server.post("/v1/predict", body, f"multipart/form-data{more}"), 422)


@pytest.mark.parametrize("charset", ["undefined", "idna", "utf-16"])
@pytest.mark.parametrize("boundary", ["x", '"x y"', '"x;y"'])
def test_a_form_is_utf_8_whatever_it_says(server: Asking, charset: str, boundary: str) -> None:
    part = f'{FIELD}"images"; filename="猫.jpg"\r\n\r\n'.encode() + jpeg()
    edge = b"--" + boundary.strip('"').encode()
    kind = f"multipart/form-data; charset={charset}; boundary={boundary}"
    (told,) = labels(server.post("/v1/predict", edge + b"\r\n" + part + b"\r\n" + edge + b"--\r\n", kind))
    assert told["path"] == "猫.jpg"


@pytest.mark.parametrize(
    ("query", "status", "sentence"),
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
def test_wrong_questions_are_refused_in_a_sentence(server: Asking, query: str, status: int, sentence: str) -> None:
    assert problem(server.post(f"/v1/predict?{query}", jpeg()), status) == sentence


def test_other_paths_and_methods_have_sentences_too(server: Asking) -> None:
    problem(server.get("/v2/predict"), 404)
    problem(server.get("/../../etc/passwd"), 404)
    answer = server.get("/v1/predict")
    problem(answer, 405)
    assert answer.headers["allow"] == "POST"


# ── who may ask, and how much ─────────────────────────────────────────────────────────────────────────────────


def test_a_token_is_wanted_where_there_is_one(models: ModelRegistry) -> None:
    with asking(models, token="s3cret") as found:
        for header in (
            {},
            {"authorization": "Bearer other"},
            {"authorization": "Basic s3cret"},
            {"authorization": "s3cret"},
        ):
            answer = found.post("/v1/predict", jpeg(), **header)
            assert "wants a token" in problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert found.get("/v1/models", headers=header).status_code == 401
            assert found.get("/metrics", headers=header).status_code == 401
        right = {"authorization": "bearer s3cret"}
        assert len(labels(found.post("/v1/predict", jpeg(), **right))) == 1
        assert found.get("/v1/models", headers=right).status_code == 200
        assert found.get("/metrics", headers=right).status_code == 200
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
            assert found.get(path).status_code == 200
        assert "s3cret" not in repr(found.app.state.settings)


def test_other_web_sites_may_ask_only_if_told(models: ModelRegistry, server: Asking) -> None:
    site = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=site).headers
    with asking(models, cors=("https://example.org",), token="t") as found:
        answer = found.get("/v1/models", headers=site)
        assert answer.status_code == 401  # and the site may read why
        assert answer.headers["access-control-allow-origin"] == "https://example.org"
        assert "access-control-allow-origin" not in found.get("/v1/models", headers={"origin": "https://a.b"}).headers
        before = {**site, "access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        assert found.run(found.client.options("/v1/predict", headers=before)).status_code == 200


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True), ("LOCALHOST:8000", True), ("127.0.0.1:1", True), ("127.9.9.9", True), ("[::1]:8000", True),
        ("[::1]", True), ("evil.example:8000", False), ("127.0.0.1.evil.example", False), ("localhost.evil", False),
        ("192.168.1.1", False), ("[::2]:8000", False), ("localhost@evil.example", False),
    ],
)  # fmt: skip
def test_a_server_for_its_own_machine_has_no_other_name(server: Asking, host: str, here: bool) -> None:
    for path in ("/", "/v1/samples", "/healthz"):
        answer = server.get(path, headers={"host": host})
        assert answer.status_code == 200 if here else "not called " + host in problem(answer, 421)


@pytest.mark.parametrize("settings", [{"host": "0.0.0.0"}, {"token": "t"}], ids=["elsewhere", "token"])
def test_other_servers_may_have_any_name(models: ModelRegistry, settings: dict[str, Any]) -> None:
    with asking(models, **settings) as found:
        assert found.get("/healthz", headers={"host": "labels.example"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "may"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin", "origin": "https://before.the.proxy"}, True),
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
def test_pages_of_other_sites_may_not_send(
    models: ModelRegistry, path: str, headers: dict[str, str], may: bool
) -> None:
    with asking(models, cors=("https://a.example",)) as found:
        answer = found.post(path, jpeg(), **headers)
        assert answer.status_code == 200 if may else "other web sites" in problem(answer, 403)
        assert found.get("/v1/models", headers=headers).status_code == 200


def test_a_full_queue_is_503_with_the_time_to_ask_again(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    event, real = threading.Event(), batching.load_crops
    monkeypatch.setattr(batching, "read_squares", lambda *given: (event.wait(10), real(*given))[1])
    with asking(models, queue=10, max_images=1) as found:

        async def crowd() -> list[Any]:
            waiting = [
                asyncio.ensure_future(
                    found.client.post("/v1/predict", content=jpeg(), headers={"content-type": "image/png"})
                )
                for _ in range(40)
            ]
            await asyncio.sleep(0.3)
            event.set()
            return await asyncio.gather(*waiting)

        answers = found.run(crowd())
        refused = [answer for answer in answers if answer.status_code == 503]
        assert len(refused) == 30
        assert all(1 <= int(answer.headers["retry-after"]) <= 30 for answer in refused)
        assert "ask again in" in problem(refused[0], 503)
        assert sum(answer.status_code == 200 for answer in answers) == 10
        assert labels(found.predict(jpeg()))
        assert found.count('alexnet_requests_total{route="/v1/predict",status="503"}') == 30


def test_bodies_beyond_what_may_be_in_memory_are_503(models: ModelRegistry) -> None:
    with asking(models, max_bytes=1000) as found:
        found.app.state.held.bytes = found.app.state.settings.held_bytes - 500
        problem(found.post("/v1/predict", b"x" * 900), 503)
        assert found.app.state.held.bytes == found.app.state.settings.held_bytes - 500


def test_a_body_that_does_not_come_is_408(models: ModelRegistry) -> None:
    with asking(models, timeout=0.2) as found:

        async def slow() -> Any:
            yield b"\xff\xd8"
            await asyncio.sleep(30)

        answer = found.run(found.client.post("/v1/predict", content=slow(), headers={"content-type": "image/jpeg"}))
        assert "within 0.2 s" in problem(answer, 408)
        assert answer.headers["connection"].lower() == "close"
        assert found.app.state.held.bytes == 0


def test_who_leaves_is_not_worked_for(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    event, real = threading.Event(), batching.load_crops
    monkeypatch.setattr(batching, "read_squares", lambda *given: (event.wait(10), real(*given))[1])
    with asking(models) as found:
        sent: list[Any] = []

        async def leave() -> None:
            messages: asyncio.Queue[Any] = asyncio.Queue()
            scope = {
                "type": "http", "method": "POST", "path": "/v1/predict", "query_string": b"", "http_version": "1.1",
                "headers": [(b"content-type", b"image/jpeg")], "scheme": "http", "server": ("s", 1), "client": None,
            }  # fmt: skip
            messages.put_nowait({"type": "http.request", "body": jpeg(), "more_body": False})

            async def send(message: Any) -> None:
                sent.append(message)

            asking_ = asyncio.ensure_future(found.app(scope, messages.get, send))
            await asyncio.sleep(0.1)
            messages.put_nowait({"type": "http.disconnect"})
            await asyncio.wait_for(asking_, 5)

        found.run(leave())
        event.set()
        assert labels(found.predict(jpeg(1)))
        assert found.count('alexnet_requests_total{route="/v1/predict",status="499"}') == 1
        assert found.count('alexnet_pictures_total{model="fruit",result="answered"}') == 1


# ── what it tells of itself ───────────────────────────────────────────────────────────────────────────────────


def test_models_tells_classes_and_limits(server: Asking) -> None:
    told = server.get("/v1/models").json()
    assert told["default"] == "fruit"
    (one,) = told["models"]
    assert one["classes"] == ["apple", "leaf", "sky"]
    assert (one["image_size"], one["channels"], one["engine"], one["precision"]) == (32, 3, "exact", "fp32")
    assert one["views"] == [1, 10]
    assert one["limits"] == {"bytes": 300_000, "pixels": 1_000_000, "images": 4}
    assert "activations" in one["looks"]
    assert "similar" not in one["looks"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/healthz", "/readyz"])
def test_a_head_alone_may_be_asked_for(server: Asking, path: str) -> None:
    assert server.run(server.client.head(path)).status_code == 200


@pytest.mark.parametrize("dead", ["_computers", "_decoders"])
def test_a_server_whose_thread_died_says_so(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch, dead: str) -> None:
    gone = threading.Thread()
    with asking(models) as found:
        batcher = found.app.state.batcher
        monkeypatch.setattr(batcher, dead, [*getattr(batcher, dead), gone])
        for path in ("/healthz", "/readyz"):
            answer = found.get(path)
            assert (answer.status_code, answer.json()) == (503, {"status": "broken"})
        monkeypatch.undo()
        assert found.get("/healthz").status_code == 200


def test_who_waits_too_long_is_503_and_not_worked_for(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    event, real = threading.Event(), batching.load_crops
    monkeypatch.setattr(batching, "read_squares", lambda *given: (event.wait(10), real(*given))[1])
    with asking(models, timeout=0.3) as found:
        answer = found.predict(jpeg())
        assert "did not come to it within 0.3 s" in problem(answer, 503)
        assert int(answer.headers["retry-after"]) >= 1
        assert found.app.state.held.bytes == 0
        event.set()
        assert labels(found.predict(jpeg(1)))
        assert found.count('alexnet_pictures_total{model="fruit",result="answered"}') == 1
        look = found.run(_late(found, found.app.state.work(lambda: threading.Event().wait(1))))
        assert look.status == 503


async def _late(server: Asking, work: Any) -> Any:
    scope = {"type": "http", "app": server.app}
    with pytest.raises(requests.HTTPError) as caught:
        await unless_gone(Request(scope, asyncio.Event().wait), asyncio.ensure_future(work))  # type: ignore[arg-type]
    return caught.value


def test_metrics_count_requests_pictures_and_batches(models: ModelRegistry) -> None:
    with asking(models) as found:
        found.predict(jpeg(), jpeg(1), b"bad")
        found.get("/nothing/12345")
        found.get("/nothing/67890")
        assert found.count('alexnet_requests_total{route="/v1/predict",status="200"}') == 1
        assert found.count('alexnet_requests_total{route="other",status="404"}') == 2
        assert found.count('alexnet_pictures_total{model="fruit",result="answered"}') == 2
        assert found.count('alexnet_pictures_total{model="fruit",result="unreadable"}') == 1
        assert found.count("alexnet_batch_pictures_sum") == 2
        assert found.count("alexnet_request_seconds_count") >= 3
        assert found.count("alexnet_queue_pictures") == found.count("alexnet_held_bytes") == 0
        assert "12345" not in found.get("/metrics").text


def test_a_fault_of_ours_is_500_without_its_story(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with asking(models) as found:
        monkeypatch.setattr(models["fruit"].classifier, "told", lambda *_: 1 / 0)
        assert "ZeroDivision" not in problem(found.predict(jpeg()), 500)
        assert found.count("alexnet_errors_total") == 1
    assert "ZeroDivisionError" in caplog.text


def test_the_openapi_names_all_that_is_answered(server: Asking) -> None:
    document = server.get("/openapi.json").json()
    predict = document["paths"]["/v1/predict"]["post"]
    assert [one["name"] for one in predict["parameters"]] == ["model", "top_k", "ten_crop"]
    assert set(predict["requestBody"]["content"]) == {
        "multipart/form-data", "application/json", "image/*", "application/octet-stream",
    }  # fmt: skip
    assert set(predict["responses"]) == {str(status) for status in routes.SAYS.keys() - {500} | {200}}


def test_docs_shows_each_route_and_needs_nothing_from_elsewhere(server: Asking) -> None:
    answer = server.get("/docs")
    for path in server.get("/openapi.json").json()["paths"]:
        assert f"{path}</code>" in answer.text
    assert not re.search(r"(src|href)=.(https?:)?//|<script|@import|url\(", answer.text)
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_work_that_looks_inside_has_a_limit_of_its_own(server: Asking) -> None:
    event = threading.Event()

    async def crowd() -> list[Any]:
        waiting = [asyncio.ensure_future(server.app.state.work(lambda: event.wait(10))) for _ in range(12)]
        await asyncio.sleep(0.1)
        event.set()
        return await asyncio.gather(*waiting, return_exceptions=True)

    found = server.run(crowd())
    assert [one for one in found if one is True] == [True] * 8
    assert {one.status for one in found if one is not True} == {503}


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000}, {"max_batch": 0}, {"timeout": float("nan")}, {"queue": 10}, {"token": "a\nb"},
        {"timeout": float("inf")}, {"max_delay_ms": float("inf")}, {"max_delay_ms": 1e9}, {"drain": float("inf")},
        {"queue": 10**30}, {"max_batch": 10**9}, {"max_bytes": 10**30}, {"max_pixels": 10**12}, {"token": " a"},
        {"max_bytes": -1}, {"token": ""}, {"cors": ("example.org",)}, {"cors": ("https://example.org/",)},
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        Settings(**wrong)


def test_a_large_form_stays_in_memory(models: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starlette's own parser would put a file of more than 1 MB onto the disk."""
    rolled: list[object] = []
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", lambda self: rolled.append(self))
    large = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (700, 700, 3), np.uint8)), "PNG")
    assert len(large) > 1 << 20
    with asking(models) as found:
        assert labels(found.predict(large))
    assert not rolled
