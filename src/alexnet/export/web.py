"""One HTML file that holds a network and classifies images in any browser, offline: the format `web`.

It consists of templates/web.html, the scripts in web/, and three blocks of data: `network`, a JSON document with the
manifest, the list of layers and the index of the tensors; the tensors, one after another, in base64; and sample images.
Nothing in it refers to anything outside, and its security policy forbids the browser to fetch anything.

The order for readers of web/: alexnet.js (the network), image.js (from a file to its input), worker.js (what the page
asks of both), page.js (an image in, labels out), explorer.js (what the layers compute).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import ImageOps

from alexnet.data.decode import BadImage, decode_image
from alexnet.data.transforms import EvalTransform
from alexnet.errors import UserError
from alexnet.export.parity import UNKNOWN, ImageSet
from alexnet.files import write_text
from alexnet.inference.load import evenly_spaced
from alexnet.messages.translator import load_template, load_texts
from alexnet.models.model import AlexNet
from alexnet.models.spec import AlexNetSpec, layers
from alexnet.notebook.display import data_url, image_url
from alexnet.runtimes.convert import LoadImages, round_weights
from alexnet.runtimes.engines import LoadedModel
from alexnet.runtimes.manifest import WEB, Manifest

SCRIPTS = ("alexnet.js", "image.js", "worker.js")
PAGE_SCRIPTS = ("page.js", "explorer.js")
BLOCKS = ("network", "sample-images")  # the JSON documents of a page
TEXTS = "app_"  # prefix of the keys of the page's texts
SAMPLES = 12
SAMPLE_SIDE, SAMPLE_BYTES = 256, 24_000  # larger files are reduced
CHUNK_BYTES = 3 << 20  # of weights in one element: the page and its worker hold few copies at once
_TYPES = {np.dtype(np.float32): "f32", np.dtype(np.float16): "f16", np.dtype(np.int8): "i8"}
_FOLDER = resources.files("alexnet.export") / "web"

Sample = dict[str, Any]
"""A sample image: `url`, and `label`, the number of its class or None."""


def check_web(loaded: LoadedModel) -> None:
    """Raise `UserError` for a network that the page cannot compute, or images that browsers cannot give it."""
    spec = loaded.model.spec
    if not isinstance(spec, AlexNetSpec):
        raise UserError(f"The format {WEB} computes AlexNets only, which '{spec.name}' is not; export to onnx.")
    if loaded.preprocess.value_range is not None:
        raise UserError(
            f"This network was trained on images of more than 8 bits, which browsers reduce to 8, so the format {WEB} "
            "cannot feed it; export to onnx."
        )


def write_web(
    loaded: LoadedModel,
    manifest: Manifest,
    path: Path,
    _: LoadImages,
    samples: Sequence[Sample] = (),
    lang: str = "en",
    checked: bool = True,
) -> Manifest:
    """Write the page to `path`, and return the manifest. Unless `checked`, both say that it was not compared."""
    assert isinstance(loaded.model, AlexNet)
    manifest = replace(manifest, about={**manifest.about, "checked": checked})
    tensors = list(web_tensors(loaded.model, loaded.preprocess, manifest.precision))
    weights = b"".join(values.tobytes() for _, values in tensors)
    manifest_keys = {key: value for key, value in manifest.to_dict().items() if key != "spec"}  # the layers say it
    network = {
        **manifest_keys, "layers": layer_list(loaded.model.spec),
        "tensors": [{"name": name, "type": _TYPES[v.dtype], "size": v.size} for name, v in tensors],
    }  # fmt: skip
    _write_page(path, network, [base64.b64encode(part).decode() for part in _chunks(weights)], samples, lang)
    return manifest


def translate_page(page: Path, out: Path, lang: str) -> None:
    """Write an exported page again: in the language `lang`, and with the scripts of this version of alexnet."""
    text = page.read_text(encoding="utf-8")
    network, samples = (json.loads(text.split(f'id="{name}">')[1].split("</script>")[0]) for name in BLOCKS)
    weights = [part.split("</script>")[0] for part in text.split('class="weights">')[1:]]
    _write_page(out, network, weights, samples, lang)


def _write_page(
    path: Path, network: dict[str, Any], weights: Sequence[str], samples: Sequence[Sample], lang: str
) -> None:
    texts = {key.removeprefix(TEXTS): text for key, text in load_texts(lang).items() if key.startswith(TEXTS)}
    page = load_template("alexnet.export", "web.html", lang).render(
        title=path.stem, network={**network, "texts": texts}, samples=list(samples), checked=network["checked"],
        weights=list(map(Markup, weights)),
        engine=Markup("\n".join(_read(name) for name in SCRIPTS)), script=Markup("\n".join(map(_read, PAGE_SCRIPTS))),
        style=Markup(_read("page.css")),
    )  # fmt: skip
    write_text(path, page)


def layer_list(spec: AlexNetSpec) -> list[dict[str, Any]]:
    """Return the layers of `spec` for alexnet.js: those of `alexnet arch`, without what is zero or does not apply."""
    return [
        {key: value for key, value in asdict(layer).items() if value}
        | ({"parameters": layer.parameters, "macs": layer.macs} if layer.parameters else {})
        for layer in layers(spec)
    ]


def web_tensors(model: AlexNet, preprocess: EvalTransform, precision: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the names and values of what the page needs, in the precision fp32 or int8-fc.

    The weights of linear layers lie input by input. With int8-fc they are 8-bit integers, and NAME.scale holds the
    factor of each output; those of convolutions are in float16; biases, norms and the normalization stay in float32.
    """
    scale, shift = preprocess.scale_and_shift(preprocess.size)
    yield "input.scale", scale.numpy().astype(np.float32)
    yield "input.shift", np.ascontiguousarray(shift.numpy(), dtype=np.float32)
    for name, values in model.state_dict().items():
        if not values.is_floating_point():  # batch norm's count of batches
            continue
        x = values.detach().float().numpy()
        if x.ndim == 2:
            x = np.ascontiguousarray(x.T)
            if precision != "fp32":
                x, factors = round_weights(x, axis=0)
                yield f"{name}.scale", factors.ravel().astype(np.float32)
        elif x.ndim == 4 and precision != "fp32":
            x = x.astype(np.float16)
        yield name, x


