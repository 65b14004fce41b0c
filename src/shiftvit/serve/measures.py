"""The figures of `/metrics`, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Measures:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "shiftvit_requests", "Requests that were answered.", ["route", "method", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "shiftvit_request_seconds",
            "Seconds from the headers of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._images = Counter("shiftvit_images", "Images that were classified.", ["model"], registry=self.registry)
        self._sizes = Histogram(
            "shiftvit_batch_images", "Images in a batch.", ["model"], buckets=_SIZES, registry=self.registry
        )
        self._queue = Gauge(
            "shiftvit_queue_images", "Images that wait for an answer.", ["model"], registry=self.registry
        )

    def count_request(self, route: str, method: str, status: int, seconds: float) -> None:
        self._requests.labels(route, method, status).inc()
        self._seconds.labels(route).observe(seconds)

    def count_batch(self, model: str, images: int) -> None:
        self._images.labels(model).inc(images)
        self._sizes.labels(model).observe(images)

    def watch_queue(self, model: str, pending: Callable[[], int]) -> None:
        self._queue.labels(model).set_function(pending)

    def render(self) -> bytes:
        return generate_latest(self.registry)
