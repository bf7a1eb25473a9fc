"""The screenshots of the docs: `python docs/screenshots.py RUN OTHER` writes those of trained networks to docs/img.

RUN and OTHER are runs on CIFAR-10 (JPEG) whose images are still where they were during training; the published ones are
two seeds of one arm, as `alexnet ablate batchnorm --data cifar10/ --out DIR` leaves them in DIR/arms. The page of a
training and the notebook show the digits, which are trained here, in a temporary folder: some minutes. Needs the extra
dev, nbconvert, ipykernel, and Chromium with a Chinese font.

`--only NAME…` takes some of: report, report-phone, report-compared, page, page-phone, page-training, notebook.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import nbconvert
import nbformat
import uvicorn
from nbclient import NotebookClient
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from alexnet.inference.load import load_model
from alexnet.inference.neighbors import open_index
from alexnet.report.compare import write_comparison
from alexnet.report.report import write_report
from alexnet.run_dir import Run
from alexnet.serving.app import create_app
from alexnet.serving.registry import open_models

OUT = Path(__file__).parent / "img"
LOCALES = {"en": "en-US", "zh": "zh-CN"}
SUFFIX = {"en": "", "zh": ".zh-CN"}
SAMPLE = 8  # of the images that the served page offers
CELLS = (
    "import alexnet\nfrom sklearn.datasets import load_digits",
    'result = alexnet.train("digits", epochs=5)  # with a bar and curves\nresult',
    "classifier = alexnet.load(result.run)\n"
    "classifier.predict(list(load_digits().images[:6] / 16))  # several, side by side",
)


# ── browser and files ─────────────────────────────────────────────────────────────────────────────


@contextmanager
def open_page(
    browser: Browser, url: str, width: int, height: int, lang: str = "en", phone: bool = False
) -> Iterator[Page]:
    """Yield a page in light colors, or of a phone in dark ones."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, locale=LOCALES[lang], has_touch=phone, is_mobile=phone,
        color_scheme="dark" if phone else "light",
    )  # fmt: skip
    page = context.new_page()
    page.goto(url)
    yield page
    context.close()


def take(page: Page) -> Image.Image:
    return Image.open(BytesIO(page.screenshot()))


def save(name: str, *views: Image.Image, gap: int = 20) -> None:
    """Write views side by side to docs/img, with 256 colors."""
    width = sum(view.width for view in views) + gap * (len(views) - 1)
    whole, x = Image.new("RGB", (width, views[0].height), "white"), 0
    for view in views:
        whole.paste(view, (x, 0))
        x += view.width + gap
    # of the methods, the one that keeps small marks of a rare color
    few = whole.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(OUT / f"{name}.png", optimize=True)
    print(OUT / f"{name}.png")


