"""docs/performance.md: every document in benchmarks/results is there with its command, and its tables say what it says.

A table stands below a comment that names where its numbers come from: the file, and in it the place, as in
`<!-- bench.json train -->` or `<!-- train_224.json results.paper -->`. The first cell of a row names entries there:
each of its words is in the entry's key or in one of its texts and whole numbers. Every number of the row must then be one of
those entries', rounded as it is shown, in the unit that the cell or its column's head tells (%, ms, MiB, GiB). A table
that quotes nothing stands below `<!-- no results -->`.
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
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
FACTORS = {"%": 100.0, "ms": 1e3, "MiB": 2.0**-20, "GiB": 2.0**-30}


def tables() -> list[tuple[str, list[list[str]]]]:
    """Each table's comment and its rows of cells, the head first."""
    found = []
    lines = PAGE.splitlines()
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


def leaves(value: Any) -> Iterator[float]:
    """All numbers in it."""
    if isinstance(value, (dict, list)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from leaves(inner)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def named(place: Any, label: str) -> list[Any]:
    """The entries of `place` that `label` names."""
    items = place.items() if isinstance(place, dict) else (("", entry) for entry in place)
    words = [word for word in re.sub(r"[`*,]", " ", label).split() if word not in ("batch", "a", "of")]
    found = []
    for key, entry in items:
        texts = [str(v) for v in entry.values() if isinstance(v, (str, int))] if isinstance(entry, dict) else []
        known = " ".join([str(key), *texts]).replace(",", " ").split()
        if all(word in known for word in words):
            found.append(entry)
    return found


def quoted(head: str, cell: str) -> list[tuple[str, float]]:
    """The numbers of a cell as they are written, without thousands' commas, and the factor of their unit."""
    found = []
    for number, unit in re.findall(r"(?<![\w.])(-?\d[\d,]*(?:\.\d+)?) ?(%|ms\b|MiB\b|GiB\b)?", cell):
        unit = unit or next((u for u in FACTORS if re.search(rf"(?<!\w){re.escape(u)}(?!\w)", head)), "")
        found.append((number.replace(",", ""), FACTORS.get(unit, 1.0)))
    return found


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_every_result_is_told_with_its_command(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert f"results/{path.name}" in PAGE
    assert found.get("command", "alexnet bench") in PAGE


def test_the_tables_say_what_the_results_say():
    assert tables()
    for comment, (head, *rows) in tables():
        assert comment, f"the table headed {head} does not say where its numbers come from"
        if comment == "no results":
            continue
        file, *keys = comment.split(maxsplit=1)
        place = json.loads((ROOT / "benchmarks" / "results" / file).read_text(encoding="utf-8"))
        for key in keys[0].split(".") if keys else []:
            place = place[int(key)] if isinstance(place, list) else place[key]
        for label, *cells in rows:
            entries = named(place, label)
            assert entries, f"{comment} has nothing called {label}"
            for title, cell in zip(head[1:], cells, strict=True):
                for number, factor in quoted(title, cell):
                    digits = len(number.partition(".")[2])
                    # a document may hold milliseconds, or seconds
                    values = {f"{value * f:.{digits}f}" for value in leaves(entries) for f in (factor, 1.0)}
                    assert number in values, f"{comment}, {label}, {title}: {number} is not there"


def test_the_check_finds_a_wrong_number():
    """The parts that the test above is made of."""
    assert quoted("images/s", "33.1 (31.0 to 1,034.6)") == [("33.1", 1.0), ("31.0", 1.0), ("1034.6", 1.0)]
    assert quoted("share of the limit, %", "81") == [("81", 100.0)]
    place = [{"arch": "paper", "batch_size": 32, "speed": 1.0}, {"arch": "paper", "batch_size": 1, "speed": 2.0}]
    assert named(place, "`paper`, batch 32") == [place[0]]
    assert named(place, "papers") == []
    assert sorted(leaves(place)) == [1.0, 1.0, 2.0, 32.0]


def test_the_pictures_are_there():
    for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / picture).is_file(), picture
