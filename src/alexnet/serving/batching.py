"""Dynamic batching: images of different requests are computed together.

An image is accepted, or rejected with `ServerBusy`; decoded by one of as many threads as there are cores (Pillow
releases the GIL); waits in the queue of its model; and is computed in a batch by one of the compute threads. A request
completes when all of its images have an outcome.

A batch starts when the model is free and the batch is full, or its oldest image has waited `max_delay_ms`, or no other
image for it is being decoded. So no image waits longer than that for others, and a lone image does not wait at all.

A batch that runs alone uses all cores. Under load its threads would mostly wait for each other, because HTTP and
decoding keep taking cores away; then two batches run concurrently, each on half of the cores, provided that the second
is at least half full. This applies to models that torch computes on a CPU; other engines and devices manage the cores
themselves and get one batch at a time.

Images of a request whose client disconnected are dropped at the next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from alexnet.data.decode import BadImage, TooManyPixels
from alexnet.device import cpu_count
from alexnet.inference.crops import make_views
from alexnet.inference.predict import Classifier, Crops, Scores, load_crops
from alexnet.serving.metrics import ANSWERED, DROPPED, FAILED, TOO_LARGE, UNREADABLE, Metrics
from alexnet.serving.registry import Models
from alexnet.serving.settings import Settings

VIEW_COUNTS = (1, 10)  # views per image that a request can choose
MAX_CONCURRENT_BATCHES = 2  # per model; more would each be too small

log = logging.getLogger("alexnet.serve")


@dataclass(frozen=True)
class DecodeFailure:
    """Why an image has no prediction."""

    result: str
    """`UNREADABLE`, `TOO_LARGE` or `FAILED`."""
    reason: str


Outcome = Scores | DecodeFailure


class ServerBusy(Exception):
    """Too much work is in flight; retry after `seconds`."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Request:
    """The images of one request, and the future of their outcomes."""

    def __init__(self, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Outcome]] = self.loop.create_future()
        self.future.add_done_callback(self._on_done)
        self.outcomes: list[Outcome | None] = [None] * count
        self.remaining = count
        self.done = False  # completed or canceled: nobody waits any more
        self.images: list[_Image] = []

    def _on_done(self, _: object) -> None:
        self.done = True
        for image in self.images:
            image.data = b""  # otherwise clients that send and disconnect would fill the memory
        self.images.clear()

    def complete(self) -> None:
        if not self.future.done():
            self.future.set_result([outcome for outcome in self.outcomes if outcome is not None])


@dataclass(eq=False, slots=True)
class _Image:
    """One image of a request."""

    request: _Request
    index: int
    queue: _BatchQueue
    data: bytes
    crops: Crops = field(default_factory=Crops)
    decoded_at: float = 0.0


class _BatchQueue:
    """Decoded images waiting for one model with one number of views."""

    def __init__(self, name: str, classifier: Classifier, view_count: int) -> None:
        self.name, self.classifier, self.view_count = name, classifier, view_count
        self.views = make_views(view_count)
        self.transforms = [group.preprocess for group in classifier.ensemble.input_groups(self.views)]
        self.waiting: deque[_Image] = deque()
        self.decoding = 0  # accepted images that are not decoded yet

    def compute(self, images: Sequence[_Image]) -> list[Scores]:
        batches = [np.stack(crops) for crops in zip(*(image.crops for image in images), strict=True)]
        classifier = self.classifier
        p = classifier.probabilities([torch.from_numpy(batch) for batch in batches], self.views)
        scores = classifier.score_rows(p.numpy())
        return [row._replace(clipped=image.crops.clipped) for row, image in zip(scores, images, strict=True)]


