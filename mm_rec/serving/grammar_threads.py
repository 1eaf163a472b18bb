"""The threads that compile the grammars of answers, apart from those that prepare and encode all others."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mm_rec.serving.errors import ApiError

MAX_SECONDS = 5.0  # for one grammar
_THREADS = 2
_T = TypeVar("_T")


class GrammarThreads:
    """Compiles grammars, each for a bounded time, and no longer than somebody waits for it."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_THREADS, "grammar")

    async def compile(self, make: Callable[[Callable[[], None]], _T], field: str) -> _T:
        """Await what a function makes that calls what it is given now and then.

        Raises ApiError where it takes too long; `field` is that of the request.
        """
        is_left = threading.Event()

        def run() -> _T:
            end = time.monotonic() + MAX_SECONDS

            def check() -> None:
                if is_left.is_set():
                    raise ApiError(499, "the client has gone")
                if time.monotonic() > end:
                    message = (
                        f"{field}: it takes more than {MAX_SECONDS:.0f} seconds to prepare. Make it smaller"
                    )
                    raise ApiError(400, message, field, "invalid_value")

            check()
            return make(check)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, run)
        except asyncio.CancelledError:
            is_left.set()
            raise

    def close(self) -> None:
        """End the threads after what they are at."""
        self._pool.shutdown(cancel_futures=True)
