"""The commands that measure: one of the paper's claims, and this machine.

Everything heavy is imported inside the command that needs it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from alexnet.cli.output import _print_json, _table
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
    """Test one of the paper's claims: train with and without the part, over several seeds, and judge the difference.

    Args:
        claim: Its name, as --list shows it.
        list: Show the claims, their sources and what others measured.
        data: Class folders; the embedded digits unless given.
        recipe: Start from this recipe; the small 'ablation' unless given.
        arch: Architecture of both sides, where the claim leaves it open.
        image_size: Side of the network's input in pixels.
        width: Scale of all channel counts and hidden units.
        epochs: Epochs of each training.
        lr: Learning rate, at its highest.
        seeds: Pairs of trainings; as many as a pilot's spread asks for unless given.
        budget: Minutes that the whole may take.
        device: Where to compute.
        out: Folder of the results and of the runs, which are used again.
        json: Print one JSON document.
    """
    from alexnet.ablation.claims import CLAIMS, find_claim

    if list:
        if json:
            _print_json([
                {"claim": c.name, "says": c.says, "source": c.source, "figure": c.figure, "measure": c.measure,
                 "arms": [c.part.name, c.without.name]}
                for c in CLAIMS.values()
            ])  # fmt: skip
        else:
            _table(
                ("claim", "what it says", "source", "what others measured"),
                [(c.name, c.says, c.source, c.figure) for c in CLAIMS.values()],
                numbers=False,
            )
        return
    if claim is None:
        raise UserError("Name a claim, such as 'alexnet ablate lrn'; 'alexnet ablate --list' shows them all.")
    find_claim(claim)  # a misspelt name should not wait for torch
    from alexnet.ablation.ablate import ablate as run_ablation
    from alexnet.ablation.ablate import base_recipe

    base = base_recipe(
        recipe, data, arch=arch, image_size=image_size, width=width, epochs=epochs, lr=lr,
        device=None if device == "auto" else device,
    )  # fmt: skip
    found = run_ablation(
        claim, base=base, seeds=seeds, budget=budget, out=out, say=lambda text: print(text, file=sys.stderr, flush=True)
    )
    if json:
        _print_json(found.to_dict())
    else:
        print(found)
