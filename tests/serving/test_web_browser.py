"""The page of `alexnet serve` in a real browser: a photograph is dropped and its label read, on a phone and at a desk.

Where there is no Chromium, or no playwright, this is skipped. With ALEXNET_SCREENSHOTS=DIR the pictures are kept.
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

pytestmark = pytest.mark.browser
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
    """A copy of the small run, with an index of its training pictures."""
    copy = Path(shutil.copytree(small_run, tmp_path_factory.mktemp("served") / "digits"))
    open_index(load_model(copy), device="cpu")
    return copy


def serving(app: Any) -> Iterator[str]:
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


received: list[bytes] = []
"""The bodies that the server of `site` got."""


@pytest.fixture(scope="module")
def site(run: Path, checkpoint: Path) -> Iterator[str]:
    """A server with two networks."""
    app = create_app(open_models([run, checkpoint]))

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        parts: list[bytes] = []

        async def heard() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message["body"])
                if not message["more_body"]:
                    received.append(b"".join(parts))
            return message

        await app(scope, heard, send)

    yield from serving(listening)


@pytest.fixture(scope="module")
def guarded(run: Path) -> Iterator[str]:
    """One that wants a token."""
    yield from serving(create_app(open_models([run]), Settings(token=TOKEN)))


@pytest.fixture(scope="module")
def photograph() -> bytes:
    """A real one, which comes with scikit-learn: 640×427."""
    from sklearn import datasets

    return (Path(datasets.__file__).parent / "images" / "china.jpg").read_bytes()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens an address in a view of its own. At the end nothing may have been complained of, and nothing asked for from
    elsewhere."""
    opened: list[tuple[Any, list[str], str]] = []

    def open_it(address: str, width: int = 1280, height: int = 900, expects: str = "^$", **view: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, **{"locale": "en-US", **view})
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: said.append(request.url) if not inside(request.url, address) else None)
        opened.append((context, said, expects))
        page.goto(address)
        page.locator("#samples img").first.wait_for()
        return page

    yield open_it
    for context, said, expects in opened:
        context.close()
        assert [text for text in said if not re.search(expects, text)] == []


def inside(url: str, address: str) -> bool:
    return url.startswith((address, "data:", f"blob:{address}"))


def bring(page: Any, *files: tuple[str, bytes], kind: str = "drop", type: str = "image/jpeg") -> None:
    """Drop or paste files."""
    page.evaluate(DROP, [[[name, type, base64.b64encode(content).decode()] for name, content in files], kind])


def answered(page: Any, count: int = 1) -> Any:
    """The newest card, when so many have an answer or an error."""
    page.locator(".card[aria-busy=false]").nth(count - 1).wait_for()
    return page.locator(".card").first


def labels_of(card: Any) -> list[tuple[str, str]]:
    rows = card.locator(".labels li")
    return [(row.locator(".label").inner_text(), row.locator("b").inner_text()) for row in rows.all()]


# ── pictures come in ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "view"),
    [
        ("phone", {"width": 360, "height": 800, "has_touch": True, "is_mobile": True}),
        ("desk", {}),
        ("phone-dark-zh", {"width": 360, "height": 800, "color_scheme": "dark", "locale": "zh-CN"}),
        ("desk-dark", {"color_scheme": "dark"}),
    ],
)
def test_a_dropped_photograph_gets_the_labels_that_predict_gives(open_page, site, run, photograph, name, view):
    page = open_page(site, **view)
    bring(page, ("china.jpg", photograph))
    card = answered(page)
    expected = load(run).predict(photograph)
    assert labels_of(card) == [(label, f"{p:.1%}") for label, p in expected.labels]
    assert card.locator(".name").inner_text() == "china.jpg"
    assert card.locator(".unsure").is_visible() == bool(expected.unsure)
    assert expected.labels[0][0] in page.locator("[role=status]").inner_text()
    assert page.locator(".camera").is_visible() == ("has_touch" in view)
    for look in ("saliency", "activations", "similar"):
        card.locator(f"[data-look={look}] summary").click()
        card.locator(f"[data-look={look}] figure").first.wait_for()
    for image in card.locator("img").all():
        assert image.evaluate("image => image.decode().then(() => image.naturalWidth)") > 7
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "scrolls sideways"
    assert page.evaluate(OVERLAPS) == []
    dark = view.get("color_scheme") == "dark"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(22, 26, 29)" if dark else "rgb(255, 255, 255)"
    )
    keep_screenshot(page, f"page-{name}")


