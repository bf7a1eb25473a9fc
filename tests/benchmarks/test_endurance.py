"""benchmarks/endurance.py fails on growing memory or files, but not on expected growth."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from endurance import find_problem


def samples(epochs: int, memory: float, files: float) -> list[dict[str, float]]:
    """Forty samples, with so many KiB and files more per epoch; every third one sees a checkpoint being written."""
    return [
        {
            "epoch": e,
            "resident": 9e8,
            "own": 5e8 + 1024 * memory * e,
            "bytes": 2e6,
            "files": 16 + files * e + 3 * (e % 3),
        }
        for e in range(1, epochs + 1, epochs // 40)
    ]


@pytest.mark.parametrize(
    ("epochs", "memory", "files", "message"),
    [
        (2000, 2, 0, None),
        (2000, 400, 0, "Memory grows: 400.00 KiB per epoch; at most 8"),
        (2000, 2, 1, "Files grow"),
        (2000, 2, 0.02, "Files grow"),
        (100, 400, 0, None),
        (100, 2, 1, "Files grow"),
    ],
)
def test_growth_is_reported(epochs, memory, files, message):
    problem = find_problem(samples(epochs, memory, files), epochs)
    assert (problem is None) == (message is None)
    assert (problem or "").startswith(message or "")