def sample_images(images: ImageSet) -> list[Sample]:
    """Return some of `images`, evenly over the classes, small enough for the page."""
    samples = []
    for i in evenly_spaced(np.argsort(images.targets, kind="stable").tolist(), SAMPLES):
        try:
            url = _small_url(images.files[i])
        except BadImage:
            continue
        target = int(images.targets[i])
        samples.append({"url": url, "label": None if target == UNKNOWN else target})
    return samples


def _small_url(path: Path) -> str:
    """Return an image file as a data URL: itself if browsers show it and it is small. Raises `BadImage`."""
    image = decode_image(path)
    kinds = {".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png"}
    kind, fits = kinds.get(path.suffix.lower()), max(image.size) <= SAMPLE_SIDE
    if kind and fits and path.stat().st_size <= SAMPLE_BYTES:
        return data_url(kind, path.read_bytes())
    small = image if fits else ImageOps.contain(image, (SAMPLE_SIDE, SAMPLE_SIDE))
    return image_url(small, "JPEG", quality=90) if max(small.size) > 64 else image_url(small, "PNG")


def _chunks(weights: bytes) -> Iterator[memoryview]:
    view = memoryview(weights)
    return (view[start : start + CHUNK_BYTES] for start in range(0, len(view), CHUNK_BYTES))


def _read(name: str) -> str:
    """Return a file of web/ without indentation and lines of comment, which would be a quarter of the page's text."""
    lines = (line.strip() for line in (_FOLDER / name).read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))
