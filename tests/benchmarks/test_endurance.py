"""benchmarks/endurance.py fails where memory or files grow, and lets the growth pass that is right."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from endurance import complaint


def looks(epochs: int, memory: float, files: float) -> list[dict[str, float]]:
    """Forty, where an epoch adds so many KiB and so many files; each third one sees a checkpoint being written."""
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
    ("epochs", "memory", "files", "says"),
    [
        (2000, 2, 0, None),
        (2000, 400, 0, "Memory grows: 400.00 KiB an epoch, and 8"),
        (2000, 2, 1, "Files grow"),
        (2000, 2, 0.02, "Files grow"),
        (100, 400, 0, None),
        (100, 2, 1, "Files grow"),
    ],
)
def test_what_grows_is_told(epochs, memory, files, says):
    found = complaint(looks(epochs, memory, files), epochs)
    assert (found is None) == (says is None)
    assert (found or "").startswith(says or "")
