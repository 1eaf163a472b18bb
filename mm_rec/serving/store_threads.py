"""The threads in which requests wait for the store and for the files of sessions.

They are apart from the threads that prepare and encode answers, and who reads does not wait behind who writes: SQLite's
readers never wait for its writers. So what waits for a locked store delays nobody who asks for something else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch

from mm_rec.store.health import StoreUnavailableError

_THREADS = 8  # of each kind
_QUEUE_SECONDS = 10.0  # that a call may wait for a thread

_P = ParamSpec("_P")
_T = TypeVar("_T")


class StoreThreads:
    """Runs calls of the store; raises StoreUnavailableError for one that waits too long for its turn."""

    def __init__(self) -> None:
        # Only the scheduler's thread computes with many, see there.
        alone = partial(torch.set_num_threads, 1)
        self._readers = ThreadPoolExecutor(_THREADS, "store-read", initializer=alone)
        self._writers = ThreadPoolExecutor(_THREADS, "store-write", initializer=alone)

    async def read(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Await a call that reads."""
        return await _result(self._readers.submit(call, *args, **kwargs))

    async def write(self, call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Await a call that may write."""
        return await _result(self._writers.submit(call, *args, **kwargs))

    async def enter(
        self, manager: contextlib.AbstractContextManager[_T], stack: contextlib.AsyncExitStack
    ) -> _T:
        """Enter a context that writes; the stack leaves it, and where this is cancelled it is left at once.

        It is left in any case, also where no thread is free for long: then nobody waits for that.
        """
        entering = self._writers.submit(manager.__enter__)
        try:
            entered = await _result(entering)
        except asyncio.CancelledError:
            entering.add_done_callback(partial(self._leave, manager))
            raise

        async def leave(*error: Any) -> bool | None:
            leaving = asyncio.wrap_future(self._writers.submit(manager.__exit__, *error))
            done, _ = await asyncio.wait({leaving}, timeout=_QUEUE_SECONDS)
            return leaving.result() if done else None

        stack.push_async_exit(leave)
        return entered

    def _leave(self, manager: contextlib.AbstractContextManager[_T], entering: Future[_T]) -> None:
        if not entering.cancelled() and entering.exception() is None:
            with contextlib.suppress(RuntimeError):  # the server has ended
                self._writers.submit(manager.__exit__, None, None, None)

    def close(self) -> None:
        """Wait for what is going on, and end the threads."""
        self._readers.shutdown()
        self._writers.shutdown()


async def _result(future: Future[_T]) -> _T:
    """What a call gives; one that has begun is waited for, so that nobody is told that it failed while it works."""
    result = asyncio.wrap_future(future)
    try:
        done, _ = await asyncio.wait({result}, timeout=_QUEUE_SECONDS)
    except asyncio.CancelledError:
        result.cancel()
        raise
    if not done and future.cancel():
        raise StoreUnavailableError("too many requests wait for the server's store; ask again later")
    return await result
