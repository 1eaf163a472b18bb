"""What is wrong with what the server keeps: said once in the log, and in /health until it is mended."""

from __future__ import annotations

import logging
from threading import Lock

from mm_rec.errors import MMRecError

_log = logging.getLogger(__name__)


class StoreUnavailableError(MMRecError):
    """The store, or the folder of the sessions, cannot be read or written now; the same can be asked again later."""


class StorageHealth:
    """The faults of a server's store and folder, by part; parts are reported by whoever reads or writes them."""

    def __init__(self) -> None:
        self._faults: dict[str, str] = {}
        self._lock = Lock()

    def report(self, part: str, fault: str | None, detail: str = "") -> None:
        """Note that a part is at fault, or that it works; only a change is logged, with the detail."""
        with self._lock:
            before = self._faults.pop(part, None)
            if fault is not None:
                self._faults[part] = fault
        if fault is not None and before is None:
            _log.error("%s%s", fault, f" ({detail})" if detail else "")
        elif fault is None and before is not None:
            _log.warning("this is over: %s", before)

    @property
    def fault(self) -> str | None:
        """What is wrong now, without a path; None where all is well."""
        with self._lock:
            return "; ".join(self._faults.values()) or None
