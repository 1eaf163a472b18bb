"""POST /v1/responses: the newer form of chat; what was answered is kept, and a later request goes on from it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from mm_rec.inference.sampling import Sampling
from mm_rec.serving.answers import logprobs_of, pieces_of, reasoning_tokens
from mm_rec.serving.errors import ApiError, as_api_error
from mm_rec.serving.generation import Choice, Prompt, Usage, begin_choices
from mm_rec.serving.models import Served
from mm_rec.serving.requests import (
    DROP_TURNS,
    SEND_LESS,
    Names,
    Schemas,
    calling_of,
    chat_messages,
    constrainer,
    conversation_prompt,
    sampling_of,
    schema_of,
    template_tools,
)
from mm_rec.serving.response_items import Item, choice_of, input_items, listed, messages_of, tools_of
from mm_rec.serving.response_schemas import ResponseRequest, TextFormat
from mm_rec.serving.routes import Limit, require_queries
from mm_rec.serving.service import Service, owner_of, service_of
from mm_rec.serving.sse import Json, event
from mm_rec.serving.streaming import Stream, unless_gone
from mm_rec.serving.tables import StoredResponse, new_id
from mm_rec.serving.tool_calls import Part, Reader, ReasoningReader, reader_for, reads_special
from mm_rec.tokenizers.answer_form import answer_form

router = APIRouter()
Told = tuple[str, dict[str, Any]]  # the type of an event, and what it says


@router.post("/v1/responses")
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer, after what a previous response answered."""
    service, owner = service_of(request), owner_of(request)
    async with contextlib.AsyncExitStack() as stack:
        answer = await _begin(service, owner, body, stack)
        if not body.stream:
            return Json(await unless_gone(request.receive, answer.whole()))
        return Stream(answer.events(), stack.pop_all())


async def _begin(
    service: Service, owner: str | None, body: ResponseRequest, stack: contextlib.AsyncExitStack
) -> ResponseAnswer:
    """Read what is asked for, and start writing."""
    served, begun = service.registry.find(body.model), time.perf_counter()
    tools = template_tools(served, tools_of(body))
    calling = calling_of(tools, choice_of(body), body.parallel_tool_calls is not False)
    prompt, sampling = await asyncio.to_thread(_plan, service, owner, served, body, tools)
    wants_logprobs = body.top_logprobs or "message.output_text.logprobs" in (body.include or [])
    [choice] = await begin_choices(
        served, prompt, [sampling], service.limits.seconds,
        constrain=constrainer(served, calling, _schema_of(body), "text.format", prompt),
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        special=reads_special(served, calling is not None),
    )  # fmt: skip
    stack.callback(choice.cancel)
    reader = reader_for(answer_form(served.model.tokenizer), prompt.ending, calling is not None)
    usage = Usage(prompt.length, prompt.cached)
    return ResponseAnswer(service, owner, served, body, choice, reader, usage, begun)


def _plan(
    service: Service, owner: str | None, served: Served, body: ResponseRequest, tools: Schemas
) -> tuple[Prompt, Sampling]:
    messages, places = messages_of(body, _earlier(service, owner, body.previous_response_id))
    if not messages:
        raise ApiError(400, "input: there is nothing to answer", "input", "missing_required_parameter")
    shorten = body.truncation == "auto" if body.truncation else service.shorten
    names = Names("input", "max_output_tokens", SEND_LESS if shorten else DROP_TURNS)
    plain = chat_messages(served, messages, lambda number, part: places[number])
    prompt, most = conversation_prompt(
        served, plain, tools, body.max_output_tokens, service.limits, names, shorten
    )
    return prompt, sampling_of(served, body, most)


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
    return [item for row in chain for item in (*row.input_items, *row.response["output"])]


def _schema_of(body: ResponseRequest) -> Mapping[str, Any] | None:
    wanted = _format_of(body)
    return schema_of(wanted.type, wanted.schema_)


def _format_of(body: ResponseRequest) -> TextFormat:
    return (body.text.format if body.text else None) or TextFormat()


