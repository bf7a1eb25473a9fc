"""The exported page in Chromium, from its file and offline: labels, explorer, camera, keyboard, unusable images."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet.data.decode import decode_image
from alexnet.data.transforms import EvalTransform
from alexnet.export.web import write_web
from alexnet.messages.translator import load_texts
from alexnet.models.model import create_model
from alexnet.notebook.display import image_url
from alexnet.runtimes.calibration import Calibration
from alexnet.runtimes.convert import describe
from alexnet.runtimes.engines import LoadedModel

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PREPROCESS = EvalTransform(32, mean=(0.5,) * 3, std=(0.25,) * 3)
CLASSES = ("cat", "<b>dog</b>", "海星", "d", "e", "f")


def noise(seed: int, size: int = 48) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def png(seed: int) -> bytes:
    file = io.BytesIO()
    noise(seed).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages in both languages of a network with two towers and LRN, and six samples; one that is always confident."""
    torch.manual_seed(0)
    model = create_model("cifar-towers", num_classes=len(CLASSES), width=0.125, init="kaiming").eval()
    with torch.no_grad():
        logits = model(torch.randn(64, 3, 32, 32))
        model.fc8.weight.mul_(2 / logits.std(0).mean())  # so that its answers differ
    loaded = LoadedModel(model, CLASSES, PREPROCESS, None, None, "id")
    samples = [{"url": image_url(noise(i), "PNG"), "label": i if i < 5 else None} for i in range(6)]
    folder = tmp_path_factory.mktemp("pages")
    sure = replace(loaded, calibration=Calibration(temperature=0.02, threshold=0.5))
    for name, network, lang in (("en", loaded, "en"), ("zh", loaded, "zh"), ("calibrated", sure, "en")):
        path = folder / f"{name}.html"
        write_web(network, describe(network, "web", True, "int8-fc"), path, list, samples, lang)
    return {path.stem: path for path in folder.glob("*.html")}


