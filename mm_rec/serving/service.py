"""What the routes of a server share: models, store, limits, figures; and who is asking."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fastapi import Request

from mm_rec.serving.generation import Usage
from mm_rec.serving.metrics import Figures
from mm_rec.serving.models import Registry, Served
from mm_rec.serving.requests import Limits
from mm_rec.serving.sessions import Sessions
from mm_rec.serving.store import Store, today


class Service:
    """The parts of one server.

    `shorten`: where a context is full, the oldest turns of a conversation are dropped unless a request says otherwise.
    """

    def __init__(
        self, registry: Registry, store: Store, sessions: Sessions, limits: Limits, *, shorten: bool = False
    ) -> None:
        self.registry, self.store, self.sessions, self.limits = registry, store, sessions, limits
        self.shorten = shorten
        self.figures = Figures(registry)
        self._writer = ThreadPoolExecutor(1, "usage")

    def account(self, owner: str | None, served: Served, usage: Usage) -> None:
        """Note what a request used; the store is written to on the side."""
        self.figures.count_tokens(served.model.name, usage.prompt - usage.cached, usage.completion)
        self._writer.submit(self.store.count_usage, owner, today(), usage.prompt, usage.completion)

    def close(self) -> None:
        """End what is being written, and wait until all is noted."""
        self.registry.close()
        self._writer.shutdown()
        self.store.close()


def service_of(request: Request) -> Service:
    """The service that a request is for."""
    service: Service = request.app.state.service
    return service


def owner_of(request: Request) -> str | None:
    """The id of the key that a request came with; None on a server without keys."""
    owner: str | None = getattr(request.state, "owner", None)
    return owner
