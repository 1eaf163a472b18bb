"""Connections: how many may be open, in all and from one address, and for how long without a request.

Where a limit is reached, the connection that has been without a whole request for the longest time is closed for the
new one, so that silent connections never keep anybody out. Only where all are being answered, the new one is refused.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from mm_rec.errors import ConfigError
from mm_rec.serving.errors import ApiError
from mm_rec.serving.sse import json_bytes
from mm_rec.store.tables import new_id

_log = logging.getLogger(__name__)
DEFAULT_CONNECTIONS = 1_024
_RESERVED = 128  # descriptors for the store, sessions, models and uploads
_MAX_HEAD = 2**16  # bytes of the headers of a request
_FREE_CHUNKS = 1_000  # of a body, whatever their size
# Of each chunk on average, where there are more: a small one costs the event loop as much time as a large one.
_CHUNK_BYTES = 64


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of connections.

    `head_seconds`: the longest time from the first byte of a request, or the beginning of a connection, to the end of
    the headers; `idle_seconds`: between two requests; `stalled_seconds`: that a client may take nothing of an answer.
    """

    total: int = DEFAULT_CONNECTIONS
    per_address: int = DEFAULT_CONNECTIONS // 2
    head_seconds: float = 20.0
    idle_seconds: int = 60
    stalled_seconds: float = 60.0


