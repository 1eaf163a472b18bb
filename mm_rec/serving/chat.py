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
from mm_rec.data.conversations.rendering import prompt_text
from mm_rec.data.conversations.turns import following_text
from mm_rec.inference.sampling import Sampling
from mm_rec.inference.text_stream import encode
from mm_rec.serving.answers import logprobs_of, pieces_of, reasoning_tokens
from mm_rec.serving.errors import ApiError, about
from mm_rec.serving.generation import Choice, Prompt, Usage, begin_choices
from mm_rec.serving.models import Served
from mm_rec.serving.requests import (
    DROP_TURNS,
    SEND_LESS,
    Calling,
    Names,
    Schemas,
    ToolChoice,
    answer_tokens,
    calling_of,
    chat_messages,
    constrainer,
    conversation_prompt,
    require_with,
    sampling_of,
    samplings,
    schema_of,
    template_tools,
)
from mm_rec.serving.schemas import ChatRequest, NamedFunction, NamedTool, ResponseFormat, Tool
from mm_rec.serving.service import Service, owner_of, service_of
from mm_rec.serving.sessions import Turn
from mm_rec.serving.sse import DONE, Json, event
from mm_rec.serving.streaming import Stream, unless_gone, with_errors
from mm_rec.serving.tool_calls import Part, Reader, reader_for, reads_special
from mm_rec.tokenizers.answer_form import answer_form

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service, owner = service_of(request), owner_of(request)
    async with contextlib.AsyncExitStack() as stack:
        answer = await _begin(service, owner, body, stack)
        if not body.stream:
            return Json(await unless_gone(request.receive, answer.whole()))
        return Stream(with_errors(answer.chunks()), stack.pop_all())


async def _begin(
    service: Service, owner: str | None, body: ChatRequest, stack: contextlib.AsyncExitStack
) -> ChatAnswer:
    """Read what is asked for, and start writing; a session is held by the stack until the answer is over."""
    served, begun = service.registry.find(body.model), time.perf_counter()
    _require_together(body)
    tools = _tools_of(served, body)
    calling = _calling_of(body, tools)
    turn = None
    if body.session is not None:
        manager = service.sessions.turn(owner, body.session, served)
        turn = await asyncio.to_thread(manager.__enter__)
        stack.push(manager.__exit__)
    prompt, chosen = await asyncio.to_thread(_plan, service, served, body, tools, turn)
    choices = await begin_choices(
        served, prompt, chosen, service.limits.seconds,
        constrain=constrainer(served, calling, _schema_of(body), "response_format", prompt),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        special=reads_special(served, calling is not None),
    )  # fmt: skip
    for choice in choices:
        stack.callback(choice.cancel)
    form = answer_form(served.model.tokenizer)
    readers = [reader_for(form, prompt.ending, calling is not None) for _ in choices]
    usage = Usage(prompt.length, prompt.cached)
    return ChatAnswer(service, owner, served, body, choices, readers, usage, turn, begun)


def _require_together(body: ChatRequest) -> None:
    """Raise ApiError for fields that do nothing beside the others, or cannot be held to beside them."""
    require_with(
        body, stream_options="stream", top_logprobs="logprobs", function_call="functions", parallel_tool_calls="tools"
    )  # fmt: skip
    refused: list[tuple[object, str, str]] = []  # whether, which field, and why
    refused += [(body.functions and body.tools, "functions", "give tools or functions, not both")]
    refused += [(body.functions and body.tool_choice, "tool_choice", "of functions it is function_call")]
    if body.session is not None:
        refused += [((body.n or 1) > 1, "n", "a session goes on in one way; fork it for another")]
        refused += [(body.stop, "stop", "a session goes on after whole answers; leave this out")]
        refused += [(body.truncation == "auto", "truncation", "a session is never shortened; leave this out")]
    for is_given, name, why in refused:
        if is_given:
            raise ApiError(400, f"{name}: {why}", name, "invalid_value")


def _tools_of(served: Served, body: ChatRequest) -> Schemas:
    """The tools of a request, also those of its deprecated field."""
    if body.functions:
        tools = [Tool(type="function", function=function) for function in body.functions]
        return template_tools(served, tools, "functions")
    return template_tools(served, body.tools)


def _calling_of(body: ChatRequest, tools: Schemas) -> Calling | None:
    if not body.functions:
        return calling_of(tools, body.tool_choice, body.parallel_tool_calls is not False)
    choice: ToolChoice = body.function_call if isinstance(body.function_call, str) else None
    if isinstance(body.function_call, NamedFunction):
        choice = NamedTool(type="function", function=body.function_call)
    return calling_of(tools, choice, False, "functions", "function_call")


def _schema_of(body: ChatRequest) -> Mapping[str, Any] | None:
    wanted = body.response_format or ResponseFormat()
    return schema_of(wanted.type, wanted.json_schema.schema_ if wanted.json_schema else None)


def _plan(
    service: Service, served: Served, body: ChatRequest, tools: Schemas, turn: Turn | None
) -> tuple[Prompt, list[Sampling]]:
    """The prompt, and a sampling for each answer."""
    shorten = body.truncation == "auto" if body.truncation else service.shorten
    remedy = SEND_LESS if shorten or turn else DROP_TURNS
    wanted, names = body.max_tokens, Names("messages", "max_tokens", remedy)
    if body.max_completion_tokens is not None:
        wanted, names = body.max_completion_tokens, Names("messages", "max_completion_tokens", remedy)
    messages = chat_messages(served, body.messages)
    if turn is None:
        prompt, most = conversation_prompt(served, messages, tools, wanted, service.limits, names, shorten)
    else:
        prompt = _session_prompt(served, turn, messages, tools)
        most = answer_tokens(served, prompt.length, wanted, service.limits, names)
    return prompt, samplings(sampling_of(served, body, most), body.n, served.model.batcher.most)


