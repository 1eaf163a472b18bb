"""Continuous batching: continuations of many lengths, begun and ended at any time, decoded together.

One thread runs the engine. A round of it reads one segment of one long prompt, and then one token of everything that is
being written: a long prompt delays the others by a segment at most, and a token costs all of them one pass.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import torch

from mm_rec.errors import MMRecError
from mm_rec.inference.engine import MAX_KERNEL_TOKENS, Generation, Session
from mm_rec.inference.sampler import SampledToken


class QueueFullError(MMRecError):
    """More is waiting than may wait; the same request can be made again later."""


class RequestState:
    """A session that is read, and written where there is a generation, along with others.

    The session reads `parts` of ids one after the other. `on_prefilled` is called with the number of each when it was
    read and nothing after it, which is the time to copy the session. `on_token` is called with each token of the
    generation, and once with None when all is done: `error` then says what went wrong, if anything did, and
    `generation.finish_reason` how it ended. Both are called by the engine's thread and must return at once.

    `prefill_chunk` takes the engine's place in reading, segment by segment, where more is asked than the state.
    """

    def __init__(
        self, session: Session, parts: Sequence[Sequence[int]], on_token: Callable[[SampledToken | None], None], *,
        generation: Generation | None = None, on_prefilled: Callable[[int], None] | None = None,
        prefill_chunk: Callable[[Session], None] | None = None,
    ) -> None:  # fmt: skip
        """Raises ConfigError for ids that are none."""
        self.session, self.generation, self.on_token = session, generation, on_token
        self.error: Exception | None = None
        for part in parts:
            session.engine.require_tokens(part)
        self._parts, self._next_part = [list(part) for part in parts], 0
        self._on_prefilled, self._prefilling = on_prefilled, False
        self._prefill_chunk = prefill_chunk
        self._cancelled, self._ended = False, False
        self._begin_part()

    def cancel(self) -> None:
        """Stop before the next token, from any thread; `on_token` gets its None."""
        self._cancelled = True

    @property
    def remaining_prompt_tokens(self) -> int:
        """Tokens that are still to be read before the first can be sampled."""
        return len(self.session.pending_ids) + sum(map(len, self._parts[self._next_part :]))

    @property
    def needs_prefill(self) -> bool:
        """Whether the next that it reads is a segment of its own, and not a few tokens along with those of others."""
        return len(self.session.pending_ids) > (0 if self._prefill_chunk else MAX_KERNEL_TOKENS)

    @property
    def finished(self) -> bool:
        """Whether all was read and written."""
        return self._ended

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._cancelled or self.error is not None or self._ended

    def prefill(self) -> None:
        """Read a segment."""
        (self._prefill_chunk or self.session.engine.prefill_chunk)(self.session)

    def step(self) -> None:
        """After the session has read what it was given: give it the next part, or choose the next token."""
        if self.done:
            return
        if self._prefilling and self._on_prefilled is not None:
            self._on_prefilled(self._next_part - 1)
        self._prefilling = False
        if self._next_part < len(self._parts):
            self._begin_part()
        elif self.generation is None:
            self._ended = True
        else:
            sampled = self.generation.step()
            self._ended = bool(self.generation.finish_reason)
            if sampled is not None:
                self.on_token(sampled)

    def end(self) -> None:
        """Tell that all is done, and let go of those told: no state is to wait for a collection of cycles."""
        tell, self.on_token, self._on_prefilled, self._prefill_chunk = self.on_token, _ignore, None, None
        tell(None)

    def _begin_part(self) -> None:
        if self._next_part < len(self._parts):
            self.session.append(self._parts[self._next_part])
            self._next_part, self._prefilling = self._next_part + 1, True


def _ignore(sampled: SampledToken | None) -> None:
    """Nobody listens any more."""


class Scheduler:
    """Runs engines for many at once. At most `max_running` are read or written, and `max_waiting` wait.

    There is one for all models of a program: threads of one team wait for each other by spinning, which is only fast
    while there are no more of them than processors. Other threads should compute with one (`torch.set_num_threads`).
    """

    def __init__(self, max_running: int = 8, max_waiting: int = 64) -> None:
        self.max_running, self.max_waiting = max_running, max_waiting
        self._threads = torch.get_num_threads()
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """How many are being read or written."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def submit(self, request: RequestState) -> None:
        """Take on a generation; raises QueueFullError where too many wait."""
        with self._changed:
            # Both are counted: what just came waits for a moment even where a place is free.
            if self._closed or len(self._running) + len(self._waiting) >= self.max_running + self.max_waiting:
                raise QueueFullError(
                    "the server is stopping"
                    if self._closed
                    else f"{self.max_waiting} requests wait already: ask again later"
                )
            self._waiting.append(request)
            self._changed.notify()

    def close(self) -> None:
        """End everything that is not done, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        # Of this thread; others may have set another number for themselves.
        torch.set_num_threads(self._threads)
        while self._admit():
            self.step()
        for request in [*self._running, *self._waiting]:
            request.cancel()
            request.end()

    def _admit(self) -> bool:
        """Fill the free places; waits while there is nothing to do. False when the scheduler is closed."""
        with self._changed:
            while not (self._closed or self._running or self._waiting):
                self._changed.wait()
            while self._waiting and len(self._running) < self.max_running:
                self._running.append(self._waiting.popleft())
            return not self._closed

    def step(self) -> None:
        """Prefill a chunk of one long prompt, then decode one token of every other running request."""
        long = [request for request in self._running if request.needs_prefill and not request.done]
        if long:
            # The one with least to read: a short prompt does not wait for the whole of a long one.
            request = min(long, key=lambda one: one.remaining_prompt_tokens)
            self._guarded([request], request.prefill)
        ready = [request for request in self._running if not (request.needs_prefill or request.done)]
        for engine in {request.session.engine for request in ready}:
            together = [request for request in ready if request.session.engine is engine]
            self._guarded(together, partial(engine.forward, [request.session for request in together]))
        for request in ready:
            self._guarded([request], request.step)
        for request in [request for request in self._running if request.done]:
            self._running.remove(request)
            request.end()

    def _guarded(self, concerned: list[RequestState], do: Callable[[], None]) -> None:
        """Do something; an error ends those concerned and nobody else."""
        try:
            do()
        except Exception as error:  # noqa: BLE001  # whatever it is, the thread must go on for the others
            for request in concerned:
                request.error = error
