"""docs/reproduction.md and its Chinese version: the tables of claims are those of the files in docs/results/claims,
whose statistics are recomputed, and what the pages say about the rules is what the code does."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from alexnet.ablation import stats
from alexnet.ablation.ablate import _run_folder as run_folder
from alexnet.ablation.ablate import arm_recipe, base_recipe
from alexnet.ablation.claims import CLAIMS, RACE_LENGTH, RATE_GRID
from alexnet.ablation.history import sister_spread
from alexnet.ablation.results import Ablation, ArmResult, Outcome
from alexnet.run_dir import Run

DOCS = Path(__file__).resolve().parents[2] / "docs"
SPEC = importlib.util.spec_from_file_location("reproduction", DOCS / "reproduction.py")
assert SPEC is not None
assert SPEC.loader is not None
reproduction = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reproduction)
RESULTS = sorted((DOCS / "results" / "claims").glob("*.json"))


def compare(claim: str, *arms: list[float]) -> Ablation:
    """Return a comparison with these values, whose runs have learned."""
    results = []
    for arm, values in zip((CLAIMS[claim].part, CLAIMS[claim].without), arms, strict=True):
        outcomes = [
            Outcome(i, f"/x/arms/key/seed-{i}", value, 0.7, 10, 10_000, 10, 0.001) for i, value in enumerate(values)
        ]
        results.append(ArmResult(arm.name, outcomes, {}))
    return Ablation(CLAIMS[claim], *results, {"data": "/somewhere/cifar10"}, len(arms[0]), ["/x/lrn.json"])


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_is_up_to_date(language: str) -> None:
    text = reproduction.PAGES[language].read_text(encoding="utf-8")
    assert text == reproduction.page(language), "run: python docs/reproduction.py"
    assert all(f"| `{claim}` |" in text for claim in CLAIMS)
    assert all((DOCS / "img" / f"ablate-{path.stem}.svg").is_file() for path in RESULTS)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_statistics_of_a_result_are_recomputed(path: Path) -> None:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    arms = [
        ArmResult(a["name"], [Outcome(**o) for o in a["outcomes"]], a["settings"], a["rates"]) for a in found["arms"]
    ]
    again = Ablation(CLAIMS[found["claim"]], *arms, found["recipe"], found["planned"], found["files"])
    assert again.to_dict() == found
    part, without = (arm["values"] for arm in found["arms"])
    sign = 1 if found["measure"] == "top1" else -1
    assert found["difference"] == pytest.approx(sign * (statistics.fmean(part) - statistics.fmean(without)))
    assert found["says"] == CLAIMS[found["claim"]].statement
    assert str(DOCS.parent) not in path.read_text(encoding="utf-8")


def test_rows_of_tested_and_untested_claims() -> None:
    results = {
        "lrn": compare("lrn", [0.72, 0.73, 0.71, 0.72, 0.72], [0.70, 0.70, 0.695, 0.70, 0.705]).to_dict(),
        "relu-vs-tanh": compare("relu-vs-tanh", [4.0] * 5, [9.0, 9.5, 9.0, 9.2, 9.1]).to_dict(),
    }
    found = reproduction.blocks("en", results)
    assert "| `lrn` | LRN 72.00 % | no normalization 70.00 % | +2.00 % |" in found["claims"]
    assert "| `relu-vs-tanh` | ReLU 4.00 epochs | tanh 9.16 epochs | +5.16 epochs |" in found["claims"]
    assert "| `init` | Kaiming | N(0, .01) | – | – | 0 | – | – | not tested | – |" in found["claims"]
    assert "| `overlapping-pool` | test top-1 | .4 / .3 points of error |" in found["published"]
    assert found["published"].splitlines()[7].endswith("| 0.9 |")
    assert "ablate-lrn.svg" in found["plots"]
    chinese = reproduction.blocks("zh", results)
    assert "无归一化 70.00 %" in chinese["claims"]
    assert "| 支持 |" in chinese["claims"]


def test_table_of_the_towers() -> None:
    assert reproduction.blocks("en", {})["towers"] == "Verdict: **not measured**."
    runs = [{"means": means, "difference": 0.4, "of_random_halves": 0.1} for means in ([0.2, 0.6], [0.7, 0.3])]
    groups = {
        "two towers, trained": {"runs": runs, "significant": 1, "p": 0.0312},
        "no towers, trained": {"runs": [], "significant": 0, "p": None},
    }
    towers = {"verdict": "leans", "groups": groups}
    lines = reproduction.blocks("en", {}, towers)["towers"].splitlines()
    assert lines[2] == "| two towers, trained | 2 | 0.65 | 0.25 | 0.40 | 0.10 | 1 | 0.031 |"
    assert lines[3] == "| no towers, trained | 0 | – | – | – | – | – | – |"
    assert lines[5:] == ["Verdict: **leans**.", "", "![tower-colors](img/tower-colors.svg)"]
    chinese = reproduction.blocks("zh", {}, towers)["towers"]
    assert "| 双塔，训练后 | 2 | 0.65 |" in chinese
    assert "结论：**倾向支持**。" in chinese


def test_every_text_of_the_table_is_translated() -> None:
    texts = {text for claim in CLAIMS.values() for text in (claim.published, claim.log)} - {"", "0"}
    assert texts | set(reproduction.MEASURES.values()) <= set(reproduction.CHINESE)


def test_results_are_taken_over_without_paths_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    found = compare("lrn", [0.72, 0.73], [0.70, 0.70])
    (out / "lrn.json").write_text(json.dumps(found.to_dict()))
    (out / "lrn.svg").write_text("<svg/>")
    monkeypatch.setattr(reproduction, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproduction, "IMAGES", tmp_path)
    reproduction.take_over(out)
    document = json.loads((tmp_path / "results" / "lrn.json").read_text())
    assert document["recipe"]["data"] == "cifar10"
    assert document["arms"][0]["runs"] == ["arms/key/seed-0", "arms/key/seed-1"]
    assert "/x/" not in json.dumps(document)
    assert (tmp_path / "ablate-lrn.svg").is_file()


def test_the_rules_on_the_pages_are_those_of_the_code() -> None:
    assert (stats.MIN_PAIRS, stats.MAX_PAIRS, stats.SIGN_PAIRS, stats.PILOT_PAIRS) == (5, 12, 10, 3)
    assert stats.HALF_WIDTHS == {"top1": 0.005, "train_error": 0.005, "gap": 0.005, "epochs": 0.5}
    assert (stats.SIGNIFICANCE, stats.STEEP_GAIN, stats.TARGET_ERROR) == (0.05, 0.01, 0.25)
    assert (RACE_LENGTH, RATE_GRID) == (3, (0.004, 0.016, 0.064, 0.256))
    assert round(100 * sister_spread().deviation * math.sqrt(2), 2) == 0.42


def test_runs_are_taken_over_and_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Restored runs are those that were taken over, and `ablate` finds them under the same names."""
    monkeypatch.setattr(reproduction, "ARMS", tmp_path / "docs")
    base = base_recipe(data=tmp_path / "photos")
    recipe = arm_recipe(CLAIMS["lrn"].part, base).replace(seed=3)
    run = run_folder(recipe, tmp_path / "out")
    run.mkdir(parents=True)
    (run / "recipe.json").write_text(recipe.to_json())
    (run / "metrics.jsonl").write_text('{"epoch": 1, "top1": 0.5}\n{"epoch": 2, "top1": 0.6}\n')
    (run / "summary.json").write_text('{"complete": true, "classes": 10, "seconds": 1.5}')
    keys = ("versions", "cpu", "cores", "threads", "device", "gpu", "git", "command")
    (run / "env.json").write_text(json.dumps(dict.fromkeys(keys, str(tmp_path))))
    (run.parent / "train-3.json").write_text("[0.75, 100]")
    unfinished = run.parent / "seed-4"
    unfinished.mkdir()
    (unfinished / "env.json").write_text("{}")

    reproduction.take_over_runs(tmp_path / "out")
    reproduction.take_over_runs(tmp_path / "out")  # the second time changes nothing
    reproduction.restore(tmp_path / "again")

    restored = run_folder(recipe, tmp_path / "again")
    assert [path.name for path in restored.parent.iterdir() if path.is_dir()] == ["seed-3"]
    assert Run(restored).metrics() == Run(run).metrics()
    assert Run(restored).summary() == Run(run).summary()
    assert json.loads((restored.parent / "train-3.json").read_text()) == [0.75, 100]
    assert "command" not in (restored / "env.json").read_text()
    assert json.loads((restored / "recipe.json").read_text())["data"] == "photos"
