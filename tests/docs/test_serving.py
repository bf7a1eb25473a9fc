"""docs/serving.md: the limits, statuses, metrics and measured tables agree with the code and the results."""

import json
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from alexnet.cli import run
from alexnet.serving.settings import MAX_BODIES, Settings

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "docs" / "results").glob("serving-*.json"))


def test_documented_limits_are_the_defaults(capsys):
    documented = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d,.]+) \|", PAGE, re.MULTILINE))
    others = ("host", "port", "root_path", "token", "cors", "lang")
    limits = {f.name: f.default for f in fields(Settings) if f.name not in others}
    assert {name.replace("-", "_"): float(value.replace(",", "")) for name, value in documented.items()} == limits
    assert MAX_BODIES == 8
    assert "Eight such bodies" in PAGE
    run(["serve", "--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name} " in shown for name in documented)


def test_every_status_is_documented():
    pytest.importorskip("fastapi")
    from alexnet.serving.routes import STATUS_DESCRIPTIONS

    documented = {int(status) for status in re.findall(r"\b([45]\d\d)\b", PAGE.split("## Errors")[1].split("##")[0])}
    assert STATUS_DESCRIPTIONS.keys() - {500} <= documented


def test_every_metric_is_documented():
    pytest.importorskip("prometheus_client")
    from alexnet.serving.metrics import Metrics

    names = set(re.findall(r"^# TYPE (alexnet_\w+)", Metrics().render().decode(), re.MULTILINE))
    assert {name for name in names if not name.endswith("_created")} <= set(re.findall(r"alexnet_\w+", PAGE))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_tables_agree_with_the_results(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    for name in ("common", "serving"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from serving import table

    document = json.loads(path.read_text(encoding="utf-8"))
    assert table(document) in PAGE
    assert document["command"] in PAGE
