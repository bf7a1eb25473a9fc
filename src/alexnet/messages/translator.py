"""The texts of `en.json` and `zh.json`, and the Jinja2 templates that show them.

`sentences.zh.json` translates what other modules write in English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from alexnet.errors import unknown_name
from alexnet.files import printable

UNBROKEN = 14  # characters at the end of a file name: that of a camera, such as IMG_1073.jpg, stays whole
LANGUAGES = {"en": "en", "zh": "zh-CN"}
"""Language tags of HTML by language."""


@cache
def load_texts(lang: str) -> dict[str, str]:
    """Return the texts of `lang` by key. Callers must not change them."""
    path = resources.files("alexnet.messages") / f"{lang}.json"
    texts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return texts


@cache
def load_sentences(lang: str) -> list[tuple[re.Pattern[str], str]]:
    """Return patterns of the English sentences that `Translator.sentence` knows, with their translations.

    In the keys of the file, {n} stands for a number, {reason} for any text, {list} for what ", " separates, other names
    for text without "; ", which separates reasons, and (s) for an s or none.
    """
    values = {"n": "[0-9,]+", "reason": ".+?"}
    path = resources.files("alexnet.messages") / f"sentences.{lang}.json"
    sentences: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    named = re.compile(r"\\{(\w+)\\}")
    patterns = (
        named.sub(lambda name: f"(?P<{name[1]}>{values.get(name[1], '(?:(?!; ).)+?')})", re.escape(english))
        for english in sentences
    )
    return [
        (re.compile(pattern.replace(re.escape("(s)"), "s?"), re.DOTALL), translated)
        for pattern, translated in zip(patterns, sentences.values(), strict=True)
    ]


class Translator:
    """The texts of one language: `translate(key, **values)`. Raises `UserError` for an unknown language."""

    def __init__(self, lang: str = "en") -> None:
        if lang not in LANGUAGES:
            raise unknown_name("language", lang, LANGUAGES)
        self.lang, self.tag = lang, LANGUAGES[lang]
        self._texts = load_texts(lang)

    def __call__(self, key: str, **values: Any) -> str:
        return self._texts[key].format(**values) if values else self._texts[key]

    def sentence(self, text: str) -> str:
        """Translate a reason why a file is unreadable, a finding of a check, or a warning of training.

        Files and JSON keep these in English. A sentence that `sentences.*.json` lacks stays English.
        """
        if self.lang == "en":
            return text
        first, end, rest = text.partition(". ")
        if end:
            both = [self.sentence(first + "."), self.sentence(rest)]
            return text if both == [first + ".", rest] else self.join(both)
        for pattern, translated in load_sentences(self.lang):
            if found := pattern.fullmatch(text):
                values = found.groupdict()
                if reason := values.get("reason"):
                    whole = self.sentence(reason)
                    values["reason"] = whole if whole != reason else self.clauses(reason.split("; "))
                if parts := values.get("list"):
                    values["list"] = self("comma").join(map(self.sentence, parts.split(", ")))
                return translated.format(**values)
        return text

    def clauses(self, texts: Iterable[str]) -> str:
        """Join what `sentence` returns for several reasons."""
        return ("; " if self.lang == "en" else "；").join(map(self.sentence, texts))

    def split(self, name: str) -> str:
        """Return the name of a data split (train, val or test) in running text."""
        return self._texts.get(f"split_{name}", name)

    def join(self, sentences: Iterable[str]) -> str:
        """Join sentences, with spaces between them if the language has spaces."""
        return (" " if self.lang == "en" else "").join(sentences)

    def duration(self, seconds: float) -> str:
        """Format a duration in seconds, minutes or hours."""
        if seconds < 60:
            return self("duration_seconds", s=seconds)
        minutes, rest = divmod(round(seconds), 60)
        if minutes < 60:
            return self("duration_minutes", m=minutes, s=rest)
        return self("duration_hours", h=minutes // 60, m=minutes % 60)


# ── templates ─────────────────────────────────────────────────────────────────────────────────────


def load_template(package: str, name: str, lang: str = "en") -> Template:
    """Return `name` of the folder templates/ of `package`. Raises `UserError` for an unknown language.

    In a template `text` is the `Translator`, `value|sentence` its translation of an English sentence,
    `value|number(".1%")` formats a number, `value|file_name` breaks lines anywhere but in the ending, and
    `value|tojson` is JSON that cannot end its script element. Every value is escaped, and a name that has no value is
    an error.
    """
    return _environment(package, lang).get_template(name)


@cache
def _environment(package: str, lang: str) -> Environment:
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        finalize=_make_printable,
    )  # fmt: skip
    environment.globals["text"] = Translator(lang)
    environment.filters["number"] = format
    environment.filters["file_name"] = _keep_ending
    environment.filters["sentence"] = Translator(lang).sentence
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False, "separators": (",", ":")}
    return environment


def _keep_ending(name: str) -> Markup:
    name = printable(name)
    start = max(len(name) - UNBROKEN, name.rfind("/") + 1)
    return Markup('{}<wbr><span class="ending">{}</span>').format(name[:start], name[start:])


def _make_printable(value: Any) -> Any:
    """Make file names printable that are not UTF-8, which no page could contain. Markup stays markup."""
    return printable(value) if type(value) is str else value
