"""Elastic training on three hosts (network namespaces), one of which is killed, disconnected, or returns.

    pytest -m slow tests/training/distributed/test_elastic.py

Each scenario takes a minute or two on two cores; `benchmarks/elastic.py` runs the same ones and keeps all logs.
"""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest

EPOCHS = 8


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3] / "src"))


def network(hosts: int) -> Any:
    """Return a network; skip the test if the kernel refuses."""
    module = importlib.import_module("elastic")
    try:
        return module.Network(hosts)
    except module.NoNamespaces as error:
        pytest.skip(f"no network namespaces: {error}")


SERVE = (
    "import socket; s = socket.create_server(('', 9999)); print('up', flush=True)\nwhile True: s.accept()[0].close()"
)


@pytest.mark.slow
def test_hosts_can_be_disconnected_and_killed(tmp_path: Path) -> None:
    def can_connect() -> bool:
        with open(tmp_path / "log", "w") as log:
            connect = "timeout 2 bash -c '</dev/tcp/10.77.0.1/9999'"
            return second.start(["bash", "-c", connect], log).wait(timeout=60) == 0

    def connects_within(seconds: float) -> bool:
        """Try repeatedly: a machine may be busy, and the kernel remembers an unreachable neighbor for a while."""
        deadline = time.monotonic() + seconds
        while not can_connect():
            if time.monotonic() > deadline:
                return False
        return True

    with network(2) as two, open(tmp_path / "served", "w") as served:
        first, second = two.hosts
        server = first.start(["python3", "-c", SERVE], served)
        while not (tmp_path / "served").read_text():
            assert server.poll() is None
            time.sleep(0.01)
        assert connects_within(60)
        second.cut()
        assert not can_connect()
        second.restore()
        assert connects_within(60)
        assert first.kill() >= 1
        assert server.wait(timeout=60) != 0
        assert not can_connect()


@pytest.mark.slow
@pytest.mark.parametrize(("scenario", "resumed"), [("killed", 1), ("cut", 1), ("returned", 2)])
def test_remaining_hosts_finish_the_run(tmp_path: Path, scenario: str, resumed: int) -> None:
    network(1).close()
    elastic = importlib.import_module("elastic")
    result = elastic.run_scenario(scenario, tmp_path / scenario, EPOCHS)
    assert result["exit_code"] == 0
    assert result["complete"]
    assert result["epochs"] == EPOCHS
    assert result["steps"] == 20 * EPOCHS  # every batch exactly once
    assert len(result["went_on_after_steps"]) >= resumed
    assert all(step % 20 for step in result["went_on_after_steps"][:1])  # in the middle of an epoch
    assert result["processes"][0] == 3
    assert result["processes"][-1] == (3 if scenario == "returned" else 2)
    assert result["test_top1"] > 0.9
