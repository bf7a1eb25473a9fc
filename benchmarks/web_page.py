"""The exported page against torch, and against onnxruntime-web in the same Chromium: the tables of docs/export.md.

    python benchmarks/web_page.py parity --photos DIR digits=runs/digits tiny-50=runs/tiny-50 torchvision paper
    python benchmarks/web_page.py times  --photos DIR digits=runs/digits tiny-50=runs/tiny-50 torchvision

A network is NAME=RUN, on the run's own validation images, or an architecture with random weights, on those of --photos.

`parity` exports each with 8-bit and with float32 weights, as `alexnet export` does, which compares them on 200 images.
`times` classifies --count of these images, twice, with the page and with onnxruntime-web from npm's registry, on one
thread and on one per core, which gets the same pixels; then photographs of 12 and 40 megapixels, enlarged from one of
--photos, from their files; then it counts the answers of the page to a camera in five seconds.
"""

from __future__ import annotations

import argparse
import base64
import functools
import http.server
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from alexnet.checkpoint import save_model
from alexnet.data.decode import decode_image
from alexnet.data.image_folder import find_images
from alexnet.data.transforms import EvalTransform
from alexnet.device import cpu_count
from alexnet.export.browser import find_browser
from alexnet.export.export import Exporter
from alexnet.export.parity import TOLERANCE
from alexnet.inference.load import evenly_spaced, load_image
from alexnet.models.model import create_model

RESULTS = Path(__file__).parents[1] / "docs" / "results"
NETWORKS = ("digits", "cifar10", "tiny-50", "torchvision", "code2012", "paper")  # of the tables, in their order
CLASSES = 1000  # of random networks
RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
CAMERA = ("--use-fake-device-for-media-stream=fps=60", "--use-fake-ui-for-media-stream")

OPEN_SESSION = """async ([file, threads]) => {
  ort.env.wasm.numThreads = threads;
  window.session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
}"""
RUN_SESSION = """async ([pixels, shape]) => {
  const input = new ort.Tensor("uint8", Uint8Array.from(atob(pixels), (c) => c.charCodeAt(0)), shape);
  const start = performance.now(), found = await session.run({ [session.inputNames[0]]: input });
  return [performance.now() - start, [...found[session.outputNames[0]].data]];
}"""
ADD_INPUT = """() => document.body.appendChild(
  Object.assign(document.createElement("input"), { type: "file", multiple: true, hidden: true }))"""
CLASSIFY = """async ([input, i]) => {
  const start = performance.now();
  const { milliseconds, probabilities } = await classifier.call("classify", { source: input.files[i] });
  return [milliseconds, [...probabilities], performance.now() - start];
}"""
COUNT_ANSWERS = """async (seconds) => {
  let answers = 0;
  new MutationObserver(() => answers++).observe(document.getElementById("result"), { childList: true });
  await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
  return answers / seconds;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["parity", "times"])
    parser.add_argument("networks", nargs="+", metavar="NAME=RUN|ARCHITECTURE")
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--count", type=int, default=25)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, networks = Path(temporary), {}
        for network in given.networks:
            name, _, run = network.partition("=")
            networks[name] = (run or random_run(name, given.photos, folder / name), None if run else given.photos)
        if given.what == "times":
            runtime, large = fetch_runtime(folder), enlarge(find_images([given.photos])[0], folder)
        for name, (run, images) in networks.items():
            if given.what == "parity":
                found = parity(run, images, folder)
            else:
                found = times(run, images, folder, runtime, large, given.count)
            save(f"browser-{given.what}-{name}", found, folder=RESULTS)
            print(found, flush=True)


def random_run(name: str, photos: Path, folder: Path) -> str:
    """Save a checkpoint with random weights, whose logits on photos have mean 0 and deviation 2."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES, init="kaiming").eval()
    spec = model.spec
    preprocess = EvalTransform(spec.image_size, resize=256)
    files = evenly_spaced(find_images([photos]), 16)
    pixels = torch.from_numpy(np.stack([load_image(path, preprocess) for path in files]))
    with torch.no_grad():
        logits = model(preprocess.normalize(pixels))
        model.fc8.bias.sub_(logits.mean(0))  # what is the same for all images would decide their label
        factor = 2 / logits.sub(logits.mean(0)).std()
        model.fc8.weight.mul_(factor)
        model.fc8.bias.mul_(factor)
    folder.mkdir()
    save_model(folder, model, tuple(map(str, range(CLASSES))), preprocess)
    return str(folder)


# ── parity ────────────────────────────────────────────────────────────────────────────────────────


def parity(run: str, images: Path | None, folder: Path) -> dict[str, Any]:
    """Return how the pages of a network compare with torch, by precision."""
    found = {}
    for precision in ("int8-fc", "fp32"):
        with Exporter(run, images=images, precision=precision, tolerance=1.0, samples="none") as exporter:
            exported = exporter.export("web", folder / f"{Path(run).name}-{precision}.html")
        found[precision] = {key: value for key, value in exported.to_dict().items() if key != "file"}
        exported.file.unlink()
    return found


# ── times ─────────────────────────────────────────────────────────────────────────────────────────


def times(
    run: str, compared: Path | None, folder: Path, runtime: Path, large: dict[str, Path], count: int
) -> dict[str, Any]:
    """Return sizes, milliseconds per image, the answers per second to a camera, and the times of large photographs."""
    with Exporter(run, images=compared, parity=False, samples="none") as exporter:
        page = exporter.export("web", folder / "page.html")
        files = evenly_spaced(exporter.images.files, count)
        pixels = [load_image(path, exporter.loaded.preprocess)[None] for path in files]
        with Exporter(run, images=compared, with_preprocessing=True) as other:
            onnx = other.export("onnx", runtime / "network.onnx")
        sizes = {"page_bytes": page.size, "onnx_bytes": onnx.size}
        sizes["runtime_bytes"] = sum((runtime / name).stat().st_size for name in RUNTIME)
        return sizes | time_network(page.file, onnx.file.name, runtime, files, pixels, large)


