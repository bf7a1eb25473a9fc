"""Batches: who computes with whom, how long anybody waits, and what becomes of those who leave."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from alexnet.serving import batching
from alexnet.serving.batching import Batcher, DecodeFailure, QueueFull
from alexnet.serving.metrics import Metrics
from alexnet.serving.registry import ModelRegistry
from alexnet.serving.settings import Settings
from asking import jpeg


class Kept(Metrics):
    """The sizes of batches and the ends of pictures, in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.ends: list[str] = []

    def batch(self, model: str, size: int, seconds: float) -> None:
        self.sizes.append(size)

    def picture(self, model: str, result: str, count: int = 1) -> None:
        self.ends += [result] * count


@contextmanager
def batcher(models: ModelRegistry, workers: int = 2, **settings: Any) -> Iterator[tuple[Batcher, Kept]]:
    kept = Kept()
    found = Batcher(models, Settings(**settings), kept, workers)
    try:
        yield found, kept
    finally:
        found.close()


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], threading.Event]]:
    """Makes the decoding of one picture wait for an event."""
    events: dict[bytes, threading.Event] = {}
    real = batching.load_crops

    def read(data: bytes, *more: Any) -> list[np.ndarray]:
        if data in events:
            events[data].wait(10)
        return real(data, *more)

    monkeypatch.setattr(batching, "read_squares", read)

    def wait_for(data: bytes) -> threading.Event:
        events[data] = threading.Event()
        return events[data]

    yield wait_for
    for event in events.values():
        event.set()


def test_the_answers_are_those_of_predict(models: ModelRegistry) -> None:
    pictures = [jpeg(i % 3, i) for i in range(7)]
    served = models["fruit"]

    async def ask(found: Batcher) -> Any:
        return [await found.label(served, pictures, views) for views in (1, 10)]

    with batcher(models) as (found, _):
        for views, outcomes in zip((1, 10), asyncio.run(ask(found)), strict=True):
            expected = list(served.classifier.predict_many(pictures, 3, views))
            for outcome, prediction in zip(outcomes, expected, strict=True):
                told = served.classifier.to_prediction("-", outcome, 3)
                assert [label for label, _ in told.labels] == [label for label, _ in prediction.labels]
                assert [p for _, p in told.labels] == pytest.approx([p for _, p in prediction.labels], abs=1e-5)


def test_pictures_of_different_requests_are_computed_together_up_to_the_limit(
    models: ModelRegistry, slow: Callable[[bytes], threading.Event]
) -> None:
    pictures = [jpeg(0, i) for i in range(20)]
    event = slow(pictures[0])

    async def ask(found: Batcher) -> None:
        answers = [found.label(models["fruit"], [data]) for data in pictures]
        event.set()
        await asyncio.gather(*answers)

    with batcher(models, workers=1, max_batch=8, max_delay_ms=10_000) as (found, kept):
        asyncio.run(ask(found))
    assert kept.sizes == [8, 8, 4]
    assert kept.ends == ["answered"] * 20


def test_who_comes_alone_does_not_wait(models: ModelRegistry) -> None:
    async def ask(found: Batcher) -> float:
        began = time.perf_counter()
        await found.label(models["fruit"], [jpeg()])
        return time.perf_counter() - began

    with batcher(models, max_delay_ms=60_000) as (found, kept):
        assert asyncio.run(ask(found)) < 10
    assert kept.sizes == [1]


def test_nobody_waits_longer_than_the_delay_for_one_who_is_still_decoded(
    models: ModelRegistry, slow: Callable[[bytes], threading.Event]
) -> None:
    quick, late = jpeg(0, 1), jpeg(1, 2)
    event = slow(late)

    async def ask(found: Batcher) -> float:
        last = asyncio.ensure_future(found.label(models["fruit"], [late]))
        began = time.perf_counter()
        await found.label(models["fruit"], [quick])
        waited = time.perf_counter() - began
        assert not last.done()
        event.set()
        await last
        return waited

    with batcher(models, max_delay_ms=200) as (found, kept):
        assert 0.19 < asyncio.run(ask(found)) < 5
    assert kept.sizes == [1, 1]


def test_a_full_queue_sends_away_and_has_room_again_afterwards(
    models: ModelRegistry, slow: Callable[[bytes], threading.Event]
) -> None:
    late = jpeg(1, 2)
    event = slow(late)

    async def ask(found: Batcher) -> None:
        inside = found.label(models["fruit"], [late] * 19)
        assert not found.full
        with pytest.raises(QueueFull) as refused:
            found.label(models["fruit"], [jpeg()] * 2)
        assert 1 <= refused.value.seconds <= 30
        with pytest.raises(QueueFull):
            found.label(models["fruit"], [jpeg()], views=10)
        last = found.label(models["fruit"], [jpeg()])
        assert found.full
        event.set()
        await asyncio.gather(inside, last)
        assert found.in_flight == 0

    with batcher(models, queue=20, max_images=2) as (found, _):
        asyncio.run(ask(found))


