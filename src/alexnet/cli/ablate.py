"""`alexnet ablate`: a claim of the paper as a controlled comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from alexnet.cli.output import log, print_json, print_table
from alexnet.errors import UserError


def ablate(
    claim: str | None = None,
    /,
    *,
    list: bool = False,
    table: bool = False,
    data: Path | None = None,
    recipe: str | None = None,
    arch: str | None = None,
    image_size: int | None = None,
    width: float | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    seeds: int | None = None,
    budget: float | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    out: Path = Path("runs/ablate"),
    json: bool = False,
) -> None:
    """Test a claim of the paper: train with and without the part over several seeds, and compare.

    Args:
        claim: Name of the claim, or 'all' for every one in order; --list shows them.
        list: List the claims with their sources and published figures.
        table: Print the table of the results in --out, corrected for their number, without training.
        data: Class folders; the embedded digits by default.
        recipe: Start from this recipe; the small 'ablation' by default.
        arch: Architecture of both arms, where the claim leaves it open.
        image_size: Side of the network's input in pixels.
        width: Factor on all channel counts and hidden units.
        epochs: Epochs of each training.
        lr: Peak learning rate.
        seeds: Pairs of trainings; by default as many as the spread of a pilot requires.
        budget: Time limit of the whole comparison in minutes.
        device: Where to compute.
        out: Folder for the results and the runs, which are reused.
        json: Print one JSON document.
    """
    from alexnet.ablation.claims import find_claim
    from alexnet.files import check_data_exists

    if list:
        _list_claims(json)
        return
    if table:
        _print_claims(out, json)
        return
    if claim is None:
        raise UserError("Name a claim, such as 'alexnet ablate lrn', or 'all'; 'alexnet ablate --list' shows them.")
    if claim != "all":
        find_claim(claim)  # fail on a misspelled name before torch is imported
    check_data_exists(data)
    from alexnet.ablation import ablate as ablation

    base = ablation.base_recipe(
        recipe, data, arch=arch, image_size=image_size, width=width, epochs=epochs, lr=lr,
        device=None if device == "auto" else device,
    )  # fmt: skip
    if claim == "all":
        ablation.ablate_all(base=base, seeds=seeds, budget=budget, out=out, log=log)
        _print_claims(out, json)
        return
    found = ablation.ablate(claim, base=base, seeds=seeds, budget=budget, out=out, log=log)
    if json:
        print_json(found.to_dict())
    else:
        print(found)


def _list_claims(json: bool) -> None:
    from alexnet.ablation.claims import CLAIMS

    if json:
        print_json([
            {"claim": c.name, "says": c.statement, "source": c.source, "figure": c.published, "log": c.log,
             "measure": c.measure, "arms": [c.part.name, c.without.name]}
            for c in CLAIMS.values()
        ])  # fmt: skip
    else:
        print_table(
            ("claim", "statement", "source", "published figure", "2012 log"),
            [(c.name, c.statement, c.source, c.published, c.log) for c in CLAIMS.values()],
            numeric=False,
        )


def _print_claims(out: Path, json: bool) -> None:
    """Print the table of the results in `out`."""
    from alexnet.ablation.results import format_value
    from alexnet.ablation.table import claims_table, read_results

    rows = claims_table(read_results(out))
    if json:
        print_json(rows)
        return

    def cells(row: dict[str, Any]) -> tuple[str, ...]:
        def shown(value: float | None) -> str:
            return "" if value is None else format_value(value, row["measure"], sign=True)

        interval = " to ".join(shown(v) for v in row["interval"] or ())
        p, corrected = ("" if p is None else f"{p:.2g}" for p in (row["p"], row["p_corrected"]))
        minutes = f"{row['seconds'] / 60:.0f}" if row["pairs"] else ""
        difference = shown(row["difference"])
        return row["claim"], row["verdict"], difference, interval, str(row["pairs"]), p, corrected, minutes

    head = ("claim", "verdict", "difference", "95 % interval", "pairs", "p", "corrected p", "minutes")
    print_table(head, [cells(row) for row in rows], numeric=False)
    for row in rows:
        if row["reason"]:
            print(f"{row['claim']}: {row['reason']}")
