"""The tables of settings.md and settings.zh-CN.md: `python docs/settings.py` writes these pages.

The texts are those of `alexnet.training.settings`; settings.zh.json translates each into Chinese.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from alexnet.training.recipe import SETTINGS, Recipe
from alexnet.training.settings import Setting

DOCS = Path(__file__).parent
INTRODUCTION = {
    "en": """# Settings

Every setting of a training run. Those with dashes are flags of `alexnet train`; any other is given as
`--set NAME=VALUE`, and both are keys of `recipe.json` and arguments of `alexnet.train`. `alexnet train RECIPE --help`
shows the values of a recipe. On resuming (`alexnet resume RUN --set …`), a setting can be changed *freely*, only with
*--force* as it changes the experiment, or *never*. `python docs/settings.py` writes this page.
[中文](settings.zh-CN.md)
""",
    "zh": """# 设置

训练的全部设置。带短横线的是 `alexnet train` 的参数，其余的写成 `--set NAME=VALUE`；两者都是 `recipe.json` 中的键，
也都是 `alexnet.train` 的参数。`alexnet train RECIPE --help` 显示某个配方的取值。续训时
（`alexnet resume RUN --set …`），有的设置可以*随意*更改；有的会改变实验，要加 `--force`；有的*不能*更改。
本页由 `python docs/settings.py` 写出。[English](settings.md)
""",
}
HEAD = {"en": "| setting | default | meaning | on resume |", "zh": "| 设置 | 默认值 | 含义 | 续训时 |"}
ON_RESUME = {
    "en": {"free": "freely", "force": "--force", "fixed": "never"},
    "zh": {"free": "随意", "force": "--force", "fixed": "不能"},
}
ONE_OF = {"en": (" One of ", ", ", "."), "zh": ("取值：", "、", "。")}


def page(lang: str) -> str:
    """Return the page in a language, "en" or "zh"."""
    parts = [INTRODUCTION[lang]]
    for group, settings in vars(Recipe()).items():
        rows = [_row(setting, lang) for setting in SETTINGS.values() if setting.group == group]
        if rows:
            title, about = (_translate(text, lang) for text in (group.capitalize(), settings.__doc__))
            parts.append("\n".join([f"## {title}\n\n{about}\n", HEAD[lang], "|---|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _row(setting: Setting, lang: str) -> str:
    name = f"--{setting.name.replace('_', '-')}" if setting.flag else setting.name
    meaning = _translate(setting.help, lang)
    if options := [option for option in get_args(setting.kind) if isinstance(option, str)]:
        start, between, end = ONE_OF[lang]
        meaning += start + between.join(options) + end
    value = setting.default
    default = "" if value is None else value if isinstance(value, str) else json.dumps(value)
    return f"| `{name}` | {default} | {meaning} | {ON_RESUME[lang][setting.on_resume]} |"


def _translate(text: str, lang: str) -> str:
    return text if lang == "en" else CHINESE[text]


CHINESE: dict[str, str] = json.loads((DOCS / "settings.zh.json").read_text(encoding="utf-8"))

if __name__ == "__main__":
    (DOCS / "settings.md").write_text(page("en"), encoding="utf-8")
    (DOCS / "settings.zh-CN.md").write_text(page("zh"), encoding="utf-8")
