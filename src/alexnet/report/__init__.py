"""HTML pages about runs and datasets, each one self-contained file.

`report.write_report` (`alexnet report RUN`), `compare.write_comparison` (several runs), and `check_page.write_page`
(`alexnet check --html`). Read `run_data`, `page`, `report`, `recommendations`, `compare` and `check_page`. The HTML is
in templates/, texts come from `messages`, figures from `plots`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alexnet.report.page import WrittenPage


class _ReportPackage(ModuleType):
    """Makes this package the function `alexnet.report`, too, which has its name."""

    def __call__(
        self, run: str | Path, *more: str | Path, lang: str = "en", out: str | Path | None = None
    ) -> WrittenPage:
        """Write the page of a run, or one that compares several runs, as the command `alexnet report` does.

        `run` is a run folder, or `last`; `out`, where to write the page instead, must end in .html. Raises `UserError`.
        """
        from alexnet.report.compare import write_comparison
        from alexnet.report.page import WrittenPage
        from alexnet.report.report import write_report
        from alexnet.run_dir import find_run

        runs, target = [find_run(name) for name in (run, *more)], Path(out) if out else None
        path, *files = write_comparison(runs, lang, target) if more else write_report(runs[0], lang, target)
        return WrittenPage(path, files)


sys.modules[__name__].__class__ = _ReportPackage