def test_the_pictures_of_who_has_left_are_dropped(
    models: ModelRegistry, slow: Callable[[bytes], threading.Event]
) -> None:
    late = jpeg(1, 2)
    event = slow(late)

    async def ask(found: Batcher) -> None:
        left = found.label(models["fruit"], [late, *(jpeg(0, i) for i in range(5))])
        await asyncio.sleep(0.05)
        left.cancel()
        await asyncio.sleep(0)
        event.set()
        await found.label(models["fruit"], [jpeg(2, 9)])

    with batcher(models, workers=1, max_delay_ms=0) as (found, kept):
        asyncio.run(ask(found))
    assert found.in_flight == 0
    assert kept.sizes == [1]
    assert sorted(kept.ends) == ["answered"] + ["dropped"] * 6


def test_bad_pictures_have_reasons_and_the_others_answers(models: ModelRegistry) -> None:
    async def ask(found: Batcher) -> Any:
        return await found.label(models["fruit"], [b"", jpeg(), b"text", jpeg(size=(200, 200))])

    with batcher(models, max_pixels=10_000) as (found, _):
        empty, good, text, large = asyncio.run(ask(found))
    assert empty == DecodeFailure("unreadable", "the file is empty")
    assert not isinstance(good, DecodeFailure)
    assert text == DecodeFailure("unreadable", "it is not an image of a known format")
    assert large == DecodeFailure("too large", "it has more than 10,000 pixels, the most that is decoded")


def test_a_network_that_fails_is_told_and_the_next_one_is_answered(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(found: Batcher) -> Any:
        return (await found.label(models["fruit"], [jpeg()]))[0]

    with batcher(models) as (found, kept):
        with monkeypatch.context() as broken:
            broken.setattr(models["fruit"].classifier, "probabilities", lambda *_: 1 / 0)
            assert asyncio.run(ask(found)) == DecodeFailure("failed", "the network failed")
        assert not isinstance(asyncio.run(ask(found)), DecodeFailure)
    assert kept.ends == ["failed", "answered"]


def test_closing_finishes_what_is_inside(models: ModelRegistry) -> None:
    async def ask() -> int:
        found = Batcher(models, Settings(), Metrics())
        answers = [found.label(models["fruit"], [jpeg(0, i)]) for i in range(30)]
        await asyncio.to_thread(found.close)
        return len(await asyncio.wait_for(asyncio.gather(*answers), 5))

    assert asyncio.run(ask()) == 30


def test_who_leaves_takes_the_files_along(models: ModelRegistry, slow: Callable[[bytes], threading.Event]) -> None:
    first, second = jpeg(0), jpeg(1)

    async def leave(found: Batcher) -> None:
        before = sys.getrefcount(second)
        waiting = found.label(models["fruit"], [first])
        left = found.label(models["fruit"], [second])
        left.cancel()
        await asyncio.sleep(0)
        assert sys.getrefcount(second) == before
        event.set()
        assert len(await waiting) == 1

    with batcher(models, workers=1) as (found, _):
        event = slow(first)
        asyncio.run(leave(found))


def test_a_second_batch_is_computed_beside_the_first_where_it_is_half_full(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier, begun, go_on = models["fruit"].classifier, threading.Semaphore(0), threading.Event()
    real, threads = classifier.probabilities, []

    def compute(*given: Any) -> Any:
        threads.append(torch.get_num_threads())
        begun.release()
        assert go_on.wait(10)
        return real(*given)

    monkeypatch.setattr(classifier, "probabilities", compute)

    async def ask(found: Batcher) -> None:
        served = models["fruit"]
        assert served.shared
        answers = [found.label(served, [jpeg()])]
        await asyncio.to_thread(begun.acquire)
        answers.append(found.label(served, [jpeg(1, i) for i in range(3)]))  # less than half of 8
        assert not await asyncio.to_thread(begun.acquire, timeout=0.2)
        answers.append(found.label(served, [jpeg(2)]))
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        answers.append(found.label(served, [jpeg(2, i) for i in range(9)]))
        assert not await asyncio.to_thread(begun.acquire, timeout=0.2)  # more than two would each be too small
        go_on.set()
        await asyncio.gather(*answers)

    with batcher(models, workers=4, max_batch=8) as (found, kept):
        asyncio.run(ask(found))
    assert sorted(kept.sizes) == [1, 1, 4, 8]
    assert threads[:2] == [4, 2]


def test_one_batch_at_a_time_for_what_only_one_thread_may_ask(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    lone = ModelRegistry([dataclasses.replace(models["fruit"], shared=False)])
    inside, most = 0, 0
    real = lone["fruit"].classifier.probabilities

    def compute(*given: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return real(*given)

    monkeypatch.setattr(lone["fruit"].classifier, "probabilities", compute)

    async def ask(found: Batcher) -> None:
        await asyncio.gather(*(found.label(lone["fruit"], [jpeg(0, i)] * 4, 10 if i % 2 else 1) for i in range(8)))

    with batcher(lone, max_batch=4) as (found, _):
        asyncio.run(ask(found))
    assert most == 1
