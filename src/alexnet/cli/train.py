"""`alexnet train`: train a recipe, a recipe.json or a folder of images."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.cli.arguments import parse
from alexnet.cli.output import is_main_process, print_json

if TYPE_CHECKING:
    from alexnet.training.api import TrainingResult


def train(arguments: list[str]) -> None:
    """Train a recipe, a recipe.json or a folder of images; without a name, the embedded digits."""
    from alexnet.training.config_parsing import parse_settings
    from alexnet.training.recipe import FLAG_NAMES, Flags, flags_of, with_settings
    from alexnet.training.recipes import RECIPES, describe, find_recipe

    @dataclass(frozen=True, kw_only=True)
    class TrainFlags(Flags):
        out: Path | None = None
        """Run folder; runs/<recipe>-<time> by default."""
        resume: bool = False
        """Resume if --out already holds this run."""
        force: bool = False
        """With --resume: accept settings that change the experiment."""
        set: tuple[str, ...] = ()
        """Other settings of recipe.json, such as padding_mode=reflect clip_norm=1."""
        json: bool = False
        """Print the summary as one JSON document."""

    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else "digits"
    recipe = find_recipe(name)
    description = describe(name) if name in RECIPES else f"Train {name}."
    if not named:
        description += f"\n\nOther recipes: {', '.join(RECIPES)}; run 'alexnet train NAME --help' for their settings."
    defaults = TrainFlags(**dataclasses.asdict(flags_of(recipe)))
    flags = parse(TrainFlags, arguments[named:], f"alexnet train {name}", description, default=defaults)
    given = {re.sub(r"^--(no-)?", "", word.split("=")[0]).replace("-", "_") for word in arguments if word[:2] == "--"}
    settings = {name: getattr(flags, name) for name in FLAG_NAMES if name in given}
    recipe = with_settings(recipe, {**settings, **parse_settings(flags.set)}, where=" in --set" if flags.set else "")

    from alexnet.api import train as train_recipe

    show_result(train_recipe(recipe, out=flags.out, resume=flags.resume, force=flags.force), flags.json)


def show_result(result: TrainingResult, json: bool) -> None:
    """Print the result of a finished run and the commands that come next."""
    if not is_main_process():
        return
    run, summary = result.run, result.summary
    if json:
        print_json({"run": str(run), **summary})
        return
    print(result)
    print(f"""
Next:
  alexnet eval {run}
  alexnet predict {run} IMAGE…
  alexnet report {run}""")
