"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.prompt_parts import continuation_text
from mm_rec.data.conversations.rendering import prompt_text
from mm_rec.inference.generate import encode_rendered
from mm_rec.inference.sampler import SamplingParams
from mm_rec.serving.context import ServerContext, get_context, get_owner
from mm_rec.serving.errors import ApiError, errors_in_field
from mm_rec.serving.generation import Choice, EnginePrompt, TokenUsage, start_choices
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.outputs import count_reasoning_tokens, logprobs_content, stream_deltas
from mm_rec.serving.protocol.preprocessing import (
    DROP_TURNS,
    SEND_LESS,
    FieldNames,
    ToolCallOptions,
    ToolChoice,
    ToolSchemas,
    build_sampling,
    constraint_factory,
    fit_prompt,
    output_schema,
    require_fields_together,
    resolve_max_tokens,
    sampling_per_choice,
    template_tools,
    to_chat_messages,
    tool_call_options,
)
from mm_rec.serving.protocol.schemas import ChatRequest, NamedFunction, NamedTool, ResponseFormat, Tool
from mm_rec.serving.protocol.tool_calls import OutputParser, ParsedDelta, make_parser, needs_special_tokens
from mm_rec.serving.sessions import SessionTurn
from mm_rec.serving.sse import DONE, SafeJSONResponse, sse_event
from mm_rec.serving.streaming import EventStreamResponse, cancel_on_disconnect, errors_as_events
from mm_rec.tokenizers.assistant_format import assistant_format

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    context, owner = get_context(request), get_owner(request)
    async with contextlib.AsyncExitStack() as stack:
        answer = await _begin(context, owner, body, stack)
        if not body.stream:
            return SafeJSONResponse(await cancel_on_disconnect(request.receive, answer.collect()))
        return EventStreamResponse(errors_as_events(answer.chunks()), stack.pop_all())


async def _begin(
    context: ServerContext, owner: str | None, body: ChatRequest, stack: contextlib.AsyncExitStack
) -> ChatCompletionStream:
    """Read the request and start its choices; the stack holds a session until the answer is over."""
    variant, started = context.registry.find(body.model), time.perf_counter()
    _require_together(body)
    tools = _tools_of(variant, body)
    call_options = _tool_call_options(body, tools)
    turn = None
    if body.session is not None:
        manager = context.sessions.turn(owner, body.session, variant)
        turn = await asyncio.to_thread(manager.__enter__)
        stack.push(manager.__exit__)
    prompt, samplings = await asyncio.to_thread(_prepare, context, variant, body, tools, turn)
    choices = await start_choices(
        variant, prompt, samplings, context.limits.timeout_seconds,
        constrain=constraint_factory(variant, call_options, _output_schema(body), "response_format", prompt),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        with_special_tokens=needs_special_tokens(variant, call_options is not None),
    )  # fmt: skip
    for choice in choices:
        stack.callback(choice.cancel)
    form = assistant_format(variant.model.tokenizer)
    parsers = [make_parser(form, prompt.ending, call_options is not None) for _ in choices]
    usage = TokenUsage(prompt.length, prompt.cached_tokens)
    return ChatCompletionStream(context, owner, variant, body, choices, parsers, usage, turn, started)


def _require_together(body: ChatRequest) -> None:
    """Raise ApiError for fields that have no effect beside the others, or contradict them."""
    require_fields_together(
        body, stream_options="stream", top_logprobs="logprobs", function_call="functions", parallel_tool_calls="tools"
    )  # fmt: skip
    refused: list[tuple[object, str, str]] = []  # whether, which field, and why
    refused += [(body.functions and body.tools, "functions", "give tools or functions, not both")]
    refused += [(body.functions and body.tool_choice, "tool_choice", "of functions it is function_call")]
    if body.session is not None:
        refused += [((body.n or 1) > 1, "n", "a session goes on in one way; fork it for another")]
        refused += [(body.stop, "stop", "a session goes on after collect answers; leave this out")]
        refused += [(body.truncation == "auto", "truncation", "a session is never shortened; leave this out")]
    for is_given, name, why in refused:
        if is_given:
            raise ApiError(400, f"{name}: {why}", name, "invalid_value")


