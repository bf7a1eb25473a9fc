"""Prometheus metrics of a server, exposed at /metrics: requests, latencies, batches, queue length, image outcomes."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # seconds
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

ANSWERED, UNREADABLE, TOO_LARGE, DROPPED, FAILED = "answered", "unreadable", "too large", "dropped", "failed"
"""Outcomes of an image. dropped: the client disconnected. failed: an internal error."""


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.accepted = 0
        """Requests that arrived."""
        self.answered = 0
        """Of these, those whose response was sent completely, or whose client disconnected."""
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU time, open files
        self._requests = self._counter("alexnet_requests", "Requests by route and status", "route", "status")
        self._latency = Histogram(
            "alexnet_request_seconds", "Time from request head to response", ("route",),
            buckets=LATENCY_BUCKETS, registry=self._registry,
        )  # fmt: skip
        self._images = self._counter("alexnet_images", "Images by outcome", "model", "result")
        self._batches = Histogram(
            "alexnet_batch_images", "Images per batch", ("model",), buckets=BATCH_BUCKETS, registry=self._registry
        )
        self._compute = self._counter("alexnet_network_seconds", "Model compute time", "model")
        self._by_route: dict[tuple[str, int], tuple[Counter, Histogram]] = {}  # saves the label lookup per request
        self._errors = self._counter("alexnet_errors", "Internal server errors")

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Count a completed request. `route` is a declared path, never the requested one (unbounded label values)."""
        series = self._by_route.get((route, status))
        if series is None:
            series = self._requests.labels(route, str(status)), self._latency.labels(route)
            self._by_route[route, status] = series
        series[0].inc()
        series[1].observe(seconds)

    def count_images(self, model: str, result: str, count: int = 1) -> None:
        """Count `count` images with the outcome `result`."""
        self._images.labels(model, result).inc(count)

    def count_batch(self, model: str, size: int, seconds: float) -> None:
        """Count a computed batch."""
        self._batches.labels(model).observe(size)
        self._compute.labels(model).inc(seconds)

    def count_error(self) -> None:
        """Count an internal error."""
        self._errors.inc()

    def add_gauge(self, name: str, description: str, value: Callable[[], float]) -> None:
        """Export `value()`, evaluated at each scrape."""
        Gauge(name, description, registry=self._registry).set_function(value)

    def render(self) -> bytes:
        """Return all metrics in Prometheus text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(name, description, labels, registry=self._registry)
