"""The web page in Chromium, in phone and desktop sizes: dropped images get the labels that `predict` gives.

Skipped without Chromium or playwright. ALEXNET_SCREENSHOTS=DIR keeps screenshots.
"""

from __future__ import annotations

import base64
import re
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("captum")

from alexnet.inference.load import load_model
from alexnet.inference.neighbors import open_index
from alexnet.inference.predict import load
from alexnet.serving.app import create_app
from alexnet.serving.registry import open_models
from alexnet.serving.settings import Settings
from browser import OVERLAPS, keep_screenshot

pytestmark = [pytest.mark.browser, pytest.mark.slow]
TOKEN = "a token"
DROP = """([files, kind]) => {
  const data = new DataTransfer();
  for (const [name, type, content] of files)
    data.items.add(new File([Uint8Array.from(atob(content), (c) => c.charCodeAt(0))], name, { type }));
  const event = kind === "drop"
    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
  document.getElementById("drop").dispatchEvent(event);
}"""


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run with an index of its training images."""
    copy = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("served") / "digits"))
    open_index(load_model(copy), device="cpu")
    return copy


def serve(app: Any) -> Iterator[str]:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(60)


received: list[bytes] = []
"""Request bodies that the server of `site` received."""


@pytest.fixture(scope="module")
def site(run: Path, checkpoint: Path) -> Iterator[str]:
    """URL of a server with two models."""
    app = create_app(open_models([run, checkpoint]))

    async def record_bodies(scope: Any, receive: Any, send: Any) -> None:
        parts: list[bytes] = []

        async def record() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message["body"])
                if not message["more_body"]:
                    received.append(b"".join(parts))
            return message

        await app(scope, record, send)

    yield from serve(record_bodies)


@pytest.fixture(scope="module")
def guarded(run: Path) -> Iterator[str]:
    """URL of a server that requires a token."""
    yield from serve(create_app(open_models([run]), Settings(token=TOKEN)))


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """A JPEG of 640×427 that comes with scikit-learn."""
    from sklearn import datasets

    return (Path(datasets.__file__).parent / "images" / "china.jpg").read_bytes()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """A function that opens a URL in a new browser context.

    Afterwards there must be no console messages or errors, except those that match `expects`, and no requests to other
    sites.
    """
    opened: list[tuple[Any, list[str], str]] = []

    def open_it(
        address: str, width: int = 1280, height: int = 900, expects: str = "^$", training: Any = None, **view: Any
    ) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **{"locale": "en-US", **view})
        page, messages = context.new_page(), []
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on(
            "request",
            lambda request: messages.append(request.url) if not is_local(request.url, address) else None,
        )
        opened.append((context, messages, expects))
        if training is not None:  # the server's answer to /v1/training
            page.route("**/v1/training*", lambda route: route.fulfill(json=training))
        page.goto(address)
        page.locator("#samples img").first.wait_for()
        return page

    yield open_it
    for context, messages, expects in opened:
        context.close()
        assert [text for text in messages if not re.search(expects, text)] == []


def is_local(url: str, address: str) -> bool:
    return url.startswith((address, "data:", f"blob:{address}"))


def add_files(page: Any, *files: tuple[str, bytes], kind: str = "drop", type: str = "image/jpeg") -> None:
    """Drop or paste files onto the page."""
    page.evaluate(DROP, [[[name, type, base64.b64encode(content).decode()] for name, content in files], kind])


def wait_for_card(page: Any, count: int = 1) -> Any:
    """Return the newest card once `count` cards have a result or an error."""
    page.locator(".card[aria-busy=false]").nth(count - 1).wait_for()
    return page.locator(".card").first


def labels_of(card: Any) -> list[tuple[str, str]]:
    rows = card.locator(".labels li")
    return [(row.locator(".label").inner_text(), row.locator("b").inner_text()) for row in rows.all()]


# ── adding images ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("phone", {"width": 360, "height": 800, "has_touch": True, "is_mobile": True}),
        ("desktop", {}),
        ("phone-dark-zh", {"width": 360, "height": 800, "color_scheme": "dark", "locale": "zh-CN"}),
        ("desktop-dark", {"color_scheme": "dark"}),
    ],
)
def test_dropped_image_gets_the_labels_of_predict(open_page, site, run, photograph, name, view):
    page = open_page(site, **view)
    add_files(page, ("china.jpg", photograph))
    card = wait_for_card(page)
    expected = load(run).predict(photograph)
    assert labels_of(card) == [(label, f"{p:.1%}") for label, p in expected.confidences]
    assert card.locator(".name").inner_text() == "china.jpg"
    assert card.locator(".unsure").is_visible() == bool(expected.unsure)
    assert expected.labels[0][0] in page.locator("#status").inner_text()
    assert page.locator(".camera").is_visible() == ("has_touch" in view)
    for look in ("saliency", "activations", "similar"):
        card.locator(f"[data-look={look}] summary").click()
        card.locator(f"[data-look={look}] figure").first.wait_for()
    for image in card.locator("img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 7
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls horizontally"
    assert page.evaluate(OVERLAPS) == []
    dark = view.get("color_scheme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(22, 26, 29)" if dark else "rgb(255, 255, 255)"
    )
    keep_screenshot(page, f"page-{name}")


@pytest.mark.parametrize(("width", "locale", "state"), [(1280, "en-US", "Finished after 4"), (360, "zh-CN", "共 4 轮")])
def test_training_of_a_run_is_shown(open_page, site, width, locale, state):
    page = open_page(site, width=width, locale=locale)
    page.locator("#training summary").click()
    page.locator("#training .thumbnails > *").first.wait_for()
    assert state in page.locator("#training .state").inner_text()
    assert page.locator("#training .chart polyline").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls horizontally"
    assert page.evaluate(OVERLAPS) == []


TRAINING = {
    "model": "digits", "state": "training", "epochs": 1, "step": 12, "steps": 40, "steps_per_epoch": 160,
    "time_budget": None, "split": "val", "best": None, "history": [], "alarms": [],
}  # fmt: skip
ROW = {"epoch": 1, "train_loss": 2.0, "val_loss": 1.9, "train_top1": 0.3, "top1": 0.4}


@pytest.mark.parametrize(
    ("locale", "values", "state", "steps"),
    [
        ("en-US", {}, "40 steps, less than one pass over the images (160 steps)", "Step 12 of 40"),
        ("zh-CN", {"time_budget": "15m"}, "共 40 步，不足一轮（一轮 160 步）", "15m 内约可训练 40 步"),
        ("en-US", {"epochs": 3, "steps": 400, "step": 170, "history": [ROW], "best": 1}, "Epoch 2 of 3", "170 of 400"),
        ("en-US", {"state": "stopped", "history": [ROW]}, "Stopped after step 12 of 40", ""),
        ("en-US", {"state": "finished", "step": 40, "history": [ROW]}, "Finished after 40 steps, less than", ""),
        ("en-US", {"state": "finished", "step": 160, "history": [ROW]}, "Finished after one epoch.", ""),
        ("zh-CN", {"state": "finished", "step": 400, "history": [ROW] * 3}, "共 2.5 轮", ""),
    ],
)  # fmt: skip
def test_parts_of_an_epoch_are_counted_in_steps(open_page, site, locale, values, state, steps):
    training = {**TRAINING, **values}
    page = open_page(site, locale=locale, training=training)
    page.locator("#training:not([hidden])").wait_for()
    page.locator("#training .state", has_text=state).wait_for(state="attached")  # hidden in a closed part
    assert page.locator("#training .steps").is_visible() == bool(steps)
    if steps:
        assert steps in page.locator("#training .steps").inner_text()
        bar = page.locator("#training progress")
        assert bar.evaluate("bar => bar.value / bar.max") == training["step"] / training["steps"]


def test_each_of_several_chosen_files_gets_a_result(open_page, site, run, photograph, large_images):
    page = open_page(site, expects="422")
    leaf = (large_images / "leaf" / "0.jpg").read_bytes()
    files = [("china.jpg", photograph), ("broken.jpg", photograph[:3000]), ("leaf.jpg", leaf)]
    page.locator("#files").set_input_files([{"name": n, "mimeType": "image/jpeg", "buffer": b} for n, b in files])
    wait_for_card(page, 3)
    cards = page.locator(".card").all()
    assert [card.locator(".name").inner_text() for card in cards] == ["china.jpg", "broken.jpg", "leaf.jpg"]
    assert [card.locator(".error").is_visible() for card in cards] == [False, True, False]
    assert "cut short" in cards[1].locator(".error").inner_text()
    assert labels_of(cards[2])[0][0] == load(run).predict(leaf).labels[0][0]
    assert "3 of 3" in page.locator("#status").inner_text()
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".card").count() == 0


def test_heic_has_a_placeholder_and_its_reason_in_the_language_of_the_page(open_page, site):
    page = open_page(site, locale="zh-CN", expects="422")
    add_files(page, ("IMG_1.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)), type="image/heic")
    card = wait_for_card(page)
    assert not card.locator("img.preview").is_visible()
    assert card.locator(".unseen").inner_text() == "无法预览：浏览器不支持 HEIC 格式。"
    assert card.locator(".error").inner_text().startswith("服务器返回：无法读取图片（")
    page.get_by_role("button", name="English").click()
    page.locator(".error:has-text('No image could be read')").wait_for()
    assert card.locator(".unseen").inner_text() == "No preview: this browser cannot show HEIC."


def test_pasted_image_is_classified_and_pasted_text_is_not(open_page, site, photograph):
    page = open_page(site)
    add_files(page, kind="paste")
    assert "no image file" in page.locator("#status").inner_text()
    add_files(page, ("image.png", photograph), kind="paste")
    assert len(labels_of(wait_for_card(page))) == 5


def test_file_name_never_becomes_markup(open_page, site, photograph):
    page = open_page(site)
    name = "<img src=x onerror=alert(1)>&amp;.jpg"
    add_files(page, (name, photograph))
    assert wait_for_card(page).locator(".name").inner_text() == name
    assert page.locator(".name *").count() == 0


def test_names_with_control_characters_are_escaped(open_page, site, photograph):
    page = open_page(site)
    add_files(page, ("a\u202eb\x1b.jpg", photograph))
    assert wait_for_card(page).locator(".name").inner_text() == r"a\u202eb\u001b.jpg"


def test_everything_is_reachable_by_keyboard(open_page, site, run):
    page = open_page(site)
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        focus = page.evaluate("""() => {
          const element = document.activeElement, box = element.closest(".button") ?? element;
          return [element.id || element.closest("ul,footer")?.tagName, getComputedStyle(box).outlineStyle];
        }""")
        assert focus[1] != "none", focus
        seen.add(focus[0])
        if {"language", "files", "model", "ten", "UL"} <= seen:
            break
    page.keyboard.press("Enter")  # on the first sample
    card = wait_for_card(page)
    match = re.fullmatch(r"Sample 1: (\d)", page.locator("#samples button").first.get_attribute("aria-label"))
    assert f"True label: {match[1]}." in card.locator(".truth").inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    wait_for_card(page, 2)
    assert page.locator(".card").count() == 2


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


def test_model_and_ten_crops_can_be_changed(open_page, site, checkpoint, large_images):
    page = open_page(site)
    requests: list[str] = []
    page.on(
        "request",
        lambda request: requests.append(request.url) if "/v1/predict" in request.url else None,
    )
    content = (large_images / "sky" / "0.jpg").read_bytes()
    add_files(page, ("sky.jpg", content))
    digit = labels_of(wait_for_card(page))
    with page.expect_response("**/v1/predict*"):
        page.locator("#model").select_option(checkpoint.name)
    assert labels_of(wait_for_card(page)) != digit
    with page.expect_response("**/v1/predict*"):
        page.locator("#ten").check()
    found = load(checkpoint).predict(content, top=3, views=10)
    assert labels_of(wait_for_card(page)) == [(label, f"{p:.1%}") for label, p in found.labels]
    assert "3 classes" in page.locator("#about").inner_text()
    assert page.locator("#samples").is_hidden(), "it has no run"
    assert not page.locator("[data-look=similar]").is_visible()
    assert [("ten_crop=true" in url, "top_k=3" in url) for url in requests] == [(0, 0), (0, 1), (1, 1)]


def test_language_follows_the_browser_and_can_be_changed(open_page, site, photograph):
    page = open_page(site, locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    add_files(page, ("china.jpg", photograph))
    card = wait_for_card(page)
    assert card.locator("summary").first.inner_text() == "显著图"
    page.get_by_role("button", name="English").click()
    assert page.locator("html").get_attribute("lang") == "en"
    assert card.locator("summary").first.inner_text() == "Saliency map"
    page.reload()
    page.locator("#samples img").first.wait_for()
    assert "Drop or paste images" in page.locator("#drop").inner_text()


# ── errors, limits, token ─────────────────────────────────────────────────────────────────────────


def test_busy_server_is_retried_after_retry_after(open_page, site, photograph):
    page = open_page(site, expects="503")
    times: list[float] = []

    def busy_once(route: Any) -> None:
        times.append(time.monotonic())
        if len(times) > 1:
            return route.continue_()
        return route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "The server is busy."})

    page.route("**/v1/predict*", busy_once)
    add_files(page, ("china.jpg", photograph))
    page.get_by_text("The server is busy; retrying in 1 s.").wait_for()
    assert len(labels_of(wait_for_card(page))) == 5
    assert times[1] - times[0] >= 0.99


def test_unreachable_server_is_reported(open_page, site, photograph):
    page = open_page(site, expects="ERR_FAILED")
    page.route("**/v1/predict*", lambda route: route.abort())
    add_files(page, ("china.jpg", photograph))
    assert "cannot be reached" in wait_for_card(page).locator(".error").inner_text()


def test_image_over_the_limits_is_shrunk_with_a_note(open_page, site, photograph):
    def classify_with(limits: dict[str, int]) -> Any:
        received.clear()
        page = open_page(site)

        def change_limits(route: Any) -> None:
            document = route.fetch().json()
            for model in document["models"]:
                model["limits"] |= limits
            route.fulfill(json=document)

        page.route("**/v1/models", change_limits)
        page.reload()
        page.locator("#samples img").nth(11).wait_for()
        add_files(page, ("china.jpg", photograph))
        return wait_for_card(page)

    assert not classify_with({}).locator(".note").is_visible()
    assert max(received, key=len) == photograph
    card = classify_with({"pixels": 100_000})
    assert "Shrunk in the browser from 640×427 to 387×258 pixels" in card.locator(".note").inner_text()
    assert len(labels_of(card)) == 5
    card = classify_with({"bytes": 20_000})
    assert "Shrunk" in card.locator(".note").inner_text()
    assert 5_000 < max(map(len, received)) <= 20_000


def test_token_is_prompted_for_once(guarded, browser, photograph):
    page = browser.new_page(locale="en-US")
    page.goto(guarded)
    field = page.locator("#token input")
    field.fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("Invalid token.").wait_for()
    field.fill(TOKEN)
    page.get_by_role("button", name="Submit").click()
    page.locator("#samples img").nth(11).wait_for()
    add_files(page, ("china.jpg", photograph))
    card = wait_for_card(page)
    assert len(labels_of(card)) == 5
    card.locator("[data-look=saliency] summary").click()
    card.locator("figure").first.wait_for()
    page.reload()
    page.locator("#samples img").first.wait_for()
    assert not page.locator("#token").is_visible(), "it is kept while the tab is open"
    assert page.evaluate("[document.cookie, localStorage.length].join()") == ",0"
    page.close()
