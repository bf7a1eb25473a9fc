import csv

import pytest

from alexnet.errors import UserError
from alexnet.messages.texts import Translator
from alexnet.plots.curves import panel
from alexnet.report.html import Column, Page, data_json


def lines(theme, words):
    figure, axes = panel()
    axes.plot([0, 1], [0, 1], color=theme.blue)
    axes.set_title(words("loss"))
    return figure


def test_a_section_that_fails_says_so_and_the_rest_goes_on(tmp_path):
    page = Page(tmp_path / "a.html", "a & b", Translator())
    page.add("result", lambda: "<p>first</p>")
    page.add("curves", lambda: 1 / 0)
    page.add("classes", lambda: "")
    page.add("made", lambda: "<p>last</p>")
    written = page.write()[0].read_text()
    assert "This part cannot be shown: division by zero" in written
    assert "<p>first</p>" in written
    assert "<p>last</p>" in written
    assert 'id="classes"' not in written
    assert "<title>a &amp; b</title>" in written


def test_a_plot_is_one_drawing_for_both_themes(tmp_path):
    page = Page(tmp_path / "a.html", "a", Translator("zh"))
    both = page.plot("one", lines) + page.plot("two", lines)
    assert "var(--series0)" in both
    assert "#0072b2" not in both
    assert "var(--ink)" in both
    assert "损失" in both
    ids = [part.split('"')[0] for part in both.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert "#0072b2" in (tmp_path / "a" / "one.svg").read_text()
    assert (tmp_path / "a" / "two.png").read_bytes()[:4] == b"\x89PNG"


def test_a_table_is_also_a_file(tmp_path):
    page = Page(tmp_path / "a.html", "a", Translator())
    html = page.table(
        "t", [Column("class", "text"), Column("f1", ".1%"), Column("", "bar")], [("<cat>, dog", 0.5, None)]
    )
    assert '<td class="text">&lt;cat&gt;, dog</td><td data-v="0.5">50.0%</td><td></td>' in html
    with (tmp_path / "a" / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [["class", "F1", ""], ["<cat>, dog", "0.5", ""]]


def test_data_for_the_script_cannot_end_it():
    assert "</script><" not in data_json("x", {"a": "</script><b>"})


def test_a_place_that_is_no_page(tmp_path):
    with pytest.raises(UserError, match="ends in .html"):
        Page(tmp_path / "page", "a", Translator())
    with pytest.raises(UserError, match="ends in .html"):
        Page(tmp_path, "a", Translator())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        Page(tmp_path / "file" / "a.html", "a", Translator())
