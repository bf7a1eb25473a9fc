"""Fixtures of the server tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from alexnet.serving import batching
from alexnet.serving.registry import Models, open_models
from server_client import DecodeGate


@pytest.fixture(scope="session")
def models(checkpoint: Path) -> Models:
    """One small model named `fruit`."""
    return {"fruit": next(iter(open_models([checkpoint]).values()))}


@pytest.fixture
def decode_gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodeGate]:
    """A closed gate before the server's image decoder."""
    gate, decode = DecodeGate(), batching.load_crops

    def wait_and_decode(data: bytes, *options: Any) -> Any:
        gate.wait(data)
        return decode(data, *options)

    monkeypatch.setattr(batching, "load_crops", wait_and_decode)
    yield gate
    gate.open()
