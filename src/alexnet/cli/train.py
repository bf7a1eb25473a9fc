"""`alexnet train`: train a recipe, a recipe.json or a folder of images."""

from __future__ import annotations

import dataclasses
import re
import shlex
import textwrap
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from alexnet.cli.arguments import describe_default, describe_fields, parse
from alexnet.cli.output import BEGAN, LANGUAGE, is_main_process, open_in_browser, print_json, print_lines
from alexnet.cli.serve import check_installed
from alexnet.text import escape

if TYPE_CHECKING:
    from alexnet.training.api import OnStart, TrainingResult
    from alexnet.training.recipe import Recipe
    from alexnet.training.settings import Setting

EXAMPLES = """Examples:
  alexnet train                                       the digits, in a minute
  alexnet train cifar10 --data cifar.zip --epochs 20  a recipe, other settings
  alexnet train photos/ --time-budget 15m             your own images"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is not a setting of the recipe."""

    out: Path | None = None
    """Run folder; by default runs/NAME-<time>, where NAME is the recipe or the folder of images."""
    resume: bool = False
    """Resume if --out already holds this run."""
    force: bool = False
    """With --resume: accept settings that change the experiment."""
    set: tuple[str, ...] = ()
    """Other settings of recipe.json, such as padding_mode=reflect clip_norm=1."""
    open: bool = False
    """Open the report in a browser at the end, or the page of --live at the beginning."""
    live: bool = False
    """Show curves, alarms and mistakes on a page of this machine, also after the end, until Ctrl-C."""
    lang: Literal["en", "zh"] = LANGUAGE
    """Language of what training shows, of the report and of the page of --live, English or Chinese."""
    json: bool = False
    """Print the summary as one JSON document."""


def train(arguments: list[str]) -> None:
    """Train a recipe, a recipe.json or a folder of images; without a name, the embedded digits."""
    from alexnet.run_dir import Run, check_runs
    from alexnet.training.recipe import PUBLISHED, SETTINGS, TINY, check_names, parse_settings, with_settings
    from alexnet.training.recipes import RECIPES, default_recipe, describe, find_recipe

    given = {re.sub(r"^--(no-)?", "", word.split("=")[0]).replace("-", "_") for word in arguments if word[:2] == "--"}
    named = bool(arguments) and not arguments[0].startswith("-")
    name = arguments[0] if named else default_recipe(given)
    recipe = find_recipe(name)
    shown = escape(name)
    about = f"{describe(name) if name in RECIPES else ''}\n\nThe defaults below are those of 'alexnet train {shown}'."
    others = f"{', '.join(RECIPES)}; run 'alexnet train NAME --help' for their settings."
    description = f"{EXAMPLES}\n\nRecipe {shown}:\n{_wrap(about)}\n\nAll recipes:\n{_wrap(others)}"
    options = parse(
        _options(recipe), arguments[named:], f"alexnet train {shown}", description, usage="alexnet train RECIPE|FOLDER"
    )
    flags = [setting for name, setting in SETTINGS.items() if setting.flag and name in given]
    settings = {flag.name: getattr(getattr(options, flag.group), flag.name) for flag in flags}
    if settings.get("value_range") is not None:
        from alexnet.data.value_range import parse_value_range

        settings["value_range"] = parse_value_range(settings["value_range"])
    recipe = with_settings(recipe, {**settings, **parse_settings(options.set)}, " in --set" if options.set else "")

    check_names(recipe)
    if (weights := recipe.model.weights) and weights != TINY and not PUBLISHED.fullmatch(weights):
        check_runs(weights)
    if not options.resume:
        Run.check_free(options.out)
    with live_page(options.live, options.open, options.lang) as open_page:
        from alexnet.api import train as train_recipe

        result = train_recipe(
            recipe, out=options.out, resume=options.resume, force=options.force, began=BEGAN, on_start=open_page,
            lang=options.lang,
        )  # fmt: skip
        show_result(result, options.json, options.open and not options.live)


def live_page(wanted: bool, in_browser: bool, lang: str) -> AbstractContextManager[OnStart | None]:
    """Return a context with what opens the page of --live. Raises `UserError` if packages are missing."""
    if not wanted or not is_main_process():
        return nullcontext()
    check_installed()
    from alexnet.serving import live

    return live.live_page(in_browser, lang)


def _wrap(text: str) -> str:
    """Wrap the paragraphs of `text` to 80 columns, indented: tyro would join lines that start with a letter."""
    paragraphs = text.strip().split("\n\n")
    wrapper = textwrap.TextWrapper(80, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(map(wrapper.fill, paragraphs))


def _options(recipe: Recipe) -> type[Options]:
    """Return `Options` with a group of flags for each group of settings, whose defaults are those of `recipe`.

    The defaults are only for the help: what is not given stays as in `recipe`.
    """
    from tyro.conf import OmitArgPrefixes, arg

    from alexnet.training.recipe import SETTINGS

    defaults = {
        key: type(value)(escape(str(value))) if isinstance(value, (str, Path)) else value
        for key, value in recipe.as_dict().items()
    }
    defaults["value_range"] = None  # parsed later

    def annotate(setting: Setting) -> Any:
        kind, word = (str | None, "LO,HI") if setting.name == "value_range" else (setting.kind, None)
        return Annotated[kind, arg(help=setting.help, metavar=word, help_behavior_hint=describe_default)]

    groups: list[Any] = []
    for group, settings in vars(recipe).items():
        if flags := [s for s in SETTINGS.values() if s.flag and s.group == group]:
            fields: list[Any] = [(s.name, annotate(s), defaults[s.name]) for s in flags]
            kind = dataclasses.make_dataclass(group, fields, namespace={"__doc__": settings.__doc__})
            groups.append((group, Annotated[kind, OmitArgPrefixes], dataclasses.field(default_factory=kind)))
    base = describe_fields(Options)
    return dataclasses.make_dataclass("TrainOptions", groups, bases=(base,), frozen=True, kw_only=True)


def show_result(result: TrainingResult, json: bool, open: bool) -> None:
    """Print the result of a finished run and the commands that come next; with `open`, open its report in a browser."""
    if not is_main_process():
        return
    page = result.run / "report.html"
    if open and page.is_file():
        open_in_browser(page)
    if json:
        print_json({"run": str(result.run), **result.summary})
        return
    from alexnet.messages.translator import Translator

    run = shlex.quote(str(result.run))
    commands = ("predict {} IMAGE…", "eval {}", "show mistakes {}", "serve {}", "report {} --open")
    print(result)
    lines = [f"  alexnet {command.format(run)}" for command in commands]
    print_lines("", Translator(result.lang)("result_next"), *lines)
