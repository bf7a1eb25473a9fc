import re
import shutil
from html.parser import HTMLParser

import pytest

from alexnet.errors import UserError
from alexnet.insight.report import write_report
from alexnet.runs import Run


class Tags(HTMLParser):
    VOID = ("meta", "br", "path", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_and_self_contained(small_run, tmp_path):
    copy = shutil.copytree(small_run, tmp_path / "a <run>")
    page = write_report(Run(copy)).read_text()
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert not [link for link in tags.links if not link.startswith("#")]
    assert "a &lt;run&gt;" in page
    assert page.count("<svg") == 1
    top1 = Run(copy).summary()["test"]["top1"]
    assert f"{top1:.1%}" in re.search(r'class="headline">([^<]*)<', page).group(1)


def test_a_run_without_an_epoch_has_no_page(tmp_path):
    run = Run.create("x", tmp_path / "run", "{}")
    with pytest.raises(UserError, match="has not finished an epoch"):
        write_report(run)
    assert not (run.path / "report.html").exists()
