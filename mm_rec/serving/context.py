"""The context that the routes of a server share (models, store, limits, metrics), and the owner of a request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fastapi import Request

from mm_rec.serving.generation import TokenUsage
from mm_rec.serving.metrics import ServerMetrics
from mm_rec.serving.model_registry import ModelRegistry, ModelVariant
from mm_rec.serving.protocol.preprocessing import RequestLimits
from mm_rec.serving.sessions import SessionManager
from mm_rec.serving.store.store import Store, today


class ServerContext:
    """The parts of one server.

    `truncate`: where a context is full, the oldest turns of a conversation are dropped unless a request says otherwise.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        store: Store,
        sessions: SessionManager,
        limits: RequestLimits,
        *,
        truncate: bool = False,
    ) -> None:
        self.registry, self.store, self.sessions, self.limits = registry, store, sessions, limits
        self.truncate = truncate
        self.metrics = ServerMetrics(registry)
        self._writer = ThreadPoolExecutor(1, "usage")

    def record_usage(self, owner: str | None, variant: ModelVariant, usage: TokenUsage) -> None:
        """Count the tokens of a request; a thread of its own writes them to the store."""
        self.metrics.count_tokens(
            variant.model.name, usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
        )
        self._writer.submit(
            self.store.count_usage, owner, today(), usage.prompt_tokens, usage.completion_tokens
        )

    def close(self) -> None:
        """End running requests, and wait until all usage is written."""
        self.registry.close()
        self._writer.shutdown()
        self.store.close()


def get_context(request: Request) -> ServerContext:
    """Return the context of the server that got a request."""
    context: ServerContext = request.app.state.context
    return context


def get_owner(request: Request) -> str | None:
    """Return the id of the API key of a request; None on a server without keys."""
    owner: str | None = getattr(request.state, "owner", None)
    return owner
