"""Continuous batching: continuations of many lengths, begun and ended at any time, decoded together.

One thread runs the engine. A step reads one chunk of one long prompt, and then one token of everything that is
being written: a long prompt delays the others by a chunk at most, and takes no more time than they do, and a token
costs all of them one pass.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

import torch

from mm_rec.errors import MMRecError
from mm_rec.inference.request import GenerationRequest, OnToken, RequestState

_OLDEST_EVERY = 4  # chunks


class QueueFullError(MMRecError):
    """More is waiting than may wait; the same request can be made again later."""


class Scheduler:
    """Runs engines for many at once. At most `max_running` are read or written, and `max_waiting` wait.

    There is one for all models of a program: threads of one team wait for each other by spinning, which is only fast
    while there are no more of them than processors. Other threads should compute with one (`torch.set_num_threads`).
    """

    def __init__(self, max_running: int = 8, max_waiting: int = 64) -> None:
        self.max_running, self.max_waiting = max_running, max_waiting
        self.threads = torch.get_num_threads()
        self._waiting: deque[RequestState] = deque()
        self._running: list[RequestState] = []
        self._settled: list[Future[None]] = []
        self._num_chunks = 1  # that were read, and the next
        self._prefill_debt = 0.0  # seconds that decoding has before a long prompt is read on
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def num_running(self) -> int:
        """The number of requests being read or written."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """The number of requests waiting."""
        return len(self._waiting)

    def submit(self, request: GenerationRequest, on_token: OnToken) -> RequestState:
        """Queue a request, whose tokens `on_token` gets; raises QueueFullError where too many wait."""
        state = RequestState(request, on_token)
        with self._changed:
            # Both are counted: what just came waits for a moment even where a place is free.
            if self._closed or len(self._running) + len(self._waiting) >= self.max_running + self.max_waiting:
                raise QueueFullError(
                    "the server is stopping"
                    if self._closed
                    else f"{self.max_waiting} requests wait already: ask again later"
                )
            self._waiting.append(state)
            self._changed.notify()
        return state

    def settle(self) -> None:
        """Wait for the next moment between two steps: what was cancelled before has left the engine by then."""
        settled: Future[None] = Future()
        with self._changed:
            if self._closed:
                return
            self._settled.append(settled)
            self._changed.notify()
        settled.result()

    def close(self) -> None:
        """End everything that is not done, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        # Of this thread; others may have set another number for themselves.
        torch.set_num_threads(self.threads)
        while (settled := self._admit()) is not None:
            self.step()
            for one in settled:
                one.set_result(None)
        for request in [*self._running, *self._waiting]:
            request.cancel()
            request.end()
        self._running, self._waiting = [], deque()
        for one in self._settled:
            one.set_result(None)

    def _admit(self) -> list[Future[None]] | None:
        """Fill the free places; waits while there is nothing to do. None when the scheduler is closed, else those that
        wait for the end of the next step.
        """
        with self._changed:
            while not (self._closed or self._running or self._waiting or self._settled):
                self._changed.wait()
            if self._closed:
                return None
            # Who gave up in the queue leaves it with this step.
            self._running += [request for request in self._waiting if request.done]
            self._waiting = deque(request for request in self._waiting if not request.done)
            while self._waiting and len(self._running) < self.max_running:
                self._running.append(self._waiting.popleft())
            settled, self._settled = self._settled, []
            return settled

    def step(self) -> None:
        """Prefill a chunk of one long prompt, then decode one token of every other running request."""
        self._prefill()
        started = time.monotonic()
        ready = [request for request in self._running if not (request.needs_prefill or request.done)]
        for engine in {request.session.engine for request in ready}:
            together = [request for request in ready if request.session.engine is engine]
            self._guarded(together, partial(engine.forward, [request.session for request in together]))
        for request in ready:
            self._guarded([request], request.step)
        self._prefill_debt = max(0.0, self._prefill_debt - (time.monotonic() - started)) if ready else 0.0
        for request in [request for request in self._running if request.done]:
            self._running.remove(request)
            request.end()

    def _prefill(self) -> None:
        """Prefill a chunk of the prompt with least to read: a short one does not wait for the whole of a long one.

        Every fourth chunk is the oldest's, or short ones that never end would keep it out for ever. A prompt of several
        chunks takes no more time than what is being decoded has had since its last chunk, so it never costs the others
        more than half of their rate.
        """
        reading = [request for request in self._running if request.needs_prefill and not request.done]
        if not reading:
            return
        is_turn_of_oldest = self._num_chunks % _OLDEST_EVERY == 0
        request = (
            reading[0] if is_turn_of_oldest else min(reading, key=lambda one: one.remaining_prompt_tokens)
        )
        if request.num_prefilled and self._prefill_debt > 0:
            return
        started = time.monotonic()
        self._num_chunks += 1
        self._guarded([request], request.prefill)
        if request.needs_prefill:
            self._prefill_debt = time.monotonic() - started

    def _guarded(self, concerned: list[RequestState], do: Callable[[], None]) -> None:
        """Do something; an error ends those concerned and nobody else."""
        try:
            do()
        except Exception as error:  # noqa: BLE001  # whatever it is, the thread must go on for the others
            for request in concerned:
                request.error = error