def _tools_of(variant: ModelVariant, body: ChatRequest) -> ToolSchemas:
    """Return the tools of a request, or its deprecated functions as tools."""
    if body.functions:
        tools = [Tool(type="function", function=function) for function in body.functions]
        return template_tools(variant, tools, "functions")
    return template_tools(variant, body.tools)


def _tool_call_options(body: ChatRequest, tools: ToolSchemas) -> ToolCallOptions | None:
    if not body.functions:
        return tool_call_options(tools, body.tool_choice, body.parallel_tool_calls is not False)
    choice: ToolChoice = body.function_call if isinstance(body.function_call, str) else None
    if isinstance(body.function_call, NamedFunction):
        choice = NamedTool(type="function", function=body.function_call)
    return tool_call_options(tools, choice, False, "functions", "function_call")


def _output_schema(body: ChatRequest) -> Mapping[str, Any] | None:
    wanted = body.response_format or ResponseFormat()
    return output_schema(wanted.type, wanted.json_schema.schema_ if wanted.json_schema else None)


def _prepare(
    context: ServerContext,
    variant: ModelVariant,
    body: ChatRequest,
    tools: ToolSchemas,
    turn: SessionTurn | None,
) -> tuple[EnginePrompt, list[SamplingParams]]:
    """Return the prompt, and the sampling of each choice."""
    truncate = body.truncation == "auto" if body.truncation else context.truncate
    remedy = SEND_LESS if truncate or turn else DROP_TURNS
    wanted, names = body.max_tokens, FieldNames("messages", "max_tokens", remedy)
    if body.max_completion_tokens is not None:
        wanted, names = body.max_completion_tokens, FieldNames("messages", "max_completion_tokens", remedy)
    messages = to_chat_messages(variant, body.messages)
    if turn is None:
        prompt, most = fit_prompt(variant, messages, tools, wanted, context.limits, names, truncate)
    else:
        prompt = _session_prompt(variant, turn, messages, tools)
        most = resolve_max_tokens(variant, prompt.length, wanted, context.limits, names)
    return prompt, sampling_per_choice(
        build_sampling(variant, body, most), body.n, variant.model.scheduler.max_running
    )


def _session_prompt(
    variant: ModelVariant, turn: SessionTurn, messages: Sequence[ChatMessage], tools: ToolSchemas
) -> EnginePrompt:
    """Return the prompt of a turn: the new messages alone, in an empty session after the tools."""
    tokenizer = variant.model.tokenizer
    is_new = not turn.session.length
    with errors_in_field("messages"):
        text = prompt_text(tokenizer, messages, tools) if is_new else continuation_text(tokenizer, messages)
    return EnginePrompt(turn.session, [encode_rendered(tokenizer, text)])