class Batcher:
    """Predicts for many requests concurrently: called on an event loop, working in its own threads."""

    def __init__(self, models: Models, settings: Settings, metrics: Metrics, workers: int | None = None) -> None:
        self._settings, self._metrics = settings, metrics
        self._models = models
        self._queues: dict[tuple[str, int], _BatchQueue] = {}
        self._to_decode: queue.SimpleQueue[_Image | None] = queue.SimpleQueue()
        self._condition = threading.Condition()  # guards everything below, the queues and the requests' counts
        self._in_flight = 0  # views of accepted images without an outcome
        self._running: Counter[str] = Counter()  # batches being computed, by model
        self._closing = False
        self._seconds_per_view = 0.02  # running mean, for Retry-After
        count = self._cores = workers or cpu_count()
        self._decoders = [
            threading.Thread(target=self._decode_loop, name=f"decode-{i}", daemon=True) for i in range(count)
        ]
        self._computers = [
            threading.Thread(target=self._compute_loop, name=f"compute-{i}", daemon=True)
            for i in range(min(count, MAX_CONCURRENT_BATCHES))
        ]
        for thread in (*self._decoders, *self._computers):
            thread.start()

    @property
    def in_flight(self) -> int:
        """Accepted images without an outcome, each view counted."""
        return self._in_flight

    @property
    def alive(self) -> bool:
        """Whether all threads are alive; a request that reaches a dead one would never complete."""
        return all(thread.is_alive() for thread in (*self._decoders, *self._computers))

    def retry_after(self) -> int:
        """Return the whole seconds, 1 to 30, in which about half of the images in flight should be done."""
        return min(30, max(1, round(self._in_flight * self._seconds_per_view / 2)))

    def check_capacity(self, views: int = 1) -> None:
        """Raise `ServerBusy` if not even `views` more fit into the queue."""
        if self._in_flight + views > self._settings.queue:
            raise ServerBusy(self.retry_after())

    def predict(self, name: str, images: Sequence[bytes], views: int = 1) -> asyncio.Future[list[Outcome]]:
        """Return a future of one outcome of the model `name` per image (the bytes of a file). Raises `ServerBusy`.

        Canceling the future drops the images.
        """
        with self._condition:
            self.check_capacity(views * len(images))
            target = self._queue(name, views)
            self._in_flight += views * len(images)
            target.decoding += len(images)
        request = _Request(len(images))
        request.images += [_Image(request, i, target, data) for i, data in enumerate(images)]
        for image in request.images:
            self._to_decode.put(image)
        return request.future

    def _queue(self, name: str, views: int) -> _BatchQueue:
        """Return the queue of a model. A newer checkpoint of its run has the same classes and input."""
        classifier = self._models[name]
        if (name, views) not in self._queues:
            self._queues[name, views] = _BatchQueue(name, classifier, views)
        self._queues[name, views].classifier = classifier
        return self._queues[name, views]

    def close(self) -> None:
        """Finish all images in flight, then end the threads."""
        for _ in self._decoders:
            self._to_decode.put(None)
        for thread in self._decoders:
            thread.join()
        with self._condition:
            self._closing = True
            self._condition.notify_all()
        for thread in self._computers:
            thread.join()

    # ── decoding, in as many threads as there are cores ───────────────────────────────────────────

    def _decode_loop(self) -> None:
        while (image := self._to_decode.get()) is not None:
            failure = None if image.request.done else self._decode(image)
            target, image.data = image.queue, b""
            with self._condition:
                target.decoding -= 1
                if image.crops:
                    image.decoded_at = time.monotonic()
                    target.waiting.append(image)
                # other lengths cannot start a batch
                if not target.decoding or len(target.waiting) in (1, self._half_batch, self._settings.max_batch):
                    self._condition.notify()
            if not image.crops:
                self._finish([image], [failure])

    def _decode(self, image: _Image) -> DecodeFailure | None:
        """Set `image.crops`, or return why it cannot be decoded."""
        try:
            image.crops = load_crops(image.data, image.queue.transforms, self._settings.max_pixels)
        except TooManyPixels as error:
            return DecodeFailure(TOO_LARGE, error.reason)
        except BadImage as error:
            return DecodeFailure(UNREADABLE, error.reason)
        except MemoryError:
            return DecodeFailure(TOO_LARGE, "there is not enough memory to decode it")
        except Exception:
            log.exception("Unexpected error while decoding an image.")
            return DecodeFailure(FAILED, "the server failed to decode it")
        return None

    # ── computing, in one thread or two ───────────────────────────────────────────────────────────

    def _compute_loop(self) -> None:
        while True:
            with self._condition:
                ready, timeout = self._next_queue()
                while ready is None:
                    if self._closing and timeout is None:
                        return
                    self._condition.wait(timeout)
                    ready, timeout = self._next_queue()
                count = min(len(ready.waiting), self._settings.max_batch)
                images = [ready.waiting.popleft() for _ in range(count)]
                self._running[ready.name] += 1
                threads = max(1, self._cores // self._running.total())
            try:
                self._run_batch(ready, images, threads)
            finally:
                with self._condition:
                    self._running[ready.name] -= 1
                    self._condition.notify()  # a batch that had to wait for this one

    @property
    def _half_batch(self) -> int:
        """Images that are worth a batch concurrent with another."""
        return -(-self._settings.max_batch // 2)

    def _can_run(self, candidate: _BatchQueue) -> bool:
        running = self._running[candidate.name]
        return not running or (candidate.classifier.thread_safe and len(candidate.waiting) >= self._half_batch)

    def _next_queue(self) -> tuple[_BatchQueue | None, float | None]:
        """Return the queue whose batch starts now; else None and the seconds until one starts.

        The seconds are None too if no image waits, or if all must wait for their model.
        """
        waiting = [q for q in self._queues.values() if q.waiting and self._can_run(q)]
        if not waiting:
            return None, None
        now, delay = time.monotonic(), self._settings.max_delay_ms / 1000
        ready = [
            q
            for q in waiting
            if not q.decoding or len(q.waiting) >= self._settings.max_batch or now - q.waiting[0].decoded_at >= delay
        ]
        if ready:
            return min(ready, key=lambda q: q.waiting[0].decoded_at), None
        return None, min(q.waiting[0].decoded_at for q in waiting) + delay - now

    def _run_batch(self, source: _BatchQueue, images: Sequence[_Image], threads: int) -> None:
        """Compute `images` except those of completed requests, and hand in the outcomes."""
        needed = [image for image in images if not image.request.done]
        dropped = [image for image in images if image.request.done]
        self._finish(dropped, [None] * len(dropped))
        if needed:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)  # for this Python thread
            self._finish(needed, self._compute(source, needed))

    def _compute(self, source: _BatchQueue, images: Sequence[_Image]) -> Sequence[Outcome]:
        start = time.perf_counter()
        try:
            scores = source.compute(images)
        except Exception:
            log.exception("The model %s failed.", source.name)
            return [DecodeFailure(FAILED, "the model failed")] * len(images)
        seconds = time.perf_counter() - start
        self._metrics.count_batch(source.name, len(images), seconds)
        self._seconds_per_view += 0.1 * (seconds / len(images) / source.view_count - self._seconds_per_view)
        return scores

    def _finish(self, images: Sequence[_Image], outcomes: Iterable[Outcome | None]) -> None:
        """Record an outcome per image (None: dropped), and complete the requests that have all of theirs."""
        complete: dict[asyncio.AbstractEventLoop, list[_Request]] = {}
        results: Counter[tuple[str, str]] = Counter()
        with self._condition:
            for image, outcome in zip(images, outcomes, strict=True):
                request = image.request
                self._in_flight -= image.queue.view_count
                request.outcomes[image.index] = outcome
                request.remaining -= 1
                results[image.queue.name, _result(outcome)] += 1
                if not request.remaining and not request.done:
                    complete.setdefault(request.loop, []).append(request)
        for (name, result), count in results.items():
            self._metrics.count_images(name, result, count)
        for loop, requests in complete.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, so nobody waits
                loop.call_soon_threadsafe(_complete, requests)  # once per batch: each call wakes the loop


def _result(outcome: Outcome | None) -> str:
    if outcome is None:
        return DROPPED
    return outcome.result if isinstance(outcome, DecodeFailure) else ANSWERED


def _complete(requests: list[_Request]) -> None:
    for request in requests:
        request.complete()