def enlarge(photo: Path, folder: Path) -> dict[str, Path]:
    """Write a photograph as JPEGs of 12 and 40 megapixels."""
    files = {}
    for name, size in {"12 MP": (4000, 3000), "40 MP": (7728, 5152)}.items():
        files[name] = folder / f"{name}.jpg"
        decode_image(photo).resize(size, Image.Resampling.BICUBIC).save(files[name], quality=90)
    return files


def fetch_runtime(folder: Path) -> Path:
    """Download onnxruntime-web as npm is configured to, and return the folder of its files."""
    subprocess.run(["npm", "pack", "onnxruntime-web", "--silent"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    archive = next(folder.glob("onnxruntime-web-*.tgz"))
    subprocess.run(["tar", "xzf", archive.name, *(f"package/dist/{name}" for name in RUNTIME)], cwd=folder, check=True)
    runtime = folder / "package" / "dist"
    (runtime / "index.html").write_text(f'<!doctype html><script src="{RUNTIME[0]}"></script>')
    return runtime


def time_network(
    page: Path, onnx: str, runtime: Path, files: list[Path], pixels: list[np.ndarray], large: dict[str, Path]
) -> dict[str, Any]:
    """Return medians, lowest and highest of the milliseconds per image; image by image, in turn."""
    with sync_playwright() as playwright, served(runtime) as address:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=list(CAMERA))
        ours, load_ms = open_page(browser, page)
        sessions = {}
        for threads in sorted({1, cpu_count()}):
            sessions[threads] = browser.new_page()
            sessions[threads].goto(address)
            sessions[threads].evaluate(OPEN_SESSION, [onnx, threads])
        rows: dict[str, list[float]] = {"page": []} | {f"onnxruntime-web-{threads}": [] for threads in sessions}
        difference = 0.0
        chosen = choose(ours, files)
        for i in [*range(len(files))] * 2:  # those of the first round only warm up
            milliseconds, probabilities, _ = ours.evaluate(CLASSIFY, [chosen, i])
            rows["page"].append(milliseconds)
            encoded = base64.b64encode(pixels[i].tobytes()).decode()
            for threads, session in sessions.items():
                milliseconds, logits = session.evaluate(RUN_SESSION, [encoded, list(pixels[i].shape)])
                rows[f"onnxruntime-web-{threads}"].append(milliseconds)
                powers = np.exp(np.array(logits) - max(logits))
                difference = max(difference, float(np.abs(powers / powers.sum() - probabilities).max()))
        for session in sessions.values():
            session.close()
        large_ms = {}
        for name, file in large.items():
            chosen = choose(ours, [file])
            large_ms[name] = statistics.median(ours.evaluate(CLASSIFY, [chosen, 0])[2] for _ in range(3))
        ours.locator("#camera").click()
        ours.wait_for_selector("#video:not([hidden])")
        answers = ours.evaluate(COUNT_ANSWERS, 5)
        version = browser.version
        browser.close()
    spread = {name: describe(row) for name, row in rows.items()}
    return {
        "images": len(files), "milliseconds": spread, "load_ms": load_ms, "large_ms": large_ms,
        "max_abs_diff": difference, "camera_answers_per_second": answers, "chromium": version,
    }  # fmt: skip


def describe(milliseconds: list[float]) -> dict[str, float]:
    """Return the first time, and median, lowest and highest of the second half."""
    warm = milliseconds[len(milliseconds) // 2 :]
    return {"first": milliseconds[0], "median": statistics.median(warm), "low": min(warm), "high": max(warm)}


def choose(page: Any, files: list[Path]) -> Any:
    """Return an input element of the page with these files."""
    chosen = page.evaluate_handle(ADD_INPUT).as_element()
    chosen.set_input_files(files)
    return chosen


def open_page(browser: Browser, file: Path) -> tuple[Any, float]:
    """Open an exported page; return it with the milliseconds until the network is ready."""
    page = browser.new_context(permissions=["camera"]).new_page()
    page.goto(file.as_uri())
    return page, page.evaluate("classifier.ready.then(() => performance.now())")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder with the headers that threads need, since browsers fetch nothing from a file."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


# ── tables ────────────────────────────────────────────────────────────────────────────────────────


def parity_table(networks: dict[str, Any]) -> str:
    """Return the results of `parity`, by network, as Markdown."""
    lines = ["| network | weights | images | same label | max difference | MB |", "|---|---|---|---|---|---|"]
    for name, rows in networks.items():
        for precision, row in rows.items():
            same, refused = f"{row['top1_agreement']:.1%}".replace("%", " %"), TOLERANCE[precision]
            difference = f"{row['max_abs_diff']:.1e}" + (" (refused)" if row["max_abs_diff"] > refused else "")
            size = f"{row['size'] / 1e6:.2f}"
            lines.append(f"| {name} | {precision} | {row['images']} | {same} | {difference} | {size} |")
    return "\n".join(lines)


def times_table(networks: dict[str, Any]) -> str:
    """Return the results of `times`, by network, as Markdown."""
    lines = ["| network | engine | ms, 1 image | low | high | first | MB |", "|---|---|---|---|---|---|---|"]
    for name, row in networks.items():
        for engine, ms in row["milliseconds"].items():
            size = row["page_bytes"] if engine == "page" else row["onnx_bytes"] + row["runtime_bytes"]
            numbers = " | ".join(f"{ms[key]:.1f}" for key in ("median", "low", "high", "first"))
            lines.append(f"| {name} | {engine} | {numbers} | {size / 1e6:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
