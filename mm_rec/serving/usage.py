"""The usage of keys: counted in memory as it happens, and written to the store at once, or when that works again."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from datetime import date
from threading import Lock

from mm_rec.serving.periodic import PeriodicTask
from mm_rec.store.health import StoreUnavailableError
from mm_rec.store.store import Store, today

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 5.0  # between two tries to write what could not be written


@dataclass(frozen=True, slots=True)
class _Day:
    """A day of a key; None is the owner of everything on a server without keys."""

    owner: str | None
    day: date


class UsageRecorder:
    """Sums of usage that are not written yet: as many as there are keys and days, however long the store fails."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[_Day, Counter[str]] = {}
        self._failure: StoreUnavailableError | None = None  # of the last try to write
        self._lock, self._writing = Lock(), Lock()
        self._task = PeriodicTask("usage", _RETRY_SECONDS, self.write)

    def add(self, owner: str | None, prompt_tokens: int, completion_tokens: int) -> None:
        """Count a request and its tokens."""
        with self._lock:
            sums = self._pending.setdefault(_Day(owner, today()), Counter())
            sums.update(requests=1, prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        self._task.wake()

    def tokens(self, owner: str, day: date) -> int:
        """The tokens that a key used on a day; raises StoreUnavailableError where usage cannot be read or written."""
        if self._failure is not None:
            raise StoreUnavailableError(
                f"this key has a limit of tokens a day, and usage cannot be counted now: {self._failure}"
            )
        # Before the store is asked: what is written meanwhile counts twice, and never not at all.
        with self._lock:
            pending = Counter(self._pending.get(_Day(owner, day), Counter()))
        return self._store.usage(owner, day).tokens + pending["prompt_tokens"] + pending["completion_tokens"]

    def write(self) -> None:
        """Write what is counted; raises StoreUnavailableError, and keeps what is not written."""
        with self._writing:
            try:
                self._write()
            except StoreUnavailableError as error:
                self._failure = error
                raise
            self._failure = None

    def close(self) -> None:
        """Write what is left, where the store can be had, and end the thread."""
        self._task.close()
        try:
            self.write()
        except StoreUnavailableError:
            lost = sum(sums["requests"] for sums in self._pending.values())
            _log.exception("the usage of %d requests is lost", lost)

    def _write(self) -> None:
        with self._lock:
            days = {day: Counter(sums) for day, sums in self._pending.items()}
        for day, sums in days.items():
            self._store.count_usage(day.owner, day.day, **sums)
            self._subtract(day, sums)
        if not days and self._store.health.fault is not None:
            self._store.check()  # no request may come that would find out that it works again

    def _subtract(self, day: _Day, written: Counter[str]) -> None:
        with self._lock:
            self._pending[day].subtract(written)
            if not any(self._pending[day].values()):
                del self._pending[day]
