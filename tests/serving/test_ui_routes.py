"""Web page routes: explanations, sample images, and the page's files."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("captum")

from starlette.testclient import TestClient

from alexnet.data.decode import decode_image
from alexnet.inference.explain import Saliency, Stage
from alexnet.inference.load import load_model
from alexnet.inference.neighbors import open_index
from alexnet.run_dir import Run
from alexnet.serving import explain, routes
from alexnet.serving.app import create_app
from alexnet.serving.explain import Explainer, NotAvailable, spread_over_classes
from alexnet.serving.pages import FILES, SCRIPTS, WEB, page_files, render_docs
from alexnet.serving.registry import Models, open_models
from alexnet.serving.settings import Settings
from fake_run import make_fake_run
from server_client import http_scope, running_server

LOCALHOST = "http://localhost"  # the only host name that a local server accepts


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A writable copy of the small run, without an index."""
    return Path(shutil.copytree(small_run, tmp_path_factory.mktemp("served") / "digits"))


@pytest.fixture(scope="module")
def models(run: Path) -> Models:
    return open_models([run])


@pytest.fixture(scope="module")
def client(models: Models) -> Any:
    with TestClient(create_app(models), headers={"content-type": "image/png"}, base_url=LOCALHOST) as client:
        yield client


@pytest.fixture(scope="module")
def digit(client: Any) -> bytes:
    """The file of a validation image."""
    return client.get("/v1/samples/3").content


def decode_uri(uri: str) -> Image.Image:
    kind, data = uri.split(",", 1)
    assert re.fullmatch(r"data:image/(png|jpeg);base64", kind)
    return Image.open(io.BytesIO(base64.b64decode(data)))


# ── rendering ─────────────────────────────────────────────────────────────────────────────────────


def test_overlay_is_orange_for_support_and_blue_for_opposition():
    heat = np.zeros((32, 32), np.float32)
    heat[:16, :16], heat[16:, 16:] = 2, -1
    white = np.full((32, 32, 3), 200, np.uint8)
    found = np.asarray(explain.overlay(Saliency("occlusion", "a", 0.5, white, heat))).astype(int)
    assert found.shape == (256, 256, 3)
    supporting, opposing, neutral = found[40, 40], found[220, 220], found[40, 220]
    assert supporting[0] - supporting[2] > 100
    assert opposing[2] - opposing[0] > 50
    assert neutral.max() - neutral.min() <= 1
    empty = np.asarray(explain.overlay(Saliency("grad-cam", "a", 0.5, white, 0 * heat)))
    assert np.ptp(empty) == 0


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (224, 3)])
def test_network_input_is_enlarged_by_an_integer_factor(side, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels), dtype=np.uint8)
    found = np.asarray(explain.render_input(pixels))
    factor = len(found) // side
    assert len(found) == side * factor
    assert 128 < len(found) <= 256
    np.testing.assert_array_equal(found[::factor, ::factor].reshape(pixels.shape), pixels)


def test_stage_is_rendered_as_its_strongest_maps():
    values = np.zeros((20, 4, 4), np.float32)
    values[13], values[7, 0, 0] = 5, 1
    found = np.asarray(explain.render_stage(Stage("conv1", values)))
    assert found[0, 0].tolist() == explain.COLOR_RAMP[-1].tolist()  # map 13 comes first, all at the largest
    assert found[-1, -1].tolist() == explain.COLOR_RAMP[0].tolist()
    assert found.shape[1] > 1.8 * found.shape[0]  # two rows of four
    units = np.asarray(explain.render_stage(Stage("fc6", np.arange(101, dtype=np.float32))))
    assert units[0, 0].tolist() == explain.COLOR_RAMP[0].tolist()
    assert units[-1, -1].tolist() == 3 * [explain.GAP_GRAY]  # the last row is not full
    assert (
        np.asarray(explain.render_stage(Stage("fc8", np.full(10, -1, np.float32)))).std() > 0
    )  # dark blue, no failure


# ── routes ────────────────────────────────────────────────────────────────────────────────────────


def test_saliency_is_for_the_requested_label(client, digit):
    first = client.post("/v1/saliency", content=digit).json()
    assert decode_uri(first["image"]).size == decode_uri(first["input"]).size
    other = next(str(d) for d in range(10) if str(d) != first["label"])
    second = client.post("/v1/saliency", content=digit, params={"label": other, "method": "occlusion"}).json()
    assert (second["label"], second["method"]) == (other, "occlusion")
    assert second["probability"] < first["probability"]
    assert second["image"] != first["image"]


def test_activations_list_each_stage(client, digit):
    stages = client.post("/v1/activations", content=digit).json()["stages"]
    assert [s["name"] for s in stages if s["name"].startswith(("conv", "fc"))] == [
        "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8",
    ]  # fmt: skip
    assert stages[-1]["shape"] == [10]
    assert all(0 <= s["active"] <= 1 and decode_uri(s["image"]).width >= 200 for s in stages)


