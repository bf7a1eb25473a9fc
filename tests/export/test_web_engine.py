"""The scripts of an exported page in Chromium: every network against torch, the trainer's pixels, the page itself."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms

from alexnet.cli import run
from alexnet.data.decode import decode_image
from alexnet.data.transforms import EvalTransform
from alexnet.export import parity, web
from alexnet.export.export import Exporter
from alexnet.export.parity import ExportFailed
from alexnet.export.web import SCRIPTS, _read, layer_list, web_tensors
from alexnet.inference.predict import load
from alexnet.models.architectures import ARCHITECTURES
from alexnet.models.model import create_model
from alexnet.models.spec import NORMS
from alexnet.runtimes import convert
from alexnet.runtimes.image_steps import describe_steps

pytestmark = pytest.mark.browser

WEB = Path(__file__).resolve().parents[2] / "src/alexnet/export/web"


@pytest.fixture(scope="module")
def page(browser: Any) -> Any:
    """An empty page with the scripts of the engine."""
    page = browser.new_page()
    page.set_content(f"<script>{chr(10).join((WEB / name).read_text() for name in SCRIPTS)}</script>")
    return page


def randomize(model: torch.nn.Module) -> None:
    """Give every parameter and every average of batch norm values for which a mistake shows in the logits."""
    generator = torch.Generator().manual_seed(0)
    for name, values in model.state_dict().items():
        if values.is_floating_point():
            noise = torch.randn(values.shape, generator=generator)
            if values.dim() > 1:
                noise *= (2 / values[0].numel()) ** 0.5
            values.copy_(noise.abs() + 0.5 if name.endswith("running_var") else noise)


def encode(model: Any, preprocess: EvalTransform, precision: str = "fp32") -> dict[str, Any]:
    """Return what `Network` and `readTensors` take."""
    tensors = list(web_tensors(model, preprocess, precision))
    types = {np.float32: "f32", np.float16: "f16", np.int8: "i8"}
    return {
        "layers": layer_list(model.spec),
        "tensors": [{"name": n, "type": types[v.dtype.type], "size": v.size} for n, v in tensors],
        "bytes": base64.b64encode(b"".join(v.tobytes() for _, v in tensors)).decode(),
    }


RUN = """([{ layers, tensors, bytes }, input]) => {
  window.network = new Network(layers, readTensors(tensors, fromBase64([bytes])));
  const x = new Float32Array(fromBase64([input]).buffer);
  return network.forward(x).map(({ name, shape, data }) => ({ name, data: shape.length === 1 ? [...data] : [] }));
}"""


NETWORKS = [
    pytest.param(name, norm, marks=() if norm == spec.norm else pytest.mark.slow)
    for name, spec in ARCHITECTURES.items()
    for norm in NORMS
]


@pytest.mark.parametrize(("name", "norm"), NETWORKS)
def test_every_network_gives_the_logits_of_torch(page: Any, name: str, norm: str) -> None:
    model = create_model(name, num_classes=10, norm=norm, width=0.125).eval()
    randomize(model)
    spec = model.spec
    x = torch.randn(1, spec.in_channels, spec.image_size, spec.image_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(x)[0].numpy()
    channels = spec.in_channels
    preprocess = EvalTransform(spec.image_size, channels=channels, mean=(0,) * channels, std=(1,) * channels)
    found = page.evaluate(RUN, [encode(model, preprocess), base64.b64encode(x.numpy().tobytes()).decode()])
    assert [layer["name"] for layer in found] == [name for name, _ in model.named_children()]
    assert np.abs(expected).max() > 0.01
    assert np.abs(np.array(found[-1]["data"]) - expected).max() <= 1e-4 * np.abs(expected).max()


# ── images ──────────────────────────────────────────────────────────────────────────────────────

PIXELS = """async ([file, type, steps]) => {
  const image = await openImage(new Blob([fromBase64([file])], { type }));
  return [...toPixels(image, Object.fromEntries(steps.map((step) => [step.step, step])))];
}"""


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Return smooth colors with noise, different everywhere."""
    random = np.random.default_rng(width * height)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    noisy = np.asarray(coarse).astype(int) + random.integers(-40, 40, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def with_orientation(number: int, form: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = number
    return saved(photo(90, 61), form, exif=exif)


def transparent(width: int, height: int) -> Image.Image:
    image = photo(width, height, "RGBA")
    image.putalpha(Image.fromarray(np.random.default_rng(2).integers(0, 256, (height, width), np.uint8)))
    return image


def swapped_profile() -> bytes:
    """Return a color profile that exchanges red and blue: the one of sRGB with their colorants renamed."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for i in range(int.from_bytes(profile[128:132], "big")):
        entry = 132 + 12 * i
        other = {b"rXYZ": b"bXYZ", b"bXYZ": b"rXYZ"}.get(bytes(profile[entry : entry + 4]))
        profile[entry : entry + 4] = other or profile[entry : entry + 4]
    return bytes(profile)


def transparent_palette() -> bytes:
    image = photo(70, 50).quantize(16)
    return saved(image, "PNG", transparency=3)


FILES = {
    "jpeg": lambda: saved(photo(123, 77), "JPEG", quality=90),
    "jpeg-tall": lambda: saved(photo(50, 333), "JPEG", subsampling=0),
    "jpeg-odd": lambda: saved(photo(35, 37), "JPEG", subsampling=2),
    "jpeg-small": lambda: saved(photo(17, 11), "JPEG"),
    "jpeg-exact": lambda: saved(photo(32, 32), "JPEG"),
    "jpeg-wide-strip": lambda: saved(photo(700, 40), "JPEG"),
    "jpeg-large": lambda: saved(photo(640, 601), "JPEG"),
    "jpeg-gray": lambda: saved(photo(64, 48, "L"), "JPEG"),
    "jpeg-progressive": lambda: saved(photo(64, 48), "JPEG", progressive=True),
    "jpeg-cmyk": lambda: saved(photo(64, 48, "CMYK"), "JPEG"),
    "png": lambda: saved(photo(57, 91), "PNG"),
    "png-gray": lambda: saved(photo(57, 91, "L"), "PNG"),
    "png-bits": lambda: saved(photo(57, 91, "1"), "PNG"),
    "png-palette": lambda: saved(photo(57, 91).quantize(64), "PNG"),
    "jpeg-profile": lambda: saved(photo(57, 91), "JPEG", icc_profile=swapped_profile()),
    "png-profile": lambda: saved(photo(57, 91), "PNG", icc_profile=swapped_profile()),
    "webp": lambda: saved(photo(57, 91), "WEBP", lossless=True),
    "bmp": lambda: saved(photo(57, 91), "BMP"),
    "gif": lambda: saved(photo(57, 91), "GIF", save_all=True, append_images=[photo(57, 91, "L")]),
    **{f"orientation-{n}": lambda n=n: with_orientation(n) for n in range(1, 9)},
    "orientation-png": lambda: with_orientation(6, "PNG"),
}
NEARLY = {
    # browsers keep the high byte of 16 bits, and the trainer rounds
    "png-gray-16": lambda: saved(Image.fromarray((np.arange(3000, dtype=np.uint16) * 21).reshape(50, 60)), "PNG"),
    "png-transparent": lambda: saved(transparent(60, 45), "PNG"),
    "png-transparent-exact": lambda: saved(transparent(32, 32), "PNG"),
    "png-transparent-palette": transparent_palette,
    "webp-transparent": lambda: saved(transparent(60, 45), "WEBP", lossless=True),
}
TRANSFORMS = {
    "crop": EvalTransform(28, resize=32),
    "exact": EvalTransform(32),
    "gray": EvalTransform(32, channels=1, mean=(0.5,), std=(0.5,)),
    "squash": EvalTransform(31, resize=40, squash=True),
    "bicubic": EvalTransform(29, resize=36, interpolation="bicubic"),
    "nearest": EvalTransform(29, resize=36, interpolation="nearest"),
    "upscaled": EvalTransform(200, resize=230, interpolation="bicubic"),
}


def difference(page: Any, file: bytes, preprocess: EvalTransform) -> int:
    """Return the largest difference of a pixel from the trainer's, of 255."""
    form = (Image.open(io.BytesIO(file)).format or "").lower()
    steps = describe_steps(preprocess, pixels=True)
    found = page.evaluate(PIXELS, [base64.b64encode(file).decode(), f"image/{form}", steps])
    expected = preprocess.eval_array(decode_image(file, preprocess.channels)).astype(int)
    return int(np.abs(np.array(found).reshape(expected.shape) - expected).max())


@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_the_trainer(page: Any, name: str) -> None:
    """Before Pillow 13 the width of tall images was resized first, too, and their pixels rounded otherwise."""
    file = FILES[name]()
    width, height = decode_image(file).size
    worst = {key: difference(page, file, transform) for key, transform in TRANSFORMS.items()}
    allowed = 4 if height > width and int(PIL.__version__.split(".")[0]) < 13 else 0
    assert max(worst.values()) <= allowed, worst


@pytest.mark.parametrize("name", NEARLY)
def test_transparent_and_deep_pixels_are_at_most_one_level_off(page: Any, name: str) -> None:
    file = NEARLY[name]()
    assert max(difference(page, file, TRANSFORMS[key]) for key in ("exact", "gray", "nearest")) <= 1


BAD = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"This is no image.", "not-an-image"),
    "page": (lambda: b"<!doctype html><svg></svg>", "not-an-image"),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(100), "heic"),
    "tiff": (lambda: saved(photo(20, 20), "TIFF"), "format"),
    "cut": (lambda: saved(photo(64, 48), "JPEG")[:-300], "cut-short"),
    "cut-png": (lambda: saved(photo(64, 48), "PNG")[:-300], "cut-short"),
    "damaged": (lambda: b"\xff\xd8\xff\xe0" + bytes(200) + b"\xff\xd9", "damaged"),
    "damaged-png": (lambda: b"\x89PNG\r\n\x1a\n" + bytes(200) + b"IEND", "damaged"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_have_a_code(page: Any, name: str) -> None:
    make, code = BAD[name]
    script = "async (file) => openImage(new Blob([fromBase64([file])])).then(() => 'opened', (error) => error.code)"
    assert page.evaluate(script, base64.b64encode(make()).decode()) == code


# ── parity ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("precision", ["int8-fc", "fp32"])
def test_a_run_is_exported_after_the_comparison(browser, small_run, tmp_path, capsys, monkeypatch, precision):
    monkeypatch.setattr(parity, "LATENCY_SECONDS", 0)
    out = tmp_path / "digits.html"
    flags = ["--fp32"] if precision == "fp32" else []
    assert run(["export", str(small_run), "web", "--out", str(out), *flags, "--json"]) == 0
    written, told = capsys.readouterr()
    found = json.loads(written)
    assert "Comparing on 269 images of the val split.\nThe browser computes 200 of them.\n" in told
    assert (found["precision"], found["images"], found["top1_agreement"]) == (precision, 200, 1.0)
    assert found["top1"] == found["run_top1"]  # of the same 200
    assert found["max_abs_diff"] < {"int8-fc": 1e-2, "fp32": 1e-4}[precision]
    assert json.loads(Path(f"{out}.json").read_text())["parity"]["images"] == 200


def test_a_page_with_another_filter_is_not_kept(browser, checkpoint, large_images, tmp_path, monkeypatch):
    def without_antialiasing(*arguments: Any) -> list[dict[str, Any]]:
        return [step | ({"filter": "nearest"} if "filter" in step else {}) for step in describe_steps(*arguments)]

    monkeypatch.setattr(parity, "LATENCY_SECONDS", 0)
    monkeypatch.setattr(convert, "describe_steps", without_antialiasing)
    with (
        Exporter(checkpoint, images=large_images) as exporter,
        pytest.raises(ExportFailed, match="--fp32 is far closer"),
    ):
        exporter.export("web", tmp_path / "net.html")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "code", "message"),
    [
        ("page.js", "for (;;);", r"the browser did not finish the comparison within 3 s"),
        ("alexnet.js", "if (typeof document === 'undefined') for (;;);", r"does not load: no answer within 0\.5 s"),
        ("alexnet.js", "if (typeof document === 'undefined') self.close();", r"does not load: no answer within 0\.5 s"),
    ],
    ids=["the page hangs", "the worker hangs", "the worker is ended"],
)
def test_a_page_that_never_answers_is_not_kept(browser, checkpoint, tmp_path, monkeypatch, script, code, message):
    def read(name: str) -> str:
        text = _read(name).replace("PATIENCE = 60_000", "PATIENCE = 500")
        return f"{code}\n{text}" if name == script else text

    monkeypatch.setattr(web, "_read", read)
    monkeypatch.setattr(parity, "BROWSER_SECONDS", 3 if script == "page.js" else 60)
    monkeypatch.setattr(parity, "IMAGE_SECONDS", 0)
    photo(50, 40).save(tmp_path / "image.png")
    with Exporter(checkpoint, images=tmp_path) as exporter, pytest.raises(ExportFailed, match=message):
        exporter.export("web", tmp_path / "net.html")
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_images_that_browsers_do_not_read_are_left_out(browser, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "LATENCY_SECONDS", 0)
    for number, form in enumerate(("PNG", "TIFF", "PNG")):
        path = tmp_path / "images" / f"{number}.{form.lower()}"
        path.parent.mkdir(exist_ok=True)
        photo(50, 40 + number).save(path, form)
    with Exporter(checkpoint, images=path.parent, precision="fp32") as exporter:
        found = exporter.export("web", tmp_path / "net.html").to_dict()
    assert (found["images"], found["unreadable"], found["top1_agreement"]) == (2, 1, 1.0)


