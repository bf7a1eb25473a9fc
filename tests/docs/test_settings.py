"""docs/settings.md and its Chinese page are what docs/settings.py writes, and every text is translated."""

import re
import runpy
from pathlib import Path

import pytest

from alexnet.training.recipe import SETTINGS, Recipe

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "settings.py"))


@pytest.mark.parametrize(("lang", "name"), [("en", "settings.md"), ("zh", "settings.zh-CN.md")])
def test_the_page_of_settings_is_up_to_date(lang, name):
    assert (DOCS / name).read_text(encoding="utf-8") == SCRIPT["page"](lang), "run 'python docs/settings.py'"


def test_settings_zh_json_translates_what_the_page_says_and_nothing_else():
    texts = set()
    for group, settings in vars(Recipe()).items():
        if helps := {setting.help for setting in SETTINGS.values() if setting.group == group}:
            texts |= helps | {group.capitalize(), settings.__doc__}
    assert set(SCRIPT["CHINESE"]) == texts


def test_translations_keep_the_names_and_numbers():
    def values(text):
        """Numbers and what is written with an underscore, a slash, a dot or dashes: settings, files, flags."""
        return set(re.findall(r"--[\w-]+|\w+(?:[_/.]\w+)+|[\d.]*\d", text, re.ASCII))

    for english, chinese in SCRIPT["CHINESE"].items():
        assert re.search("[\u4e00-\u9fff]", chinese), english
        assert values(english) <= values(chinese), english
