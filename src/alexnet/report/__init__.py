"""HTML pages about runs and datasets, each one self-contained file.

`report.write_report` (`alexnet report RUN`), `compare.write_comparison` (several runs), and `check_page.write_page`
(`alexnet check --html`). Read `run_data`, `page`, `report`, `recommendations`, `compare` and `check_page`. The HTML is
in templates/, texts come from `messages`, figures from `plots`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from alexnet.calls import public

if TYPE_CHECKING:
    from alexnet.report.page import WrittenPage


class _ReportPackage(ModuleType):
    """Makes this package the function `alexnet.report`, too, which has its name."""

    @public("alexnet.report")
    def __call__(
        self, run: str | Path | Sequence[str | Path], *more: str | Path, lang: str = "en", out: str | Path | None = None
    ) -> WrittenPage:
        """Write the page of a run, or one that compares several runs, as the command `alexnet report` does.

        `run` is a run folder, or `last`, or a list of several; `out`, where to write the page instead, must end in
        .html. Raises `UserError`.

        >>> alexnet.report("last", lang="zh", out="page.html").path.name
        'page.html'
        """
        from alexnet.progress import default_progress
        from alexnet.run_dir import find_run

        runs = [find_run(name) for name in ([run] if isinstance(run, (str, Path)) else run)] + list(map(find_run, more))
        with closing(default_progress(lang)) as progress:
            progress(0, 1, "writing the report")
            from alexnet.report.compare import write_pages
            from alexnet.report.page import WrittenPage

            path, *files = write_pages(runs, lang, Path(out) if out else None)
        return WrittenPage(path, files)


sys.modules[__name__].__class__ = _ReportPackage
