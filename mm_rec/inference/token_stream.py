"""The tokens of a request to the engine as an asynchronous stream: the engine's thread writes, an event loop reads."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator

from mm_rec.errors import MMRecError
from mm_rec.inference.request import GenerationRequest
from mm_rec.inference.sampler import SampledToken
from mm_rec.inference.scheduler import Scheduler

POLL_SECONDS = 0.02
TOO_LONG = "this took longer than the server allows: ask for less"


class RequestTimeoutError(MMRecError):
    """A request took longer than it may."""


class RequestAbortedError(MMRecError):
    """A request was ended before it was done: the server stops."""


class TokenStream:
    """The tokens of one request.

    The loop looks at most every `POLL_SECONDS` seconds, and at all requests at once: waking it for every token would
    take the engine more time than the tokens do. `seconds` is the longest that the request may take. Raises
    QueueFullError where too many wait. `state` has what else was asked for when the stream has ended.
    """

    def __init__(self, scheduler: Scheduler, request: GenerationRequest, seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._token_ready, self._ended = asyncio.Event(), asyncio.Event()
        self._deadline = self._loop.time() + seconds
        self._tokens: deque[SampledToken] = deque()
        self._loop_is_waiting, self._has_begun = True, False
        self.state = scheduler.submit(request, self._on_token)

    def cancel(self) -> None:
        """Have no more tokens written; of no effect where the request has ended."""
        self.state.cancel()

    def _on_token(self, chosen: SampledToken | None) -> None:
        """Keep a token, and wake the loop if it waits for one; called by the engine's thread."""
        if chosen is not None:
            self._tokens.append(chosen)
        if self._loop_is_waiting or chosen is None:
            self._loop_is_waiting = False
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
                self._loop.call_soon_threadsafe(self._wake, chosen is None)

    def _wake(self, ended: bool) -> None:
        self._token_ready.set()
        if ended:
            self._ended.set()

    async def tokens(self) -> AsyncGenerator[list[SampledToken], None]:
        """Yield tokens as they come, at least one a time.

        Raises the engine's error, RequestTimeoutError at the deadline, and RequestAbortedError where the server stops.
        """
        try:
            while not self._ended.is_set() or self._tokens:
                await self._wait()
                if tokens := [self._tokens.popleft() for _ in range(len(self._tokens))]:
                    yield tokens
            if self.state.error is not None:
                raise self.state.error
            if not self.state.finished:
                raise RequestAbortedError("the server is stopping")
        finally:
            self.cancel()

    async def _wait(self) -> None:
        """Wait for the next token, and, but for the first, for those that come soon after it."""
        if self._ended.is_set():
            return
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._token_ready.wait()
        except TimeoutError as error:
            raise RequestTimeoutError(TOO_LONG) from error
        if self._has_begun:
            next_look = (self._loop.time() // POLL_SECONDS + 1) * POLL_SECONDS  # the same for all
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_look):
                    await self._ended.wait()
        self._has_begun = True
        self._token_ready.clear()
        self._loop_is_waiting = True
