"""Lookup of the texts in `en.json` and `zh.json`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import Any

from alexnet.errors import unknown_name

LANGUAGES = {"en": "en", "zh": "zh-CN"}
"""Language tags of HTML by language."""


@cache
def load_texts(lang: str) -> dict[str, str]:
    """Return the texts of `lang` by key. Callers must not change them."""
    path = resources.files("alexnet.messages") / f"{lang}.json"
    texts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return texts


class Translator:
    """The texts of one language: `translate(key, **values)`. Raises `UserError` for an unknown language."""

    def __init__(self, lang: str = "en") -> None:
        if lang not in LANGUAGES:
            raise unknown_name("language", lang, LANGUAGES)
        self.lang, self.tag = lang, LANGUAGES[lang]
        self._texts = load_texts(lang)

    def __call__(self, key: str, **values: Any) -> str:
        return self._texts[key].format(**values) if values else self._texts[key]

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
