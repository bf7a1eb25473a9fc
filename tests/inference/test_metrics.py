"""Metrics counted by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from alexnet.inference.metrics import compute_metrics, correct_at, cross_entropy, wilson_interval


def test_metrics_counted_by_hand():
    logits = np.array([[3.0, 1, 0], [0, 2, 1], [0, 2, 1], [5, 0, 1]], dtype=np.float32)
    targets = np.array([0, 1, 2, 2])
    found = compute_metrics(logits, targets, ("a", "b", "c"))
    assert found["top1"] == 0.5
    assert found["top5"] == 1.0
    assert found["n"] == 4
    a, b, c = found["per_class"]
    assert (a["label"], a["n"], a["precision"], a["recall"]) == ("a", 1, 0.5, 1.0)
    assert (b["n"], b["precision"], b["recall"]) == (1, 0.5, 1.0)
    assert (c["n"], c["precision"], c["recall"], c["f1"]) == (2, 0.0, 0.0, 0.0)
    expected = F.cross_entropy(torch.from_numpy(logits).double(), torch.from_numpy(targets)).item()
    assert found["loss"] == pytest.approx(expected, abs=1e-12)


def test_top5_counts_the_fifth_but_not_the_sixth():
    logits = np.arange(10, dtype=np.float32)[None].repeat(2, axis=0)
    assert correct_at(logits, np.array([5, 4]), 5).tolist() == [True, False]


def test_constant_or_nan_logits_count_as_wrong():
    zeros = np.zeros((3, 10), dtype=np.float32)
    assert not correct_at(zeros, np.array([0, 1, 2]), 1).any()
    nan = np.full((3, 10), np.nan, dtype=np.float32)
    assert not correct_at(nan, np.array([0, 1, 2]), 5).any()


def test_cross_entropy_survives_large_logits():
    assert cross_entropy(np.array([[1e4, 0.0]]), np.array([1])) == pytest.approx(1e4)


def test_interval_is_wilsons():
    # the textbook formula for 81 of 263
    n, p, z = 263, 81 / 263, 1.959963984540054
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert wilson_interval(81, 263) == pytest.approx((center - half, center + half))
    low, high = wilson_interval(10, 10)
    assert high == 1.0
    assert 0.6 < low < 0.8
    assert wilson_interval(0, 0) == (0.0, 1.0)
