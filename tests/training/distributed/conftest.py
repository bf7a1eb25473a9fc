"""The processes that the tests of this folder call functions in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing

import pytest

from ranks import Ranks


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Call `processes(count, function, *arguments)` for the results of `function` in `count` processes, by rank."""
    os.environ["ALEXNET_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    with closing(Ranks(4)) as started:
        yield started
