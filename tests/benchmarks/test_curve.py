"""benchmarks/curve.py reads what runs and tutorial loops leave, and draws it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def curve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "curve.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_runs_and_tutorials_become_one_plot(tmp_path, small_run):
    tutorial = tmp_path / "plain.json"
    rows = [{"epoch": 1, "seconds": 10.0, "top1": 0.5, "images": 3}, {"epoch": 2, "seconds": 21.0, "top1": 0.6}]
    tutorial.write_text(json.dumps({"results": {"curve": rows}}))
    done = curve(f"ours={small_run}", f"ours={small_run}/metrics.jsonl", f"plain={tutorial}", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "accuracy-against-time.json").read_text())["results"]["curves"]
    assert found["plain"] == [[{k: row[k] for k in ("epoch", "seconds", "top1")} for row in rows]]
    first, second = found["ours"]
    assert first == second
    metrics = [json.loads(line) for line in (small_run / "metrics.jsonl").read_text().splitlines()]
    assert first[-1]["seconds"] == sum(row["seconds"] for row in metrics)
    assert [p["top1"] for p in first] == [row["top1"] for row in metrics]
    assert {"accuracy-against-time.svg", "accuracy-against-time.png"} < {p.name for p in tmp_path.iterdir()}


def test_what_is_no_curve_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    for given in ("name", f"a={tmp_path / 'other.json'}", f"a={tmp_path / 'nothing'}"):
        done = curve(given, "--out", str(tmp_path / "out"))
        assert done.returncode == 1
        assert "Traceback" not in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