def _session_prompt(served: Served, turn: Turn, messages: Sequence[ChatMessage], tools: Schemas) -> Prompt:
    """The prompt of a turn: the new messages alone; a session that has read nothing begins with the tools."""
    tokenizer = served.model.tokenizer
    is_new = not turn.session.length
    with about("messages"):
        text = prompt_text(tokenizer, messages, tools) if is_new else following_text(tokenizer, messages)
    return Prompt(turn.session, [encode(tokenizer, text)])


@dataclass
class _Told:
    """What was told of one choice."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ChatAnswer:
    """The answer to a request, as a whole or in chunks."""

    def __init__(
        self, service: Service, owner: str | None, served: Served, body: ChatRequest, choices: list[Choice],
        readers: list[Reader], usage: Usage, turn: Turn | None, begun: float,
    ) -> None:  # fmt: skip
        self._service, self._owner, self._served, self._body = service, owner, served, body
        self._choices, self._readers = choices, readers
        self._usage, self._turn, self._begun = usage, turn, begun
        self._told = [_Told() for _ in choices]
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": body.model}

    async def whole(self) -> dict[str, Any]:
        """The object chat.completion."""
        async with contextlib.aclosing(self._parts()) as parts:
            async for _ in parts:
                pass
        choices = [
            {
                "index": number,
                "message": self._message(told),
                "logprobs": {"content": told.logprobs, "refusal": None} if self._body.logprobs else None,
                "finish_reason": self._finish(number),
            }
            for number, told in enumerate(self._told)
        ]
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._usage.chat(),
            "service_tier": "default",
            "system_fingerprint": self._served.model.system_fingerprint,
        }

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        usage = self._body.stream_options is not None and self._body.stream_options.include_usage
        async with contextlib.aclosing(self._parts()) as parts:
            for number in range(len(self._choices)):
                yield self._chunk(number, {"role": "assistant", "content": "", "refusal": None}, usage)
            async for number, found, logprobs in parts:
                deltas = self._deltas(found) or ([{}] if logprobs else [])
                for place, delta in enumerate(deltas):
                    yield self._chunk(number, delta, usage, () if place else logprobs)
            for number in range(len(self._choices)):
                yield self._chunk(number, {}, usage, finish=self._finish(number))
            if usage:
                yield self._event([], {"usage": self._usage.chat()})
            yield DONE

    async def _parts(self) -> AsyncGenerator[tuple[int, list[Part], list[dict[str, Any]]], None]:
        """What comes of each choice: parts and log-probabilities."""
        pieces = pieces_of(self._service, self._owner, self._served, self._choices, self._usage, self._begun)
        async with contextlib.aclosing(pieces):
            async for number, piece in pieces:
                logprobs = logprobs_of(self._served, piece)
                self._told[number].logprobs += logprobs
                yield number, self._tell(number, self._readers[number].push(piece.text)), logprobs
        for number, reader in enumerate(self._readers):
            if left := self._tell(number, reader.finish()):
                yield number, left, []
        self._usage.reasoning = sum(reasoning_tokens(self._served, told.reasoning) for told in self._told)
        await self._commit()

    def _tell(self, number: int, parts: Iterable[Part]) -> list[Part]:
        """Note what a choice has said."""
        found, told = list(parts), self._told[number]
        for part in found:
            if part.kind == "text":
                told.text += part.text
            elif part.kind == "reasoning":
                told.reasoning += part.text
            elif part.kind == "call":
                told.calls.append({"id": part.id, "name": part.text, "arguments": ""})
            else:
                told.calls[part.call]["arguments"] += part.text
        return found

    async def _commit(self) -> None:
        """A turn of a session is over: keep what it has read."""
        if self._turn is None:
            return
        finished = self._choices[0].finished_session()
        assert finished is not None  # there are no stop strings
        await asyncio.to_thread(
            self._service.sessions.commit, self._owner, self._turn, self._served, finished[0]
        )

    def _message(self, told: _Told) -> dict[str, Any]:
        message: dict[str, Any] = {
            "role": "assistant",
            "content": told.text,
            "refusal": None,
            "annotations": [],
        }
        if told.reasoning:
            message["reasoning_content"] = told.reasoning
        if told.calls:
            message["content"] = told.text or None
            called = [{"name": call["name"], "arguments": call["arguments"]} for call in told.calls]
            if self._body.functions:
                message["function_call"] = called[0]
            else:
                message["tool_calls"] = [
                    {"id": call["id"], "type": "function", "function": function}
                    for call, function in zip(told.calls, called, strict=True)
                ]
        return message

    def _finish(self, number: int) -> str:
        finish = self._choices[number].finish
        if finish == "stop" and self._told[number].calls:
            return "function_call" if self._body.functions else "tool_calls"
        return finish

    def _deltas(self, parts: Sequence[Part]) -> list[dict[str, Any]]:
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
        finish: str | None = None,
    ) -> bytes:
        told = {"content": logprobs, "refusal": None} if logprobs else None
        choice = {"index": number, "delta": delta, "logprobs": told, "finish_reason": finish}
        return self._event([choice], {"usage": None} if usage else {})

    def _event(self, choices: list[dict[str, Any]], more: dict[str, Any]) -> bytes:
        fingerprint = self._served.model.system_fingerprint
        head = {**self._head, "object": "chat.completion.chunk", "system_fingerprint": fingerprint}
        return event({**head, "choices": choices, **more})
