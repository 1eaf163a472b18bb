"""The metrics of a server for Prometheus, under /metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mm_rec.serving.model_registry import ModelRegistry

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class ServerMetrics:
    """Counters of requests and tokens, time to first token, and gauges of current load."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._collectors = CollectorRegistry()
        self._requests = Counter(
            "mmrec_requests", "Requests answered.", ["route", "status"], registry=self._collectors
        )
        self._tokens = Counter(
            "mmrec_tokens", "Tokens read and written.", ["model", "kind"], registry=self._collectors
        )
        self._first = Histogram(
            "mmrec_first_token_seconds", "From a request to its first token.", ["model"],
            buckets=_SECONDS, registry=self._collectors,
        )  # fmt: skip
        scheduler = registry.scheduler
        self._gauge("active", "Requests being read or written.").set_function(lambda: scheduler.num_running)
        self._gauge("waiting", "Requests waiting for a place.").set_function(lambda: scheduler.num_waiting)
        self._gauge("kept_bytes", "States kept to be gone on with.").set_function(
            lambda: sum(model.prefix_cache.bytes for model in registry.models)
        )

        self._stored = self._gauge("stored", "Responses and sessions in the store.", ["kind"])
        self._stored_bytes = self._gauge("stored_bytes", "What they take.", ["kind"])

    def _gauge(self, name: str, what: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(f"mmrec_{name}", what, labels, registry=self._collectors)

    def set_stored(self, kept: Mapping[str, tuple[int, int]]) -> None:
        """Take over how many things of each kind are in the store, and their bytes."""
        for kind, (count, size) in kept.items():
            self._stored.labels(kind).set(count)
            self._stored_bytes.labels(kind).set(size)

    def count_request(self, route: str, status: int) -> None:
        """Count a response."""
        self._requests.labels(route, status).inc()

    def count_tokens(self, model: str, read: int, written: int) -> None:
        """Count prompt tokens, without cached ones, and generated tokens."""
        self._tokens.labels(model, "read").inc(read)
        self._tokens.labels(model, "written").inc(written)

    def observe_first_token(self, model: str, started: float) -> None:
        """Record the time to first token of a request that started at this time of `time.perf_counter`."""
        self._first.labels(model).observe(time.perf_counter() - started)

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._collectors)
