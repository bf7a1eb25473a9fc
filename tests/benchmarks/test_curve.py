"""benchmarks/curve.py plots the accuracies of runs and of tutorial loops."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest


@pytest.fixture
def curve(monkeypatch):
    """The script's `main`, with benchmarks/ on the path for its own imports."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["curve.py"])
    import curve

    return curve.main


def test_runs_and_tutorials_become_one_plot(tmp_path, small_run, curve):
    tutorial = tmp_path / "plain.json"
    rows = [{"epoch": 1, "seconds": 10.0, "top1": 0.5, "images": 3}, {"epoch": 2, "seconds": 21.0, "top1": 0.6}]
    tutorial.write_text(json.dumps({"results": {"curve": rows}}))
    curve([f"ours={small_run}", f"ours={small_run}/metrics.jsonl", f"plain={tutorial}", "--out", str(tmp_path)])
    curves = json.loads((tmp_path / "accuracy-against-time.json").read_text())["results"]["curves"]
    assert curves["plain"] == [[{k: row[k] for k in ("epoch", "seconds", "top1")} for row in rows]]
    first, second = curves["ours"]
    assert first == second
    metrics = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert first[-1]["seconds"] == pytest.approx(sum(row["seconds"] for row in metrics))
    assert [p["top1"] for p in first] == [row["top1"] for row in metrics]
    assert {"accuracy-against-time.svg", "accuracy-against-time.png"} < {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize("argument", ["name", "a=other.json", "a=nothing"])
def test_invalid_arguments_are_refused(tmp_path, monkeypatch, curve, argument):
    monkeypatch.chdir(tmp_path)
    Path("other.json").write_text("{}")
    with pytest.raises(SystemExit, match=r"is not NAME=PATH|holds no accuracies"):
        curve([argument, "--out", "out"])
    assert not Path("out").exists()
