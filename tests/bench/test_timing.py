"""Interleaved timings."""

from __future__ import annotations

from alexnet.bench.timing import time_interleaved


def test_calls_are_interleaved_and_the_warmup_not_counted():
    calls: list[str] = []
    timings = time_interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, tries=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: t.tries for name, t in timings.items()} == {"a": 3, "b": 3}
    assert all(0 <= t.low <= t.median <= t.high for t in timings.values())


def test_a_time_limit_leaves_at_least_three_tries():
    assert time_interleaved({"a": lambda: None}, tries=1000, seconds=0.0)["a"].tries == 3


def test_waits_before_reading_the_clock():
    log: list[str] = []
    time_interleaved({"a": lambda: log.append("work")}, tries=1, warmup=0, wait=lambda: log.append("wait"))
    assert log == ["wait", "work", "wait"]
