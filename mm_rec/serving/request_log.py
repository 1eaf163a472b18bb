"""One line of the log for each request, and its id, which every answer carries as `x-request-id`.

A line says who asked what of which model, how it ended and what it took; of what was said in it only where that is
asked for.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mm_rec.serving.errors import as_api_error
from mm_rec.serving.generation import TokenUsage
from mm_rec.serving.log_format import current_request_id
from mm_rec.serving.metrics import ServerMetrics
from mm_rec.store.tables import new_id

_log = logging.getLogger(__name__)
# Asked every few seconds by programs: logged at the level debug.
QUIET_PATHS = frozenset({"/health", "/metrics"})
MAX_BODY_BYTES = 2**16  # of a body in the log


@dataclass(slots=True)
class RequestRecord:
    """What is known of a request so far; times are those of `time.perf_counter`, in seconds.

    `ended`: how an answer ended that was not sent whole: `timeout`, `client_gone`, another code, or `error`;
    `ended_status`: the status that it would have had, if it had not been sent before.
    """

    id: str = field(default_factory=lambda: new_id("req"))
    method: str = ""
    path: str = ""
    client: str = ""
    route: str | None = None
    key: str | None = None
    model: str | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    status: int | None = None
    ended: str | None = None
    ended_status: int | None = None
    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    body: bytes | None = None

    def add_usage(self, usage: TokenUsage) -> None:
        """Add the tokens of an answer, or of a part of one."""
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
            setattr(self, name, (getattr(self, name) or 0) + getattr(usage, name))

    def end_early(self, status: int, ended: str | None) -> None:
        """Note how an answer ended after its status was sent."""
        self.ended, self.ended_status = ended or "error", status

    def fields(self) -> dict[str, Any]:
        """Return what the log says of it, within bounds; what is not known is left out."""
        first = self.first_token
        known = {
            "request_id": self.id, "client": self.client[:100], "method": self.method[:20],
            "path": self.path[:200], "status": self.status, "ended": self.ended, "key": self.key, "model": self.model,
            "prompt_tokens": self.prompt_tokens, "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "first_token_seconds": None if first is None else round(first - self.started, 4),
            "seconds": round(time.perf_counter() - self.started, 4),
            "body": None if self.body is None else self.body.decode("utf-8", "replace"),
        }  # fmt: skip
        return {name: value for name, value in known.items() if value is not None}


def record_of(request: Request) -> RequestRecord:
    """Return the record of a request."""
    record: RequestRecord = request.state.record
    return record


class RequestLogMiddleware:
    """ASGI middleware, outside all others: give a request its id, count it and log it.

    `log_prompts`: bodies are logged too. What nobody expected is answered here, so that it is answered, counted and
    logged as any other.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics, *, log_prompts: bool) -> None:
        self._app, self._metrics, self._log_prompts = app, metrics, log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client, _ = scope.get("client") or ("", 0)
        record = RequestRecord(method=scope["method"], path=scope["path"], client=client)
        record.body = b"" if self._log_prompts else None
        scope.setdefault("state", {})["record"] = record
        current_request_id.set(record.id)  # of this task, which uvicorn makes for each request

        async def receive_noted() -> Message:
            message = await receive()
            if record.body is not None:
                record.body += message.get("body", b"")[: MAX_BODY_BYTES - len(record.body)]
            return message

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                self._metrics.count_request(record.route or "other", message["status"])
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", record.id.encode())]
            await send(message)

        try:
            await self._app(scope, receive_noted, send_noted)
        except Exception as error:
            if record.status is not None:
                record.end_early(500, None)
                raise  # the answer is cut off, which is all that can be done
            await as_api_error(error).response()(scope, receive, send_noted)
        finally:
            _log.log(_level_of(record), "request", extra={"fields": record.fields()})


def _level_of(record: RequestRecord) -> int:
    status = record.ended_status or record.status or 0
    if status >= 500:
        return logging.ERROR
    if record.ended == "timeout":
        return logging.WARNING
    return logging.DEBUG if record.path in QUIET_PATHS and status < 400 else logging.INFO
