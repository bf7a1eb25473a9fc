"""Looks inside a served network, pictures to try, and the files of the page."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("captum")

from starlette.testclient import TestClient

from alexnet.data.decode import decode_image
from alexnet.inference.explain import Saliency, Stage
from alexnet.inference.load import load_model
from alexnet.inference.neighbors import open_index
from alexnet.run_dir import Run
from alexnet.serving import explain, ui_routes
from alexnet.serving.app import create_app
from alexnet.serving.explain import Explainer, NotAvailable, spread
from alexnet.serving.registry import ModelRegistry, ServedModel, open_models
from alexnet.serving.settings import Settings
from alexnet.serving.ui_routes import FILES
from asking import asking
from fake_run import make_fake_run

PAGE = resources.files("alexnet.export") / "page"

HERE = "http://localhost"  # the name of a server for its own machine


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run, without an index."""
    return Path(shutil.copytree(small_run, tmp_path_factory.mktemp("served") / "digits"))


@pytest.fixture(scope="module")
def models(run: Path) -> ModelRegistry:
    return open_models([run])


@pytest.fixture(scope="module")
def client(models: ModelRegistry) -> Any:
    with TestClient(create_app(models), headers={"content-type": "image/png"}, base_url=HERE) as client:
        yield client


@pytest.fixture(scope="module")
def digit(client: Any) -> bytes:
    """The file of a validation picture."""
    return client.get("/v1/samples/3").content


def picture(uri: str) -> Image.Image:
    kind, data = uri.split(",", 1)
    assert re.fullmatch(r"data:image/(png|jpeg);base64", kind)
    return Image.open(io.BytesIO(base64.b64decode(data)))


# ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_speaks_for_a_label_is_orange_and_against_it_blue():
    heat = np.zeros((32, 32), np.float32)
    heat[:16, :16], heat[16:, 16:] = 2, -1
    white = np.full((32, 32, 3), 200, np.uint8)
    found = np.asarray(explain.overlay(Saliency("occlusion", "a", 0.5, white, heat))).astype(int)
    assert found.shape == (256, 256, 3)
    warm, cold, quiet = found[40, 40], found[220, 220], found[40, 220]
    assert warm[0] - warm[2] > 100
    assert cold[2] - cold[0] > 50
    assert quiet.max() - quiet.min() <= 1
    nothing = np.asarray(explain.overlay(Saliency("grad-cam", "a", 0.5, white, 0 * heat)))
    assert np.ptp(nothing) == 0


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (224, 3)])
def test_what_the_network_sees_is_enlarged_by_whole_pixels(side, channels):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, channels), dtype=np.uint8)
    found = np.asarray(explain.seen(pixels))
    factor = len(found) // side
    assert len(found) == side * factor
    assert 128 < len(found) <= 256
    np.testing.assert_array_equal(found[::factor, ::factor].reshape(pixels.shape), pixels)


def test_a_stage_shows_its_strongest_maps():
    values = np.zeros((20, 4, 4), np.float32)
    values[13], values[7, 0, 0] = 5, 1
    found = np.asarray(explain.sheet(Stage("conv1", values)))
    assert found[0, 0].tolist() == explain.RAMP[-1].tolist()  # map 13 comes first, all at the largest
    assert found[-1, -1].tolist() == explain.RAMP[0].tolist()
    assert found.shape[1] > 1.8 * found.shape[0]  # two rows of four
    units = np.asarray(explain.sheet(Stage("fc6", np.arange(101, dtype=np.float32))))
    assert units[0, 0].tolist() == explain.RAMP[0].tolist()
    assert units[-1, -1].tolist() == explain.GAP.tolist()  # the last row is not full
    assert np.asarray(explain.sheet(Stage("fc8", np.full(10, -1, np.float32)))).std() > 0  # dark blue, no failure


# ── routes ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_saliency_is_of_the_label_that_is_asked_for(client, digit):
    first = client.post("/v1/saliency", content=digit).json()
    assert picture(first["picture"]).size == picture(first["seen"]).size
    other = next(str(d) for d in range(10) if str(d) != first["label"])
    second = client.post("/v1/saliency", content=digit, params={"label": other, "method": "occlusion"}).json()
    assert (second["label"], second["method"]) == (other, "occlusion")
    assert second["probability"] < first["probability"]
    assert second["picture"] != first["picture"]


def test_activations_tell_each_stage(client, digit):
    stages = client.post("/v1/activations", content=digit).json()["stages"]
    assert [s["name"] for s in stages if s["name"].startswith(("conv", "fc"))] == [
        "conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8",
    ]  # fmt: skip
    assert stages[-1]["shape"] == [10]
    assert all(0 <= s["active"] <= 1 and picture(s["picture"]).width >= 200 for s in stages)


