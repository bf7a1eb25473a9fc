"""`alexnet report`: the page of a run, or of several runs compared."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alexnet.cli.output import LANGUAGE, open_in_browser, print_json, print_lines


def report(
    run: str,
    more: tuple[str, ...] = (),
    /,
    *,
    lang: Literal["en", "zh"] = LANGUAGE,
    out: Path | None = None,
    open: bool = False,
    json: bool = False,
) -> None:
    """Write the page of a run, report.html in its folder, or a page that compares several runs.

    Next to the page, in a folder of the same name, are its plots as PNG and SVG and its tables as CSV.

    Args:
        run: Run folder, or 'last'.
        more: Further runs; the page is then comparison.html in the first run's folder.
        lang: Language of the page, English or Chinese.
        out: Where to write the page instead; must end in .html.
        open: Open the page in a browser.
        json: Print one JSON document.
    """
    from alexnet.run_dir import find_run

    runs = [find_run(name) for name in (run, *more)]
    from alexnet.report.compare import write_pages

    files = write_pages(runs, lang, out)
    if open:
        open_in_browser(files[0])
    if json:
        print_json({"files": [str(path) for path in files]})
    else:
        print_lines(files[0])
