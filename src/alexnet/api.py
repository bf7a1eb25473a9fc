"""The public functions that combine packages: train or resume a run, then write its report page.

`alexnet.training.api` does the same without the page.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from alexnet.device import rank
from alexnet.progress import Progress
from alexnet.run_dir import Run
from alexnet.training import api as training
from alexnet.training.api import TrainingResult
from alexnet.training.recipe import Recipe


def train(
    recipe: Recipe | str | Path = "digits",
    *,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainingResult:
    """Train `recipe` into the run folder `out` and write `report.html`; see `alexnet.training.api.train`."""
    return write_page(training.train(recipe, out=out, resume=resume, force=force, progress=progress, **settings))


def resume(
    run: str | Path,
    *,
    epochs: str | int | None = None,
    parallel: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainingResult:
    """Resume `run` (a run folder or `last`) and write `report.html`; see `alexnet.training.api.resume`."""
    return write_page(
        training.resume(run, epochs=epochs, parallel=parallel, force=force, progress=progress, settings=settings)
    )


def write_page(result: TrainingResult) -> TrainingResult:
    """Write the report page of a finished run, on rank 0; an error is printed to stderr and not raised."""
    if rank() == 0:
        from alexnet.report.report import write_report

        try:
            write_report(Run(result.run))
        except Exception as error:  # the run is complete on disk: its page must not fail it
            message = f"The report could not be written: {error}; retry with 'alexnet report {result.run}'."
            print(message, file=sys.stderr, flush=True)
    return result
