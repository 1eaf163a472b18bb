"""How answers are written: JSON in UTF-8, and server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"  # the last event of OpenAI's streams


def dumps(value: Any) -> bytes:
    """JSON as bytes; what is no Unicode in it (half of a surrogate pair) becomes "?"."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


class Json(JSONResponse):
    """An answer that is JSON."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return dumps(content)


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """A server-sent event, as the Responses API with its name."""
    head = b"" if name is None else b"event: %s\n" % name.encode()
    return head + b"data: %s\n\n" % dumps(value)


class Stream(StreamingResponse):
    """An answer of server-sent events, which nothing on the way may hold back.

    The stack is closed at its end, also where the client went away before it began.
    """

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self._stack:
            await super().__call__(scope, receive, send)
