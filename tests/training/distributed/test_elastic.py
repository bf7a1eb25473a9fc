"""Three hosts (network namespaces) train together, until one is killed, cut off, or comes back.

    pytest -m slow tests/training/test_elastic.py

Each story takes a minute or two on two cores; `benchmarks/elastic.py` tells the same with all its logs.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

EPOCHS = 8


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[3] / "src"))


def network(hosts: int) -> Any:
    """A network, or the test is skipped with what the kernel said."""
    module = importlib.import_module("hosts")
    try:
        return module.Network(hosts)
    except module.NoNamespaces as error:
        pytest.skip(f"no network namespaces: {error}")


SERVE = (
    "import socket; s = socket.create_server(('', 9999)); print('up', flush=True)\nwhile True: s.accept()[0].close()"
)


def test_hosts_have_a_wire_that_can_be_cut(tmp_path: Path) -> None:
    def reach() -> bool:
        with open(tmp_path / "log", "w") as log:
            connect = "timeout 2 bash -c '</dev/tcp/10.77.0.1/9999'"
            return second.start(["bash", "-c", connect], log).wait(timeout=10) == 0

    with network(2) as two, open(tmp_path / "served", "w") as served:
        first, second = two.hosts
        server = first.start(["python3", "-c", SERVE], served)
        while not (tmp_path / "served").read_text():
            assert server.poll() is None
        assert reach()
        second.cut()
        assert not reach()
        second.mend()
        assert reach()
        assert first.kill() >= 1
        assert server.wait(timeout=10) != 0
        assert not reach()


@pytest.mark.slow
@pytest.mark.parametrize(("story", "went_on"), [("killed", 1), ("cut", 1), ("returned", 2)])
def test_the_rest_finish_what_three_began(tmp_path: Path, story: str, went_on: int) -> None:
    network(1).close()
    elastic = importlib.import_module("elastic")
    found = elastic.tell(story, tmp_path / story, EPOCHS)
    assert found["exit_code"] == 0
    assert found["complete"]
    assert found["epochs"] == EPOCHS
    assert found["steps"] == 20 * EPOCHS  # every batch once in what remains: none lost, none twice
    assert len(found["went_on_after_steps"]) >= went_on
    assert all(step % 20 for step in found["went_on_after_steps"][:1])  # from within an epoch
    assert found["processes"][0] == 3
    assert found["processes"][-1] == (3 if story == "returned" else 2)
    assert found["test_top1"] > 0.9
