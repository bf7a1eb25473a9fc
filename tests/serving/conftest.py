"""What the tests of the server share."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from alexnet.serving.registry import ModelRegistry, open_models


@pytest.fixture(scope="session")
def models(checkpoint: Path) -> ModelRegistry:
    """One small network, called `fruit`."""
    import dataclasses

    one = next(iter(open_models([checkpoint]).values()))
    return ModelRegistry([dataclasses.replace(one, name="fruit")])
