"""`alexnet ablate`: a claim of the paper as a controlled comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alexnet.cli.output import log, print_json, print_table
from alexnet.errors import UserError


def ablate(
    claim: str | None = None,
    /,
    *,
    list: bool = False,
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
        claim: Name of the claim; --list shows them.
        list: List the claims with their sources and published figures.
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
    from alexnet.ablation.claims import CLAIMS, find_claim

    if list:
        if json:
            print_json([
                {"claim": c.name, "says": c.statement, "source": c.source, "figure": c.published, "measure": c.measure,
                 "arms": [c.part.name, c.without.name]}
                for c in CLAIMS.values()
            ])  # fmt: skip
        else:
            print_table(
                ("claim", "statement", "source", "published figure"),
                [(c.name, c.statement, c.source, c.published) for c in CLAIMS.values()],
                numeric=False,
            )
        return
    if claim is None:
        raise UserError("Name a claim, such as 'alexnet ablate lrn'; 'alexnet ablate --list' shows them all.")
    find_claim(claim)  # fail on a misspelled name before torch is imported
    from alexnet.ablation.ablate import ablate as run_ablation
    from alexnet.ablation.ablate import base_recipe

    base = base_recipe(
        recipe, data, arch=arch, image_size=image_size, width=width, epochs=epochs, lr=lr,
        device=None if device == "auto" else device,
    )  # fmt: skip
    found = run_ablation(claim, base=base, seeds=seeds, budget=budget, out=out, log=log)
    if json:
        print_json(found.to_dict())
    else:
        print(found)
