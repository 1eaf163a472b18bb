"""POST /v1/chat/completions."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response

from mm_rec.data.conversations.conversation import ChatMessage
from mm_rec.data.conversations.rendering import prompt_text
from mm_rec.data.conversations.turns import following_text
from mm_rec.inference.engine import Chosen
from mm_rec.inference.text_stream import encode
from mm_rec.serving.calls import Part, reader_for
from mm_rec.serving.errors import ApiError
from mm_rec.serving.generation import Choice, Prompt, Usage, begin_choices, merged
from mm_rec.serving.models import Served
from mm_rec.serving.requests import (
    Calling,
    answer_tokens,
    chat_messages,
    constrainer,
    conversation_prompt,
    sampling_of,
    samplings,
)
from mm_rec.serving.schemas import AllowedToolsChoice, ChatRequest, NamedFunction, NamedTool, Tool
from mm_rec.serving.service import Service, owner_of, service_of, unless_gone, with_errors
from mm_rec.serving.sessions import Turn
from mm_rec.serving.wire import DONE, Json, Stream, event

router = APIRouter()


@router.post("/v1/chat/completions")
async def create_chat_completion(body: ChatRequest, request: Request) -> Response:
    """Answer a conversation."""
    service, owner = service_of(request), owner_of(request)
    async with contextlib.AsyncExitStack() as stack:
        answer = await _begin(service, owner, body, stack)
        if not body.stream:
            return Json(await unless_gone(request, answer.whole()))
        return Stream(with_errors(answer.chunks()), stack.pop_all())


async def _begin(
    service: Service, owner: str | None, body: ChatRequest, stack: contextlib.AsyncExitStack
) -> ChatAnswer:
    """Read what is asked for, and start writing; a session is held by the stack until the answer is over."""
    served, begun = service.registry.find(body.model), time.perf_counter()
    calling = calling_of(body)
    tools = [tool.model_dump(exclude_none=True) for tool in tools_of(body)]
    constrain = constrainer(served, calling, _schema_of(body))
    turn = None
    if body.session is not None:
        for name, why in {
            "n": "goes on in one way; fork it for another",
            "stop": "goes on after whole answers",
        }.items():
            if getattr(body, name) not in (None, 1, []):
                raise ApiError(400, f"{name}: a session {why}; leave this out", name, "invalid_value")
        manager = service.sessions.turn(owner, body.session, served)
        turn = await asyncio.to_thread(manager.__enter__)
        stack.push(manager.__exit__)
    prompt, chosen = await asyncio.to_thread(_plan, service, served, body, tools, turn)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    choices = await begin_choices(
        served, prompt, chosen, service.limits.seconds,
        constrain=constrain, logprobs=logprobs, special=calling is not None,
    )  # fmt: skip
    for choice in choices:
        stack.callback(choice.cancel)
    return ChatAnswer(service, owner, served, body, choices, Usage(prompt.length, prompt.cached), turn, begun)


def _plan(
    service: Service, served: Served, body: ChatRequest, tools: Sequence[dict[str, Any]], turn: Turn | None
) -> tuple[Prompt, list[Any]]:
    """The prompt, and a sampling for each answer."""
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(400, "top_logprobs: send logprobs: true with it", "top_logprobs", "invalid_value")
    field_name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    messages = chat_messages(served, body.messages)
    if turn is None:
        shorten = body.truncation == "auto" if body.truncation else service.shorten
        prompt, most = conversation_prompt(
            served, messages, tools, wanted, service.limits, field_name, shorten
        )
    else:
        prompt = _session_prompt(served, turn, messages, tools)
        most = answer_tokens(served, prompt.length, wanted, service.limits, field_name)
    return prompt, samplings(sampling_of(body, most), body.n, served.model.batcher.most)


def _session_prompt(
    served: Served, turn: Turn, messages: Sequence[ChatMessage], tools: Sequence[dict[str, Any]]
) -> Prompt:
    """The prompt of a turn: the new messages alone; a session that has read nothing begins with the tools."""
    tokenizer = served.model.tokenizer
    is_new = not turn.session.length
    text = prompt_text(tokenizer, messages, tools) if is_new else following_text(tokenizer, messages)
    return Prompt(turn.session, [encode(tokenizer, text)])


def tools_of(body: ChatRequest) -> list[Tool]:
    """The tools of a request, those of its deprecated fields too."""
    if body.tools and body.functions:
        raise ApiError(400, "functions: give tools or functions, not both", "functions", "invalid_value")
    if body.functions:
        return [Tool(type="function", function=function) for function in body.functions]
    return body.tools or []


def calling_of(body: ChatRequest) -> Calling | None:
    """Which tools may be called; None where none may."""
    tools = [tool.model_dump(exclude_none=True) for tool in tools_of(body)]
    choice = body.function_call if body.functions else body.tool_choice
    if not tools:
        if choice not in (None, "none", "auto"):
            raise ApiError(
                400, "tool_choice: there are no tools to choose from", "tool_choice", "invalid_value"
            )
        return None
    parallel = body.parallel_tool_calls is not False and not body.functions
    match choice:
        case "none":
            return None
        case NamedTool():
            return Calling(tools, choice.function.name, parallel=False)
        case NamedFunction():
            return Calling(tools, choice.name, parallel=False)
        case AllowedToolsChoice():
            names = {tool.function.name for tool in choice.allowed_tools.tools}
            return Calling(allowed(tools, names), choice.allowed_tools.mode, parallel)
    return Calling(tools, choice or "auto", parallel)


def allowed(tools: Sequence[dict[str, Any]], names: set[str]) -> list[dict[str, Any]]:
    """The tools of these names; raises ApiError where one is not defined."""
    missing = names - {tool["function"]["name"] for tool in tools}
    if missing:
        message = f"tool_choice: there is no tool {sorted(missing)[0][:64]!r}"
        raise ApiError(400, message, "tool_choice", "invalid_value")
    return [tool for tool in tools if tool["function"]["name"] in names]


def _schema_of(body: ChatRequest) -> dict[str, Any] | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    return {"type": "object"} if wanted.json_schema is None else wanted.json_schema.schema_


@dataclass
class _Told:
    """What was told of one choice."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)


