"""The tables of settings.md: `python docs/settings.py` writes that page from `alexnet.training.settings`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from alexnet.training.recipe import SETTINGS, Recipe
from alexnet.training.settings import Setting

INTRODUCTION = """# Settings

Every setting of a training run. Those with dashes are flags of `alexnet train`; any other is given as
`--set NAME=VALUE`, and both are keys of `recipe.json` and arguments of `alexnet.train`. `alexnet train RECIPE --help`
shows the values of a recipe. On resuming (`alexnet resume RUN --set …`), a setting can be changed *freely*, only with
*--force* as it changes the experiment, or *never*. `python docs/settings.py` writes this page.
"""
ON_RESUME = {"free": "freely", "force": "--force", "fixed": "never"}


def page() -> str:
    """Return settings.md."""
    parts = [INTRODUCTION]
    for group, settings in vars(Recipe()).items():
        rows = [_row(setting) for setting in SETTINGS.values() if setting.group == group]
        if rows:
            head = "| setting | default | meaning | on resume |\n|---|---|---|---|"
            parts.append("\n".join([f"## {group.capitalize()}\n\n{settings.__doc__}\n", head, *rows]) + "\n")
    return "\n".join(parts)


def _row(setting: Setting) -> str:
    name = f"--{setting.name.replace('_', '-')}" if setting.flag else setting.name
    options = [option for option in get_args(setting.kind) if isinstance(option, str)]
    meaning = setting.help + (f" One of {', '.join(options)}." if options else "")
    value = setting.default
    default = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return f"| `{name}` | {default} | {meaning} | {ON_RESUME[setting.on_resume]} |"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(page(), encoding="utf-8")
