"""docs/export.md: its tables are those of the documents in docs/results, and it names every format and flag."""

import json
import re
import sys
from pathlib import Path

import pytest

from alexnet.cli import run
from alexnet.runtimes.manifest import FORMATS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "docs" / "results").glob("deployment-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_tables_agree_with_the_results(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("common", "exports"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from exports import table

    document = json.loads(path.read_text(encoding="utf-8"))
    assert table(document) in PAGE
    assert document["command"] in PAGE
    for row in document["results"]["rows"]:
        assert row["images"] >= 200
        assert row["without_torch"] == (row["format"] in ("onnx", "openvino"))


@pytest.mark.parametrize("page", ["export.md", "export.zh-CN.md"])
@pytest.mark.parametrize("what", ["parity", "times"])
def test_tables_of_the_browser_agree_with_the_results(what, page, monkeypatch):
    pytest.importorskip("playwright", reason="playwright is not installed; it is in the extra dev")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("common", "web_page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from web_page import NETWORKS, parity_table, times_table

    files = {name: ROOT / "docs" / "results" / f"browser-{what}-{name}.json" for name in NETWORKS}
    found = {name: json.loads(path.read_text(encoding="utf-8"))["results"] for name, path in files.items()}
    table = {"parity": parity_table, "times": times_table}[what](found)
    assert table in (ROOT / "docs" / page).read_text(encoding="utf-8")


def test_at_least_one_result_exists():
    assert len(RESULTS) >= 1


def test_every_format_and_flag_is_there(capsys):
    assert all(f"| `{kind}` |" in PAGE for kind in FORMATS)
    run(["export", "--help"])
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    known = {flag for flag in flags if not flag.startswith("--no-")} - {"--help", "--checkpoint", "--json"}
    assert known - {"--json"} <= set(re.findall(r"--[a-z][a-z-]+", PAGE))