def test_similar_images_need_an_index_and_build_none(client, run, digit):
    response = client.post("/v1/similar", content=digit)
    assert response.status_code == 404
    assert "alexnet show similar" in response.json()["error"]
    assert not (run / "index").exists()
    index = open_index(load_model(run), device="cpu")
    try:
        document = client.post("/v1/similar", content=digit).json()  # without restarting the server
        assert document["layer"] == "fc7"
        found = document["neighbors"]
        assert len(found) == 6
        assert [n["distance"] for n in found] == sorted(n["distance"] for n in found)
        assert {n["label"] for n in found} <= set(index.labels)
        assert decode_uri(found[0]["image"]).size == (32, 32)
    finally:
        shutil.rmtree(run / "index")


def test_samples_are_validation_images_with_the_stored_predictions(models, client, run):
    listed = client.get("/v1/samples").json()["samples"]
    assert len(listed) == 12
    assert len({sample["label"] for sample in listed}) == 10
    _, targets, logits = Run(run).read_evaluation("val")
    files = [client.get("/" + sample["url"]) for sample in listed]
    assert {file.headers["content-type"] for file in files} == {"image/png"}
    predictions = models["digits"].predict_many([file.content for file in files], top=10)
    for i, sample, prediction in zip(spread_over_classes(targets, 12), listed, predictions, strict=True):
        assert sample["label"] == str(targets[i])
        p = np.exp(logits[i] - logits[i].max())
        p /= p.sum()
        assert dict(prediction.labels) == pytest.approx({str(d): p[d] for d in range(10)}, abs=1e-4)


def test_sample_files_are_sent_unchanged(tmp_path):
    run = make_fake_run(tmp_path / "run", classes=3, per_class=2)
    file = tmp_path / "run" / "data" / "val" / "class 0" / "0.jpg"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (9, 7), "red").save(file, quality=95)
    exported = SimpleNamespace(run=run, network=None)
    classifier: Any = SimpleNamespace(
        classes=("class 0", "class 1", "class 2"), ensemble=SimpleNamespace(members=[exported])
    )
    explainer = Explainer("run", classifier)
    assert [label for _, label in explainer.samples] == ["class 0", "class 1", "class 2"] * 2
    assert explainer.sample(0) == (file.read_bytes(), "image/jpeg")
    with pytest.raises(NotAvailable, match="have changed since"):
        explainer.sample(1)
    with pytest.raises(NotAvailable, match="an exported file"):
        explainer.activations(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize(
    ("targets", "count", "rows"),
    [([0, 0, 1, 1], 3, [0, 2, 1]), ([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0], 12, [0]), ([], 12, [])],
)
def test_samples_cover_as_many_classes_as_possible(targets, count, rows):
    assert spread_over_classes(np.array(targets), count) == rows


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/saliency", b"no image", 422, "Cannot read the image"),
        ("/v1/activations", b"", 422, "empty"),
        ("/v1/saliency?label=eleven", None, 422, "no class 'eleven'"),
        ("/v1/activations?model=digit", None, 404, "did you mean 'digits'"),
    ],
)
def test_invalid_requests_get_an_error(client, digit, path, body, status, message):
    response = client.post(path, content=digit if body is None else body)
    assert response.status_code == status
    assert message in response.json()["error"]


@pytest.mark.parametrize("number", ["12", "-1", "../../recipe.json", "x"])
def test_only_samples_are_sent(client, number):
    response = client.get(f"/v1/samples/{number}")
    assert response.status_code in (404, 422)
    assert list(response.json()) == ["error"]


def test_limits_and_token_apply_to_explanations(models, digit):
    with TestClient(
        create_app(models, Settings(token="t", max_pixels=50, max_bytes=5000)), base_url=LOCALHOST
    ) as client:
        for path in ("/v1/saliency", "/v1/activations", "/v1/similar"):
            assert client.post(path, content=digit).status_code == 401
        assert client.get("/v1/samples").status_code == 401
        assert client.get("/v1/samples/0").status_code == 401
        assert all(
            client.get(address).status_code == 200 for address in page_files()
        )  # the page asks the user for the token
        client.headers.update({"authorization": "Bearer t", "content-type": "image/png"})
        assert client.get("/v1/samples/0").status_code == 200
        assert client.post("/v1/activations", content=digit).status_code == 413  # 64 pixels
        assert client.post("/v1/saliency", content=b"x" * 5001).status_code == 413
        response = client.post("/v1/saliency", content=b"{}", headers={"content-type": "application/json"})
        assert response.status_code == 415


@pytest.mark.slow
def test_concurrent_explanations_do_not_affect_each_other(models, client):
    explainer = Explainer("digits", models["digits"])
    images = [decode_image(client.get(f"/v1/samples/{number}").content, 1) for number in range(12)]
    alone = [explainer.saliency(image) for image in images]
    # one core each, as above: other numbers of threads differ in the last digits
    with ThreadPoolExecutor(4, initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),)) as threads:
        for _ in range(4):
            assert list(threads.map(explainer.saliency, images)) == alone