class ResponseAnswer:
    """The answer to a request, as a whole or as events.

    Events are written before the next is made: what they say are the items themselves, which go on growing.
    """

    def __init__(
        self, service: Service, owner: str | None, served: Served, body: ResponseRequest, choice: Choice,
        reader: Reader, usage: Usage, begun: float,
    ) -> None:  # fmt: skip
        self._service, self._owner, self._served, self._body = service, owner, served, body
        self._choice, self._reader, self._usage, self._begun = choice, reader, usage, begun
        self._id, self._created, self._ended = new_id("resp"), int(time.time()), 0
        self._output: list[Item] = []
        self._logprobs: list[Item] = []  # of tokens whose text has not come yet
        self._numbers = itertools.count()
        self._thinks = isinstance(reader, ReasoningReader)

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
            said = {"code": "server_error", "message": as_api_error(error).body["error"]["message"]}
            yield self._event("response.failed", response={**self._object("failed"), "error": said})

    async def _told(self) -> AsyncGenerator[Told, None]:
        """The events between the first and the last; keeps the response at the end."""
        pieces = pieces_of(self._service, self._owner, self._served, [self._choice], self._usage, self._begun)
        async with contextlib.aclosing(pieces):
            async for _, piece in pieces:
                self._logprobs += logprobs_of(self._served, piece)
                for told in self._take(self._reader.push(piece.text)):
                    yield told
        for told in self._finish():
            yield told
        if self._body.store is not False:
            await asyncio.to_thread(self._keep)

    def _take(self, parts: Iterable[Part]) -> Iterator[Told]:
        """What is told of some parts."""
        for part in parts:
            if part.kind == "call":
                yield from self._end_item()
                yield from self._begin_call(part)
            elif part.kind == "arguments":
                self._output[-1]["arguments"] += part.text
                yield "response.function_call_arguments.delta", {**self._place(), "delta": part.text}
            elif part.kind == "reasoning":
                if not self._output:
                    yield from self._begin_reasoning()
                self._output[-1]["content"][0]["text"] += part.text
                told = {**self._place(), "content_index": 0, "delta": part.text}
                yield "response.reasoning_text.delta", told
                continue  # the text behind it may have come with it, and its log-probabilities
            else:
                if self._thinks and not any(item["type"] == "message" for item in self._output):
                    self._logprobs = _behind(self._logprobs, part.text)
                yield from self._require_message()
                content = self._output[-1]["content"][0]
                content["text"] += part.text
                content["logprobs"] += self._logprobs
                delta = {"delta": part.text, "logprobs": self._logprobs, "content_index": 0}
                yield "response.output_text.delta", {**self._place(), **delta}
            self._logprobs = []  # those of a call's tokens are not told

    def _finish(self) -> Iterator[Told]:
        """What is told where nothing more comes: an answer has a message, though it may be empty."""
        yield from self._take(self._reader.finish())
        thought = [item["content"][0]["text"] for item in self._output if item["type"] == "reasoning"]
        self._usage.reasoning = reasoning_tokens(self._served, "".join(thought))
        if self._thinks and (not self._output or self._output[-1]["type"] == "reasoning"):
            self._logprobs = []  # of reasoning alone
        yield from self._require_message()
        if self._output[-1]["type"] == "message":
            self._output[-1]["content"][0]["logprobs"] += self._logprobs
        yield from self._end_item()
        self._ended = int(time.time())

    def _require_message(self) -> Iterator[Told]:
        """Begin a message where none has begun: what was thought is over."""
        if self._output and self._output[-1]["type"] != "reasoning":
            return
        yield from self._end_item()
        item: Item = {"type": "message", "id": new_id("msg"), "role": "assistant"}
        yield from self._begin_content(
            item, {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        )

    def _begin_reasoning(self) -> Iterator[Told]:
        item: Item = {"type": "reasoning", "id": new_id("rs"), "summary": []}
        yield from self._begin_content(item, {"type": "reasoning_text", "text": ""})

    def _begin_content(self, item: Item, part: Item) -> Iterator[Told]:
        """Begin an item that has one part of text."""
        item.update(status="in_progress", content=[])
        yield self._begin_item(item)
        item["content"] = [part]
        yield "response.content_part.added", {**self._place(), "content_index": 0, "part": part}

    def _begin_call(self, part: Part) -> Iterator[Told]:
        item: Item = {
            "type": "function_call", "id": new_id("fc"), "call_id": part.id, "name": part.text, "arguments": "",
            "status": "in_progress",
        }  # fmt: skip
        yield self._begin_item(item)

    def _begin_item(self, item: Item) -> Told:
        self._output.append(item)
        return "response.output_item.added", {"output_index": len(self._output) - 1, "item": item}

    def _end_item(self) -> Iterator[Told]:
        """What is told where an item is over; nothing where none has begun."""
        if not self._output:
            return
        item, place = self._output[-1], self._place()
        item["status"] = self._status()
        if item["type"] == "function_call":
            called = {"name": item["name"], "arguments": item["arguments"]}
            yield "response.function_call_arguments.done", {**place, **called}
        else:
            part, place = item["content"][0], {**place, "content_index": 0}
            told = {key: part[key] for key in ("text", "logprobs") if key in part}
            yield f"response.{part['type']}.done", {**place, **told}
            yield "response.content_part.done", {**place, "part": part}
        yield "response.output_item.done", {"output_index": len(self._output) - 1, "item": item}

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _event(self, kind: str, **values: Any) -> bytes:
        return event({"type": kind, "sequence_number": next(self._numbers), **values}, kind)

    def _status(self) -> str:
        return "incomplete" if self._choice.finish == "length" else "completed"

    def _keep(self) -> None:
        kept = self._object(self._status())
        kept["output"] = [_without_logprobs(item) for item in kept["output"]]
        self._service.store.create_response(
            self._owner,
            self._id,
            model=self._served.name,
            input_items=listed(input_items(self._body)),
            response=kept,
            previous_response_id=self._body.previous_response_id,
        )

    def _object(self, status: str) -> dict[str, Any]:
        """The response as it is now."""
        body, is_over = self._body, status in ("completed", "incomplete")
        return {
            "id": self._id,
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
            "text": {"format": _format_of(body).model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": _shown_choice(body),
            "tools": [tool.model_dump() for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or ("auto" if self._service.shorten else "disabled"),
            "usage": _shown_usage(self._usage) if is_over else None,
            "user": body.user,
        }


def _shown_usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def _shown_choice(body: ResponseRequest) -> Any:
    choice = body.tool_choice or "auto"
    return choice if isinstance(choice, str) else choice.model_dump()


def _behind(logprobs: list[Item], text: str) -> list[Item]:
    """Those of the tokens that a text begins with, and what follows: what came before was reasoning."""
    said = text.encode()
    for place in range(len(logprobs) - 1, -1, -1):
        begun = b""
        for one in logprobs[place:]:
            begun += bytes(one["bytes"])
            if len(begun) >= len(said):
                break
        if begun.startswith(said):
            return logprobs[place:]
    return []


def _without_logprobs(item: Item) -> Item:
    """An item as it is kept: log-probabilities can be a thousand times longer than the text."""
    if item["type"] != "message":
        return item
    return {**item, "content": [{**part, "logprobs": []} for part in item["content"]]}


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, request: Request) -> Response:
    """A response that was kept, as it was given, but for its log-probabilities."""
    require_queries(request, "stream")
    if request.query_params.get("stream", "false") != "false":
        message = "stream: a response that was kept comes as a whole; leave this out"
        raise ApiError(400, message, "stream", "invalid_value")
    row = await asyncio.to_thread(_row, service_of(request), owner_of(request), response_id)
    return Json(row.response)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response; what goes on from it cannot be gone on with any more."""
    service, owner = service_of(request), owner_of(request)
    await asyncio.to_thread(_row, service, owner, response_id)
    await asyncio.to_thread(service.store.delete_response, owner, response_id)
    return Json({"id": response_id, "object": "response", "deleted": True})


@router.get("/v1/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    request: Request,
    after: str | None = None,
    limit: Limit = 20,
    order: Literal["asc", "desc"] = "desc",
) -> Response:
    """What was new in the request of a response: the last first, or with `order` asc the first."""
    require_queries(request, "after", "limit", "order")
    row = await asyncio.to_thread(_row, service_of(request), owner_of(request), response_id)
    items = row.input_items if order == "asc" else row.input_items[::-1]
    if after is not None:
        # The last of one id: ids may be the client's, and what comes after never begins anew.
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, f"after: this response has no item {after[:100]!r}", "after", "invalid_value")
        items = items[places[-1] + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return Json({"object": "list", "data": page, "has_more": len(items) > limit, **ends})


def _row(service: Service, owner: str | None, response_id: str) -> StoredResponse:
    row = service.store.get_response(owner, response_id)
    if row is None:
        raise ApiError(
            404, f"there is no response {response_id[:100]!r}", "response_id", "response_not_found"
        )
    return row
