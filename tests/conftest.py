"""The order of the test files, and shared_fixtures.py where tests run."""

from __future__ import annotations

import pytest

SLOWEST_FIRST = (
    "training/distributed/test_towers.py", "training/distributed/test_data_parallel.py",
    "training/test_faults.py", "training/test_trainer.py", "runtimes/test_select.py", "cli/test_cli.py",
    "serving/test_app.py", "export/test_export.py", "plots/test_show.py", "test_security.py", "golden/test_golden.py",
    "test_bad_input.py", "ablation/test_ablate.py", "data/shards/test_pack.py", "models/test_model.py",
    "serving/test_hostile_input.py", "training/test_api.py", "serving/test_routes.py", "report/test_hostile_names.py",
    "report/test_report.py", "bench/test_bench.py", "models/test_lrn.py", "runtimes/test_exported.py",
    "report/test_report_browser.py", "serving/test_registry.py", "models/test_weights.py", "serving/test_ui_routes.py",
    "data/quality/test_check.py", "inference/test_ensemble.py", "models/test_torchvision_models.py",
)  # fmt: skip
"""Files that take more than a few seconds. A worker that got one of them last would work while the others are done."""


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where tests run: in a worker of xdist, or here with -n 0. Importing torch takes seconds."""
    if config.option.dist == "no":
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"tests/{name}": place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: order.get(item.nodeid.split("::")[0], len(order)))
