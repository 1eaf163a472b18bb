"""The log of a server, on stderr: one line for each thing, which nothing that a client sends can break or flood."""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

# The id of the request that is being answered, which every line has that is said meanwhile.
current_request_id: ContextVar[str | None] = ContextVar("current_request_id", default=None)
REPEAT_SECONDS = 60.0
_MAX_KINDS = 1_000  # of messages that are remembered
_MAX_TRACE = 8_000  # characters of a traceback


def configure_logging(level: str, *, as_json: bool) -> None:
    """Log to stderr: ours from this level on, others' from warnings on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    handler.addFilter(RepeatFilter())
    handler.setLevel(level.upper())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mm_rec").setLevel(level.upper())


def announce(text: str) -> None:
    """Say a thing as a line of the log, whatever the level from which on it says things."""
    for handler in logging.getLogger().handlers:  # whose level holds for what loggers give them
        handler.handle(logging.LogRecord("mm_rec.serving", logging.INFO, "", 0, text, (), None))


class RepeatFilter(logging.Filter):
    """Lets a warning or an error pass once a minute; the next one says how often it came meanwhile.

    Lines of requests always pass.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        # When it was said, and how often it was not.
        self._seen: dict[tuple[Any, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record is to be said."""
        if record.levelno < logging.WARNING or hasattr(record, "fields"):
            return True
        key, now = _kind_of(record), self._clock()
        with self._lock:
            said, left_out = self._seen.pop(key, (-REPEAT_SECONDS, 0))
            if now - said < REPEAT_SECONDS:
                self._seen[key] = (said, left_out + 1)
                return False
            if len(self._seen) >= _MAX_KINDS:
                del self._seen[next(iter(self._seen))]
            self._seen[key] = (now, 0)
        if left_out:
            record.msg, record.args = (
                f"{record.getMessage()} (and {left_out:,} times more since it was last said)",
                (),
            )
        return True


def _kind_of(record: logging.LogRecord) -> tuple[Any, ...]:
    """Return what is the same of two records that say the same: the text, and the line that raised an error."""
    error = record.exc_info[1] if record.exc_info else None
    where = None
    if error is not None and error.__traceback__ is not None:
        *_, (frame, line) = traceback.walk_tb(error.__traceback__)
        where = (type(error), frame.f_code.co_filename, line)
    return record.name, str(record.msg)[:200], where


class TextFormatter(logging.Formatter):
    """Time, level, message and fields as name=value; a traceback follows in lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        fields = " ".join(f"{name}={_shown(value)}" for name, value in _fields_of(record).items())
        parts = [_time_of(record), record.levelname, escaped(record.getMessage()), fields]
        lines = [" ".join(part for part in parts if part), *map(escaped, _trace_of(record).splitlines())]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """The same as one object of JSON, a traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {"time": _time_of(record), "level": record.levelname.lower(), "logger": record.name}
        line |= {"message": record.getMessage(), **_fields_of(record)}
        return json.dumps(line | ({"traceback": trace} if (trace := _trace_of(record)) else {}))


def _fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of a line: those of a request, or the id of the one that it is about, if there is one."""
    request_id = getattr(record, "request_id", None) or current_request_id.get()
    about = {} if request_id is None else {"request_id": request_id}
    fields: dict[str, Any] = getattr(record, "fields", about)
    return fields


def escaped(text: str) -> str:
    """Write what does not print, line breaks and control characters too, as in Python's strings."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape", "surrogatepass").decode() for one in text
    )


def _shown(value: Any) -> str:
    if isinstance(value, str) and not (value.isprintable() and value and not set(value) & set(' "=')):
        return json.dumps(value, ensure_ascii=not value.isprintable())
    return str(value)


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


def _trace_of(record: logging.LogRecord) -> str:
    """Return the traceback of an error without its middle where it is long: a recursion has a thousand calls."""
    if not record.exc_info or record.exc_info[1] is None:
        return ""
    text = "".join(traceback.format_exception(record.exc_info[1]))
    if len(text) <= _MAX_TRACE:
        return text
    half = _MAX_TRACE // 2
    return f"{text[:half]}\n… {len(text) - _MAX_TRACE:,} characters left out …\n{text[-half:]}"
