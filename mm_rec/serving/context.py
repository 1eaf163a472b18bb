"""What the routes share (`ServerContext`), and what the answer to one request needs (`RequestContext`)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from fastapi import Request
from transformers import PreTrainedTokenizerBase

from mm_rec.serving.generation import TokenUsage, UsageMeter
from mm_rec.serving.grammar_threads import GrammarThreads
from mm_rec.serving.metrics import ServerMetrics
from mm_rec.serving.model_registry import ModelRegistry, ModelVariant
from mm_rec.serving.request_log import RequestRecord, record_of
from mm_rec.serving.sessions import SessionManager
from mm_rec.serving.store_threads import StoreThreads
from mm_rec.serving.usage import UsageRecorder
from mm_rec.store.store import Store


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
    `share_prefixes`: what was read for one key is not read again for another, which thus learns that it was read.
    """

    def __init__(
        self,
        registry: ModelRegistry,
        store: Store,
        sessions: SessionManager,
        limits: RequestLimits,
        *,
        truncate: bool = False,
        share_prefixes: bool = False,
    ) -> None:
        self.registry, self.store, self.sessions, self.limits = registry, store, sessions, limits
        self.truncate, self.share_prefixes = truncate, share_prefixes
        registry.manager.on_unload.append(sessions.let_go)
        self.metrics = ServerMetrics(registry)
        self.usage, self.store_threads = UsageRecorder(store), StoreThreads()
        self.grammar_threads = GrammarThreads()

    def record_usage(self, owner: str | None, variant: ModelVariant, usage: TokenUsage) -> None:
        """Count the tokens of a request."""
        self.metrics.count_tokens(
            variant.model.name, usage.prompt_tokens - usage.cached_tokens, usage.completion_tokens
        )
        self.usage.add(owner, usage.prompt_tokens, usage.completion_tokens)

    def close(self) -> None:
        """End running requests, and write all usage."""
        self.registry.close()
        self.grammar_threads.close()
        self.store_threads.close()
        self.sessions.close()
        self.usage.close()
        self.store.close()


@dataclass(frozen=True, slots=True)
class RequestContext:
    """What the answer to one request needs: the server, the model that it names, and the owner of its key.

    `started`: when the request came, in seconds of `time.perf_counter`; `record`: what the log will say of it.
    """

    server: ServerContext
    owner: str | None
    variant: ModelVariant
    started: float
    record: RequestRecord = field(default_factory=RequestRecord)
    meter: UsageMeter = field(default_factory=UsageMeter)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer of the model."""
        return self.variant.model.tokenizer

    @property
    def limits(self) -> RequestLimits:
        """Return the limits of a request."""
        return self.server.limits

    @property
    def prefix_owner(self) -> str | None:
        """Return whose cached prefixes a prompt may begin with."""
        return None if self.server.share_prefixes else self.owner

    @property
    def seconds_left(self) -> float:
        """Return how long the request may still take."""
        return self.limits.timeout_seconds - (time.perf_counter() - self.started)

    def record_first_token(self) -> None:
        """Record the time to the first token, which is now."""
        self.record.first_token = time.perf_counter()
        self.server.metrics.observe_first_token(self.variant.model.name, self.started)

    def record_usage(self, usage: TokenUsage) -> None:
        """Count the tokens of a request that was answered."""
        self.meter.is_recorded = True
        self.record.add_usage(usage)
        self.server.record_usage(self.owner, self.variant, usage)

    def record_unanswered(self) -> None:
        """Count what was read and written for a request that was given up or failed."""
        if not self.meter.is_recorded and (usage := self.meter.usage()) is not None:
            self.record_usage(usage)


@contextlib.contextmanager
def request_context(request: Request, model: str | None) -> Iterator[RequestContext]:
    """Make the context of a request to a model, the first where it names none; the model stays loaded meanwhile.

    At its end the usage is counted, also of a request that nobody waited for.

    Raises ApiError, 404.
    """
    server, started, record = get_context(request), time.perf_counter(), record_of(request)
    with server.registry.lease(model) as variant:
        record.model = variant.name
        context = RequestContext(server, get_owner(request), variant, started, record)
        try:
            yield context
        finally:
            context.record_unanswered()


def get_context(request: Request) -> ServerContext:
    """Return the context of the server that got a request."""
    context: ServerContext = request.app.state.context
    return context


def get_owner(request: Request) -> str | None:
    """Return the id of the API key of a request; None on a server without keys."""
    owner: str | None = getattr(request.state, "owner", None)
    return owner
