"""The figures of a server for Prometheus, under /metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from mm_rec.serving.models import Registry, ServedModel

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

_Value = Callable[[ServedModel], float]
_NOW: tuple[tuple[str, str, _Value], ...] = (
    ("active", "Requests being read or written.", lambda model: model.batcher.active),
    ("waiting", "Requests waiting for a place.", lambda model: model.batcher.waiting),
    ("kept_bytes", "States kept to be gone on with.", lambda model: model.prefixes.bytes),
)


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
        for name, what, value in _NOW:
            gauge = Gauge(f"mmrec_{name}", what, ["model"], registry=self._all)
            for model in registry.models:
                gauge.labels(model.name).set_function(partial(value, model))

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
