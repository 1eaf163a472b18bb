"""API keys of the server: making, checking and limiting them.

A key is `mmr-` and 43 characters of base64 for 256 random bits. The store has only its SHA-256: nobody can try out 2²⁵⁶
keys, so the slow, salted hash that a guessable password needs would protect nothing and cost every request its time.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from mm_rec.errors import ConfigError
from mm_rec.serving.usage import UsageRecorder
from mm_rec.store.store import Store, today
from mm_rec.store.tables import ApiKey, new_id

_KEY_PATTERN = re.compile(r"mmr-[A-Za-z0-9_-]{43}")
# 72 bits to find a key by and to show to people; the other 184 are the secret.
_PREFIX_LENGTH = len("mmr-") + 12
_NO_HASH = "0" * 64  # the hash of no key
_MINUTE = 60.0  # seconds
_MAX_LIFETIME = 100 * 365 * 86_400  # seconds
_MAX_LIMIT = 10**12


def create_key(
    store: Store,
    name: str,
    *,
    expires_in: int | None = None,
    requests_per_minute: int | None = None,
    tokens_per_day: int | None = None,
) -> tuple[str, ApiKey]:
    """Make a key; returns its text, which is not kept anywhere, and its row. `expires_in` is in seconds.

    Raises ConfigError for a name or a limit that cannot be.
    """
    if not (name.strip() and name.isprintable() and len(name) <= 100):
        raise ConfigError(f"{name!r} is no name of a key: give 1 to 100 printable characters")
    _require_within("expires-in", expires_in, _MAX_LIFETIME, "seconds")
    _require_within("requests-per-minute", requests_per_minute, _MAX_LIMIT)
    _require_within("tokens-per-day", tokens_per_day, _MAX_LIMIT)
    text, now = f"mmr-{secrets.token_urlsafe(32)}", int(time.time())
    key = ApiKey(
        id=new_id("key"),
        name=name,
        hash=_hash(text),
        prefix=text[:_PREFIX_LENGTH],
        created=now,
        expires=None if expires_in is None else now + expires_in,
        requests_per_minute=requests_per_minute,
        tokens_per_day=tokens_per_day,
    )
    store.add_key(key)
    return text, key


def verify_key(store: Store, text: str) -> ApiKey | None:
    """Return the key of this text; None where there is none, or it is revoked or expired.

    A key is found by the part of it that people may see; the rest is compared by hash in constant time, and only then
    comes whether it is in force. So the time of an answer tells nothing about the secret part.
    """
    if not _KEY_PATTERN.fullmatch(text):  # the form is no secret
        return None
    key = store.find_key(text[:_PREFIX_LENGTH])
    same = hmac.compare_digest(_hash(text), key.hash if key else _NO_HASH)
    return key if same and key is not None and is_active(key) else None


def is_active(key: ApiKey) -> bool:
    """Return whether a key is neither revoked nor expired."""
    return key.revoked is None and (key.expires is None or time.time() < key.expires)


@dataclass(frozen=True, slots=True)
class RateLimitExceeded:
    """A request over a limit of its key: which limit, a message, and after how many seconds to retry."""

    kind: Literal["requests", "tokens"]  # the `type` of OpenAI's errors
    message: str
    retry_after: int


class RateLimiter:
    """Rate limits of keys: requests in any 60 seconds, kept in memory, and tokens a day, kept in the store.

    Requests are counted by each server process for itself. Tokens are known when an answer ends, so requests that run
    at the same time may go over the limit together; the next one is refused.
    """

    def __init__(self, usage: UsageRecorder, clock: Callable[[], float] = time.monotonic) -> None:
        self._usage = usage
        self._clock = clock
        self._lock = threading.Lock()
        # By key id, the times of the requests of the last minute, oldest first.
        self._request_times: dict[str, deque[float]] = {}

    def hit(self, key: ApiKey) -> RateLimitExceeded | None:
        """Count a request of a key, or return the limit that it exceeds; then it does not count.

        Raises StoreUnavailableError for a key with a limit of tokens where usage cannot be read or written.
        """
        return self._check_tokens_per_day(key) or self._check_requests_per_minute(key)

    def _check_tokens_per_day(self, key: ApiKey) -> RateLimitExceeded | None:
        limit = key.tokens_per_day
        if limit is None or (used := self._usage.tokens(key.id, today())) < limit:
            return None
        now = datetime.now(UTC)
        passed = now - now.replace(hour=0, minute=0, second=0, microsecond=0)
        left = max(1, math.ceil(86_400 - passed.total_seconds()))
        return RateLimitExceeded(
            "tokens",
            f"this key may use {limit:,} tokens a day and has used {used:,} today (UTC); ask again tomorrow",
            left,
        )

    def _check_requests_per_minute(self, key: ApiKey) -> RateLimitExceeded | None:
        limit = key.requests_per_minute
        if limit is None:
            return None
        now = self._clock()
        with self._lock:
            times = self._request_times.setdefault(key.id, deque())
            while times and times[0] <= now - _MINUTE:
                times.popleft()
            if len(times) < limit:
                times.append(now)
                return None
            wait = max(1, math.ceil(times[0] + _MINUTE - now))
        return RateLimitExceeded(
            "requests", f"this key may make {limit:,} requests a minute; ask again in {wait} seconds", wait
        )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _require_within(what: str, value: int | None, most: int, unit: str = "") -> None:
    if value is not None and not 1 <= value <= most:
        raise ConfigError(f"{what} {value:,} is not between 1 and {most:,} {unit}".rstrip())
