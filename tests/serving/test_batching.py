"""Dynamic batching: batch composition, waiting times, the queue limit, cancellation, errors."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from alexnet.inference.predict import Classifier
from alexnet.serving.batching import Batcher, DecodeFailure, ServerBusy
from alexnet.serving.metrics import Metrics
from alexnet.serving.registry import Models
from alexnet.serving.settings import Settings
from server_client import DecodeGate, encode_jpeg


class Recorder(Metrics):
    """Records batch sizes and image results in lists."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.results: list[str] = []

    def count_batch(self, model: str, size: int, seconds: float) -> None:
        self.sizes.append(size)

    def count_images(self, model: str, result: str, count: int = 1) -> None:
        self.results += [result] * count


@contextmanager
def running_batcher(models: Models, workers: int = 2, **settings: Any) -> Iterator[tuple[Batcher, Recorder]]:
    recorder = Recorder()
    batcher = Batcher(models, Settings(**settings), recorder, workers)
    try:
        yield batcher, recorder
    finally:
        batcher.close()


def test_probabilities_equal_those_of_predict(models: Models) -> None:
    images = [encode_jpeg(i % 3, i) for i in range(7)]
    model = models["fruit"]

    async def predict(batcher: Batcher) -> Any:
        return [await batcher.predict("fruit", images, views) for views in (1, 10)]

    with running_batcher(models) as (batcher, _):
        for views, outcomes in zip((1, 10), asyncio.run(predict(batcher)), strict=True):
            expected = list(model.predict_many(images, 3, views))
            for outcome, prediction in zip(outcomes, expected, strict=True):
                ours = model.to_prediction("-", outcome, 3)
                assert [label for label, _ in ours.labels] == [label for label, _ in prediction.labels]
                assert [p for _, p in ours.labels] == pytest.approx([p for _, p in prediction.labels], abs=1e-5)


def test_images_of_different_requests_share_batches_up_to_the_limit(models: Models, decode_gate: DecodeGate) -> None:
    images = [encode_jpeg(0, i) for i in range(20)]
    decode_gate.only = images[0]

    async def predict(batcher: Batcher) -> None:
        futures = [batcher.predict("fruit", [data]) for data in images]
        decode_gate.open()
        await asyncio.gather(*futures)

    with running_batcher(models, workers=1, max_batch=8, max_delay_ms=10_000) as (
        batcher,
        recorder,
    ):
        asyncio.run(predict(batcher))
    assert recorder.sizes == [8, 8, 4]
    assert recorder.results == ["answered"] * 20


def test_lone_image_does_not_wait(models: Models) -> None:
    async def predict(batcher: Batcher) -> float:
        start = time.perf_counter()
        await batcher.predict("fruit", [encode_jpeg()])
        return time.perf_counter() - start

    with running_batcher(models, max_delay_ms=60_000) as (batcher, recorder):
        assert asyncio.run(predict(batcher)) < 50
    assert recorder.sizes == [1]


def test_image_waits_at_most_the_delay_for_one_being_decoded(models: Models, decode_gate: DecodeGate) -> None:
    quick, late = encode_jpeg(0, 1), encode_jpeg(1, 2)
    decode_gate.only = late

    async def predict(batcher: Batcher) -> float:
        last = asyncio.ensure_future(batcher.predict("fruit", [late]))
        start = time.perf_counter()
        await batcher.predict("fruit", [quick])
        waited = time.perf_counter() - start
        assert not last.done()
        decode_gate.open()
        await last
        return waited

    with running_batcher(models, max_delay_ms=200) as (batcher, recorder):
        assert asyncio.run(predict(batcher)) > 0.19
    assert recorder.sizes == [1, 1]


def test_full_queue_rejects_until_images_are_done(models: Models, decode_gate: DecodeGate) -> None:
    late = encode_jpeg(1, 2)
    decode_gate.only = late

    async def predict(batcher: Batcher) -> None:
        accepted = batcher.predict("fruit", [late] * 19)
        batcher.check_capacity()
        with pytest.raises(ServerBusy) as error:
            batcher.predict("fruit", [encode_jpeg()] * 2)
        assert 1 <= error.value.seconds <= 30
        with pytest.raises(ServerBusy):
            batcher.predict("fruit", [encode_jpeg()], views=10)
        last = batcher.predict("fruit", [encode_jpeg()])
        with pytest.raises(ServerBusy):
            batcher.check_capacity()
        decode_gate.open()
        await asyncio.gather(accepted, last)
        assert batcher.in_flight == 0

    with running_batcher(models, queue=20, max_images=2) as (batcher, _):
        asyncio.run(predict(batcher))


