"""The order of the test files, and shared_fixtures.py where tests run."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

FORKS = (
    "tests/training/distributed/test_towers.py", "tests/training/distributed/test_data_parallel.py",
    "tests/training/test_faults.py", "tests/serving/test_app.py", "tests/serving/test_hostile_input.py",
    "tests/data/shards/test_pack.py", "tests/examples/test_examples.py",
)  # fmt: skip
"""Files that start processes with forks.py. One worker gets them all, so that only it imports torch to fork from."""

SLOWEST_FIRST = (
    *FORKS,
    "tests/training/test_trainer.py", "tests/runtimes/test_select.py", "tests/cli/test_cli.py",
    "tests/export/test_export.py", "tests/plots/test_show.py", "tests/test_security.py", "tests/golden/test_golden.py",
    "tests/test_bad_input.py", "tests/ablation/test_ablate.py", "tests/models/test_model.py",
    "tests/training/test_api.py", "tests/serving/test_routes.py", "tests/report/test_report.py",
    "tests/bench/test_bench.py", "tests/models/test_lrn.py", "tests/runtimes/test_exported.py",
    "tests/report/test_report_browser.py", "tests/serving/test_registry.py", "tests/models/test_weights.py",
    "tests/report/test_hostile_names.py", "tests/serving/test_ui_routes.py", "tests/data/quality/test_check.py",
    "tests/inference/test_ensemble.py", "tests/models/test_torchvision_models.py",
)  # fmt: skip
"""Files that take more than a few seconds. A worker that got one of them last would work while the others are done."""


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where tests run: in a worker of xdist, or here with -n 0. Importing torch takes seconds.

    A shell starts background jobs with SIGINT and SIGQUIT ignored, which the commands would inherit and obey.
    """
    os.environ["LC_ALL"] = "C.UTF-8"  # the default of --lang, here and in commands that tests start
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGQUIT"):
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    if config.option.dist == "no":
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a worker whole files, and the files in `FORKS` to the same one."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return FORKS[0] if file in FORKS else file

        def remove_node(self, node: Any) -> str | None:
            """Run the other tests of a process that died, but not the test that it died in, as xdist would."""
            died_in = super().remove_node(node)
            for tests in self.workqueue.values():
                if died_in in tests:
                    tests[died_in] = True
            return died_in

    return Scheduling(config, log) if config.option.dist == "loadfile" else None
