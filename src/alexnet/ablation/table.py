"""The table of all claims: p-values corrected for their number, and the published figures beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alexnet.ablation import stats
from alexnet.ablation.claims import CLAIMS
from alexnet.ablation.history import sister_spread
from alexnet.errors import UserError
from alexnet.files import read_json
from alexnet.training.recipe import Recipe

NOT_TESTED = "not tested"
MACHINE = ("data", "device", "workers", "threads", "in_memory")  # settings that leave the experiment as it is


def read_results(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Return the JSON documents of `alexnet ablate` in `folder`, by claim. Raises `UserError` for a damaged one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} of results; run 'alexnet ablate all --out {folder}' first.")
    paths = ((name, folder / f"{name}.json") for name in CLAIMS)
    results = {name: read_json(path, dict[str, Any]) for name, path in paths if path.is_file()}
    defaults = json.loads(Recipe().to_json())  # of settings that came after the result
    recipes = {name: {**defaults, **found["recipe"]} for name, found in results.items()}
    benches = {name: {k: v for k, v in recipe.items() if k not in MACHINE} for name, recipe in recipes.items()}
    for name, bench in benches.items():
        first = next(iter(benches))
        if bench != benches[first]:
            raise UserError(f"'{first}' and '{name}' in {folder} have different base recipes; give each its own --out.")
    return results


def claims_table(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for every claim in the order of `CLAIMS`; a claim without a result has the verdict `not tested`.

    `p_corrected` is corrected by Holm's method over all rows that have a p-value, and the verdict follows from it.
    `deviations` is the published difference in deviations of the difference of two sister runs, which differ in nothing
    that should matter (`history.sister_spread`).
    """
    tested = [name for name in CLAIMS if name in results and results[name]["p"] is not None]
    corrected = dict(zip(tested, stats.holm([results[name]["p"] for name in tested]), strict=True))
    spread = 100 * sister_spread().deviation
    return [_row(name, results.get(name), corrected.get(name), spread) for name in CLAIMS]


def _row(name: str, found: Mapping[str, Any] | None, corrected: float | None, spread: float) -> dict[str, Any]:
    claim = CLAIMS[name]
    row: dict[str, Any] = {
        "claim": name, "says": claim.statement, "measure": claim.measure, "source": claim.source,
        "figure": claim.published, "log": claim.log, "points": claim.points,
        "deviations": None if claim.points is None else claim.points / (math.sqrt(2) * spread),
        "verdict": NOT_TESTED, "reason": None, "difference": None, "interval": None, "p": None, "p_corrected": None,
        "pairs": 0, "planned": None, "seconds": 0.0,
        "arms": [{"name": arm.name, "mean": None, "reached": True} for arm in (claim.part, claim.without)],
    }  # fmt: skip
    if found is None:
        return row
    pairs = len(found["seeds"])
    same = ("reason", "difference", "interval", "p", "test", "planned", "seconds", "measure")
    verdict = stats.verdict(found["difference"], found["p"], corrected, pairs)
    arms = [{key: arm[key] for key in ("name", "mean", "reached")} for arm in found["arms"]]
    return {
        **row, **{key: found[key] for key in same}, "p_corrected": corrected, "pairs": pairs, "arms": arms,
        "verdict": "cannot tell" if found["reason"] else verdict,
    }  # fmt: skip