@dataclass
class _ChoiceBuffer:
    """What one choice has said so far."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ChatCompletionStream:
    """The response to a request, collected or in chunks."""

    def __init__(
        self, context: ServerContext, owner: str | None, variant: ModelVariant, body: ChatRequest,
        choices: list[Choice], parsers: list[OutputParser], usage: TokenUsage, turn: SessionTurn | None, started: float,
    ) -> None:  # fmt: skip
        self._context, self._owner, self._variant, self._body = context, owner, variant, body
        self._choices, self._parsers = choices, parsers
        self._usage, self._turn, self._started = usage, turn, started
        self._buffers = [_ChoiceBuffer() for _ in choices]
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}

    async def collect(self) -> dict[str, Any]:
        """Return the chat.completion object."""
        async with contextlib.aclosing(self._parsed_deltas()) as parts:
            async for _ in parts:
                pass
        choices = [
            {
                "index": number,
                "message": self._message(buffer),
                "logprobs": {"content": buffer.logprobs, "refusal": None} if self._body.logprobs else None,
                "finish_reason": self._finish_reason(number),
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

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """Yield the chat.completion.chunk events of a stream."""
        usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        async with contextlib.aclosing(self._parsed_deltas()) as parts:
            for number in range(len(self._choices)):
                yield self._chunk(number, {"role": "assistant", "content": "", "refusal": None}, usage)
            async for number, found, logprobs in parts:
                deltas = self._deltas(found) or ([{}] if logprobs else [])
                for place, delta in enumerate(deltas):
                    yield self._chunk(number, delta, usage, () if place else logprobs)
            for number in range(len(self._choices)):
                yield self._chunk(number, {}, usage, finish_reason=self._finish_reason(number))
            if usage:
                yield self._event([], {"usage": self._usage.chat()})
            yield DONE

    async def _parsed_deltas(
        self,
    ) -> AsyncGenerator[tuple[int, list[ParsedDelta], list[dict[str, Any]]], None]:
        """Yield the parsed deltas and log-probabilities of each choice as they come."""
        deltas = stream_deltas(
            self._context, self._owner, self._variant, self._choices, self._usage, self._started
        )
        async with contextlib.aclosing(deltas):
            async for number, delta in deltas:
                logprobs = logprobs_content(self._variant, delta)
                self._buffers[number].logprobs += logprobs
                yield number, self._record(number, self._parsers[number].push(delta.text)), logprobs
        for number, parser in enumerate(self._parsers):
            if left := self._record(number, parser.finish()):
                yield number, left, []
        self._usage.reasoning_tokens = sum(
            count_reasoning_tokens(self._variant, buffer.reasoning) for buffer in self._buffers
        )
        await self._commit()

    def _record(self, number: int, parts: Iterable[ParsedDelta]) -> list[ParsedDelta]:
        """Add parsed deltas to the buffer of a choice."""
        found, buffer = list(parts), self._buffers[number]
        for part in found:
            if part.kind == "text":
                buffer.text += part.text
            elif part.kind == "reasoning":
                buffer.reasoning += part.text
            elif part.kind == "call":
                buffer.calls.append({"id": part.id, "name": part.text, "arguments": ""})
            else:
                buffer.calls[part.call]["arguments"] += part.text
        return found

    async def _commit(self) -> None:
        """Store the state of a session after its turn."""
        if self._turn is None:
            return
        finished = self._choices[0].finished_session()
        assert finished is not None  # there are no stop strings
        await asyncio.to_thread(
            self._context.sessions.commit, self._owner, self._turn, self._variant, finished[0]
        )

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

    def _finish_reason(self, number: int) -> str:
        finish_reason = self._choices[number].finish_reason
        if finish_reason == "stop" and self._buffers[number].calls:
            return "function_call" if self._body.functions else "tool_calls"
        return finish_reason

    def _deltas(self, parts: Sequence[ParsedDelta]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for part in parts:
            if part.kind in ("text", "reasoning"):
                deltas.append({"content" if part.kind == "text" else "reasoning_content": part.text})
                continue
            function = (
                {"name": part.text, "arguments": ""} if part.kind == "call" else {"arguments": part.text}
            )
            if self._body.functions:
                deltas.append({"function_call": function})
                continue
            named = {"id": part.id, "type": "function"} if part.kind == "call" else {}
            deltas.append({"tool_calls": [{"index": part.call, **named, "function": function}]})
        return deltas

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        usage: bool,
        logprobs: Sequence[Any] = (),
        finish_reason: str | None = None,
    ) -> bytes:
        shown = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": number, "delta": delta, "logprobs": shown, "finish_reason": finish_reason}
        return self._event([choice], {"usage": None} if usage else {})

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        fingerprint = self._variant.model.system_fingerprint
        head = {**self._head, "object": "chat.completion.chunk", "system_fingerprint": fingerprint}
        return sse_event({**head, "choices": choices, **more})
