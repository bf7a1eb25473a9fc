import pytest

from alexnet.report.html import Page


@pytest.fixture
def skip_plots(monkeypatch):
    """Leave plots out of pages, to save time."""
    monkeypatch.setattr(Page, "plot", lambda self, name, draw, inline=True: "<figure></figure>" if inline else "")
