"""What a server counts, in Prometheus's format at /metrics: requests, latencies, batches, the queue, pictures."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)

ANSWERED, UNREADABLE, TOO_LARGE, DROPPED, FAILED = "answered", "unreadable", "too large", "dropped", "failed"
"""What becomes of a picture. dropped: its client was gone. failed: a fault of ours."""


class Metrics:
    """The counts of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time, open files
        self._requests = self._counter("alexnet_requests", "Requests that were answered", "route", "status")
        self._latency = Histogram(
            "alexnet_request_seconds", "From a request's head to its answer", ("route",),
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._pictures = self._counter("alexnet_pictures", "Pictures by what became of them", "model", "result")
        self._batches = Histogram(
            "alexnet_batch_pictures", "Pictures that were computed together", ("model",),
            buckets=SIZES, registry=self._registry,
        )  # fmt: skip
        self._network = self._counter("alexnet_network_seconds", "Time that networks computed", "model")
        self._of_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # to look for each request up once
        self._errors = self._counter("alexnet_errors", "Faults of the server's own")

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered. `route` is a path as it is declared, never one as it was asked for."""
        both = self._of_route.get((route, status))
        if both is None:
            both = self._requests.labels(route, str(status)), self._latency.labels(route)
            self._of_route[route, status] = both
        both[0].inc()
        both[1].observe(seconds)

    def picture(self, model: str, result: str, count: int = 1) -> None:
        """`count` pictures came to their end."""
        self._pictures.labels(model, result).inc(count)

    def batch(self, model: str, size: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.labels(model).observe(size)
        self._network.labels(model).inc(seconds)

    def error(self) -> None:
        """Something failed that should not have."""
        self._errors.inc()

    def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
        """Tell `value()` whenever somebody looks."""
        Gauge(name, what, registry=self._registry).set_function(value)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self._registry)

    def _counter(self, name: str, what: str, *labels: str) -> Counter:
        return Counter(name, what, labels, registry=self._registry)
