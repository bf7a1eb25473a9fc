"""Text from any system: its encoding, and the forms of names that can be stored, compared and shown.

What is not UTF-8 is decoded only if exactly one of the usual encodings fits: wrong class names
would be noticed only after training. File names keep their bytes, since they must open;
`files.printable` shows them.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from alexnet.errors import UserError
from alexnet.files import printable

ENCODINGS = {"gb18030": "gb18030", "big5": "cp950", "shift_jis": "cp932", "euc_kr": "cp949", "cp1252": "cp1252"}
"""Encodings that are tried after UTF-8 → Python's codec: the superset that Windows writes and
browsers read under that name (https://encoding.spec.whatwg.org/#names-and-labels)."""
_SUPERSETS = {**ENCODINGS, "gbk": "gb18030", "gb2312": "gb18030", "iso8859-1": "cp1252", "utf-8": "utf-8-sig"}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

COLUMNS = ("path", "label", "split")
"""The columns of a table of labels."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How the text of a dataset is read. Raises `UserError` for an unknown encoding or column."""

    encoding: str | None = None
    """Encoding of tables and names that are not UTF-8, such as gb18030; by default the one that
    fits, if only one does."""
    columns: str | None = None
    """Columns of the table of labels, such as path=id,label=breed; by default they are found by their names."""

    def __post_init__(self) -> None:
        if self.encoding is not None:
            find_codec(self.encoding)
        _ = self.chosen_columns

    @property
    def chosen_columns(self) -> dict[str, str]:
        """`columns` as path, label or split → the table's name for it."""
        pairs = [pair.partition("=") for pair in self.columns.split(",")] if self.columns is not None else []
        chosen = {key.strip().lower(): name.strip() for key, _, name in pairs}
        if not set(chosen) <= set(COLUMNS) or not all(chosen.values()) or len(chosen) < len(pairs):
            raise UserError(
                f"--columns {self.columns} must name columns for {', '.join(COLUMNS)}, such as path=id,label=breed."
            )
        return chosen


BY_CONTENT = TextOptions()
"""Find out everything."""


# ── decoding ──────────────────────────────────────────────────────────────────────────────────────


def decode_file(data: bytes, where: str, encoding: str | None = None, flag: str = "--encoding") -> tuple[str, str]:
    """Return the text of a file and its encoding: `encoding`, or by a byte order mark, or as `decode` finds it.

    Raises `UserError`, which begins with `where` and names the `flag` that sets the encoding.
    """
    if encoding is None:
        # without a mark, a table begins with an ASCII name
        zeros = {(False, True): "utf-16-le", (True, False): "utf-16-be"}
        found = zeros.get((data[:1] == b"\0", data[1:2] == b"\0"))
        encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), found)
    (text,), found = decode([data], where, encoding, flag=flag)
    return text, found.removesuffix("-sig")


def decode(
    parts: Sequence[bytes], where: str, encoding: str | None = None, also: Sequence[str] = (), flag: str = "--encoding"
) -> tuple[list[str], str]:
    """Return `parts` as texts, and their common encoding: `encoding`, or UTF-8, or the one of `ENCODINGS` that fits.

    An encoding fits if it decodes all parts without control, private-use, unassigned or box-drawing
    characters. `also` are further ones to try. Raises `UserError`, which begins with `where` and
    names `flag`, if none or several fit.
    """
    if encoding is not None:
        try:
            return [part.decode(find_codec(encoding)) for part in parts], encoding
        except UnicodeDecodeError as error:
            raise UserError(f"{where} cannot be read as {encoding} ({error.reason}); give another {flag}.") from None
    fits: dict[tuple[str, ...], str] = {}
    for name, codec in {"utf-8": "utf-8", **ENCODINGS, **dict(zip(also, also, strict=True))}.items():
        try:
            texts = tuple(part.decode(codec) for part in parts)
        except UnicodeDecodeError:
            continue
        if name == "utf-8":
            return list(texts), name
        characters = set().union(*texts) - set("\t\n\r")
        if not any(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") or "─" <= c <= "▟" for c in characters):
            fits.setdefault(texts, name)
    if not fits:
        tried = ", ".join([*ENCODINGS, *also])
        raise UserError(f"{where} is no text in UTF-8 or one of {tried}; save it as UTF-8, or give its {flag}.")
    if len(fits) > 1:
        shown = ", ".join(f"{name} ('{_sample(texts)}')" for texts, name in fits.items())
        raise UserError(f"{where} is not UTF-8, and several encodings fit: {shown}; choose one with {flag}.")
    (texts, name) = fits.popitem()
    return list(texts), name


def find_codec(encoding: str) -> str:
    """Return the name of Python's codec for `encoding`, as in `ENCODINGS`. Raises `UserError` if there is none."""
    try:
        "a".encode(encoding)
        name = codecs.lookup(encoding).name
    except (LookupError, ValueError):
        raise UserError(
            f"There is no encoding '{escape(encoding)}'; usual ones are utf-8, utf-16, {', '.join(ENCODINGS)}."
        ) from None
    return _SUPERSETS.get(name, name)


def _sample(texts: Sequence[str]) -> str:
    """Return the first word that is not ASCII."""
    found = re.search(r"\w{0,8}[^\x00-\x7f]+\w{0,8}", "\n".join(texts))
    return escape(found[0][:16]) if found else ""


# ── storing and showing ───────────────────────────────────────────────────────────────────────────

_JOINERS = "\u200c\u200d"  # they shape Persian and Indic words and emoji
_INVISIBLE_ENDS = re.compile(r"^[\s\u200b\u200e\u200f\ufeff]+|[\s\u200b\u200e\u200f\ufeff]+$")
_UNSAFE = re.compile(
    "[\0-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, line separators, bidirectional controls, other invisible ones, and halves of characters."""


def clean_label(name: str) -> str:
    """Return a class name as it is stored and compared: composed (NFC) and printable.

    >>> clean_label("cafe\u0301\x1b") == "caf\xe9\\\\x1b"
    True
    """
    if name.isascii() and name.isprintable():
        return name
    name = unicodedata.normalize("NFC", printable(name))
    name = "".join(" " if unicodedata.category(c) == "Zs" else c for c in name)
    return "".join(c if c.isprintable() or c in _JOINERS else _escape_character(c) for c in name)


def strip_blanks(text: str) -> str:
    """Return `text` without blanks and invisible characters at its ends."""
    return _INVISIBLE_ENDS.sub("", text)


def escape(text: str) -> str:
    """Return `text` as one line that is safe on a terminal: file names may hold newlines and control characters."""
    return _UNSAFE.sub(lambda found: _escape_character(found[0]), printable(text))


def join_lines(*lines: object) -> str:
    """Return `lines` as one text, each as `escape` returns it."""
    return "\n".join(escape(str(line)) for line in lines)


def escape_json(document: str) -> str:
    """Return a JSON document with what `escape` replaces as JSON's own escapes."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", document)


def _escape_character(c: str) -> str:
    return c.encode("unicode_escape").decode()