# ── the page ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def file(small_run, tmp_path_factory):
    """The page of a run in Chinese, written without the comparison."""
    with Exporter(small_run, parity=False, precision="fp32", lang="zh") as exporter:
        return exporter.export("web", tmp_path_factory.mktemp("page") / "digits.html").file


@pytest.fixture(params=["worker", "alone"])
def opened(browser, file, request):
    """That page, opened without a network, with and without workers."""
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800})
    page = context.new_page()
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    if request.param == "alone":
        page.add_init_script("delete window.Worker")
    page.goto(file.as_uri())
    page.evaluate("classifier.ready")
    yield page
    assert not [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    assert errors == []
    context.close()


def test_worker_answers_every_question(opened, small_run, file):
    name, found = (
        "sample.png",
        opened.evaluate(
            """async () => {
          const { url } = JSON.parse(document.getElementById("sample-images").textContent)[3];
          const call = (type, values) => classifier.call(type, values).catch((error) => error.code);
          const early = await call("activations");
          const answer = await call("classify", { source: toBlob(url) });
          const { layers } = await call("activations");
          const list = ({ data, shape }) => ({ data: [...data], shape });
          const [layer] = layers.filter(({ kind }) => kind === "conv").slice(1), last = layers[layers.length - 1];
          const [, height, width] = layer.shape, y = height - 1, x = 0;
          const seen = await call("window", { layer: layer.name, channel: 3, y, x });
          const unit = await call("window", { layer: last.name, channel: 2 });
          const edited = await call("edit", { edits: [{ layer: layer.name, channel: 3 }] });
          const changed = (await call("activations")).layers.find(({ name }) => name === layer.name);
          const restored = await call("edit", { edits: [] });
          const hidden = await call("occlude", { size: 8, stride: 8 });
          const after = (await call("activations")).layers.find(({ name }) => name === last.name);
          return {
            url, early, probabilities: [...answer.probabilities], confidences: [...answer.confidences],
            unsure: answer.unsure,
            value: layer.data[(3 * height + y) * width + x], sum: seen.sum, read: list(seen.window),
            logit: last.data[2], unit: unit.sum,
            edited: [...edited.probabilities], restored: [...restored.probabilities],
            zeros: [...changed.data.subarray(3 * height * width, 4 * height * width)], hidden, after: [...after.data],
            last: [...last.data], pixels: layers[0].shape,
          };
        }"""
        ),
    )
    Path(file.parent / name).write_bytes(base64.b64decode(found["url"].split(",")[1]))
    expected = load(small_run, device="cpu").predict(file.parent / name, top=10)
    p = dict(expected.labels)
    assert found["early"] == "no-image"
    assert found["probabilities"] == pytest.approx([p[str(i)] for i in range(10)], abs=1e-5)
    assert max(found["confidences"]) == pytest.approx(expected.confidence, abs=1e-5)
    assert found["unsure"] == expected.unsure
    assert found["sum"] == pytest.approx(found["value"], abs=1e-4)
    assert np.prod(found["read"]["shape"]) == len(found["read"]["data"])
    assert found["unit"] == pytest.approx(found["logit"], abs=1e-3)
    assert set(found["zeros"]) == {0}
    assert found["edited"] != found["probabilities"]
    assert found["restored"] == found["probabilities"]
    assert found["hidden"]["rows"] * found["hidden"]["columns"] == len(found["hidden"]["confidences"])
    assert min(found["hidden"]["confidences"]) < max(found["confidences"])
    assert found["after"] == found["last"]
