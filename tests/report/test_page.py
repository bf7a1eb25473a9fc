import base64
import csv
import io
import shutil

import pytest
from PIL import Image

from alexnet.errors import UserError
from alexnet.plots.style import new_panel
from alexnet.report.page import THUMBNAIL_SIDE, Column, Page, load_thumbnails
from alexnet.run_dir import Run
from alexnet.training.recipe import Recipe


def draw_line(theme, translate):
    figure, axes = new_panel()
    axes.plot([0, 1], [0, 1], color=theme.blue)
    axes.set_title(translate("loss"))
    return figure


def make_page(tmp_path, lang="en"):
    return Page(tmp_path / "a.html", "a & b", "compare.html", lang)


def test_a_failed_section_states_why_and_others_are_shown(tmp_path):
    """It may fail in Python or in the template."""
    page = make_page(tmp_path)
    page.add("cost", lambda: {"costs": page.table("t", [Column("run", "text")], [["first"]])})
    page.add("result", lambda: 1 / 0)
    page.add("curves", lambda: {"figures": 5, "splits": ""})
    page.add("settings", lambda: None, macro="differ")
    page.add("differ", lambda: {"settings": None})
    html = page.write()[0].read_text()
    assert "This section cannot be shown: division by zero" in html
    assert "This section cannot be shown: &#39;int&#39; object is not iterable" in html
    assert '<td class="text">first</td>' in html
    assert "All settings are the same." in html
    assert 'id="settings"' not in html
    assert "<title>a &amp; b</title>" in html


def test_a_plot_is_drawn_once_for_both_themes(tmp_path):
    page = make_page(tmp_path, "zh")
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
    page = make_page(tmp_path)
    columns = [Column("class", "text"), Column("f1", ".1%"), Column("", "bar")]
    table = page.table("t", columns, [("<cat>, dog", 0.5, None)])
    page.add("cost", lambda: {"costs": table})
    html = page.write()[0].read_text()
    assert '<td class="text">&lt;cat&gt;, dog</td><td data-v="0.5">50.0%</td><td></td>' in html
    with (tmp_path / "a" / "t.csv").open(encoding="utf-8-sig", newline="") as file:
        assert list(csv.reader(file)) == [["class", "F1", ""], ["<cat>, dog", "0.5", ""]]


def test_paths_that_cannot_be_a_page(tmp_path):
    with pytest.raises(UserError, match="ends in .html"):
        Page(tmp_path / "page", "a", "compare.html")
    with pytest.raises(UserError, match="ends in .html"):
        Page(tmp_path, "a", "compare.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another --out"):
        Page(tmp_path / "file" / "a.html", "a", "compare.html")


def make_run(data, tmp_path) -> Run:
    return Run.create("folder", tmp_path / "run", Recipe().replace(dataset="folder", data=data).to_json())


def test_thumbnails_outlive_the_data_set(image_folder, tmp_path):
    run = make_run(image_folder, tmp_path)
    names = ["sky/0.jpg", "leaf/3.jpg"]
    urls, error = load_thumbnails(run, names, tmp_path / "cache")
    assert list(urls) == names
    assert not error
    shutil.rmtree(image_folder)
    again, error = load_thumbnails(run, [*names, "sky/1.jpg"], tmp_path / "cache")
    assert again == urls
    assert error
    data = base64.b64decode(urls["sky/0.jpg"].removeprefix("data:image/jpeg;base64,"))
    assert max(Image.open(io.BytesIO(data)).size) == THUMBNAIL_SIDE // 40 * 40  # enlarged by an integer factor


def test_a_missing_image_does_not_hide_the_others(image_folder, tmp_path):
    (image_folder / "sky" / "0.jpg").unlink()
    urls, error = load_thumbnails(make_run(image_folder, tmp_path), ["sky/0.jpg", "sky/1.jpg"], tmp_path / "cache")
    assert list(urls) == ["sky/1.jpg"]
    assert error
