"""What the routes share (`ServerContext`), and what the answer to one request needs (`RequestContext`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import Request
from transformers import PreTrainedTokenizerBase

from mm_rec.serving.generation import TokenUsage
from mm_rec.serving.metrics import ServerMetrics
from mm_rec.serving.model_registry import ModelRegistry, ModelVariant
from mm_rec.serving.sessions import SessionManager
from mm_rec.serving.store.store import Store, today


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of one request.

    `max_tokens`: the most that are written, and as many where a request does not say; `max_prompt_tokens`: the most
    that are read, of all its prompts together; `timeout_seconds`: the longest time, from its beginning to its end.
    """

    max_tokens: int = 8_192
    max_prompt_tokens: int = 262_144
    timeout_seconds: float = 600.0


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
        registry.manager.on_unload.append(sessions.let_go)
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


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What the answer to one request needs: the server, the model that it names, and the owner of its key.

    `started`: when the request came, in seconds of `time.perf_counter`.
    """

    server: ServerContext
    owner: str | None
    variant: ModelVariant
    started: float

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the model."""
        return self.variant.model.tokenizer

    @property
    def limits(self) -> RequestLimits:
        """Return the limits of a request."""
        return self.server.limits

    @property
    def seconds_left(self) -> float:
        """Return how long the request may still take."""
        return self.limits.timeout_seconds - (time.perf_counter() - self.started)

    def record_first_token(self) -> None:
        """Record the time to the first token, which is now."""
        self.server.metrics.observe_first_token(self.variant.model.name, self.started)

    def record_usage(self, usage: TokenUsage) -> None:
        """Count the tokens of the request."""
        self.server.record_usage(self.owner, self.variant, usage)


@contextlib.contextmanager
def request_context(request: Request, model: str | None) -> Iterator[RequestContext]:
    """Make the context of a request to a model, the first where it names none; the model stays loaded meanwhile.

    Raises ApiError, 404.
    """
    server, started = get_context(request), time.perf_counter()
    with server.registry.lease(model) as variant:
        yield RequestContext(server, get_owner(request), variant, started)


def get_context(request: Request) -> ServerContext:
    """Return the context of the server that got a request."""
    context: ServerContext = request.app.state.context
    return context


def get_owner(request: Request) -> str | None:
    """Return the id of the API key of a request; None on a server without keys."""
    owner: str | None = getattr(request.state, "owner", None)
    return owner
