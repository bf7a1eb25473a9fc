import csv

import pytest

from alexnet.errors import UserError
from alexnet.messages.translator import Translator
from alexnet.plots.style import new_panel
from alexnet.report.html import Column, Page, json_script


def draw_line(theme, translate):
    figure, axes = new_panel()
    axes.plot([0, 1], [0, 1], color=theme.blue)
    axes.set_title(translate("loss"))
    return figure


def test_a_failed_section_states_why_and_others_are_shown(tmp_path):
    page = Page(tmp_path / "a.html", "a & b", Translator())
    page.add("result", lambda: "<p>first</p>")
    page.add("curves", lambda: 1 / 0)
    page.add("classes", lambda: "")
    page.add("made", lambda: "<p>last</p>")
    html = page.write()[0].read_text()
    assert "This section cannot be shown: division by zero" in html
    assert "<p>first</p>" in html
    assert "<p>last</p>" in html
    assert 'id="classes"' not in html
    assert "<title>a &amp; b</title>" in html


def test_a_plot_is_drawn_once_for_both_themes(tmp_path):
    page = Page(tmp_path / "a.html", "a", Translator("zh"))
    html = page.plot("one", draw_line) + page.plot("two", draw_line)
    assert "var(--series0)" in html
    assert "#0072b2" not in html
    assert "var(--foreground)" in html
    assert "损失" in html
    ids = [part.split('"')[0] for part in html.split(' id="')[1:]]
    assert len(ids) == len(set(ids))
    assert "#0072b2" in (tmp_path / "a" / "one.svg").read_text()
    assert (tmp_path / "a" / "two.png").read_bytes()[:4] == b"\x89PNG"


def test_a_table_is_also_written_as_csv(tmp_path):
    page = Page(tmp_path / "a.html", "a", Translator())
    columns = [Column("class", "text"), Column("f1", ".1%"), Column("", "bar")]
    html = page.table("t", columns, [("<cat>, dog", 0.5, None)])
    assert '<td class="text">&lt;cat&gt;, dog</td><td data-v="0.5">50.0%</td><td></td>' in html
    with (tmp_path / "a" / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [["class", "F1", ""], ["<cat>, dog", "0.5", ""]]


def test_json_cannot_close_its_script_element():
    assert "</script><" not in json_script("x", {"a": "</script><b>"})


def test_paths_that_cannot_be_a_page(tmp_path):
    with pytest.raises(UserError, match="ends in .html"):
        Page(tmp_path / "page", "a", Translator())
    with pytest.raises(UserError, match="ends in .html"):
        Page(tmp_path, "a", Translator())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        Page(tmp_path / "file" / "a.html", "a", Translator())