def test_similar_pictures_need_an_index_and_make_none(client, run, digit):
    answer = client.post("/v1/similar", content=digit)
    assert answer.status_code == 404
    assert "alexnet show similar" in answer.json()["error"]
    assert not (run / "index").exists()
    index = open_index(load_model(run), device="cpu")
    try:
        told = client.post("/v1/similar", content=digit).json()  # without a new start
        assert told["layer"] == "fc7"
        found = told["neighbours"]
        assert len(found) == 6
        assert [n["distance"] for n in found] == sorted(n["distance"] for n in found)
        assert {n["label"] for n in found} <= set(index.labels)
        assert picture(found[0]["picture"]).size == (32, 32)
    finally:
        shutil.rmtree(run / "index")


def test_samples_are_validation_pictures_and_get_the_answers_that_were_stored(models, client, run):
    listed = client.get("/v1/samples").json()["samples"]
    assert len(listed) == 12
    assert len({sample["label"] for sample in listed}) == 10
    _, targets, logits = Run(run).read_evaluation("val")
    files = [client.get("/" + sample["url"]) for sample in listed]
    assert {file.headers["content-type"] for file in files} == {"image/png"}
    found = list(models["digits"].classifier.predict_many([file.content for file in files], top=10))
    for i, sample, said in zip(spread(targets, 12), listed, found, strict=True):
        assert sample["label"] == str(targets[i])
        p = np.exp(logits[i] - logits[i].max())
        p /= p.sum()
        assert dict(said.labels) == pytest.approx({str(d): p[d] for d in range(10)}, abs=1e-4)


def test_samples_that_are_files_are_sent_as_they_are(tmp_path):
    run = make_fake_run(tmp_path / "run", classes=3, per_class=2)
    file = tmp_path / "run" / "data" / "val" / "class 0" / "0.jpg"
    file.parent.mkdir(parents=True)
    Image.new("RGB", (9, 7), "red").save(file, quality=95)
    classifier: Any = SimpleNamespace(classes=("class 0", "class 1", "class 2"))
    looks = Explainer(ServedModel("run", classifier, None, run, str(run.path), "cifar", "exact", "fp32"))
    assert [label for _, label in looks.samples] == ["class 0", "class 1", "class 2"] * 2
    assert looks.sample(0) == (file.read_bytes(), "image/jpeg")
    with pytest.raises(NotAvailable, match="not what they were"):
        looks.sample(1)
    with pytest.raises(NotAvailable, match="an exported file"):
        looks.activations(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize(
    ("targets", "count", "rows"),
    [([0, 0, 1, 1], 3, [0, 2, 1]), ([0, 1, 2, 3, 4], 3, [0, 2, 4]), ([0], 12, [0]), ([], 12, [])],
)
def test_samples_are_of_as_many_classes_as_can_be(targets, count, rows):
    assert spread(np.array(targets), count) == rows


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/saliency", b"no picture", 422, "Cannot read the image"),
        ("/v1/activations", b"", 422, "empty"),
        ("/v1/saliency?label=eleven", None, 422, "no class 'eleven'"),
        ("/v1/activations?model=digit", None, 404, "did you mean 'digits'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(client, digit, path, body, status, says):
    answer = client.post(path, content=digit if body is None else body)
    assert answer.status_code == status
    assert says in answer.json()["error"]


@pytest.mark.parametrize("number", ["12", "-1", "../../recipe.json", "x"])
def test_no_other_files_are_sent(client, number):
    answer = client.get(f"/v1/samples/{number}")
    assert answer.status_code in (404, 422)
    assert list(answer.json()) == ["error"]


def test_the_limits_and_the_token_hold_for_looks_too(models, digit):
    with TestClient(create_app(models, Settings(token="t", max_pixels=50, max_bytes=5000)), base_url=HERE) as client:
        for path in ("/v1/saliency", "/v1/activations", "/v1/similar"):
            assert client.post(path, content=digit).status_code == 401
        assert client.get("/v1/samples").status_code == 401
        assert client.get("/v1/samples/0").status_code == 401
        assert all(client.get(address).status_code == 200 for address in FILES)  # the page asks for the token itself
        client.headers.update({"authorization": "Bearer t", "content-type": "image/png"})
        assert client.get("/v1/samples/0").status_code == 200
        assert client.post("/v1/activations", content=digit).status_code == 413  # 64 pixels
        assert client.post("/v1/saliency", content=b"x" * 5001).status_code == 413
        answer = client.post("/v1/saliency", content=b"{}", headers={"content-type": "application/json"})
        assert answer.status_code == 415


def test_looks_at_the_same_time_do_not_meddle(models, client):
    looks = Explainer(models["digits"])
    images = [decode_image(client.get(f"/v1/samples/{number}").content, 1) for number in range(12)]
    alone = [looks.saliency(image) for image in images]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(4):
            assert list(threads.map(looks.saliency, images)) == alone


def test_nobody_looks_for_a_client_that_has_gone(models, digit, monkeypatch):
    read: list[bytes] = []
    monkeypatch.setattr(ui_routes, "decode", lambda body, *_, **__: read.append(body))
    busy = threading.Event()
    with asking(models) as server:
        work = server.app.state.work

        async def ask_and_go() -> list[int]:
            ahead = asyncio.ensure_future(work(lambda: busy.wait(30)))
            statuses: list[int] = []

            async def receive() -> Any:
                if receiving:
                    return receiving.pop()
                await asyncio.sleep(0.2)
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                statuses.append(message.get("status", 0))

            receiving = [{"type": "http.request", "body": digit, "more_body": False}]
            scope = {
                "type": "http", "method": "POST", "path": "/v1/activations", "raw_path": b"/v1/activations",
                "query_string": b"", "headers": [(b"content-type", b"image/png")], "http_version": "1.1",
            }  # fmt: skip
            asked = asyncio.ensure_future(server.app(scope, receive, send))
            await asyncio.wait([asked], timeout=10)
            assert asked.done(), "it waits for the worker"
            busy.set()
            await ahead
            await work(lambda: None)
            return statuses

        assert server.run(ask_and_go())[0] == 499
    assert read == []


@pytest.mark.parametrize("damage", ["gone", "recipe", "evaluation"])
def test_a_run_that_is_gone_or_damaged_under_the_server_is_no_fault_of_ours(small_run, tmp_path, digit, damage):
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    with TestClient(create_app(open_models([run])), headers={"content-type": "image/png"}, base_url=HERE) as client:
        if damage == "gone":
            shutil.rmtree(run)
        else:
            (run / {"recipe": "recipe.json", "evaluation": "evaluation/val.parquet"}[damage]).write_text("{")
        assert client.post("/v1/predict", content=digit).status_code == 200
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/saliency", content=digit).status_code == 200
        answers = [client.get("/v1/samples"), client.get("/v1/samples/0"), client.post("/v1/similar", content=digit)]
        assert {answer.status_code for answer in answers} <= {200, 404}
        assert answers[1].status_code == 404


# ── the files ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_may_load_nothing_from_elsewhere(client):
    for address, (name, kind) in FILES.items():
        answer = client.get(address)
        assert answer.content == (PAGE / name).read_bytes()
        assert answer.headers["content-type"].startswith(kind)
        policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert answer.headers["x-content-type-options"] == "nosniff"
        elsewhere = {"text/css": r"url\(|@import", "text/html": r"""(src|href)=["'](\w+:)?//"""}
        assert not re.search(elsewhere.get(kind, r"""\b(from|import) *\(?["'](?!\./)|://"""), answer.text), name
    page = client.get("/").text
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]*src=)", page)  # the policy would forbid it


