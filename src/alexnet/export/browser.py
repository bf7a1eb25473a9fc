"""A real browser that opens an exported web page from its file, without a network, and classifies images with it."""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alexnet.errors import UserError, missing_package

_COMMANDS = ("chromium", "chromium-browser", "google-chrome", "chrome", "microsoft-edge", "msedge")
_APPLICATIONS = {
    "darwin": (
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
        "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
        "/Applications/Chromium.app/Contents/MacOS/Chromium",
    ),
    "win32": (
        r"C:\Program Files\Google\Chrome\Application\chrome.exe",
        r"C:\Program Files (x86)\Microsoft\Edge\Application\msedge.exe",
    ),
}
"""Where browsers are installed on systems that do not have them on PATH."""

_UNCHECKED = "or write the file unchecked with --no-parity"
_FORMAT_CODES = ("format", "heic")
"""Errors of web/image.js for images that browsers do not read, whatever they show."""

_AT_ONCE = 16  # images whose probabilities are fetched together
_ADD_INPUT = """() => {
  const input = Object.assign(document.createElement("input"), { type: "file", multiple: true, hidden: true });
  return document.body.appendChild(input);
}"""
_LOAD = "classifier.ready.then(() => null, (error) => error.message)"
_CLASSIFY = """async ([input, start, end]) => {
  const found = [];
  for (const source of [...input.files].slice(start, end)) {
    try {
      const { probabilities, milliseconds } = await classifier.call("classify", { source });
      found.push({ probabilities: [...probabilities], milliseconds });
    } catch (error) {
      found.push({ code: error.code || "failed", message: String(error.message || error) });
    }
  }
  return found;
}"""


def find_browser() -> Path:
    """Return the program of a browser of Chromium's family.

    Raises `UserError` if there is none, or no playwright, which drives it.
    """
    if importlib.util.find_spec("playwright") is None:
        error = missing_package("Comparing the page with the run in a browser", "playwright", "web")
        raise UserError(f"{str(error).rstrip('.')}, {_UNCHECKED}.")
    found = [Path(path) for path in map(shutil.which, _COMMANDS) if path]
    found += [path for path in map(Path, _APPLICATIONS.get(sys.platform, ())) if path.is_file()]
    if not found:
        raise UserError(
            "The page is compared with the run in a browser, and neither Chromium nor Chrome nor Edge was found; "
            f"install one of them, {_UNCHECKED}."
        )
    return found[0]


def classify_in_browser(page_file: Path, images: Sequence[Path]) -> tuple[np.ndarray, dict[str, float]]:
    """Return the probabilities of image files, float32 (n, classes), and the median seconds that the network takes.

    Rows of NaN stand for files in formats that browsers do not read. Raises `RuntimeError` for a network that does not
    load, for any other image that the page cannot classify, and if the page asks for anything beyond its own file.
    """
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    rows: list[list[float] | None] = []
    milliseconds: list[float] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser())
        page = browser.new_context(offline=True).new_page()
        page.set_default_timeout(0)  # hundreds of megabytes take a while
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_file.as_uri())
        if reason := page.evaluate(_LOAD):
            raise RuntimeError(f"the network does not load: {reason}")
        chosen = page.evaluate_handle(_ADD_INPUT).as_element()
        assert chosen is not None
        chosen.set_input_files(list(images))
        for start in range(0, len(images), _AT_ONCE):
            found = page.evaluate(_CLASSIFY, [chosen, start, start + _AT_ONCE])
            for path, one in zip(images[start:], found, strict=False):
                if "code" in one and one["code"] not in _FORMAT_CODES:
                    raise RuntimeError(f"{path.name}: {one['code']}, {one['message']}")
                rows.append(one.get("probabilities"))
                milliseconds += [one["milliseconds"]] if "milliseconds" in one else []
        browser.close()
    outside = [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
    if outside:
        raise RuntimeError(f"the page asks for {outside[0]}")
    classes = max((len(row) for row in rows if row), default=1)
    probabilities = np.array([row or [np.nan] * classes for row in rows], dtype=np.float32)
    return probabilities, {"1": statistics.median(milliseconds) / 1000} if milliseconds else {}
