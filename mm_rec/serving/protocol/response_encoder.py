"""The wire form of responses: a response object, or the events in which its items grow."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from typing import Any

from mm_rec.serving.context import RequestContext
from mm_rec.serving.errors import ApiError
from mm_rec.serving.generation import TokenUsage
from mm_rec.serving.protocol.encoding import Chunk, logprobs_content
from mm_rec.serving.protocol.events import Delta, Finish, OutputEvent, Usage
from mm_rec.serving.protocol.response_items import Item, item_id
from mm_rec.serving.protocol.response_schemas import ResponseRequest, TextFormat
from mm_rec.serving.protocol.tool_calls import ParsedDelta
from mm_rec.store.tables import new_id

ResponseEvent = tuple[str, dict[str, Any]]  # type and fields


class ResponseEncoder:
    """Encodes the answer to a request of responses.

    Each event is serialised before the next is made: it refers to the output items themselves, which go on growing.
    """

    done = b""  # the last event says it

    def __init__(self, context: RequestContext, body: ResponseRequest, reasons: bool) -> None:
        """`reasons`: the answer may begin with reasoning, whose log-probabilities are not sent."""
        self._variant, self._body, self._reasons = context.variant, body, reasons
        self._truncate = context.server.truncate
        self.id, self._created, self._ended = new_id("resp"), int(time.time()), 0
        self._usage, self._finish_reason = TokenUsage(0), ""
        self._output: list[Item] = []
        self._logprobs: list[Item] = []  # of tokens whose text has not come yet
        self._sequence_numbers = itertools.count()

    def begin(self) -> Iterator[Chunk]:
        """Yield the two events before an answer."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response_object("in_progress"))

    def encode(self, event: OutputEvent) -> Iterator[Chunk]:
        """Yield the events of an item: its beginning, deltas, end."""
        match event:
            case Delta(part=part, logprobs=tokens):
                self._logprobs += logprobs_content(self._variant, tokens)
                yield from self._numbered(self._events_of(part))
            case Finish(reason=reason):
                self._finish_reason = reason
                yield from self._numbered(self._finish())
            case Usage(usage=usage):
                self._usage = usage

    def end(self) -> Iterator[Chunk]:
        """Yield the last event: response.completed or response.incomplete."""
        yield self._event(f"response.{self._status()}", response=self.body())

    def body(self) -> Chunk:
        """Return the response object."""
        return self._response_object(self._status())

    def failed(self, error: ApiError) -> Chunk:
        """Return the event response.failed."""
        said = {"code": "server_error", "message": error.body["error"]["message"]}
        return self._event("response.failed", response={**self._response_object("failed"), "error": said})

    def _numbered(self, events: Iterable[ResponseEvent]) -> Iterator[Chunk]:
        for kind, values in events:
            yield self._event(kind, **values)

    def _events_of(self, part: ParsedDelta) -> Iterator[ResponseEvent]:
        """Yield the events of a part of the answer."""
        match part.kind:
            case "call":
                yield from self._end_item()
                yield from self._begin_call(part)
            case "arguments":
                self._output[-1]["arguments"] += part.text
                yield "response.function_call_arguments.delta", {**self._position(), "delta": part.text}
            case "reasoning":
                yield from self._reasoning(part.text)
                return  # the text behind it may have come with it, and its log-probabilities
            case "text" if part.text:
                yield from self._text(part.text)
            case "text":
                return  # log-probabilities alone: those of the text that comes next
        self._logprobs = []  # those of a call's tokens are not sent

    def _reasoning(self, text: str) -> Iterator[ResponseEvent]:
        if not self._output:
            yield from self._begin_reasoning()
        self._output[-1]["content"][0]["text"] += text
        yield "response.reasoning_text.delta", {**self._position(), "content_index": 0, "delta": text}

    def _text(self, text: str) -> Iterator[ResponseEvent]:
        if self._reasons and not any(item["type"] == "message" for item in self._output):
            self._logprobs = _after_reasoning(self._logprobs, text)
        yield from self._ensure_message()
        content = self._output[-1]["content"][0]
        content["text"] += text
        content["logprobs"] += self._logprobs
        delta = {"delta": text, "logprobs": self._logprobs, "content_index": 0}
        yield "response.output_text.delta", {**self._position(), **delta}

    def _finish(self) -> Iterator[ResponseEvent]:
        """Yield the last events: an answer always has a message, though it may be empty."""
        if self._reasons and (not self._output or self._output[-1]["type"] == "reasoning"):
            self._logprobs = []  # of reasoning alone
        yield from self._ensure_message()
        if self._output[-1]["type"] == "message":
            self._output[-1]["content"][0]["logprobs"] += self._logprobs
        yield from self._end_item()
        self._ended = int(time.time())

    def _ensure_message(self) -> Iterator[ResponseEvent]:
        """Begin a message where none has begun, after the end of reasoning."""
        if self._output and self._output[-1]["type"] != "reasoning":
            return
        yield from self._end_item()
        item: Item = {"type": "message", "id": self._new_item_id("message"), "role": "assistant"}
        yield from self._begin_content(
            item, {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        )

    def _begin_reasoning(self) -> Iterator[ResponseEvent]:
        item: Item = {"type": "reasoning", "id": self._new_item_id("reasoning"), "summary": []}
        yield from self._begin_content(item, {"type": "reasoning_text", "text": ""})

    def _begin_content(self, item: Item, part: Item) -> Iterator[ResponseEvent]:
        """Begin an item that has one part of text."""
        item.update(status="in_progress", content=[])
        yield self._begin_item(item)
        item["content"] = [part]
        yield "response.content_part.added", {**self._position(), "content_index": 0, "part": part}

    def _begin_call(self, part: ParsedDelta) -> Iterator[ResponseEvent]:
        item: Item = {
            "type": "function_call", "id": self._new_item_id("function_call"), "call_id": part.id, "name": part.text,
            "arguments": "", "status": "in_progress",
        }  # fmt: skip
        yield self._begin_item(item)

    def _begin_item(self, item: Item) -> ResponseEvent:
        self._output.append(item)
        return "response.output_item.added", {"output_index": len(self._output) - 1, "item": item}

    def _end_item(self) -> Iterator[ResponseEvent]:
        """Yield the events that end the current item; none where there is no item."""
        if not self._output:
            return
        item, place = self._output[-1], self._position()
        item["status"] = self._status()
        if item["type"] == "function_call":
            called = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", {**place, **called}
        else:
            part, place = item["content"][0], {**place, "content_index": 0}
            event = {key: part[key] for key in ("text", "logprobs") if key in part}
            yield f"response.{part['type']}.done", {**place, **event}
            yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": len(self._output) - 1, "item": item}

    def _new_item_id(self, kind: str) -> str:
        return item_id(kind, self.id, len(self._output))

    def _position(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _event(self, kind: str, **values: Any) -> Chunk:
        return {"type": kind, "sequence_number": next(self._sequence_numbers), **values}

    def _status(self) -> str:
        return "incomplete" if self._finish_reason == "length" else "completed"

    def _response_object(self, status: str) -> dict[str, Any]:
        """Return the response object as it is now."""
        body, is_over = self._body, status in ("completed", "incomplete")
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": self._ended if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": self._output,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "text": {"format": text_format(body).model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": _tool_choice_object(body),
            "tools": [tool.model_dump() for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or ("auto" if self._truncate else "disabled"),
            "usage": _usage_object(self._usage) if is_over else None,
            "user": body.user,
        }


def text_format(body: ResponseRequest) -> TextFormat:
    """Return the format that a request wants of the text."""
    return (body.text.format if body.text else None) or TextFormat()


def _usage_object(usage: TokenUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _tool_choice_object(body: ResponseRequest) -> Any:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _after_reasoning(logprobs: list[Item], text: str) -> list[Item]:
    """Return the log-probabilities from the first token of a text on: those before it were reasoning."""
    said = text.encode()
    for place in range(len(logprobs) - 1, -1, -1):
        joined = b""
        for one in logprobs[place:]:
            joined += bytes(one["bytes"])
            if len(joined) >= len(said):
                break
        if joined.startswith(said):
            return logprobs[place:]
    return []


def without_logprobs(response: Chunk) -> Chunk:
    """Return a response as it is stored: log-probabilities can be a thousand times longer than the text."""
    return {**response, "output": [_without_logprobs(item) for item in response["output"]]}


def _without_logprobs(item: Item) -> Item:
    if item["type"] != "message":
        return item
    return {**item, "content": [{**part, "logprobs": []} for part in item["content"]]}