def test_images_of_canceled_request_are_dropped(models: Models, decode_gate: DecodeGate) -> None:
    late = encode_jpeg(1, 2)
    decode_gate.only = late

    async def predict(batcher: Batcher) -> None:
        canceled = batcher.predict("fruit", [late, *(encode_jpeg(0, i) for i in range(5))])
        assert await asyncio.to_thread(decode_gate.reached.wait, 60)
        canceled.cancel()
        await asyncio.sleep(0)
        decode_gate.open()
        await batcher.predict("fruit", [encode_jpeg(2, 9)])

    with running_batcher(models, workers=1, max_delay_ms=0) as (batcher, recorder):
        asyncio.run(predict(batcher))
    assert batcher.in_flight == 0
    assert recorder.sizes == [1]
    assert sorted(recorder.results) == ["answered"] + ["dropped"] * 6


def test_bad_images_get_reasons_and_the_others_predictions(models: Models) -> None:
    async def predict(batcher: Batcher) -> Any:
        return await batcher.predict("fruit", [b"", encode_jpeg(), b"text", encode_jpeg(size=(200, 200))])

    with running_batcher(models, max_pixels=10_000) as (batcher, _):
        empty, good, text, large = asyncio.run(predict(batcher))
    assert empty == DecodeFailure("unreadable", "the file is empty")
    assert not isinstance(good, DecodeFailure)
    assert text == DecodeFailure("unreadable", "it is not an image of a known format")
    assert large == DecodeFailure("too large", "it has more than 10,000 pixels, the limit")


def test_failing_model_fails_its_batch_and_not_the_next(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    async def predict(batcher: Batcher) -> Any:
        return (await batcher.predict("fruit", [encode_jpeg()]))[0]

    with running_batcher(models) as (batcher, recorder):
        with monkeypatch.context() as broken:
            broken.setattr(models["fruit"], "probabilities", lambda *_: 1 / 0)
            assert asyncio.run(predict(batcher)) == DecodeFailure("failed", "the model failed")
        assert not isinstance(asyncio.run(predict(batcher)), DecodeFailure)
    assert recorder.results == ["failed", "answered"]


def test_close_finishes_images_in_flight(models: Models) -> None:
    async def predict() -> int:
        batcher = Batcher(models, Settings(), Metrics())
        futures = [batcher.predict("fruit", [encode_jpeg(0, i)]) for i in range(30)]
        await asyncio.to_thread(batcher.close)
        return len(await asyncio.wait_for(asyncio.gather(*futures), 60))

    assert asyncio.run(predict()) == 30


def test_canceled_request_releases_its_files(models: Models, decode_gate: DecodeGate) -> None:
    first, second = encode_jpeg(0), encode_jpeg(1)

    async def cancel(batcher: Batcher) -> None:
        before = sys.getrefcount(second)
        waiting = batcher.predict("fruit", [first])
        canceled = batcher.predict("fruit", [second])
        canceled.cancel()
        await asyncio.sleep(0)
        assert sys.getrefcount(second) == before
        decode_gate.open()
        assert len(await waiting) == 1

    with running_batcher(models, workers=1) as (batcher, _):
        decode_gate.only = first
        asyncio.run(cancel(batcher))


def test_second_batch_runs_concurrently_if_at_least_half_full(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier, begun, proceed = (models["fruit"], threading.Semaphore(0), threading.Event())
    real, threads = classifier.probabilities, []

    def compute(*given: Any) -> Any:
        threads.append(torch.get_num_threads())
        begun.release()
        assert proceed.wait(60)
        return real(*given)

    monkeypatch.setattr(classifier, "probabilities", compute)

    async def predict(batcher: Batcher) -> None:
        assert models["fruit"].thread_safe
        futures = [batcher.predict("fruit", [encode_jpeg()])]
        await asyncio.to_thread(begun.acquire)
        futures.append(batcher.predict("fruit", [encode_jpeg(1, i) for i in range(3)]))  # less than half of 8
        assert not await asyncio.to_thread(begun.acquire, timeout=0.2)
        futures.append(batcher.predict("fruit", [encode_jpeg(2)]))
        assert await asyncio.to_thread(begun.acquire, timeout=60)
        futures.append(batcher.predict("fruit", [encode_jpeg(2, i) for i in range(9)]))
        assert not await asyncio.to_thread(begun.acquire, timeout=0.2)  # more than two would each be too small
        proceed.set()
        await asyncio.gather(*futures)

    with running_batcher(models, workers=4, max_batch=8) as (batcher, recorder):
        asyncio.run(predict(batcher))
    assert sorted(recorder.sizes) == [1, 1, 4, 8]
    assert threads[:2] == [4, 2]


def test_one_batch_at_a_time_if_not_thread_safe(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Classifier, "thread_safe", False)
    running, peak = 0, 0
    real = models["fruit"].probabilities

    def compute(*given: Any) -> Any:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        time.sleep(0.02)
        running -= 1
        return real(*given)

    monkeypatch.setattr(models["fruit"], "probabilities", compute)

    async def predict(batcher: Batcher) -> None:
        await asyncio.gather(*(batcher.predict("fruit", [encode_jpeg(0, i)] * 2, 10 if i % 2 else 1) for i in range(4)))

    with running_batcher(models, max_batch=2) as (batcher, _):
        asyncio.run(predict(batcher))
    assert peak == 1
