"""docs/reproduction.md: its tables of claims agree with the files in docs/results, whose statistics are recomputed."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from alexnet.ablation.ablate import paired_interval
from alexnet.ablation.claims import CLAIMS

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAMES = ("ablate-*.json", "short-*.json")  # the others belong to export.md and serving.md
RESULTS = sorted(path for name in NAMES for path in (DOCS / "results").glob(name))
PAGE = (DOCS / "reproduction.md").read_text(encoding="utf-8")


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_statistics_of_a_result_are_recomputed(path: Path) -> None:
    found = read(path)
    part, without = found["arms"]
    sign = 1 if found["measure"] == "top1" else -1
    pairs = zip(part["values"], without["values"], strict=True)
    assert found["differences"] == pytest.approx([sign * (a - b) for a, b in pairs])
    assert found["difference"] == pytest.approx(statistics.fmean(found["differences"]))
    low, high = paired_interval(found["differences"])
    assert found["interval"] == pytest.approx([low, high])
    assert found["verdict"] == ("supports" if low > 0 else "contradicts" if high < 0 else "cannot tell")
    assert found["says"] == CLAIMS[found["claim"]].statement


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_is_on_the_page(path: Path) -> None:
    found = read(path)
    factor = 100 if found["measure"] == "top1" else 1
    low, high = (f"{factor * v:+.2f}" for v in found["interval"])
    numbers = f"| {factor * found['difference']:+.2f} | {low} to {high} | {len(found['seeds'])} | {found['verdict']} |"
    rows = [line for line in PAGE.splitlines() if line.startswith(f"| `{found['claim']}` |") and numbers in line]
    assert len(rows) == 1, numbers
    for arm in found["arms"]:
        assert f"{arm['name']}{'' if arm['reached'] else ' at least'} {factor * arm['mean']:.2f}" in rows[0]


def test_every_row_has_a_result_and_every_claim_a_row() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| (?:supports|contradicts|cannot tell) \|$", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(read(path)["claim"] for path in RESULTS)
    assert set(rows) == set(CLAIMS)


def test_images_exist() -> None:
    images = re.findall(r"\]\((img/[\w.-]+)\)", PAGE)
    assert len(images) >= 6
    assert all((DOCS / image).is_file() for image in images)
