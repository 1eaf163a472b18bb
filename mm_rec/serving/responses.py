"""POST /v1/responses: the newer form of chat; what was answered is kept, and a later request goes on from it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from mm_rec.inference.sampling import Sampling
from mm_rec.serving.calls import Part, reader_for
from mm_rec.serving.chat import allowed, logprob
from mm_rec.serving.errors import ApiError, as_api_error
from mm_rec.serving.generation import Choice, Prompt, Usage, begin_choices
from mm_rec.serving.models import Served
from mm_rec.serving.requests import (
    Calling,
    chat_messages,
    constrainer,
    conversation_prompt,
    sampling_of,
)
from mm_rec.serving.response_schemas import (
    AllowedResponseTools,
    ChosenTool,
    FunctionCall,
    FunctionCallOutput,
    InputMessage,
    ResponseRequest,
)
from mm_rec.serving.routes import Limit
from mm_rec.serving.schemas import CalledFunction, Message, ToolCall, text_of
from mm_rec.serving.service import Service, owner_of, service_of, unless_gone
from mm_rec.serving.tables import StoredResponse, new_id
from mm_rec.serving.wire import Json, Stream, event

router = APIRouter()
Item = dict[str, Any]


@router.post("/v1/responses")
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer, after what a previous response answered."""
    service, owner = service_of(request), owner_of(request)
    async with contextlib.AsyncExitStack() as stack:
        answer = await _begin(service, owner, body, stack)
        if not body.stream:
            return Json(await unless_gone(request, answer.whole()))
        return Stream(answer.events(), stack.pop_all())


async def _begin(
    service: Service, owner: str | None, body: ResponseRequest, stack: contextlib.AsyncExitStack
) -> ResponseAnswer:
    served, begun = service.registry.find(body.model), time.perf_counter()
    calling = _calling(body)
    constrain = constrainer(served, calling, _schema_of(body))
    prompt, sampling = await asyncio.to_thread(_plan, service, owner, served, body)
    wants_logprobs = "message.output_text.logprobs" in (body.include or [])
    [choice] = await begin_choices(
        served, prompt, [sampling], service.limits.seconds, constrain=constrain, special=calling is not None,
        logprobs=(body.top_logprobs or 0) if wants_logprobs or body.top_logprobs else None,
    )  # fmt: skip
    stack.callback(choice.cancel)
    return ResponseAnswer(service, owner, served, body, choice, Usage(prompt.length, prompt.cached), begun)


def _plan(
    service: Service, owner: str | None, served: Served, body: ResponseRequest
) -> tuple[Prompt, Sampling]:
    items = [*_earlier(service, owner, body.previous_response_id), *_input_items(body)]
    messages = _messages(items)
    if body.instructions:
        messages = [Message(role="system", content=body.instructions), *messages]
    if not messages:
        raise ApiError(400, "input: there is nothing to answer", "input", "missing_required_parameter")

    shorten = body.truncation == "auto" if body.truncation else service.shorten
    prompt, most = conversation_prompt(
        served, chat_messages(served, messages), _chat_tools(body), body.max_output_tokens, service.limits,
        "max_output_tokens", shorten,
    )  # fmt: skip
    return prompt, sampling_of(body, most)


def _earlier(service: Service, owner: str | None, response_id: str | None) -> list[Item]:
    """The items of all responses that one goes on from, and its own; raises ApiError, 404."""
    if response_id is None:
        return []
    chain = service.store.response_chain(owner, response_id)
    if not chain or chain[0].previous_response_id is not None:
        raise ApiError(
            404, f"there is no response {response_id[:100]!r}, or one before it was deleted",
            "previous_response_id", "previous_response_not_found",
        )  # fmt: skip
    return [item for row in chain for item in (*row.input_items, *row.output_items)]


def _input_items(body: ResponseRequest) -> list[Item]:
    if isinstance(body.input, str):
        return [{"type": "message", "role": "user", "content": body.input}]
    return [item.model_dump(exclude_none=True) for item in body.input]


def _messages(items: Sequence[Item]) -> list[Message]:
    """Items as messages; calls belong to the assistant's message before them."""
    messages: list[Message] = []
    for item in items:
        match item.get("type", "message"):
            case "function_call":
                call = FunctionCall.model_validate(item)
                made = ToolCall(
                    id=call.call_id, function=CalledFunction(name=call.name, arguments=call.arguments)
                )
                before = messages[-1] if messages and messages[-1].role == "assistant" else None
                if before is not None:
                    messages.pop()
                said, calls = (before.content, before.tool_calls or []) if before else ("", [])
                messages.append(Message(role="assistant", content=said, tool_calls=[*calls, made]))
            case "function_call_output":
                output = FunctionCallOutput.model_validate(item)
                messages.append(
                    Message(role="tool", content=text_of(output.output), tool_call_id=output.call_id)
                )
            case _:
                message = InputMessage.model_validate(item)
                messages.append(Message(role=message.role, content=text_of(message.content)))
    return messages