def resolve_limits(total: int | None = None, per_address: int | None = None) -> ConnectionLimits:
    """Return limits that fit the files which this process may open; raises ConfigError where those asked for do not."""
    files = _max_open_files()
    most = DEFAULT_CONNECTIONS if files is None else max(files // 4, files - _RESERVED)
    if total is not None and total > most and files is not None:
        raise ConfigError(
            f"--max-connections {total:,} is more than this process can have open: it may open {files:,} files, which "
            f"is enough for {most:,} connections. Raise that before (ulimit -n {total + _RESERVED}), or ask for fewer"
        )
    total = min(DEFAULT_CONNECTIONS, most) if total is None else total
    if per_address is not None and per_address > total:
        raise ConfigError(
            f"--max-per-address {per_address:,} is more than the {total:,} connections there are in all. Ask "
            f"for fewer, or for more in all: --max-connections {per_address}"
        )
    return ConnectionLimits(total, max(1, total // 2) if per_address is None else per_address)


def _max_open_files() -> int | None:
    """Return how many files this process may open; None where there is no limit, or the system has none."""
    if sys.platform == "win32":
        return None
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class ConnectionPool:
    """The open connections of a server, the one whose last request is the longest ago first.

    `count_refused` is called with the status of an answer that no request got.
    """

    def __init__(self, limits: ConnectionLimits, count_refused: Callable[[int], None]) -> None:
        self.limits, self.count_refused = limits, count_refused
        self._open: OrderedDict[LimitedProtocol, None] = OrderedDict()
        self._per_address: Counter[str] = Counter()

    def add(self, connection: LimitedProtocol) -> None:
        """Take in a connection; raises ApiError where there is no room and none that waits can be closed for it."""
        address, limits = connection.address, self.limits
        if self._per_address[address] >= limits.per_address and not self.make_room(address):
            raise _too_many(429, f"of one address {limits.per_address:,}", "--max-per-address")
        if len(self._open) >= limits.total and not self.make_room():
            raise _too_many(503, f"in all {limits.total:,}", "--max-connections")
        self._open[connection] = None
        self._per_address[address] += 1

    def remove(self, connection: LimitedProtocol) -> None:
        """Forget a connection, if it is known."""
        if connection in self._open:
            del self._open[connection]
            self._per_address[connection.address] -= 1
            if not self._per_address[connection.address]:
                del self._per_address[connection.address]

    def touch(self, connection: LimitedProtocol) -> None:
        """Note that a connection has had an answer just now."""
        if connection in self._open:
            self._open.move_to_end(connection)

    def make_room(self, address: str | None = None) -> bool:
        """Close the connection that waits for longest, perhaps of one address; returns whether there is one."""
        waiting = (one for one in self._open if one.is_waiting and address in (None, one.address))
        if (connection := next(waiting, None)) is None:
            return False
        self.remove(connection)
        connection.transport.abort()  # not close(), which would wait for a client that takes nothing
        return True


def _too_many(status: int, most: str, option: str) -> ApiError:
    return ApiError(
        status, f"this server has {most} connections at most ({option}), and all are being answered; ask again later",
        code="too_many_connections", type="rate_limit_error" if status == 429 else "server_error",
        headers={"Retry-After": "2"},
    )  # fmt: skip


class _HttpConnection(h11.Connection):
    """h11's side of a connection, which takes no body in many tiny chunks."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, _MAX_HEAD)
        self._chunks = self._chunk_bytes = 0  # of the body that is coming

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """Return what came next; raises RemoteProtocolError for what may not come."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._chunk_bytes = 0
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._chunk_bytes += len(event.data)
            if self._chunks > _FREE_CHUNKS and self._chunk_bytes < self._chunks * _CHUNK_BYTES:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event


class LimitedProtocol(H11Protocol):
    """uvicorn's protocol within limits, whose own errors have the shape of all others."""

    def __init__(self, pool: ConnectionPool, **given: Any) -> None:
        super().__init__(**given)
        self.conn = _HttpConnection()
        self._pool = pool
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def address(self) -> str:
        """The address of the client."""
        return self.client[0] if self.client else ""

    @property
    def is_idle(self) -> bool:
        """Whether the headers of a request have not come."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def is_waiting(self) -> bool:
        """Whether no whole request has come, so that nothing is being answered."""
        return self.is_idle or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection in, or refuse it."""
        super().connection_made(transport)
        try:
            self._pool.add(self)
        except ApiError as error:
            self._refuse(error)
        else:
            self._watch_head()

    def data_received(self, data: bytes) -> None:
        """Read what came."""
        super().data_received(data)
        self._watch_head()

    def _watch_head(self) -> None:
        """Give a request that has not begun its time, which further bytes do not prolong."""
        if not self.is_idle:
            self._head_timer = _cancelled(self._head_timer)
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self._pool.limits.head_seconds, self.close)

    def on_response_complete(self) -> None:
        """Called when an answer is over."""
        self._pool.touch(self)
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Called when the client takes too little: it is given a time."""
        super().pause_writing()
        self._stall_timer = self.loop.call_later(self._pool.limits.stalled_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """Called when the client has taken enough again."""
        super().resume_writing()
        self._stall_timer = _cancelled(self._stall_timer)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called at the end of a connection."""
        self._pool.remove(self)
        self._head_timer = _cancelled(self._head_timer)
        self._stall_timer = _cancelled(self._stall_timer)
        super().connection_lost(exc)

    def close(self) -> None:
        """Close a connection on which nothing is being answered, also where its client takes nothing any more."""
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self.loop.call_later(self._pool.limits.stalled_seconds, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Called where no further request has come in time."""
        self.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, also where it came within a request: what that would be answered is not sent."""
        if not self.is_idle:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        why = (
            "this is not HTTP/1.1 as it is written, its headers are longer than 64 KiB, or its body comes in more than "
            "1,000 chunks of fewer than 64 bytes each; send larger ones, or a Content-Length"
        )
        self._refuse(ApiError(400, why, code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        """Send an error where no answer has begun, and close."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            request_id, code = new_id("req"), error.body["error"]["code"]
            _log.warning(
                f"a connection was refused: {error.status} {code}, %s",
                self.address,
                extra={"request_id": request_id},
            )
            self._pool.count_refused(error.status)
            body = json_bytes(error.body)
            headers = {
                "content-type": "application/json", "content-length": str(len(body)), "connection": "close",
                "x-request-id": request_id, **error.headers,
            }  # fmt: skip
            head = h11.Response(
                status_code=error.status, headers=list(headers.items()), reason=STATUS_PHRASES[error.status]
            )
            is_head = not self.is_idle and self.scope["method"] == "HEAD"  # which is answered without a body
            for event in (head, h11.Data(data=b"" if is_head else body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.close()


def _cancelled(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    if timer is not None:
        timer.cancel()
    return None
