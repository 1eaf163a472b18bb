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
from mm_rec.inference.engine import FEW_TOKENS, Continuation, Session
from mm_rec.inference.sampling import Chosen


class QueueFullError(MMRecError):
    """More is waiting than may wait; the same request can be made again later."""


class Work:
    """A session that is read, and written where there is a continuation, along with others.

    The session reads `parts` of ids one after the other. `on_read` is called with the number of each when it was read
    and nothing after it, which is the time to copy the session. `on_token` is called with each token of the
    continuation, and once with None when all is done: `error` then says what went wrong, if anything did, and
    `continuation.ended_by` how it ended. Both are called by the engine's thread and must return at once.

    `read_segment` takes the engine's place in reading, segment by segment, where more is asked than the state.
    """

    def __init__(
        self, session: Session, parts: Sequence[Sequence[int]], on_token: Callable[[Chosen | None], None], *,
        continuation: Continuation | None = None, on_read: Callable[[int], None] | None = None,
        read_segment: Callable[[Session], None] | None = None,
    ) -> None:  # fmt: skip
        """Raises ConfigError for ids that are none."""
        self.session, self.continuation, self.on_token = session, continuation, on_token
        self.error: Exception | None = None
        for part in parts:
            session.engine.require_tokens(part)
        self._parts, self._begun = [list(part) for part in parts], 0
        self._on_read, self._reading = on_read, False
        self._read_segment = read_segment
        self._cancelled, self._ended = False, False
        self._begin_part()

    def cancel(self) -> None:
        """Stop before the next token, from any thread; `on_token` gets its None."""
        self._cancelled = True

    @property
    def left(self) -> int:
        """Tokens that are still to be read before the first can be chosen."""
        return len(self.session.unread) + sum(map(len, self._parts[self._begun :]))

    @property
    def reads_segments(self) -> bool:
        """Whether the next that it reads is a segment of its own, and not a few tokens along with those of others."""
        return len(self.session.unread) > (0 if self._read_segment else FEW_TOKENS)

    @property
    def finished(self) -> bool:
        """Whether all was read and written."""
        return self._ended

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._cancelled or self.error is not None or self._ended

    def read(self) -> None:
        """Read a segment."""
        (self._read_segment or self.session.engine.read_segment)(self.session)

    def go_on(self) -> None:
        """After the session has read what it was given: give it the next part, or choose the next token."""
        if self.done:
            return
        if self._reading and self._on_read is not None:
            self._on_read(self._begun - 1)
        self._reading = False
        if self._begun < len(self._parts):
            self._begin_part()
        elif self.continuation is None:
            self._ended = True
        else:
            chosen = self.continuation.advance()
            self._ended = bool(self.continuation.ended_by)
            if chosen is not None:
                self.on_token(chosen)

    def end(self) -> None:
        """Tell that all is done, and let go of those told: no state is to wait for a collection of cycles."""
        tell, self.on_token, self._on_read, self._read_segment = self.on_token, _ignore, None, None
        tell(None)

    def _begin_part(self) -> None:
        if self._begun < len(self._parts):
            self.session.append(self._parts[self._begun])
            self._begun, self._reading = self._begun + 1, True


def _ignore(chosen: Chosen | None) -> None:
    """Nobody listens any more."""


class Batcher:
    """Runs engines for many at once. At most `most` are read or written, and `queue` wait.

    There is one for all models of a program: threads of one team wait for each other by spinning, which is only fast
    while there are no more of them than processors. Other threads should compute with one (`torch.set_num_threads`).
    """

    def __init__(self, most: int = 8, queue: int = 64) -> None:
        self.most, self.queue = most, queue
        self._threads = torch.get_num_threads()
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
            # Both are counted: what just came waits for a moment even where a place is free.
            if self._closed or len(self._active) + len(self._waiting) >= self.most + self.queue:
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
        # Of this thread; others may have set another number for themselves.
        torch.set_num_threads(self._threads)
        while self._admit():
            self._round()
        for work in [*self._active, *self._waiting]:
            work.cancel()
            work.end()

    def _admit(self) -> bool:
        """Fill the free places; waits while there is nothing to do. False when the batcher is closed."""
        with self._changed:
            while not (self._closed or self._active or self._waiting):
                self._changed.wait()
            while self._waiting and len(self._active) < self.most:
                self._active.append(self._waiting.popleft())
            return not self._closed

    def _round(self) -> None:
        long = [work for work in self._active if work.reads_segments and not work.done]
        if long:
            # The one with least to read: a short prompt does not wait for the whole of a long one.
            work = min(long, key=lambda one: one.left)
            self._guarded([work], work.read)
        ready = [work for work in self._active if not (work.reads_segments or work.done)]
        for engine in {work.session.engine for work in ready}:
            together = [work for work in ready if work.session.engine is engine]
            self._guarded(together, partial(engine.read, [work.session for work in together]))
        for work in ready:
            self._guarded([work], work.go_on)
        for work in [work for work in self._active if work.done]:
            self._active.remove(work)
            work.end()

    def _guarded(self, concerned: list[Work], do: Callable[[], None]) -> None:
        """Do something; an error ends those concerned and nobody else."""
        try:
            do()
        except Exception as error:  # noqa: BLE001  # whatever it is, the thread must go on for the others
            for work in concerned:
                work.error = error
