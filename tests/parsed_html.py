"""Checks of generated HTML pages."""

from __future__ import annotations

from html.parser import HTMLParser


class PageParser(HTMLParser):
    """Collects the links of a page, and fails at a tag that does not close the last one opened."""

    VOID = ("meta", "br", "wbr", "path", "use", "img", "input", "line", "circle")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset") and v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            opened = self.open.pop()
            assert opened == tag, f"<{opened}> is closed by </{tag}> in line {self.getpos()[0]}"


def page_links(page: str) -> list[str]:
    """Return the links of a page, after checking that its tags are balanced."""
    parser = PageParser()
    parser.feed(page)
    assert parser.open == []
    return parser.links