def test_explanation_for_disconnected_client_is_not_computed(models, digit, monkeypatch):
    decoded: list[bytes] = []
    monkeypatch.setattr(routes, "decode_image", lambda body, *_, **__: decoded.append(body))
    busy = threading.Event()
    with running_server(models) as server:
        run_explanation = server.app.state.run_explanation

        async def request_and_disconnect() -> list[int]:
            first = asyncio.ensure_future(run_explanation(lambda: busy.wait(60)))
            statuses: list[int] = []

            async def receive() -> Any:
                if receiving:
                    return receiving.pop()
                await asyncio.sleep(0.2)
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                statuses.append(message.get("status", 0))

            receiving = [{"type": "http.request", "body": digit, "more_body": False}]
            request = asyncio.ensure_future(server.app(http_scope("/v1/activations", b"image/png"), receive, send))
            await asyncio.wait([request], timeout=30)
            assert request.done(), "it waits for the worker"
            busy.set()
            await first
            await run_explanation(lambda: None)
            return statuses

        assert server.run(request_and_disconnect())[0] == 499
    assert decoded == []


@pytest.mark.parametrize("damage", ["deleted", "recipe", "evaluation"])
def test_deleted_or_damaged_run_is_404_and_predictions_continue(small_run, tmp_path, digit, damage):
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    with TestClient(
        create_app(open_models([run])), headers={"content-type": "image/png"}, base_url=LOCALHOST
    ) as client:
        if damage == "deleted":
            shutil.rmtree(run)
        else:
            (run / {"recipe": "recipe.json", "evaluation": "evaluation/val.parquet"}[damage]).write_text("{")
        assert client.post("/v1/predict", content=digit).status_code == 200
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/saliency", content=digit).status_code == 200
        responses = [
            client.get("/v1/samples"),
            client.get("/v1/samples/0"),
            client.post("/v1/similar", content=digit),
        ]
        assert {response.status_code for response in responses} <= {200, 404}
        assert responses[1].status_code == 404


# ── files of the page ─────────────────────────────────────────────────────────────────────────────


def test_page_loads_nothing_from_other_sites(client):
    for address, (content, kind) in page_files().items():
        response = client.get(address)
        assert response.content == content
        assert response.headers["content-type"].startswith(kind)
        policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert response.headers["x-content-type-options"] == "nosniff"
        elsewhere = {"text/css": r"url\(|@import", "text/html": r"""(src|href)=["'](\w+:)?//"""}
        assert not re.search(elsewhere.get(kind, r"""\b(from|import) *\(?["'](?!\./)|://"""), response.text), address
    page = client.get("/").text
    data = '<script type="application/json" id="texts">'  # runs nothing, so that the policy allows it
    assert page.count(data) == 1
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src=)", page.replace(data, ""))


def test_untrusted_text_never_becomes_markup():
    for name in FILES:
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(",
            (WEB / name).read_text(),
        )


def test_documentation_page_escapes_names():
    hostile = """"'><script>alert(1)</script>"""
    query = {"name": hostile, "in": "query", "description": hostile, "schema": {"enum": [hostile]}}
    route = {
        "description": hostile,
        "parameters": [query],
        "responses": {"200": {"description": hostile}},
    }
    info = {"title": hostile, "version": "1", "description": hostile}
    page = render_docs({"info": info, "paths": {f"/{hostile}": {"get": route}}})
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 9


def test_page_has_every_text_in_both_languages(client):
    page = client.get("/").text
    texts = json.loads(re.search(r'id="texts">(.*?)</script>', page)[1])
    assert texts["en"].keys() == texts["zh"].keys()
    assert (texts["en"]["drop"], texts["zh"]["drop"]) == (
        "Drop or paste images here",
        "拖放或粘贴图片到此处",
    )
    script = "".join((WEB / name).read_text() for name in SCRIPTS)
    used = set(re.findall(r'data-text="(\w+)"', page)) | set(re.findall(r'\btext\("([\w-]+)"', script))
    used |= {key for pair in re.findall(r'text\([^"()]+ \? "(\w+)" : "(\w+)"', script) for key in pair}
    used |= set(re.findall(r'"(training_\w+)"', script))
    used |= {"accuracy", "loss"} | {
        "saliency_grad-cam",
        "saliency_occlusion",
        "no_script",  # in the page itself
    }
    assert used == texts["en"].keys()


def test_documentation_lists_the_routes(client):
    page = (Path(__file__).parents[2] / "docs" / "web-ui.md").read_text(encoding="utf-8")
    paths = client.get("/openapi.json").json()["paths"]
    named = dict(re.findall(r"`(?:GET|POST) (/v1/\w+)(\?[^`]*)?`", page))
    assert named.keys() == {p for p in paths if p not in ("/v1/predict", "/v1/models") and re.fullmatch(r"/v1/\w+", p)}
    parameters = {p["name"] for p in paths["/v1/saliency"]["post"]["parameters"]}
    assert set(re.findall(r"(\w+)=", named["/v1/saliency"])) == parameters - {"model"}
