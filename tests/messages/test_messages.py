import re
from pathlib import Path
from string import Formatter

import pytest

from alexnet.errors import UserError
from alexnet.messages import texts
from alexnet.messages.texts import LANGUAGES, TEXT, Translator


def places(words: str) -> set[tuple[str | None, str | None]]:
    return {(name, form) for _, name, form, _ in Formatter().parse(words) if name is not None}


@pytest.mark.parametrize("key", TEXT)
def test_every_text_has_both_languages_with_the_same_numbers(key):
    english, chinese = TEXT[key]
    assert english
    assert chinese
    assert places(english) == places(chinese)
    same = {"f1", "top5", "is", "on_device"}  # written alike
    assert re.search("[\u4e00-\u9fff]", chinese) or key in same


def test_every_text_is_used():
    folder = Path(texts.__file__).parent
    code = "".join(p.read_text() for p in folder.glob("*.py") if p.name != "report_text.py")
    code += re.search("class Words.*", Path(texts.__file__).read_text(), re.DOTALL).group()
    named = set(re.findall(r"""["']([a-z0-9_]+)["']""", code))
    named |= {f"advice_{name}" for name in named} | {f"{name}_said" for name in named}  # composed where they are used
    unused = set(TEXT) - named
    assert not unused


def test_languages():
    assert set(LANGUAGES) == {"en", "zh"}
    assert Translator("zh")("classes") == "各类别"
    with pytest.raises(UserError, match="no language 'de'|'de'"):
        Translator("de")


def test_durations():
    words = Translator()
    spaces = {ord("\u00a0"): " "}  # that do not break a line
    assert [words.duration(s).translate(spaces) for s in (3.14, 61, 484, 7026)] == [
        "3.1 s",
        "1 min 1 s",
        "8 min 4 s",
        "1 h 57 min",
    ]
    assert Translator("zh").duration(484) == "8 分 4 秒"
