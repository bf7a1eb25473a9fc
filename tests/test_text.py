"""Text of any encoding is decoded where that is certain, and names are safe to store and to show."""

import pytest

from alexnet.errors import UserError
from alexnet.text import ENCODINGS, TextOptions, clean_label, decode, decode_file, escape, escape_json, strip_blanks


@pytest.mark.parametrize(
    ("text", "codec", "found"),
    [
        ("path,label\n1.jpg,猫\n", "utf-8", "utf-8"),
        ("path,label\n1.jpg,猫\n", "utf-8-sig", "utf-8"),
        ("path,label\n1.jpg,猫\n", "utf-16", "utf-16"),
        ("path,label\n1.jpg,猫\n", "utf-16-le", "utf-16-le"),
        ("path,label\n1.jpg,猫\n", "utf-16-be", "utf-16-be"),
        ("path,label\n1.jpg,café\n", "cp1252", "cp1252"),
        ("path,label\n1.jpg,喆囧丂\n", "gbk", "gb18030"),  # bytes that no other encoding has
    ],
)
def test_the_only_encoding_that_fits_is_found(text, codec, found):
    assert decode_file(text.encode(codec), "labels.csv") == (text, found)


@pytest.mark.parametrize(
    ("text", "codec", "true"),
    [
        ("猫狗鸟", "gbk", "gb18030"),
        ("貓狗鳥", "big5", "big5"),
        ("ねこいぬ", "shift_jis", "shift_jis"),
        ("고양이", "euc_kr", "euc_kr"),
        ("펲뷁", "cp949", "euc_kr"),  # only in Windows' superset
        ("Müller", "cp1252", "cp1252"),
    ],
)
def test_where_several_fit_they_are_named_with_samples(text, codec, true):
    with pytest.raises(
        UserError, match=r"^t is not UTF-8, and several encodings fit: .*choose one with --encoding\.$"
    ) as e:
        decode([text.encode(codec)], "t")
    assert f"{true} ('{text}')" in str(e.value)
    for given in (true, codec, true.upper()):
        assert decode([text.encode(codec)], "t", given)[0] == [text]


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n\x00\x00", b"\xff\xd8\xff\xe0\x00\x10JFIF", bytes(range(256))])
def test_what_is_no_text_is_refused_without_its_bytes(data):
    with pytest.raises(UserError, match="^x is no text in UTF-8 or one of ") as error:
        decode([data], "x")
    assert str(error.value).isascii()


def test_a_given_encoding_must_fit_and_exist():
    with pytest.raises(UserError, match="t cannot be read as big5"):
        decode([b"\xff\xff"], "t", "big5")
    for name in ("gbk-9", "rot13", "base64", "a\0b", ""):
        with pytest.raises(UserError, match="There is no encoding"):
            TextOptions(encoding=name)
    for name in (*ENCODINGS, "GBK", "latin-1", "utf-16", "euc-jp", "koi8-r"):
        TextOptions(encoding=name)


@pytest.mark.parametrize("columns", ["", "id", "path=", "path=a,path=b", "name=a", "path=a,,label=b"])
def test_columns_are_pairs(columns):
    with pytest.raises(UserError, match="must name columns for path, label, split"):
        TextOptions(columns=columns)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("cafe\u0301", "café"),
        ("\u1100\u1161", "가"),
        ("黒\u3000猫", "黒 猫"),
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\nb", "a\\nb"),
        ("a\u202eb", "a\\u202eb"),
        ("\udcc3(", "\\xc3("),
        ("👨\u200d👩", "👨\u200d👩"),
        (" cat ", " cat "),
    ],
)
def test_labels_are_composed_and_printable(name, label):
    assert clean_label(name) == label == clean_label(label)


def test_blanks_at_the_ends_may_be_invisible():
    assert strip_blanks(" \t\u3000\xa0\ufeff\u200bcat dog\u200e\r\n") == "cat dog"


def test_nothing_controls_the_terminal():
    hostile = "\x1b]0;t\x07 \x9b31m \u202egpj \u2066 \u2028 \x7f \udce9 a\nb"
    assert escape(hostile) == r"\x1b]0;t\x07 \x9b31m \u202egpj \u2066 \u2028 \x7f \xe9 a\nb"
    assert escape("9.41\u202fAM 猫 🇬🇧 é") == "9.41\u202fAM 猫 🇬🇧 é"
    assert escape_json('{\n "a\x9b\u202e"}') == '{\n "a\\u009b\\u202e"}'
