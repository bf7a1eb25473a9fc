"""Dynamic batching: pictures of different requests are computed together.

A picture's way through the house: it is let in, or sent away where the queue is full; one of as many threads as there
are cores decodes it (Pillow lets others work meanwhile); it waits for company; a thread that computes takes it along
with others; its request is answered when all its pictures are.

A batch starts when the network is free and the batch is full, or its oldest picture has waited `max_delay_ms`, or no
further picture for it is on its way. So nobody waits for company longer than that, and who comes alone not at all.

A batch that is computed alone uses all cores. Under load its threads would mostly wait for each other, since HTTP and
decoding take their cores away again and again: so two batches are computed side by side, each on half of the cores,
where the second is at least half full. That is for networks that torch computes on a CPU; other engines and devices
know best themselves how to use all cores, and get one batch at a time.

The pictures of a client that is gone are dropped wherever they are next looked at.
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
from dataclasses import dataclass

import numpy as np
import torch

from alexnet.data.decode import BadImage, TooManyPixels
from alexnet.device import cpu_count
from alexnet.inference.crops import make_views
from alexnet.inference.predict import Scores, load_crops
from alexnet.serving.metrics import ANSWERED, DROPPED, FAILED, TOO_LARGE, UNREADABLE, Metrics
from alexnet.serving.registry import ModelRegistry, ServedModel
from alexnet.serving.settings import Settings

VIEWS = (1, 10)  # of each picture, that may be asked for
SIDE_BY_SIDE = 2  # batches of one network; more would each be too small

log = logging.getLogger("alexnet.serve")


@dataclass(frozen=True)
class DecodeFailure:
    """Why there is no answer for a picture."""

    result: str
    """`UNREADABLE`, `TOO_LARGE` or `FAILED`."""
    reason: str


Outcome = Scores | DecodeFailure


class QueueFull(Exception):
    """There is no room for more pictures; in `seconds` there may be."""

    def __init__(self, seconds: int) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class _Request:
    """The pictures of one request."""

    def __init__(self, count: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[list[Outcome]] = self.loop.create_future()
        self.answer.add_done_callback(self._leave)
        self.outcomes: list[Outcome | None] = [None] * count
        self.left = count
        self.gone = False  # nobody waits any more
        self.pictures: list[_Picture] = []

    def _leave(self, _: object) -> None:
        self.gone = True
        for picture in self.pictures:
            picture.data = b""  # many who ask and leave would fill the memory, else
        self.pictures.clear()

    def wake(self) -> None:
        if not self.answer.done():
            self.answer.set_result([outcome for outcome in self.outcomes if outcome is not None])


class _Picture:
    """One of them."""

    __slots__ = ("data", "line", "place", "request", "since", "squares")

    def __init__(self, request: _Request, place: int, line: _Line, data: bytes) -> None:
        self.request, self.place, self.line = request, place, line
        self.data = data
        self.squares: list[np.ndarray] = []
        self.since = 0.0


class _Line:
    """Where pictures for one network in so many views wait for company."""

    def __init__(self, served: ServedModel, views: int) -> None:
        self.served, self.views = served, views
        self.looks = make_views(views)
        self.readings = [reading.preprocess for reading in served.classifier.ensemble.input_groups(self.looks)]
        self.waiting: deque[_Picture] = deque()
        self.coming = 0  # pictures that are let in and not decoded

    def compute(self, pictures: Sequence[_Picture]) -> list[Scores]:
        batches = [np.stack(squares) for squares in zip(*(p.squares for p in pictures), strict=True)]
        p = self.served.classifier.probabilities([torch.from_numpy(batch) for batch in batches], self.looks)
        return list(self.served.classifier.score_rows(p.numpy()))


class Batcher:
    """Labels pictures for many at once; made and asked on an event loop, working in threads of its own."""

    def __init__(self, models: ModelRegistry, settings: Settings, metrics: Metrics, workers: int | None = None) -> None:
        self._settings, self._metrics = settings, metrics
        self._lines = {(name, views): _Line(one, views) for name, one in models.items() for views in VIEWS}
        self._to_decode: queue.SimpleQueue[_Picture | None] = queue.SimpleQueue()
        self._changed = threading.Condition()  # guards all that follows, the lines and the counts of requests
        self._inside = 0  # views of pictures that are let in and have no outcome
        self._computing: Counter[str] = Counter()  # batches of each network
        self._closing = False
        self._seconds_each = 0.02  # that a view takes lately, for Retry-After
        count = self._cores = workers or cpu_count()
        self._decoders = [threading.Thread(target=self._decode, name=f"decode-{i}", daemon=True) for i in range(count)]
        self._computers = [
            threading.Thread(target=self._compute, name=f"compute-{i}", daemon=True)
            for i in range(min(count, SIDE_BY_SIDE))
        ]
        for thread in (*self._decoders, *self._computers):
            thread.start()

    @property
    def in_flight(self) -> int:
        """Pictures, each of their views counted, that are let in and have no outcome yet."""
        return self._inside

    @property
    def full(self) -> bool:
        """Whether not even one more picture would be let in."""
        return self._inside >= self._settings.queue

    @property
    def alive(self) -> bool:
        """Whether all threads live; a request to one that died would never be answered."""
        return all(thread.is_alive() for thread in (*self._decoders, *self._computers))

    def retry_after(self) -> int:
        """Whole seconds after which about half of what is inside should be done, from 1 to 30."""
        return min(30, max(1, round(self._inside * self._seconds_each / 2)))

    def label(self, served: ServedModel, pictures: Sequence[bytes], views: int = 1) -> asyncio.Future[list[Outcome]]:
        """What the network will have said of each of `pictures`, the bytes of files. Raises `Full`.

        Cancelled, it drops them.
        """
        line = self._lines[served.name, views]
        with self._changed:
            if self._inside + views * len(pictures) > self._settings.queue:
                raise QueueFull(self.retry_after())
            self._inside += views * len(pictures)
            line.coming += len(pictures)
        request = _Request(len(pictures))
        request.pictures += [_Picture(request, place, line, data) for place, data in enumerate(pictures)]
        for picture in request.pictures:
            self._to_decode.put(picture)
        return request.answer

    def close(self) -> None:
        """Finish what is inside, then end the threads."""
        for _ in self._decoders:
            self._to_decode.put(None)
        for thread in self._decoders:
            thread.join()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._computers:
            thread.join()

    # ── decoding, in as many threads as there are cores ───────────────────────────────────────────────────────

    def _decode(self) -> None:
        while (picture := self._to_decode.get()) is not None:
            outcome = None if picture.request.gone else self._read(picture)
            line, picture.data = picture.line, b""
            with self._changed:
                line.coming -= 1
                if picture.squares:
                    picture.since = time.monotonic()
                    line.waiting.append(picture)
                # else nothing starts by it
                if not line.coming or len(line.waiting) in (1, self._half, self._settings.max_batch):
                    self._changed.notify()
            if not picture.squares:
                self._finish([picture], [outcome])

    def _read(self, picture: _Picture) -> DecodeFailure | None:
        """Set its squares; else say why not."""
        try:
            picture.squares = load_crops(picture.data, picture.line.readings, self._settings.max_pixels)
        except TooManyPixels as error:
            return DecodeFailure(TOO_LARGE, error.reason)
        except BadImage as error:
            return DecodeFailure(UNREADABLE, error.reason)
        except MemoryError:
            return DecodeFailure(TOO_LARGE, "there is not enough memory to decode it")
        except Exception:
            log.exception("A picture could not be decoded, and it is not known why.")
            return DecodeFailure(FAILED, "the server failed to decode it")
        return None

    # ── computing, in one thread or two ───────────────────────────────────────────────────────────────────────

    def _compute(self) -> None:
        while True:
            with self._changed:
                line, patience = self._next()
                while line is None:
                    if self._closing and patience is None:
                        return
                    self._changed.wait(patience)
                    line, patience = self._next()
                count = min(len(line.waiting), self._settings.max_batch)
                pictures = [line.waiting.popleft() for _ in range(count)]
                self._computing[line.served.name] += 1
                threads = max(1, self._cores // self._computing.total())
            try:
                self._take(line, pictures, threads)
            finally:
                with self._changed:
                    self._computing[line.served.name] -= 1
                    self._changed.notify()  # what had to wait for this one

    def _take(self, line: _Line, pictures: Sequence[_Picture], threads: int) -> None:
        """Compute the batch `pictures`, and answer."""
        wanted = [picture for picture in pictures if not picture.request.gone]
        dropped = [picture for picture in pictures if picture.request.gone]
        self._finish(dropped, [None] * len(dropped))
        if wanted:
            if torch.get_num_threads() != threads:
                torch.set_num_threads(threads)  # of this thread's work
            self._finish(wanted, self._ask(line, wanted))

    @property
    def _half(self) -> int:
        """Pictures that are worth a batch beside another."""
        return -(-self._settings.max_batch // 2)

    def _is_free(self, line: _Line) -> bool:
        """Whether the network may compute what waits in `line`."""
        already = self._computing[line.served.name]
        return not already or (line.served.shared and len(line.waiting) >= self._half)

    def _next(self) -> tuple[_Line | None, float | None]:
        """The line whose batch starts now; else None, and the seconds until one must (None: nobody waits, or must wait
        until a network is free)."""
        waiting = [line for line in self._lines.values() if line.waiting and self._is_free(line)]
        if not waiting:
            return None, None
        now, delay = time.monotonic(), self._settings.max_delay_ms / 1000
        ready = [
            line
            for line in waiting
            if not line.coming or len(line.waiting) >= self._settings.max_batch or now - line.waiting[0].since >= delay
        ]
        if ready:
            return min(ready, key=lambda line: line.waiting[0].since), None
        return None, min(line.waiting[0].since for line in waiting) + delay - now

    def _ask(self, line: _Line, pictures: Sequence[_Picture]) -> Sequence[Outcome]:
        start = time.perf_counter()
        try:
            found = line.compute(pictures)
        except Exception:
            log.exception("The network %s failed.", line.served.name)
            return [DecodeFailure(FAILED, "the network failed")] * len(pictures)
        seconds = time.perf_counter() - start
        self._metrics.batch(line.served.name, len(pictures), seconds)
        self._seconds_each += 0.1 * (seconds / len(pictures) / line.views - self._seconds_each)
        return found

    def _finish(self, pictures: Sequence[_Picture], outcomes: Iterable[Outcome | None]) -> None:
        """Hand in `outcomes`, None of a picture that was dropped, and wake the requests that are complete."""
        complete: dict[asyncio.AbstractEventLoop, list[_Request]] = {}
        ends: Counter[tuple[str, str]] = Counter()
        with self._changed:
            for picture, outcome in zip(pictures, outcomes, strict=True):
                request = picture.request
                self._inside -= picture.line.views
                request.outcomes[picture.place] = outcome
                request.left -= 1
                result = (
                    DROPPED if outcome is None else outcome.result if isinstance(outcome, DecodeFailure) else ANSWERED
                )
                ends[picture.line.served.name, result] += 1
                if not request.left and not request.gone:
                    complete.setdefault(request.loop, []).append(request)
        for (name, result), count in ends.items():
            self._metrics.picture(name, result, count)
        for loop, requests in complete.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(_wake, requests)  # once for the batch: each call wakes the loop


def _wake(requests: list[_Request]) -> None:
    for request in requests:
        request.wake()
