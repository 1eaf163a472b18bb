"""The wire form of chat completions: a chat.completion object, or chunks of one."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mm_rec.serving.context import RequestContext
from mm_rec.serving.errors import ApiError
from mm_rec.serving.generation import TokenUsage
from mm_rec.serving.protocol.encoding import Chunk, logprobs_content
from mm_rec.serving.protocol.events import Delta, Finish, OutputEvent, Usage
from mm_rec.serving.protocol.schemas import ChatRequest
from mm_rec.serving.protocol.tool_calls import ParsedDelta
from mm_rec.serving.sse import DONE


@dataclass
class _ChoiceBuffer:
    """What one choice has said so far, and how it ended."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, str]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""

    def add(self, part: ParsedDelta) -> None:
        """Add a part of the answer."""
        match part.kind:
            case "text":
                self.text += part.text
            case "reasoning":
                self.reasoning += part.text
            case "call":
                self.calls.append({"id": part.id, "name": part.text, "arguments": ""})
            case "arguments":
                self.calls[part.call]["arguments"] += part.text


class ChatEncoder:
    """Encodes the answer to a request of chat completions."""

    done = DONE

    def __init__(self, context: RequestContext, body: ChatRequest, choices: int) -> None:
        self._body = body
        self._variant = context.variant
        self._buffers = [_ChoiceBuffer() for _ in range(choices)]
        self._usage = TokenUsage(0)
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}
        self._streams_usage = body.stream_options is not None and body.stream_options.include_usage

    def begin(self) -> Iterator[Chunk]:
        """Yield the role of each choice."""
        for number in range(len(self._buffers)):
            yield self._chunk(number, {"role": "assistant", "content": "", "refusal": None})

    def encode(self, event: OutputEvent) -> Iterator[Chunk]:
        """Yield the chunk of a delta."""
        match event:
            case Delta(choice=number, part=part):
                logprobs = logprobs_content(self._variant, event.logprobs)
                self._buffers[number].add(part)
                self._buffers[number].logprobs += logprobs
                yield self._chunk(number, self._delta(part), logprobs)
            case Finish(choice=number, reason=reason):
                self._buffers[number].finish_reason = self._finish_reason(number, reason)
            case Usage(usage=usage):
                self._usage = usage

    def end(self) -> Iterator[Chunk]:
        """Yield how each choice ended, and the usage where it was asked for."""
        for number, buffer in enumerate(self._buffers):
            yield self._chunk(number, {}, finish_reason=buffer.finish_reason)
        if self._streams_usage:
            yield {**self._chunk_of([]), "usage": self._usage.chat()}

    def body(self) -> Chunk:
        """Return the chat.completion object."""
        choices = [
            {
                "index": number,
                "message": self._message(buffer),
                "logprobs": {"content": buffer.logprobs, "refusal": None} if self._body.logprobs else None,
                "finish_reason": buffer.finish_reason,
            }
            for number, buffer in enumerate(self._buffers)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._usage.chat(),
            "service_tier": "default",
            "system_fingerprint": self._variant.model.system_fingerprint,
        }

    def failed(self, error: ApiError) -> Chunk:
        """Return the error as it would be without a stream."""
        return error.body

    def _finish_reason(self, number: int, reason: str) -> str:
        if reason == "stop" and self._buffers[number].calls:
            return "function_call" if self._body.functions else "tool_calls"
        return reason

    def _message(self, buffer: _ChoiceBuffer) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": buffer.text,
            "refusal": None,
            "annotations": [],
        }
        if buffer.reasoning:
            message["reasoning_content"] = buffer.reasoning
        if buffer.calls:
            message["content"] = buffer.text or None
            called = [{"name": call["name"], "arguments": call["arguments"]} for call in buffer.calls]
            if self._body.functions:
                message["function_call"] = called[0]
            else:
                message["tool_calls"] = [
                    {"id": call["id"], "type": "function", "function": function}
                    for call, function in zip(buffer.calls, called, strict=True)
                ]
        return message

    def _delta(self, part: ParsedDelta) -> dict[str, Any]:
        """Return the `delta` of a part; an empty one for empty text, which brings log-probabilities alone."""
        if part.kind == "reasoning":
            return {"reasoning_content": part.text}
        if part.kind == "text":
            return {"content": part.text} if part.text else {}
        function = {"name": part.text, "arguments": ""} if part.kind == "call" else {"arguments": part.text}
        if self._body.functions:
            return {"function_call": function}
        named = {"id": part.id, "type": "function"} if part.kind == "call" else {}
        return {"tool_calls": [{"index": part.call, **named, "function": function}]}

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        logprobs: Sequence[Any] = (),
        finish_reason: str | None = None,
    ) -> Chunk:
        shown = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": number, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}
        return {**self._chunk_of([choice]), **({"usage": None} if self._streams_usage else {})}

    def _chunk_of(self, choices: list[dict[str, Any]]) -> Chunk:
        fingerprint = self._variant.model.system_fingerprint
        head = {**self._head, "object": "chat.completion.chunk", "system_fingerprint": fingerprint}
        return {**head, "choices": choices}
