"""Names of folders, files, classes and arguments cannot control a terminal, nor begin a line of their own."""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from alexnet.cli import COMMANDS, run
from alexnet.cli.output import LogFormatter
from alexnet.progress import Live, Silent
from alexnet.training.api import train

HOSTILE = "\x1b[31m\u202e\x9b\nEVIL"
RAW = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|^EVIL", re.MULTILINE)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no such names")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, a run `run` of it, a damaged image and one with values beyond the range of the run."""
    root = tmp_path_factory.mktemp(f"root{HOSTILE}")
    noise = np.random.default_rng(0)
    for label in (f"cat{HOSTILE}", "dog"):
        for split in ("train", "val"):
            folder = root / "data" / split / label
            folder.mkdir(parents=True)
            for i in range(4):
                Image.fromarray(noise.integers(0, 4000, (32, 32), np.uint16)).save(folder / f"{i}{HOSTILE}.png")
            (folder / f"notes{HOSTILE}.txt").write_bytes(b"")
    train(
        "digits", dataset="folder", data=root / "data", out=root / "run", epochs=1, width=0.125, batch_size=8,
        progress=Silent(),
    )  # fmt: skip
    (root / f"damaged{HOSTILE}.png").write_bytes(b"nothing")
    Image.fromarray(np.full((32, 32), 60_000, np.uint16)).save(root / f"bright{HOSTILE}.png")
    return root


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("check data", 0),
        ("check data --fix fixed", 0),
        ("check data --html none/page.html", 2),
        ("eval run", 0),
        ("eval run --data none", 2),
        ("predict run bright.png damaged.png data", 0),
        ("predict run damaged.png", 2),
        ("predict run bright.png data --out table.csv", 0),
        ("predict run data --engine NAME", 2),
        ("features run data --out features.npz", 2),
        ("features run data --out features.csv", 0),
        ("resume run", 0),
        ("resume run --epochs NAME", 2),
        ("show curves run", 0),
        ("pack data packed", 0),
        ("export run NAME", 2),
        ("train data --help", 0),
        ("train data --out run", 2),
        ("train digits --arch NAME", 2),
        ("serve run --cors NAME", 2),
        ("serve none", 2),
        ("NAME", 2),
    ],
)
def test_output_has_names_escaped(
    root: Path, command: str, code: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("alexnet.api.write_page", lambda result: result)
    monkeypatch.setenv("COLUMNS", "1000")
    name, *words = command.split()
    own = {word: str(root / word) for word in ("data", "run", "fixed", "packed")}
    own |= {word: str(root / word.replace(".", f"{HOSTILE}.")) for word in words if "." in word}
    own |= {"NAME": HOSTILE, "none": str(root / f"none{HOSTILE}")}
    assert run([own[name] if name == "NAME" else name, *(own.get(word, word) for word in words)]) == code
    out, err = capfd.readouterr()
    found = [line for text in (out, err) for line in text.splitlines() if RAW.search(line)]
    assert not found
    assert "\\x1b[31m\\u202e\\x9b\\nEVIL" in out + err or (name, code) in (("eval", 0), ("resume", 0))


def test_log_lines_of_packages_have_names_escaped() -> None:
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError:
        error = sys.exc_info()
    record = logging.LogRecord("any", logging.ERROR, __file__, 1, "The model %s failed.", (HOSTILE,), error)
    message, *traceback = LogFormatter().format(record).split("\n")
    assert message == "The model \\x1b[31m\\u202e\\x9b\\nEVIL failed."
    assert traceback[0] == "Traceback (most recent call last):"
    assert not any(re.search("[\0-\x1f\x7f-\x9f\u202e]", line) for line in traceback)


def test_the_live_display_shows_names_as_text() -> None:
    """The name of an archive that is unpacked is no markup of rich."""
    live = Live()
    try:
        live(1, 2, f"unpacking [/red]{HOSTILE}.zip")
        columns = [column.render(live._bar.tasks[0]) for column in live._bar.columns if hasattr(column, "markup")]
    finally:
        live.close()
    assert columns[0].plain == "unpacking [/red]\\x1b[31m\\u202e\\x9b\\nEVIL.zip"


def test_no_folder_for_temporary_files(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def nowhere(*_: object) -> None:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setitem(COMMANDS, "doctor", nowhere)
    assert run(["doctor"]) == 2
    assert capsys.readouterr().err == ("alexnet: There is no writable folder for temporary files; set TMPDIR to one.\n")
