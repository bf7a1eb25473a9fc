"""docs/performance/: every JSON file in benchmarks/results is cited, every table agrees with its file, links exist.

The Chinese pages have the numbers of the English ones: see `test_languages.py`.

A table follows a comment that names its source: the file and the keys in it, as in `<!-- bench.json train -->` or
`<!-- train_224.json results.paper -->`. The first cell of a row names entries there: each of its words occurs in the
entry's key, strings or integers. Every number of the row must be a number of these entries, rounded as shown, in the
unit of the cell or of its column's header (%, ms, MiB, GiB). A table without a source follows `<!-- no results -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
FOLDER = ROOT / "docs" / "performance"
PAGES = sorted(page for page in FOLDER.glob("*.md") if not page.name.endswith(".zh-CN.md"))
TEXT = "\n\n".join(path.read_text(encoding="utf-8") for path in PAGES)
FACTORS = {"%": 100.0, "ms": 1e3, "MiB": 2.0**-20, "GiB": 2.0**-30}
LABELS = {  # row labels of the pages → keys of the recorded files, where they differ
    "torchvision, normalized": "torchvision, normalised",
    "torchvision, one crop per batch": "torchvision, a batch alike",
    "torchvision, image by image": "torchvision, picture by picture",
    "choose the crop box": "draw the box",
    "flip": "mirror",
}


def tables() -> list[tuple[str, list[list[str]]]]:
    """Return each table's comment and its rows of cells, the header first."""
    found = []
    lines = TEXT.splitlines()
    for i, line in enumerate(lines):
        if line.startswith("|") and not lines[i - 1].startswith("|"):
            rows = []
            for row in lines[i:]:
                if not row.startswith("|"):
                    break
                rows.append([cell.strip() for cell in row.strip("|").split("|")])
            above = next((text for text in reversed(lines[:i]) if text), "")
            comment = re.fullmatch(r"<!-- (.*) -->", above)
            found.append((comment[1] if comment else "", [rows[0], *rows[2:]]))
    return found


def numbers_in(value: Any) -> Iterator[float]:
    """Yield all numbers in `value`."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def _describe(name: str, value: Any) -> str:
    """Return the words by which the first cell of a row names a value of an entry."""
    if name == "channels_last":
        return "channels_last" if value else "NCHW"
    if name == "shape":
        return "×".join(map(str, value))
    return str(value) if isinstance(value, (str, int)) else ""


def find_entries(place: Any, label: str) -> list[Any]:
    """Return the entries of `place` that `label` names."""
    items = place.items() if isinstance(place, dict) else (("", entry) for entry in place)
    label = LABELS.get(label, label)
    words = [word for word in re.sub(r"[`*,]", " ", label).split() if word not in ("batch", "a", "of")]
    found = []
    for key, entry in items:
        texts = [_describe(name, v) for name, v in entry.items()] if isinstance(entry, dict) else []
        known = " ".join([str(key), *texts]).replace(",", " ").split()
        if all(word in known for word in words):
            found.append(entry)
    return found


def parse_numbers(head: str, cell: str) -> list[tuple[str, float]]:
    """Return the numbers of a cell as written, without thousands separators, with the factor of their unit."""
    found = []
    for number, unit in re.findall(r"(?<![\w.])(-?\d[\d,]*(?:\.\d+)?) ?(%|ms\b|MiB\b|GiB\b)?", cell):
        unit = unit or next((u for u in FACTORS if re.search(rf"(?<!\w){re.escape(u)}(?!\w)", head)), "")
        found.append((number.replace(",", ""), FACTORS.get(unit, 1.0)))
    return found


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_every_result_is_cited_with_its_command(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert f"results/{path.name}" in TEXT
    assert found.get("command", "alexnet bench") in TEXT


def test_tables_agree_with_the_results():
    assert tables()
    for comment, (head, *rows) in tables():
        assert comment, f"no comment names the source of the table with the columns {head}"
        if comment == "no results":
            continue
        file, *keys = comment.split(maxsplit=1)
        place = json.loads((ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))
        for key in keys[0].split(".") if keys else []:
            place = place[int(key)] if isinstance(place, list) else place[key]
        for label, *cells in rows:
            entries = find_entries(place, label)
            assert entries, f"{comment} has no entry for {label}"
            for title, cell in zip(head[1:], cells, strict=True):
                for number, factor in parse_numbers(title, cell):
                    digits = len(number.partition(".")[2])
                    # files hold milliseconds or seconds, percent or shares
                    values = {f"{value * f:.{digits}f}" for value in numbers_in(entries) for f in (factor, 1.0)}
                    assert number in values, f"{comment}, {label}, {title}: {number} is not in the results"


def test_numbers_and_entries_are_parsed():
    """Test the helpers of `test_tables_agree_with_the_results`."""
    assert parse_numbers("images/s", "33.1 (31.0 to 1,034.6)") == [("33.1", 1.0), ("31.0", 1.0), ("1034.6", 1.0)]
    assert parse_numbers("share of the limit, %", "81") == [("81", 100.0)]
    place = [
        {"arch": "paper", "batch_size": 32, "speed": 1.0},
        {"arch": "paper", "batch_size": 1, "speed": 2.0},
    ]
    assert find_entries(place, "`paper`, batch 32") == [place[0]]
    assert find_entries(place, "papers") == []
    assert sorted(numbers_in(place)) == [1.0, 1.0, 2.0, 32.0]


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda path: path.name)
def test_linked_files_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
