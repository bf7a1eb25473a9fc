"""Timings: everything is tried equally often, in turn, and the middle is reported."""

from __future__ import annotations

from alexnet.bench.timing import interleaved


def test_takes_turns_and_leaves_out_the_warm_up():
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, tries=3, warmup=2)
    assert calls == ["a", "b"] * 5
    assert {name: t.tries for name, t in found.items()} == {"a": 3, "b": 3}
    assert all(0 <= t.low <= t.median <= t.high for t in found.values())


def test_stops_when_the_time_is_up_but_tries_thrice():
    assert interleaved({"a": lambda: None}, tries=1000, seconds=0.0)["a"].tries == 3


def test_waits_before_it_reads_the_clock():
    log: list[str] = []
    interleaved({"a": lambda: log.append("work")}, tries=1, warmup=0, wait=lambda: log.append("wait"))
    assert log == ["wait", "work", "wait"]
