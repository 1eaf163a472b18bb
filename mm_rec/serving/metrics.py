"""The figures of a server for Prometheus, under /metrics."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mm_rec.serving.models import Registry

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Figures:
    """Counters of requests and tokens, times, and what is going on now."""

    def __init__(self, registry: Registry) -> None:
        self._all = CollectorRegistry()
        self._requests = Counter(
            "mmrec_requests", "Requests answered.", ["route", "status"], registry=self._all
        )
        self._tokens = Counter(
            "mmrec_tokens", "Tokens read and written.", ["model", "kind"], registry=self._all
        )
        self._first = Histogram(
            "mmrec_first_token_seconds", "From a request to its first token.", ["model"],
            buckets=_SECONDS, registry=self._all,
        )  # fmt: skip
        batcher = registry.batcher
        self._gauge("active", "Requests being read or written.").set_function(lambda: batcher.active)
        self._gauge("waiting", "Requests waiting for a place.").set_function(lambda: batcher.waiting)
        self._gauge("kept_bytes", "States kept to be gone on with.").set_function(
            lambda: sum(model.prefixes.bytes for model in registry.models)
        )

    def _gauge(self, name: str, what: str) -> Gauge:
        return Gauge(f"mmrec_{name}", what, registry=self._all)

    def count_request(self, route: str, status: int) -> None:
        """Note an answer."""
        self._requests.labels(route, status).inc()

    def count_tokens(self, model: str, read: int, written: int) -> None:
        """Note tokens that were read, without those that need not be read again, and written."""
        self._tokens.labels(model, "read").inc(read)
        self._tokens.labels(model, "written").inc(written)

    def first_token(self, model: str, begun: float) -> None:
        """Note that the first token of a request came, which began at this time of `time.perf_counter`."""
        self._first.labels(model).observe(time.perf_counter() - begun)

    def text(self) -> bytes:
        """All of them in Prometheus' format."""
        return generate_latest(self._all)
