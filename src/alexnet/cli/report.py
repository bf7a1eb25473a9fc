"""The commands that train, use and describe networks, each a typed function.

Results are printed on stdout. Everything heavy is imported inside the command that needs it, so that `alexnet --help`
answers at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from alexnet.cli.output import _print_json


def report(
    run: str,
    more: tuple[str, ...] = (),
    /,
    *,
    lang: Literal["en", "zh"] = "en",
    out: Path | None = None,
    json: bool = False,
) -> None:
    """Write the page of a run, report.html in its folder; of several runs, a page that compares them.

    Beside the page, in a folder of its name, are its plots as PNG and SVG and its tables as CSV.

    Args:
        run: The run folder, or 'last'.
        more: Further runs: the page is then comparison.html in the first one's folder.
        lang: The page's language, English or Chinese.
        out: Another place for the page, a file that ends in .html.
        json: Print one JSON document.
    """
    from alexnet.report.compare import write_comparison
    from alexnet.report.report import write_report
    from alexnet.run_dir import find_run

    runs = [find_run(name) for name in (run, *more)]
    files = write_comparison(runs, lang, out) if more else write_report(runs[0], lang, out)
    if json:
        _print_json({"files": [str(path) for path in files]})
    else:
        print(files[0])
