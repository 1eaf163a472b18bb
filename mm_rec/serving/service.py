"""What the routes of a server share: models, store, limits, figures; and who is asking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request

from mm_rec.serving.errors import ApiError, as_api_error
from mm_rec.serving.figures import Figures
from mm_rec.serving.generation import Usage
from mm_rec.serving.models import Registry, Served
from mm_rec.serving.requests import Limits
from mm_rec.serving.sessions import Sessions
from mm_rec.serving.store import Store, today
from mm_rec.serving.wire import event

_Result = TypeVar("_Result")


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


async def unless_gone(request: Request, answer: Coroutine[Any, Any, _Result]) -> _Result:
    """Wait for an answer as long as there is somebody to give it to."""
    task = asyncio.create_task(answer)
    gone = asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has gone")  # nobody reads it
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def with_errors(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream that ends with an error in OpenAI's shape where one comes up: its status was sent long ago."""
    try:
        async for one in events:
            yield one
    except Exception as error:  # noqa: BLE001  # as in every route, but the answer has begun
        yield event(as_api_error(error).body)
