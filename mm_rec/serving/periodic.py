"""Work that is done again and again beside the requests: usage to write, leases to renew, old things to delete."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable

from mm_rec.store.health import StoreUnavailableError

_log = logging.getLogger(__name__)


class PeriodicTask:
    """Calls a function every so many seconds, and when it is woken, from a thread of its own.

    Where the store cannot be had, which `StorageHealth` tells, the next call tries again.
    """

    def __init__(self, name: str, seconds: float, function: Callable[[], None]) -> None:
        self._seconds, self._function = seconds, function
        self._woken, self._closed = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Call the function now."""
        self._woken.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._woken.wait(self._seconds)
            self._woken.clear()
            if self._closed:
                return
            try:
                with contextlib.suppress(StoreUnavailableError):
                    self._function()
            except Exception:  # noqa: BLE001  # whatever it is, the next call may work
                _log.exception("%s failed", self._thread.name)
