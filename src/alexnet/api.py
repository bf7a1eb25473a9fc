"""The public functions that combine packages: train or resume a run, then write its report page.

`alexnet.training.api` does the same without the page.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from alexnet.device import rank
from alexnet.run_dir import Run
from alexnet.text import escape
from alexnet.training import api as training
from alexnet.training.api import TrainingResult

P = ParamSpec("P")


def with_page(train: Callable[P, TrainingResult]) -> Callable[P, TrainingResult]:
    """Return `train`, followed by `write_page`."""

    @wraps(train)
    def train_and_write_page(*arguments: P.args, **settings: P.kwargs) -> TrainingResult:
        return write_page(train(*arguments, **settings))

    return train_and_write_page


def write_page(result: TrainingResult) -> TrainingResult:
    """Write the report page of a finished run, on rank 0; an error is printed to stderr and not raised."""
    if rank() == 0:
        from alexnet.report.report import write_report

        try:
            write_report(Run(result.run))
        except Exception as error:  # the run is complete on disk: its page must not fail it
            message = f"The report could not be written: {error}; retry with 'alexnet report {result.run}'."
            print(escape(message), file=sys.stderr, flush=True)
    return result


train = with_page(training.train)
resume = with_page(training.resume)
