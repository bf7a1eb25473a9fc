"""docs/history.md and its Chinese form are what docs/history.py writes."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_pages_of_history_are_up_to_date():
    script = runpy.run_path(str(DOCS / "history.py"))
    for template, name in script["PAGES"].items():
        page = script["page"](template)
        assert (DOCS / name).read_text(encoding="utf-8") == page, "run 'python docs/history.py'"
        for run in ("145", "147", "148", "146-2012-2011"):
            assert f"| {run} |" in page
