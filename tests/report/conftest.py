import pytest
from markupsafe import Markup

from alexnet.report.page import Page


@pytest.fixture
def skip_plots(monkeypatch):
    """Leave plots out of pages, to save time."""
    monkeypatch.setattr(Page, "plot", lambda self, name, draw: Markup("<svg></svg>"))