def test_strangers_words_never_become_markup():
    for name in ("page.js", "server.js", "words.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", (PAGE / name).read_text()
        )


def test_each_sentence_is_there_in_both_languages():
    text = (PAGE / "words.js").read_text(encoding="utf-8")
    parts = re.split(r"\n  (en|zh): {\n", text)
    words = {
        lang: dict(re.findall(r'^    "?([\w-]+)"?: (.*?)(?=^    "?[\w-]+"?: |^  },)', part, re.M | re.S))
        for lang, part in zip(parts[1::2], parts[2::2], strict=True)
    }
    assert words["en"].keys() == words["zh"].keys()
    for key in words["en"]:
        values = [sorted(re.findall(r"{(\w+)}", words[lang][key])) for lang in ("en", "zh")]
        assert values[0] == values[1], key
    page, script = (PAGE / "index.html").read_text(), (PAGE / "page.js").read_text() + (PAGE / "server.js").read_text()
    asked = set(re.findall(r'data-text="(\w+)"', page)) | set(re.findall(r'\bsay\("([\w-]+)"', script))
    asked |= set(re.findall(r'\? "(\w+)" : "(\w+)"', script)[0]) | {"saliency_grad-cam", "saliency_occlusion"}
    assert asked <= words["en"].keys()
    assert words["en"].keys() <= asked, "no sentence that nobody reads"


def test_the_document_names_the_routes_as_they_are(client):
    told = (Path(__file__).parents[2] / "docs" / "web-ui.md").read_text(encoding="utf-8")
    paths = client.get("/openapi.json").json()["paths"]
    named = dict(re.findall(r"`(?:GET|POST) (/v1/\w+)(\?[^`]*)?`", told))
    assert named.keys() == {p for p in paths if p not in ("/v1/predict", "/v1/models") and re.fullmatch(r"/v1/\w+", p)}
    parameters = {p["name"] for p in paths["/v1/saliency"]["post"]["parameters"]}
    assert set(re.findall(r"(\w+)=", named["/v1/saliency"])) == parameters - {"model"}
