"""Fixtures of the server tests."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from alexnet.serving import batching
from alexnet.serving.registry import ModelRegistry, open_models
from server_client import DecodeGate


@pytest.fixture(scope="session")
def models(checkpoint: Path) -> ModelRegistry:
    """One small model named `fruit`."""
    served = next(iter(open_models([checkpoint]).values()))
    return ModelRegistry([dataclasses.replace(served, name="fruit")])


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
