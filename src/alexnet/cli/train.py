"""The commands that train, use and describe networks, each a typed function.

Results are printed on stdout. Everything heavy is imported inside the command that needs it, so that `alexnet --help`
answers at once.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet.cli.arguments import _parse
from alexnet.cli.output import _print_json, _say, _speaks

if TYPE_CHECKING:
    from alexnet.training.api import TrainingResult


def command_train(arguments: list[str]) -> None:
    """Train a recipe, a recipe.json, or a folder of pictures; the embedded digits if none is named."""
    from alexnet.training.config_parsing import parse_settings
    from alexnet.training.recipe import FLAG_NAMES, Flags, flags_of, with_settings
    from alexnet.training.recipes import RECIPES, describe, find_recipe

    @dataclass(frozen=True, kw_only=True)
    class TrainFlags(Flags):
        out: Path | None = None
        """The run folder; runs/<recipe>-<time> unless given."""
        resume: bool = False
        """Go on if --out already holds a run."""
        force: bool = False
        """With --resume: go on also with settings that make another experiment of it."""
        set: tuple[str, ...] = ()
        """Other settings of recipe.json, such as padding_mode=reflect clip_norm=1."""
        json: bool = False
        """Print the summary as one JSON document."""

    named = bool(arguments) and not arguments[0].startswith("-")
    given = arguments[0] if named else "digits"
    recipe = find_recipe(given)
    about = describe(given) if given in RECIPES else f"Train {given}."
    if not named:
        about += f"\n\nOther recipes: {', '.join(RECIPES)}; 'alexnet train NAME --help' tells their settings."
    defaults = TrainFlags(**dataclasses.asdict(flags_of(recipe)))
    flags = _parse(TrainFlags, arguments[named:], f"alexnet train {given}", about, default=defaults)
    said = {re.sub(r"^--(no-)?", "", word.split("=")[0]).replace("-", "_") for word in arguments if word[:2] == "--"}
    settings = {name: getattr(flags, name) for name in FLAG_NAMES if name in said}
    recipe = with_settings(recipe, {**settings, **parse_settings(flags.set)}, where=" in --set" if flags.set else "")

    from alexnet.training.api import train

    _show_training(train(recipe, out=flags.out, resume=flags.resume, force=flags.force), flags.json)


def _show_training(result: TrainingResult, json: bool) -> None:
    """The result of a run and the exact commands that come next; also its page."""
    from alexnet.report.report import write_report
    from alexnet.run_dir import Run

    if not _speaks():
        return
    try:
        write_report(Run(result.run))
    except Exception as error:  # the run is finished and on disk: nothing about its page may fail it
        _say(f"The page of the run could not be written: {error}; 'alexnet report {result.run}' tries again.")
    run, summary = result.run, result.summary
    if json:
        _print_json({"run": str(run), **summary})
        return
    print(result)
    print(f"""
Next:
  alexnet eval {run}
  alexnet predict {run} PICTURE…
  alexnet report {run}""")