def _chat_tools(body: ResponseRequest) -> list[dict[str, Any]]:
    """The tools as chat completions have them."""
    return [
        {"type": "function", "function": tool.model_dump(exclude_none=True, exclude={"type", "strict"})}
        for tool in body.tools or []
    ]


def _calling(body: ResponseRequest) -> Calling | None:
    """Which tools may be called; None where none may."""
    tools, choice = _chat_tools(body), body.tool_choice
    if not tools and choice not in (None, "none", "auto"):
        raise ApiError(400, "tool_choice: there are no tools to choose from", "tool_choice", "invalid_value")
    if not tools or choice == "none":
        return None
    parallel = body.parallel_tool_calls is not False
    if isinstance(choice, ChosenTool):
        return Calling(tools, choice.name, parallel=False)
    if isinstance(choice, AllowedResponseTools):
        return Calling(allowed(tools, {tool.name for tool in choice.tools}), choice.mode, parallel)
    return Calling(tools, choice or "auto", parallel)


def _schema_of(body: ResponseRequest) -> Mapping[str, Any] | None:
    wanted = body.text.format if body.text else None
    if wanted is None or wanted.type == "text":
        return None
    return {"type": "object"} if wanted.schema_ is None else wanted.schema_


class ResponseAnswer:
    """The answer to a request, as a whole or as events."""

    def __init__(
        self, service: Service, owner: str | None, served: Served, body: ResponseRequest, choice: Choice,
        usage: Usage, begun: float,
    ) -> None:  # fmt: skip
        self._service, self._owner, self._served, self._body = service, owner, served, body
        self._choice, self._usage, self._begun = choice, usage, begun
        self._reader = reader_for(served.model.tokenizer, _calling(body) is not None)
        self._id, self._created = new_id("resp"), int(time.time())
        self._output: list[Item] = []
        self._numbers = itertools.count()

    async def whole(self) -> dict[str, Any]:
        """The object response."""
        async with contextlib.aclosing(self._told()) as told:
            async for _ in told:
                pass
        return self._object(self._status())

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The events of a stream."""
        yield self._event("response.created", response=self._object("in_progress"))
        yield self._event("response.in_progress", response=self._object("in_progress"))
        try:
            async with contextlib.aclosing(self._told()) as told:
                async for kind, values in told:
                    yield self._event(kind, **values)
            status = self._status()
            yield self._event(f"response.{status}", response=self._object(status))
        except Exception as error:  # noqa: BLE001  # as in every route, but the answer has begun
            said = as_api_error(error).body["error"]
            failed = {
                **self._object("failed"),
                "error": {"code": said["code"] or said["type"], "message": said["message"]},
            }
            yield self._event("response.failed", response=failed)

    async def _told(self) -> AsyncGenerator[tuple[str, dict[str, Any]], None]:
        """The events between the first and the last; keeps the response and the account at the end."""
        first = True
        try:
            async with contextlib.aclosing(self._choice.pieces()) as pieces:
                async for piece in pieces:
                    if first:
                        self._service.figures.first_token(self._served.model.name, self._begun)
                        first = False
                    logprobs = [
                        logprob(self._served, chosen) for chosen in piece.tokens if chosen.logprob is not None
                    ]
                    for told in self._take(self._reader.push(piece.text), logprobs):
                        yield told
            for told in [*self._take(self._reader.finish(), []), *self._end_item()]:
                yield told
            if not self._output:  # an answer has a message, though it may be empty
                for told in [*self._take([Part("text", "")], []), *self._end_item()]:
                    yield told
        finally:
            self._usage.completion = self._choice.completion
            self._service.account(self._owner, self._served, self._usage)
        if self._body.store is not False:
            await asyncio.to_thread(self._keep)

    def _take(self, parts: Any, logprobs: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
        """What is told of some parts."""
        told: list[tuple[str, dict[str, Any]]] = []
        for part in parts:
            if part.kind == "call":
                told += [*self._end_item(), *self._begin_call(part)]
            elif part.kind == "arguments":
                self._output[-1]["arguments"] += part.text
                told.append(("response.function_call_arguments.delta", {**self._place(), "delta": part.text}))
            else:
                if not self._output:
                    told += self._begin_message()
                content = self._output[-1]["content"][0]
                content["text"] += part.text
                content["logprobs"] += logprobs
                delta = {"delta": part.text, "logprobs": logprobs, "content_index": 0}
                told.append(("response.output_text.delta", {**self._place(), **delta}))
                logprobs = []
        return told

    def _begin_message(self) -> list[tuple[str, dict[str, Any]]]:
        item: Item = {
            "type": "message",
            "id": new_id("msg"),
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        self._output.append(item)
        added = ("response.output_item.added", {"output_index": len(self._output) - 1, "item": dict(item)})
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        item["content"] = [part]
        return [
            added,
            ("response.content_part.added", {**self._place(), "content_index": 0, "part": _copy(part)}),
        ]

    def _begin_call(self, part: Part) -> list[tuple[str, dict[str, Any]]]:
        item: Item = {
            "type": "function_call", "id": new_id("fc"), "call_id": part.id, "name": part.text, "arguments": "",
            "status": "in_progress",
        }  # fmt: skip
        self._output.append(item)
        return [("response.output_item.added", {"output_index": len(self._output) - 1, "item": dict(item)})]

    def _end_item(self) -> list[tuple[str, dict[str, Any]]]:
        """What is told where an item is over; nothing where there is none."""
        if not self._output or self._output[-1]["status"] != "in_progress":
            return []
        item = self._output[-1]
        item["status"] = "incomplete" if self._choice.finish == "length" else "completed"
        done = ("response.output_item.done", {"output_index": len(self._output) - 1, "item": _copy(item)})
        if item["type"] == "function_call":
            called = {"name": item["name"], "arguments": item["arguments"]}
            return [("response.function_call_arguments.done", {**self._place(), **called}), done]
        part, place = item["content"][0], {**self._place(), "content_index": 0}
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        return [
            ("response.output_text.done", {**place, **text}),
            ("response.content_part.done", {**place, "part": _copy(part)}),
            done,
        ]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _event(self, kind: str, **values: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(self._numbers), **values}, kind)

    def _status(self) -> str:
        return "incomplete" if self._choice.finish == "length" else "completed"

    def _keep(self) -> None:
        self._service.store.create_response(
            self._owner,
            self._id,
            model=self._served.name,
            input_items=[{"id": new_id("msg"), **item} for item in _input_items(self._body)],
            output_items=[_without_logprobs(item) for item in self._output],
            previous_response_id=self._body.previous_response_id,
        )

    def _object(self, status: str) -> dict[str, Any]:
        body, usage = self._body, self._usage
        told = {
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt + usage.completion,
        }
        return {
            **_frame(self._id, self._created, body.model, status, self._output, body.previous_response_id),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "store": body.store is not False,
            "temperature": 1.0 if body.temperature is None else body.temperature,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "text": {"format": _shown_format(body)},
            "tool_choice": _shown_choice(body),
            "tools": [tool.model_dump(exclude_none=True) for tool in body.tools or []],
            "truncation": body.truncation or ("auto" if self._service.shorten else "disabled"),
            "usage": told if status in ("completed", "incomplete") else None,
            "user": body.user,
        }  # fmt: skip


def _shown_choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _shown_format(body: ResponseRequest) -> dict[str, Any]:
    wanted = body.text.format if body.text else None
    return {"type": "text"} if wanted is None else wanted.model_dump(by_alias=True, exclude_none=True)


def _frame(
    response_id: str, created: int, model: str, status: str, output: Sequence[Item], previous: str | None
) -> dict[str, Any]:
    return {
        "id": response_id,
        "object": "response",
        "created_at": created,
        "status": status,
        "background": False,
        "error": None,
        "model": model,
        "output": [_copy(item) for item in output],
        "previous_response_id": previous,
        "reasoning": {"effort": None, "summary": None},
    }


def _copy(value: Any) -> Any:
    """As it is now: events are written later than they are made."""
    return json.loads(json.dumps(value))


def _without_logprobs(item: Item) -> Item:
    item = _copy(item)
    for part in item.get("content", []):
        part["logprobs"] = []
    return item


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, request: Request) -> Response:
    """A response that was kept."""
    row = await asyncio.to_thread(_row, service_of(request), owner_of(request), response_id)
    frame = _frame(row.id, row.created, row.model, "completed", row.output_items, row.previous_response_id)
    rest: Item = {
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
    }
    return Json({**frame, **rest, "temperature": None, "top_p": None, "tool_choice": "auto", "tools": []})


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response; what goes on from it cannot be gone on with any more."""
    service, owner = service_of(request), owner_of(request)
    await asyncio.to_thread(_row, service, owner, response_id)
    await asyncio.to_thread(service.store.delete_response, owner, response_id)
    return Json({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(response_id: str, request: Request, limit: Limit = 20) -> Response:
    """What was new in the request of a response, the last first."""
    row = await asyncio.to_thread(_row, service_of(request), owner_of(request), response_id)
    items = [_as_listed(item) for item in reversed(row.input_items)][:limit]
    ends = {"first_id": items[0]["id"] if items else None, "last_id": items[-1]["id"] if items else None}
    return Json({"object": "list", "data": items, "has_more": len(row.input_items) > limit, **ends})


def _as_listed(item: Item) -> Item:
    if isinstance(item.get("content"), str):
        item = {**item, "content": [{"type": "input_text", "text": item["content"]}]}
    return {"status": "completed", **item}


def _row(service: Service, owner: str | None, response_id: str) -> StoredResponse:
    row = service.store.get_response(owner, response_id)
    if row is None:
        raise ApiError(
            404, f"there is no response {response_id[:100]!r}", "response_id", "response_not_found"
        )
    return row