@contextmanager
def serve(run: Path) -> Iterator[str]:
    """Serve a run on a free port of this machine, and yield the address of its page."""
    server = uvicorn.Server(uvicorn.Config(create_app(open_models([run])), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.1)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


# ── reports ───────────────────────────────────────────────────────────────────────────────────────


def report(browser: Browser, runs: Sequence[Run], folder: Path) -> None:
    for lang, suffix in SUFFIX.items():
        url = write_report(runs[0], lang, folder / f"{lang}.html")[0].as_uri()
        with open_page(browser, url, 1100, 1180, lang) as page:
            save(f"report{suffix}", take(page))


def report_phone(browser: Browser, runs: Sequence[Run], folder: Path) -> None:
    """The result, the confusion matrix and the confidence, in Chinese."""
    url = write_report(runs[0], "zh", folder / "phone.html")[0].as_uri()
    views = []
    with open_page(browser, url, 390, 844, "zh", phone=True) as page:
        for section in ("result", "confusion", "calibration"):
            page.evaluate("(id) => scrollTo(0, id === 'result' ? 0 : document.getElementById(id).offsetTop)", section)
            views.append(take(page).resize((312, 675), Image.Resampling.LANCZOS))
    save("report-phone", *views, gap=12)


def report_compared(browser: Browser, runs: Sequence[Run], folder: Path) -> None:
    url = write_comparison(list(runs), "en", folder / "compared.html")[0].as_uri()
    with open_page(browser, url, 1100, 900) as page:
        save("report-compared", take(page))


# ── the served page ───────────────────────────────────────────────────────────────────────────────


def look(page: Page, what: str) -> Any:
    """Open a part of the first card, and return it when it has its images."""
    part = page.locator(f".card [data-look={what}]").first
    part.locator("summary").click()
    part.locator("figure img").first.wait_for()
    page.wait_for_timeout(1000)
    return part


def choose_sample(page: Page) -> None:
    page.locator("#samples button").nth(SAMPLE - 1).click()
    page.locator(".card .labels li").first.wait_for()
    page.wait_for_timeout(1000)  # bars grow


def served_page(browser: Browser, runs: Sequence[Run], _: Path) -> None:
    with serve(runs[0].path) as url, open_page(browser, url, 900, 1130) as page:
        choose_sample(page)
        look(page, "saliency")
        save("page", take(page))


def served_page_phone(browser: Browser, runs: Sequence[Run], _: Path) -> None:
    """The start, the prediction, the saliency map and the similar images, in Chinese."""
    open_index(load_model(runs[0].path), device="cpu")
    with serve(runs[0].path) as url, open_page(browser, url, 360, 800, "zh", phone=True) as page:
        page.locator("#samples img").last.wait_for()
        page.wait_for_timeout(1000)
        views = [take(page)]
        choose_sample(page)
        page.evaluate("scrollTo(0, document.getElementById('samples').offsetTop - 140)")
        views.append(take(page))
        saliency = look(page, "saliency")
        look(page, "similar")
        saliency.evaluate("(part) => scrollTo(0, part.getBoundingClientRect().top + scrollY)")
        views.append(take(page))
    save("page-phone", *views)


def training_page(browser: Browser, _: Sequence[Run], folder: Path) -> None:
    """The digits after six of twelve epochs, or a few more where an epoch is faster than the start of the server."""
    run = folder / "digits"
    command = [sys.executable, "-m", "alexnet", "train", "digits", "--epochs", "12", "--out", str(run)]
    training = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        while len(Run(run).metrics() if run.is_dir() else ()) < 6:
            if training.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} has ended early")
            time.sleep(0.2)
        with serve(run) as url:
            for lang, suffix in SUFFIX.items():
                with open_page(browser, url, 860, 995, lang) as page:
                    page.locator("#training .thumbnails img").first.wait_for()
                    page.wait_for_timeout(1000)
                    save(f"page-training{suffix}", take(page))
    finally:
        training.terminate()
        training.wait()


# ── the notebook ──────────────────────────────────────────────────────────────────────────────────


def notebook(browser: Browser, _: Sequence[Run], folder: Path) -> None:
    document = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(document, timeout=1800, kernel_name="python3").execute(cwd=str(folder))
    file = folder / "notebook.html"
    file.write_text(nbconvert.HTMLExporter(template_name="classic").from_notebook_node(document)[0], encoding="utf-8")
    context = browser.new_context(viewport={"width": 900, "height": 900})
    context.route("http*://**", lambda route: route.abort())  # scripts for widgets and formulas
    page = context.new_page()
    page.goto(file.as_uri())
    page.add_style_tag(content="#notebook-container { width: auto; padding: 0 1rem; box-shadow: none; }")
    cells = page.locator("#notebook-container > *")
    top, last = cells.nth(1).bounding_box(), cells.last.bounding_box()
    assert top is not None
    assert last is not None
    clip = {"x": 0, "y": top["y"], "width": 900, "height": last["y"] + last["height"] - top["y"] + 8}
    image = page.screenshot(full_page=True, clip=clip)  # type: ignore[arg-type]
    save("notebook", Image.open(BytesIO(image)))
    context.close()


SCREENSHOTS = {
    "report": report, "report-phone": report_phone, "report-compared": report_compared, "page": served_page,
    "page-phone": served_page_phone, "page-training": training_page, "notebook": notebook,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN")
    parser.add_argument("--only", nargs="+", choices=SCREENSHOTS, default=list(SCREENSHOTS))
    args = parser.parse_args()
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--hide-scrollbars"])
        for name in args.only:
            SCREENSHOTS[name](browser, [Run(path) for path in args.runs], Path(folder))
        browser.close()


if __name__ == "__main__":
    main()