def test_several_are_chosen_and_each_is_answered(open_page, site, run, photograph, large_images):
    page = open_page(site, expects="422")
    leaf = (large_images / "leaf" / "0.jpg").read_bytes()
    files = [("china.jpg", photograph), ("broken.jpg", photograph[:3000]), ("leaf.jpg", leaf)]
    page.locator("#files").set_input_files([{"name": n, "mimeType": "image/jpeg", "buffer": b} for n, b in files])
    answered(page, 3)
    cards = page.locator(".card").all()
    assert [card.locator(".name").inner_text() for card in cards] == ["china.jpg", "broken.jpg", "leaf.jpg"]
    assert [card.locator(".error").is_visible() for card in cards] == [False, True, False]
    assert "cut short" in cards[1].locator(".error").inner_text()
    assert labels_of(cards[2])[0][0] == load(run).predict(leaf).labels[0][0]
    assert "3 of 3" in page.locator("[role=status]").inner_text()
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".card").count() == 0


def test_a_pasted_picture_is_answered_and_pasted_words_are_not(open_page, site, photograph):
    page = open_page(site)
    bring(page, kind="paste")
    assert "no file" in page.locator("[role=status]").inner_text()
    bring(page, ("image.png", photograph), kind="paste")
    assert len(labels_of(answered(page))) == 5


def test_a_strangers_file_name_stays_text(open_page, site, photograph):
    page = open_page(site)
    name = "<img src=x onerror=alert(1)>&amp;.jpg"
    bring(page, (name, photograph))
    assert answered(page).locator(".name").inner_text() == name
    assert page.locator(".name *").count() == 0


def test_the_keyboard_reaches_everything(open_page, site, run):
    page = open_page(site)
    seen = set()
    for _ in range(30):
        page.keyboard.press("Tab")
        focus = page.evaluate("""() => {
          const on = document.activeElement, box = on.closest(".button") ?? on;
          return [on.id || on.closest("ul,footer")?.tagName, getComputedStyle(box).outlineStyle];
        }""")
        assert focus[1] != "none", focus
        seen.add(focus[0])
        if {"language", "files", "model", "ten", "UL"} <= seen:
            break
    page.keyboard.press("Enter")  # on the first sample
    card = answered(page)
    told = re.fullmatch(r"Sample 1: (\d)", page.locator("#samples button").first.get_attribute("aria-label"))
    assert f"Its true label: {told[1]}." in card.locator(".truth").inner_text()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    answered(page, 2)
    assert page.locator(".card").count() == 2


# ── settings ──────────────────────────────────────────────────────────────────────────────────────


def test_another_network_and_ten_crops_are_asked_for(open_page, site, checkpoint, large_images):
    page = open_page(site)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if "/v1/predict" in request.url else None)
    content = (large_images / "sky" / "0.jpg").read_bytes()
    bring(page, ("sky.jpg", content))
    digit = labels_of(answered(page))
    with page.expect_response("**/v1/predict*"):
        page.locator("#model").select_option(checkpoint.name)
    assert labels_of(answered(page)) != digit
    with page.expect_response("**/v1/predict*"):
        page.locator("#ten").check()
    found = load(checkpoint).predict(content, top=3, views=10)
    assert labels_of(answered(page)) == [(label, f"{p:.1%}") for label, p in found.labels]
    assert "3 classes" in page.locator("#about").inner_text()
    assert page.locator("#samples").is_hidden(), "it has no run"
    assert not page.locator("[data-look=similar]").is_visible()
    assert [("ten_crop=true" in url, "top_k=3" in url) for url in asked] == [(0, 0), (0, 1), (1, 1)]


