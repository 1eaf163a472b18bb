"""From the events of an answer to its wire form: as one object, or as a stream of server-sent events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol

from fastapi import Request, Response

from mm_rec.inference.sampler import SampledToken
from mm_rec.serving.context import RequestContext
from mm_rec.serving.errors import ApiError, as_api_error
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.events import Answer, OutputEvent, answer_events
from mm_rec.serving.sse import SafeJSONResponse, sse_event
from mm_rec.serving.streaming import EventStreamResponse, cancel_on_disconnect

Chunk = dict[str, Any]
OnEnd = Callable[[], Awaitable[None]]


class Encoder(Protocol):
    """Turns the events of an answer into one route's wire form.

    Each chunk is serialised before the next is asked for, so it may refer to what still grows.
    """

    done: bytes  # what closes a stream, perhaps nothing

    def begin(self) -> Iterator[Chunk]:
        """Yield the chunks before the first event."""

    def encode(self, event: OutputEvent) -> Iterator[Chunk]:
        """Take an event, and yield its chunks."""

    def end(self) -> Iterator[Chunk]:
        """Yield the chunks after the last event."""

    def body(self) -> Chunk:
        """Return the answer as one object, after the last event."""

    def failed(self, error: ApiError) -> Chunk:
        """Return the chunk that ends a stream by an error."""


async def _nothing() -> None:
    """What most routes do at the end of an answer."""


async def respond(
    request: Request, context: RequestContext, answer: Answer, encoder: Encoder, *, stream: bool,
    stack: contextlib.AsyncExitStack, on_end: OnEnd = _nothing,
) -> Response:  # fmt: skip
    """Return the response of an answer; `on_end` is called after its last event, before the client is told of the end.

    The stack is closed when a stream is over.
    """
    events = answer_events(context, answer)
    if not stream:
        return SafeJSONResponse(
            await cancel_on_disconnect(request.receive, _collect(events, encoder, on_end))
        )
    return EventStreamResponse(_stream(context, events, encoder, on_end), stack.pop_all())


async def _collect(events: AsyncGenerator[OutputEvent, None], encoder: Encoder, on_end: OnEnd) -> Chunk:
    async with contextlib.aclosing(events):
        async for event in events:
            for _ in encoder.encode(event):
                pass
    await on_end()
    return encoder.body()


async def _stream(
    context: RequestContext, events: AsyncGenerator[OutputEvent, None], encoder: Encoder, on_end: OnEnd
) -> AsyncGenerator[bytes, None]:
    """Yield server-sent events; an error that comes up is the last of them: the status was sent long ago."""
    try:
        for chunk in encoder.begin():
            yield sse_event(chunk)
        async with contextlib.aclosing(events):
            async for event in events:
                for chunk in encoder.encode(event):
                    yield sse_event(chunk)
        await on_end()
        for chunk in encoder.end():
            yield sse_event(chunk)
        if encoder.done:
            yield encoder.done
    except Exception as error:  # noqa: BLE001  # as in every route, but the answer has begun
        told = as_api_error(error)
        context.record.end_early(told.status, told.body["error"]["code"])
        yield sse_event(encoder.failed(told))


def logprobs_content(variant: ModelVariant, tokens: Iterable[SampledToken]) -> list[Chunk]:
    """Return the `logprobs.content` of tokens: each with its log-probability and the top_logprobs beside it."""
    return [
        {
            **_logprob_entry(variant, chosen.token, chosen.logprob),
            "top_logprobs": [_logprob_entry(variant, token, value) for token, value in chosen.top_logprobs],
        }
        for chosen in tokens
        if chosen.logprob is not None
    ]


def _logprob_entry(variant: ModelVariant, token: int, value: float) -> Chunk:
    text = variant.model.token_text(token)
    return {"token": text.decode("utf-8", "replace"), "logprob": max(value, -9999.0), "bytes": list(text)}