class ChatAnswer:
    """The answer to a request, as a whole or in chunks."""

    def __init__(
        self, service: Service, owner: str | None, served: Served, body: ChatRequest, choices: list[Choice],
        usage: Usage, turn: Turn | None, begun: float,
    ) -> None:  # fmt: skip
        self._service, self._owner, self._served, self._body = service, owner, served, body
        self._choices, self._usage, self._turn, self._begun = choices, usage, turn, begun
        self._readers = [reader_for(served.model.tokenizer, calling_of(body) is not None) for _ in choices]
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
        """What comes of each choice, and the account at the end, whatever end it is."""
        first = True
        try:
            async with contextlib.aclosing(merged(self._choices)) as pieces:
                async for number, piece in pieces:
                    if first:
                        self._service.figures.first_token(self._served.model.name, self._begun)
                        first = False
                    logprobs = (
                        [logprob(self._served, chosen) for chosen in piece.tokens]
                        if self._body.logprobs
                        else []
                    )
                    yield (
                        number,
                        self._tell(number, self._readers[number].push(piece.text), logprobs),
                        logprobs,
                    )
            for number, reader in enumerate(self._readers):
                if left := self._tell(number, reader.finish(), []):
                    yield number, left, []
            await self._commit()
        finally:
            self._usage.completion = sum(choice.completion for choice in self._choices)
            self._service.account(self._owner, self._served, self._usage)

    def _tell(self, number: int, parts: Any, logprobs: list[dict[str, Any]]) -> list[Part]:
        found, told = list(parts), self._told[number]
        told.logprobs += logprobs
        for part in found:
            if part.kind == "text":
                told.text += part.text
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
        message: dict[str, Any] = {"role": "assistant", "content": told.text, "refusal": None}
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
            if part.kind == "text":
                deltas.append({"content": part.text})
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


def logprob(served: Served, chosen: Chosen) -> dict[str, Any]:
    """A token with its log-probability, and the likeliest, as chat completions have them."""
    likeliest = [_token(served, token, value) for token, value in chosen.likeliest]
    return {**_token(served, chosen.token, chosen.logprob or 0.0), "top_logprobs": likeliest}


def _token(served: Served, token: int, value: float) -> dict[str, Any]:
    text = served.model.token_text(token)
    return {"token": text.decode("utf-8", "replace"), "logprob": max(value, -9999.0), "bytes": list(text)}
