"""docs/distributed.md: the arithmetic is right, measurements agree with the results, examples pass shellcheck."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet.models.architectures import architecture
from alexnet.models.summary import summarize

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = 90 * 1_281_167
RATE = 0.45 * 989e12 / (2 * 2_067_805_248)  # images/s of one GPU


def is_on_page(number: float, digits: int) -> bool:
    return f"{number:,.{digits}f}" in PAGE


def read_results(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def test_multiply_accumulates_per_image() -> None:
    counted = summarize(architecture("paper"))
    first = next(row.macs for row in counted.rows if row.macs)
    assert is_on_page(counted.macs, 0)
    assert is_on_page(first, 0)
    assert is_on_page(3 * counted.macs - first, 0)
    assert is_on_page(2 * (3 * counted.macs - first) / 1e9, 2)
    assert is_on_page(counted.parameters, 0)
    assert is_on_page(IMAGES, 0)
    fc = sum(row.parameters for row in counted.rows if row.name.startswith("fc"))
    assert f"{fc / counted.parameters:.0%}".replace("%", " %") in PAGE


def test_rates_agree_with_the_results() -> None:
    ours = read_results("train_224")["paper"]["ours"]["images_per_second"]
    assert is_on_page(ours, 1)
    assert is_on_page(IMAGES / round(ours, 1) / 86_400, 1)
    decoded = read_results("decode")["images_per_second"]["2012"]["ours"]["median"]
    assert is_on_page(decoded, 0)
    assert is_on_page(16 * round(decoded), 0)
    assert is_on_page(RATE / round(decoded), 0)


@pytest.mark.parametrize(("number", "digits"), [
    (IMAGES / RATE / 60, 1), (IMAGES / RATE / 8 / 60, 1), (1_281_167 * 196_608 / 1e9, 0), (RATE * 196_608 / 1e9, 0),
    (4 * 60_965_224 / 1e6, 0), (2 * 7 / 8 * 4 * 60_965_224 / 1e6, 0), (2 * 63 / 64 * 4 * 60_965_224 / 1e6, 0),
    (128 / RATE * 1e3, 2), (1024 / RATE * 1e3, 1), (2 * 7 / 8 * 4 * 60_965_224 / 450e9 * 1e3, 2),
    (2 * 63 / 64 * 4 * 60_965_224 / 50e9 * 1e3, 1), (IMAGES / (16 * 464) / 3600, 1), (8 * 4 * 60_965_224 / 1e9, 2),
])  # fmt: skip
def test_estimates_are_recomputed(number: float, digits: int) -> None:
    assert is_on_page(number, digits)


def test_costs_are_recomputed() -> None:
    slow, fast = IMAGES / 32.4 / 3600, IMAGES / RATE / 3600  # hours of two cores, of one GPU
    jpeg, jpeg_8 = IMAGES / (16 * 464) / 3600, IMAGES / (192 * 464) / 3600
    for row in (
        f"| this CPU | either | {slow:,.0f} h | ${slow * 0.10:,.0f} |",
        f"| one H200 | uint8 | {fast:.2f} h | ${fast * 4:.1f} |",
        f"| one H200, 16 cores | JPEG | {jpeg:.1f} h | ${jpeg * 4:.0f} |",
        f"| 8 H200 | uint8 | {fast / 8 * 60:.1f} min | ${fast * 4:.1f} |",
        f"| 8 H200, 192 cores | JPEG | {jpeg_8 * 60:.0f} min | ${jpeg_8 * 8 * 4:.0f} |",
        f"| 64 H200 | uint8 | {fast / 64 * 3600:.0f} s at best | ${fast * 4:.1f} |",
    ):
        assert row in PAGE.splitlines()


def test_processes_agree_as_described() -> None:
    rows = read_results("processes")["rows"]
    assert max(row["loss_relatively"] for row in rows.values()) < 2
    assert {row["same_answers"] for row in rows.values()} == {1.0}


def test_hosts_finish_as_described() -> None:
    found = read_results("elastic")
    assert found["cut"]["processes"][0] == 3
    for name in ("killed", "cut", "returned"):
        assert found[name]["complete"]
        assert found[name]["steps"] == found["undisturbed"]["steps"]
        assert found[name]["went_on_after_steps"][0] % 20  # within an epoch of twenty steps
        assert abs(found[name]["test_top1"] - found["undisturbed"]["test_top1"]) < 0.03


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.s*")), ids=lambda path: path.name)
def test_examples_pass_shellcheck(script: Path) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{Path('/usr/bin')}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, "--shell=bash", str(script)], capture_output=True, text=True, timeout=300)
    assert done.stdout == ""
    assert re.search(r"not tested", script.read_text(), re.IGNORECASE)
    assert script.name in PAGE
