"""benchmarks/memory.py: peaks of fresh processes include what training and prediction keep."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from alexnet.models.architectures import architecture
from alexnet.models.summary import summarize

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from memory import in_fresh_process


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report peak memory")
def test_training_memory_includes_weights_gradients_and_momentum():
    weights = 4 * summarize(architecture("cifar")).parameters
    train, predict = (in_fresh_process("--task", task, "cifar") for task in ("train", "predict"))
    assert 3 * weights < train < 8 * weights
    assert weights < predict < train
