"""docs/distributed.md: sums add up, measured numbers are those of the results, examples pass shellcheck."""

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
PICTURES = 90 * 1_281_167
RATE = 0.45 * 989e12 / (2 * 2_067_805_248)  # images/s of one GPU


def told(number: float, digits: int, text: str = PAGE) -> bool:
    return f"{number:,.{digits}f}" in text


def result(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())["results"]


def test_the_work_of_an_image() -> None:
    counted = summarize(architecture("paper"))
    first = next(row.macs for row in counted.rows if row.macs)
    assert told(counted.macs, 0)
    assert told(first, 0)
    assert told(3 * counted.macs - first, 0)
    assert told(2 * (3 * counted.macs - first) / 1e9, 2)
    assert told(counted.parameters, 0)
    assert told(PICTURES, 0)
    fully = sum(row.parameters for row in counted.rows if row.name.startswith("fc"))
    assert f"{fully / counted.parameters:.0%}".replace("%", " %") in PAGE


def test_the_measured_rates_are_those_of_the_results() -> None:
    ours = result("train_224")["paper"]["ours"]["images_per_second"]
    assert told(ours, 1)
    assert told(PICTURES / round(ours, 1) / 86_400, 1)
    decoded = result("decode")["images_per_second"]["2012"]["ours"]["median"]
    assert told(decoded, 0)
    assert told(16 * round(decoded), 0)
    assert told(RATE / round(decoded), 0)


@pytest.mark.parametrize(("number", "digits"), [
    (PICTURES / RATE / 60, 1), (PICTURES / RATE / 8 / 60, 1), (1_281_167 * 196_608 / 1e9, 0), (RATE * 196_608 / 1e9, 0),
    (4 * 60_965_224 / 1e6, 0), (2 * 7 / 8 * 4 * 60_965_224 / 1e6, 0), (2 * 63 / 64 * 4 * 60_965_224 / 1e6, 0),
    (128 / RATE * 1e3, 2), (1024 / RATE * 1e3, 1), (2 * 7 / 8 * 4 * 60_965_224 / 450e9 * 1e3, 2),
    (2 * 63 / 64 * 4 * 60_965_224 / 50e9 * 1e3, 1), (PICTURES / (16 * 464) / 3600, 1), (8 * 4 * 60_965_224 / 1e9, 2),
])  # fmt: skip
def test_the_sums_come_out(number: float, digits: int) -> None:
    assert told(number, digits)


def test_the_costs_come_out() -> None:
    slow, fast = PICTURES / 32.4 / 3600, PICTURES / RATE / 3600  # hours of two cores, of one GPU
    jpeg, jpeg_8 = PICTURES / (16 * 464) / 3600, PICTURES / (192 * 464) / 3600
    said = " ".join(PAGE.split())
    for words in (
        f"this CPU {slow:,.0f} h, {slow * 0.10:,.0f} $;",
        f"one H200 fed with bytes {fast:.2f} h, {fast * 4:.1f} $, "
        f"fed with JPEG by 16 cores {jpeg:.1f} h, {jpeg * 4:.0f} $;",
        f"8 fed with bytes {fast / 8 * 60:.1f} min, {fast * 4:.1f} $, with JPEG by 192 cores {jpeg_8 * 60:.0f} min, "
        f"{jpeg_8 * 8 * 4:.0f} $;",
        f"64 at best {fast / 64 * 3600:.0f} s, {fast * 4:.1f} $.",
    ):
        assert words in said


def test_processes_are_as_near_as_it_says() -> None:
    rows = result("processes")["rows"]
    assert max(row["loss_relatively"] for row in rows.values()) < 2
    assert {row["same_answers"] for row in rows.values()} == {1.0}


def test_hosts_end_as_it_says() -> None:
    found = result("elastic")
    assert found["cut"]["processes"][0] == 3
    for name in ("killed", "cut", "returned"):
        assert found[name]["complete"]
        assert found[name]["steps"] == found["undisturbed"]["steps"]
        assert found[name]["went_on_after_steps"][0] % 20  # within an epoch of twenty steps
        assert abs(found[name]["test_top1"] - found["undisturbed"]["test_top1"]) < 0.03


@pytest.mark.parametrize("script", sorted((ROOT / "examples").iterdir()), ids=lambda path: path.name)
def test_examples_pass_shellcheck(script: Path) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{Path('/usr/bin')}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([program, "--shell=bash", str(script)], capture_output=True, text=True)
    assert done.stdout == ""
    assert re.search(r"not tried", script.read_text(), re.IGNORECASE)
    assert script.name in PAGE
