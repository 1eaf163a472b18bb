"""Streamed responses, which end when the client disconnects."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from mm_rec.inference.token_stream import TOO_LONG, RequestTimeoutError
from mm_rec.serving.errors import ApiError

_Result = TypeVar("_Result")


class EventStreamResponse(StreamingResponse):
    """A response of server-sent events, which no proxy may buffer.

    The stack is closed at its end, also where the client went away before it began.
    """

    def __init__(self, events: AsyncIterator[bytes], stack: AsyncExitStack) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until their end, or until the client disconnects.

        Starlette's own way leaves a cycle of references to everything that was in use when a client went away.
        """
        async with self._stack:
            try:
                await cancel_on_disconnect(receive, self.stream_response(send))
            except ApiError as error:
                scope["state"]["record"].end_early(error.status, "client_gone")


async def cancel_on_disconnect(
    receive: Receive, answer: Coroutine[Any, Any, _Result], seconds: float | None = None
) -> _Result:
    """Await a coroutine; where the client disconnects, cancel it and raise an ApiError, which nobody reads.

    With `seconds`, raises RequestTimeoutError where it takes longer.
    """
    task = asyncio.create_task(answer)
    gone = asyncio.create_task(_wait_for_disconnect(receive))
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise RequestTimeoutError(TOO_LONG)
        if not task.done():
            raise ApiError(499, "the client has gone")
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
