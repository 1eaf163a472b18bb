"""Continuous batching: continuations of many lengths, begun and ended at any time, decoded together.

One thread runs the engine. A round of it reads one segment of one long prompt, and then one token of everything that is
being written: a long prompt delays the others by a segment at most, and a token costs all of them one pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from mm_rec.errors import MMRecError
from mm_rec.inference.engine import FEW_TOKENS, Chosen, Continuation, Engine


class QueueFullError(MMRecError):
    """More is waiting than may wait; the same request can be made again later."""


class Work:
    """A continuation that others are decoded with.

    `on_token` is called with each token, and once with None when there are no more: `continuation.ended_by` then says
    why, or `error` what went wrong. It is called by the engine's thread and must return at once.
    """

    def __init__(self, continuation: Continuation, on_token: Callable[[Chosen | None], None]) -> None:
        self.continuation, self.on_token = continuation, on_token
        self.error: Exception | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """Stop before the next token, from any thread; `on_token` gets its None."""
        self._cancelled = True

    @property
    def unread(self) -> int:
        """Tokens that must be read before the next can be chosen."""
        return len(self.continuation.session.unread)

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._cancelled or self.error is not None or bool(self.continuation.ended_by)


class Batcher:
    """Runs an engine for many at once. At most `most` are read or written, and `queue` wait."""

    def __init__(self, engine: Engine, most: int = 8, queue: int = 64) -> None:
        self.engine, self.most, self.queue = engine, most, queue
        self._waiting: deque[Work] = deque()
        self._active: list[Work] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def active(self) -> int:
        """How many are being read or written."""
        return len(self._active)

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def submit(self, work: Work) -> None:
        """Take on a continuation; raises QueueFullError where too many wait."""
        with self._changed:
            if self._closed or len(self._waiting) >= self.queue:
                raise QueueFullError(
                    "the server is stopping"
                    if self._closed
                    else f"{self.queue} requests wait already: ask again later"
                )
            self._waiting.append(work)
            self._changed.notify()

    def close(self) -> None:
        """End everything that is not done, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._admit():
            self._round()
        for work in [*self._active, *self._waiting]:
            work.cancel()
            work.on_token(None)

    def _admit(self) -> bool:
        """Fill the free places; waits while there is nothing to do. False when the batcher is closed."""
        with self._changed:
            while not (self._closed or self._active or self._waiting):
                self._changed.wait()
            while self._waiting and len(self._active) < self.most:
                self._active.append(self._waiting.popleft())
            return not self._closed

    def _round(self) -> None:
        long = [work for work in self._active if work.unread > FEW_TOKENS and not work.done]
        if long:
            # The one with least to read: a short prompt does not wait for the whole of a long one.
            work = min(long, key=lambda one: one.unread)
            self._guarded([work], lambda: self.engine.read_segment(work.continuation.session))
        ready = [work for work in self._active if work.unread <= FEW_TOKENS and not work.done]
        self._guarded(ready, lambda: self.engine.read([work.continuation.session for work in ready]))
        for work in ready:
            self._guarded([work], partial(self._advance, work))
        for work in [work for work in self._active if work.done]:
            self._active.remove(work)
            work.on_token(None)

    def _advance(self, work: Work) -> None:
        if not work.done:
            chosen = work.continuation.advance()
            if chosen is not None:
                work.on_token(chosen)

    def _guarded(self, concerned: list[Work], do: Callable[[], None]) -> None:
        """Do something; an error ends those concerned and nobody else."""
        try:
            do()
        except Exception as error:  # noqa: BLE001  # whatever it is, the thread must go on for the others
            for work in concerned:
                work.error = error