def test_the_language_is_the_readers_and_can_be_changed(open_page, site, photograph):
    page = open_page(site, locale="zh-CN")
    assert page.locator("html").get_attribute("lang") == "zh-Hans"
    bring(page, ("china.jpg", photograph))
    card = answered(page)
    assert card.locator("summary").first.inner_text() == "它在看哪里"
    page.get_by_role("button", name="English").click()
    assert page.locator("html").get_attribute("lang") == "en"
    assert card.locator("summary").first.inner_text() == "Where it looks"
    page.reload()
    page.locator("#samples img").first.wait_for()
    assert "Drop pictures" in page.locator("#drop").inner_text()


# ── what servers say ──────────────────────────────────────────────────────────────────────────────


def test_a_busy_server_is_asked_again_when_it_says(open_page, site, photograph):
    page = open_page(site, expects="503")
    times: list[float] = []

    def busy_once(route: Any) -> None:
        times.append(time.monotonic())
        if len(times) > 1:
            return route.continue_()
        return route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": "The server is busy."})

    page.route("**/v1/predict*", busy_once)
    bring(page, ("china.jpg", photograph))
    page.get_by_text("The server is busy; asking again in 1 s.").wait_for()
    assert len(labels_of(answered(page))) == 5
    assert times[1] - times[0] >= 0.99


def test_a_server_that_is_gone_is_told_of(open_page, site, photograph):
    page = open_page(site, expects="ERR_FAILED")
    page.route("**/v1/predict*", lambda route: route.abort())
    bring(page, ("china.jpg", photograph))
    assert "cannot be reached" in answered(page).locator(".error").inner_text()


def test_a_large_picture_is_shrunk_only_if_it_must_be_and_the_page_says_so(open_page, site, photograph):
    def lower(limits: dict[str, int]) -> Any:
        received.clear()
        page = open_page(site)

        def answer(route: Any) -> None:
            told = route.fetch().json()
            for model in told["models"]:
                model["limits"] |= limits
            route.fulfill(json=told)

        page.route("**/v1/models", answer)
        page.reload()
        page.locator("#samples img").nth(11).wait_for()
        bring(page, ("china.jpg", photograph))
        return answered(page)

    assert not lower({}).locator(".note").is_visible()
    assert max(received, key=len) == photograph
    card = lower({"pixels": 100_000})
    assert "Shrunk in this browser from 640×427 to 387×258 pixels" in card.locator(".note").inner_text()
    assert len(labels_of(card)) == 5
    card = lower({"bytes": 20_000})
    assert "Shrunk" in card.locator(".note").inner_text()
    assert 5_000 < max(map(len, received)) <= 20_000


def test_the_token_is_asked_for_once(guarded, browser, photograph):
    page = browser.new_page(locale="en-US")
    page.goto(guarded)
    field = page.locator("#token input")
    field.fill("wrong")
    page.keyboard.press("Enter")
    page.get_by_text("does not know this token").wait_for()
    field.fill(TOKEN)
    page.get_by_role("button", name="Send").click()
    page.locator("#samples img").nth(11).wait_for()
    bring(page, ("china.jpg", photograph))
    card = answered(page)
    assert len(labels_of(card)) == 5
    card.locator("[data-look=saliency] summary").click()
    card.locator("figure").first.wait_for()
    page.reload()
    page.locator("#samples img").first.wait_for()
    assert not page.locator("#token").is_visible(), "it is kept while the tab is open"
    assert page.evaluate("[document.cookie, localStorage.length].join()") == ",0"
    page.close()
