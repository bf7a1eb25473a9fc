"""Signals while `alexnet serve` starts: it ends at any moment, with 128 + the number of the signal."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from alexnet import cli

pytestmark = pytest.mark.usefixtures("same_handlers_afterwards")


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("module", "function"),
    [
        ("alexnet.serving.registry", "open_models"), ("alexnet.serving.server", "warm_up"),
        ("alexnet.serving.server", "create_app"), ("alexnet.serving.app", "Batcher"),
    ],
    ids=["loading", "warming up", "before the event loop", "in the event loop"],
)  # fmt: skip
def test_signal_before_the_server_is_up(
    checkpoint: Path, module: str, function: str, signum: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    original = getattr(importlib.import_module(module), function)

    def interrupted(*arguments: Any) -> Any:
        result = original(*arguments)
        os.kill(os.getpid(), signum)
        return result

    monkeypatch.setattr(f"{module}.{function}", interrupted)
    monkeypatch.setattr("alexnet.serving.server.Server.main_loop", lambda _: pytest.fail("it is up, and would stay so"))
    monkeypatch.setattr(sys, "argv", ["alexnet", "serve", str(checkpoint), "--port", "0", "--json", "--max-batch", "1"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 128 + signum
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
