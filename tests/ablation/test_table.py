"""The table of all claims, from results as `alexnet ablate` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from alexnet.ablation.claims import CLAIMS
from alexnet.ablation.table import claims_table, read_results
from alexnet.errors import UserError


def result(difference: float, p: float, **changes: Any) -> dict[str, Any]:
    arms = [{"name": name, "mean": 0.7, "reached": True} for name in ("a", "b")]
    return {
        "difference": difference, "p": p, "interval": [0, 1], "seeds": [0, 1, 2, 3, 4], "planned": 5, "seconds": 60.0,
        "measure": "top1", "test": "t", "reason": None, "arms": arms, "recipe": {"lr": 0.1, "device": "cpu"},
    } | changes  # fmt: skip


def test_verdicts_are_corrected_over_the_table() -> None:
    results = {
        "lrn": result(0.01, 0.001),
        "dropout": result(-0.01, 0.02),
        "depth": result(0.01, 0.4),
        "init": result(0.3, 1e-9, reason="not trained long enough to judge"),
    }
    rows = {row["claim"]: row for row in claims_table(results)}
    assert list(rows) == list(CLAIMS)
    found = {name: (rows[name]["verdict"], rows[name]["p_corrected"]) for name in results}
    assert found == {
        "lrn": ("supports", pytest.approx(0.003)),
        "dropout": ("contradicts", pytest.approx(0.04)),
        "depth": ("cannot tell", pytest.approx(0.4)),
        "init": ("cannot tell", pytest.approx(4e-9)),
    }
    assert {row["verdict"] for name, row in rows.items() if name not in results} == {"not tested"}
    more = {**results, "momentum": result(0.01, 0.03)}  # one more comparison costs dropout its verdict
    assert {row["claim"]: row["verdict"] for row in claims_table(more)}["dropout"] == "leans against"


def test_published_figures_are_read_against_the_spread_of_sister_runs() -> None:
    rows = {row["claim"]: row for row in claims_table({})}
    deviations = {name: round(rows[name]["deviations"], 1) for name in ("overlapping-pool", "lrn", "two-towers")}
    assert deviations == {"overlapping-pool": 0.9, "lrn": 3.3, "two-towers": 4.1}
    assert rows["init"]["deviations"] is None


def test_results_of_different_benches_are_not_mixed(tmp_path: Path) -> None:
    for name, recipe in (("lrn", {"lr": 0.1, "device": "cpu"}), ("init", {"lr": 0.1, "device": "cuda"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(result(0.1, 0.1, recipe=recipe)))
    assert list(read_results(tmp_path)) == ["lrn", "init"]
    newer = {
        "lr": 0.1,
        "kernel_lr_mult": 1.0,
        "spec_edits": [],
    }  # settings that did not exist before, at their defaults
    (tmp_path / "dropout.json").write_text(json.dumps(result(0.1, 0.1, recipe=newer)))
    assert list(read_results(tmp_path)) == ["lrn", "dropout", "init"]
    (tmp_path / "depth.json").write_text(json.dumps(result(0.1, 0.1, recipe={"lr": 0.2})))
    with pytest.raises(UserError, match="'lrn' and 'depth' in .* have different base recipes"):
        read_results(tmp_path)
    with pytest.raises(UserError, match="There is no folder"):
        read_results(tmp_path / "nowhere")