IN_WORKER = """const Real = Blob;
window.Blob = class extends Real {
  constructor(parts, options) { super(options.type === "text/javascript" ? [CODE, ...parts] : parts, options); }
};"""


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Open a page without a network; afterwards check that it asked for nothing and that no script failed."""
    contexts, problems = [], []

    def open_page(
        name: str = "en", width: int = 1280, script: str = "", worker: str = "", loads: bool = True, **options: Any
    ) -> Any:
        """`script` runs before those of the page, `worker` before those of its worker."""
        context = browser.new_context(offline=True, viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: r.url.startswith(("file:", "data:", "blob:")) or problems.append(r.url))
        page.add_init_script(script)
        if worker:
            page.add_init_script(IN_WORKER.replace("CODE", json.dumps(worker)))
            page.clock.install()  # minutes of waiting pass at once
        page.goto(pages[name].as_uri())
        if loads:
            page.wait_for_selector("#result:empty", state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def labels(page: Any) -> dict[str, str]:
    page.wait_for_selector(".bar")
    return {
        row.locator("span").nth(0).inner_text(): row.locator("span").nth(1).inner_text()
        for row in page.locator(".bar").all()
    }


def warning(page: Any) -> str:
    page.wait_for_selector(".warning")
    return str(page.locator(".warning").inner_text())


def explore(page: Any, sample: int = 1) -> None:
    page.locator("#samples button").nth(sample).click()
    page.wait_for_selector(".bar")
    page.locator("#explorer > summary").click()
    page.wait_for_selector("#value table")


def chosen(page: Any, place: str) -> str:
    """Wait until the value at `place` is worked out, and return the line that names it."""
    page.wait_for_selector(f"#value:has-text({place!r}) table")
    return str(page.locator("#value p").first.inner_text())


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_sample_gets_labels_and_every_layer_is_shown(opened: Any, lang: str, width: int) -> None:
    page = opened(lang, width)
    explore(page)
    assert len(labels(page)) == 5
    assert set(labels(page)) <= set(CLASSES)
    page.wait_for_selector("#strongest li")
    for button in page.locator("#layers button").all():
        button.click()
        page.wait_for_timeout(20)
        assert button.get_attribute("aria-pressed") == "true"
        assert button.inner_text() in page.locator("#shape").inner_text()
    assert page.locator("#layers button").count() > 15
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert (re.search(r"[\u4e00-\u9fff]", page.locator("#explorer").inner_text()) is not None) == (lang == "zh")


def test_the_sum_is_the_value(opened: Any) -> None:
    page = opened()
    explore(page)
    for layer in ("conv1", "conv3", "fc8"):
        page.locator("#layers button", has_text=layer).click()
        page.locator("#channel").fill("3")
        page.locator("#channel").press("Tab")
        value = chosen(page, f"{layer}, channel 3,")
        *parts, total = page.locator("#value > .scroll td").all_inner_texts()[1::2]
        assert float(total) == pytest.approx(float(value.rsplit(" ", 1)[1]), abs=2e-3)
        assert sum(map(float, parts)) == pytest.approx(float(total), abs=0.03)


def test_parts_are_switched_off_and_on(opened: Any) -> None:
    page = opened()
    explore(page)
    before = labels(page)
    page.locator("#edits label", has_text="tower 2").locator("input").check()
    page.wait_for_selector(".bar .quiet")
    changed = labels(page)
    assert changed != before
    for row in page.locator(".bar").all():
        name, _, then = row.locator("span").all_inner_texts()
        if name in before:
            assert then == f"as trained: {before[name]}"
    page.locator("#layers button", has_text="conv5").click()
    page.locator("#off").click()
    assert page.locator("#edits input").count() == 2 + 2  # norms and towers
    page.locator("#restore").click()
    page.wait_for_selector(".bar .quiet", state="detached")
    assert labels(page) == before


def test_occlusion_names_the_class_and_its_probabilities(opened: Any) -> None:
    page = opened()
    explore(page)
    best = next(iter(labels(page)))
    page.locator("#occlude").click()
    page.wait_for_selector("#occlusion:has-text('%')")
    page.wait_for_timeout(1000)
    text = page.locator("#occlusion").inner_text()
    low, high = map(float, re.findall(r"([\d.]+)%", text))
    assert best in text
    assert 0 <= low < high <= 100


def test_occlusion_shows_the_confidence_that_the_bars_show(opened: Any) -> None:
    page = opened("calibrated")
    explore(page)
    assert next(iter(labels(page).values())) == "100.0%"
    page.locator("#occlude").click()
    page.wait_for_selector("#occlusion:has-text('100.0%')")


def test_occlusion_tints_by_the_range_of_the_confidences(opened: Any) -> None:
    page = opened()
    explore(page)
    pixels = "[...document.getElementById('input').getContext('2d').getImageData(0, 0, 12, 8).data]"
    before = np.array(page.evaluate(pixels)).reshape(8, 12, 4)
    found = {"rows": 1, "columns": 2, "confidences": [0.999, 0.979], "label": 0}  # of a network that is nearly certain
    page.evaluate(
        "(found) => { const { call } = classifier;"
        "classifier.call = async (type, ...rest) => type === 'occlude' ? found : call(type, ...rest); }",
        found,
    )
    page.locator("#occlude").click()
    page.wait_for_selector("#occlusion:has-text('97.9% to 99.9%')")
    change = np.abs(np.array(page.evaluate(pixels)).reshape(8, 12, 4) - before).max(axis=2)
    high, low = change[3:5, 3:5], change[3:5, 7:9]  # inside the first and the second cell of 4×4, which begin at 2
    assert high.max() == 0
    assert low.min() > 30


def test_samples_that_excite_a_channel_are_sorted(opened: Any) -> None:
    page = opened()
    explore(page)
    page.wait_for_selector("#strongest li")
    values = [float(text) for text in page.locator("#strongest span").all_inner_texts()]
    assert len(values) == 4
    assert values == sorted(values, reverse=True)


def test_a_click_chooses_the_map_and_its_value(opened: Any) -> None:
    page = opened()
    explore(page)
    page.locator("#layers button", has_text="conv5").click()
    chosen(page, "conv5, channel 0,")
    box = page.locator("#maps").bounding_box()
    across = page.evaluate("document.getElementById('maps').across")
    page.locator("#maps").click(position={"x": box["width"] - 8, "y": 8})
    chosen(page, f"conv5, channel {across - 1},")
    big = page.locator("#map").bounding_box()
    page.locator("#map").click(position={"x": big["width"] - 20, "y": 20})
    last = int(page.locator("#x").get_attribute("max"))
    assert last > 0
    chosen(page, f"conv5, channel {across - 1}, row 0, column {last}:")


UNUSABLE = {
    "notes.txt": (b"Dear all,", "not-an-image"),
    "empty.png": (b"", "empty"),
    "cut.png": (png(0)[:400], "cut-short"),
    "broken.png": (png(0)[:60] + b"\xff" * 200 + png(0)[-12:], "damaged"),
    "broken.jpg": (b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9", "damaged"),
    "x.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 50, "heic"),
    "deep.tif": (b"II*\0\x08\0\0\0", "format"),
}


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_gets_a_sentence_and_the_page_stays_alive(opened: Any, name: str, lang: str) -> None:
    page = opened(lang)
    content, code = UNUSABLE[name]
    page.locator("#file").set_input_files({"name": name, "mimeType": "image/png", "buffer": content})
    assert warning(page) == load_texts(lang)[f"app_error_{code}"]
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": png(3)})
    assert len(labels(page)) == 5


TRANSFER = """([event, bytes]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(bytes)], "a.png", { type: "image/png" }));
  const own = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(event === "drop" ? new DragEvent(event, { ...own, dataTransfer: data })
    : new ClipboardEvent(event, { ...own, clipboardData: data }));
}"""


@pytest.mark.parametrize("event", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(opened: Any, event: str) -> None:
    page = opened()
    page.evaluate(TRANSFER, [event, list(png(3))])
    transferred = labels(page)
    page.locator("#samples button").nth(3).click()  # the same image
    page.wait_for_timeout(300)
    assert labels(page) == transferred


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_animation_gets_the_labels_of_its_first_frame(opened: Any, lang: str) -> None:
    page, file = opened(lang), io.BytesIO()
    first, *others = (noise(i).quantize(64) for i in range(4))
    first.save(file, "GIF", save_all=True, append_images=others, duration=20, loop=0)
    page.locator("#file").set_input_files({"name": "a.gif", "mimeType": "image/gif", "buffer": file.getvalue()})
    animated = labels(page)
    still = io.BytesIO()
    first.save(still, "PNG")
    page.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": still.getvalue()})
    page.wait_for_timeout(300)
    assert labels(page) == animated


@pytest.mark.parametrize(
    ("lang", "size", "orientation"), [("en", (4000, 3000), 6), ("zh", (7728, 5152), 1)], ids=["12 MP", "40 MP"]
)
def test_a_large_photo_gives_the_pixels_of_the_trainer(
    opened: Any, tmp_path: Path, lang: str, size: tuple[int, int], orientation: int
) -> None:
    image, exif = noise(1, 500).resize(size, Image.Resampling.BICUBIC), Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", quality=90, exif=exif)
    page = opened(lang, 390)
    page.locator("#file").set_input_files(tmp_path / "photo.jpg")
    assert len(labels(page)) == 5
    pixels = page.evaluate("classifier.call('activations').then(({ layers }) => [...layers[0].data])")
    expected = PREPROCESS.eval_array(decode_image(tmp_path / "photo.jpg"))
    assert np.array_equal(np.array(pixels).reshape(expected.shape), expected)


# A worker in which arrays of COUNT values or more cannot be had, TIMES times; one that hangs, one that is ended, and
# one in which the first image is never decoded.
NO_MEMORY = """{ const Real = self.KIND; let times = TIMES; self.KIND = new Proxy(Real, { construct(target, [length]) {
  if (self.onmessage && length >= COUNT && times-- > 0) throw new RangeError("Array buffer allocation failed");
  return new Real(length);
} }); }"""
HANGS, ENDED = "for (;;);", "self.close();"
NEVER_DECODED = """{ const real = createImageBitmap; let first = true;
self.createImageBitmap = (...all) => first ? (first = false, new Promise(() => {})) : real(...all); }"""
TOO_LITTLE = {"en": "too little memory", "zh": "内存不足"}
NO_ANSWER = {"en": "not answered for a minute", "zh": "一分钟没有响应"}


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_network_that_does_not_fit_gets_a_sentence(opened: Any, lang: str) -> None:
    code = NO_MEMORY.replace("KIND", "Float32Array").replace("COUNT", "1000").replace("TIMES", "Infinity")
    page = opened(lang, worker=code, loads=False)
    assert TOO_LITTLE[lang] in warning(page)
    page.evaluate("result.replaceChildren()")
    page.locator("#samples button").first.click()
    assert TOO_LITTLE[lang] in warning(page)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_image_that_does_not_fit_gets_a_sentence_and_the_page_stays_alive(opened: Any, lang: str) -> None:
    code = NO_MEMORY.replace("KIND", "Uint8ClampedArray").replace("COUNT", "1000").replace("TIMES", "1")
    page = opened(lang, worker=code)
    page.locator("#samples button").first.click()
    assert TOO_LITTLE[lang] in warning(page)
    page.locator("#samples button").first.click()
    assert len(labels(page)) == 5


@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("code", [HANGS, ENDED], ids=["hangs", "ended"])
def test_a_worker_that_does_not_load_gets_a_sentence(opened: Any, lang: str, code: str) -> None:
    page = opened(lang, worker=code, loads=False)
    page.clock.fast_forward(30_000)
    assert page.locator(".warning").count() == 0
    page.clock.fast_forward(31_000)
    assert NO_ANSWER[lang] in warning(page)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_an_image_without_an_answer_gets_a_sentence_and_the_page_stays_alive(opened: Any, lang: str) -> None:
    page = opened(lang, worker=NEVER_DECODED)
    page.locator("#samples button").first.click()
    page.clock.fast_forward(61_000)
    assert NO_ANSWER[lang] in warning(page)
    page.locator("#samples button").first.click()
    assert len(labels(page)) == 5


FAILS = "navigator.mediaDevices.getUserMedia = async () => {{ throw new DOMException('', '{}'); }}"
NO_DEVICES = "Object.defineProperty(navigator, 'mediaDevices', { value: undefined })"
CAMERAS = [
    ("en", FAILS.format("NotAllowedError"), "refused"),
    ("en", FAILS.format("NotReadableError"), "another program"),
    ("zh", FAILS.format("NotFoundError"), "没有"),
    ("en", NO_DEVICES, "no camera"),
]


@pytest.mark.parametrize(("lang", "script", "expected"), CAMERAS, ids=range(len(CAMERAS)))
def test_a_camera_that_cannot_be_used(opened: Any, lang: str, script: str, expected: str) -> None:
    page = opened(lang, script=script)
    page.locator("#camera").click()
    assert expected in warning(page)


FAKE_CAMERA = """navigator.mediaDevices.getUserMedia = async () => {
  const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 48 });
  const context = canvas.getContext("2d");
  const draw = () => {
    context.fillStyle = `hsl(${performance.now() % 360} 80% 50%)`;
    context.fillRect(0, 0, 64, 48);
  };
  setInterval(draw, 20);
  return canvas.captureStream(50);
}"""


def test_the_camera_is_classified_until_it_is_stopped(opened: Any) -> None:
    page = opened(script=FAKE_CAMERA)
    page.locator("#camera").click()
    page.wait_for_selector(".bar")
    first = page.locator("#result").inner_text()
    page.wait_for_timeout(500)
    assert page.locator("#result").inner_text() != first
    assert page.locator("#result").get_attribute("aria-live") == "off"
    page.locator("#camera").click()
    page.wait_for_timeout(300)
    assert page.locator("#video").is_hidden()
    stopped = page.locator("#result").inner_text()
    page.wait_for_timeout(300)
    assert page.locator("#result").inner_text() == stopped


def test_without_workers_the_page_computes_the_same(opened: Any) -> None:
    with_worker, without = opened(), opened(script="delete window.Worker")
    for page in (with_worker, without):
        explore(page)
    assert labels(with_worker) == labels(without)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(opened: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = opened(bypass_csp=True, color_scheme=scheme)
    explore(page)
    page.wait_for_selector("#strongest li")
    serious = [v["id"] for v in axe.Axe().run(page).response["violations"] if v["impact"] in ("serious", "critical")]
    assert serious == []
