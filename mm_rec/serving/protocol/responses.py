"""POST /v1/responses: the newer form of chat; responses are stored, and a later request continues one."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from mm_rec.inference.sampler import SamplingParams
from mm_rec.serving.context import ServerContext, get_context, get_owner
from mm_rec.serving.errors import ApiError, as_api_error
from mm_rec.serving.generation import Choice, EnginePrompt, TokenUsage, start_choices
from mm_rec.serving.model_registry import ModelVariant
from mm_rec.serving.protocol.outputs import count_reasoning_tokens, logprobs_content, stream_deltas
from mm_rec.serving.protocol.preprocessing import (
    DROP_TURNS,
    SEND_LESS,
    FieldNames,
    ToolSchemas,
    build_sampling,
    constraint_factory,
    fit_prompt,
    output_schema,
    template_tools,
    to_chat_messages,
    tool_call_options,
)
from mm_rec.serving.protocol.response_items import (
    Item,
    input_items,
    to_chat_tools,
    to_messages,
    to_stored_items,
    to_tool_choice,
)
from mm_rec.serving.protocol.response_schemas import ResponseRequest, TextFormat
from mm_rec.serving.protocol.tool_calls import (
    OutputParser,
    ParsedDelta,
    ReasoningParser,
    make_parser,
    needs_special_tokens,
)
from mm_rec.serving.routes import Limit, require_queries
from mm_rec.serving.sse import SafeJSONResponse, sse_event
from mm_rec.serving.store.tables import StoredResponse, new_id
from mm_rec.serving.streaming import EventStreamResponse, cancel_on_disconnect
from mm_rec.tokenizers.assistant_format import assistant_format

router = APIRouter()
ResponseEvent = tuple[str, dict[str, Any]]  # type and fields


@router.post("/v1/responses")
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer, after what a previous response answered."""
    context, owner = get_context(request), get_owner(request)
    async with contextlib.AsyncExitStack() as stack:
        answer = await _begin(context, owner, body, stack)
        if not body.stream:
            return SafeJSONResponse(await cancel_on_disconnect(request.receive, answer.collect()))
        return EventStreamResponse(answer.events(), stack.pop_all())


async def _begin(
    context: ServerContext, owner: str | None, body: ResponseRequest, stack: contextlib.AsyncExitStack
) -> ResponseStream:
    """Read the request and start its choice."""
    variant, started = context.registry.find(body.model), time.perf_counter()
    tools = template_tools(variant, to_chat_tools(body))
    call_options = tool_call_options(tools, to_tool_choice(body), body.parallel_tool_calls is not False)
    prompt, sampling = await asyncio.to_thread(_prepare, context, owner, variant, body, tools)
    wants_logprobs = body.top_logprobs or "message.output_text.logprobs" in (body.include or [])
    [choice] = await start_choices(
        variant, prompt, [sampling], context.limits.timeout_seconds,
        constrain=constraint_factory(variant, call_options, _output_schema(body), "text.format", prompt),
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        with_special_tokens=needs_special_tokens(variant, call_options is not None),
    )  # fmt: skip
    stack.callback(choice.cancel)
    parser = make_parser(assistant_format(variant.model.tokenizer), prompt.ending, call_options is not None)
    usage = TokenUsage(prompt.length, prompt.cached_tokens)
    return ResponseStream(context, owner, variant, body, choice, parser, usage, started)


def _prepare(
    context: ServerContext,
    owner: str | None,
    variant: ModelVariant,
    body: ResponseRequest,
    tools: ToolSchemas,
) -> tuple[EnginePrompt, SamplingParams]:
    messages, places = to_messages(body, _previous_items(context, owner, body.previous_response_id))
    if not messages:
        raise ApiError(400, "input: there is nothing to answer", "input", "missing_required_parameter")
    truncate = body.truncation == "auto" if body.truncation else context.truncate
    names = FieldNames("input", "max_output_tokens", SEND_LESS if truncate else DROP_TURNS)
    plain = to_chat_messages(variant, messages, lambda number, part: places[number])
    prompt, most = fit_prompt(variant, plain, tools, body.max_output_tokens, context.limits, names, truncate)
    return prompt, build_sampling(variant, body, most)


def _previous_items(context: ServerContext, owner: str | None, response_id: str | None) -> list[Item]:
    """Return the items of a response and of all before it in its chain; raises ApiError, 404."""
    if response_id is None:
        return []
    chain = context.store.response_chain(owner, response_id)
    if not chain or chain[0].previous_response_id is not None:
        raise ApiError(
            404, f"there is no response {response_id[:100]!r}, or one before it was deleted",
            "previous_response_id", "previous_response_not_found",
        )  # fmt: skip
    return [item for row in chain for item in (*row.input_items, *row.response["output"])]


def _output_schema(body: ResponseRequest) -> Mapping[str, Any] | None:
    wanted = _text_format(body)
    return output_schema(wanted.type, wanted.schema_)


def _text_format(body: ResponseRequest) -> TextFormat:
    return (body.text.format if body.text else None) or TextFormat()


class ResponseStream:
    """The response to a request, collected or as events.

    Each event is serialised before the next is made: it refers to the output items themselves, which go on growing.
    """

    def __init__(
        self, context: ServerContext, owner: str | None, variant: ModelVariant, body: ResponseRequest, choice: Choice,
        parser: OutputParser, usage: TokenUsage, started: float,
    ) -> None:  # fmt: skip
        self._context, self._owner, self._variant, self._body = context, owner, variant, body
        self._choice, self._parser, self._usage, self._started = choice, parser, usage, started
        self._id, self._created, self._ended = new_id("resp"), int(time.time()), 0
        self._output: list[Item] = []
        self._logprobs: list[Item] = []  # of tokens whose text has not come yet
        self._sequence_numbers = itertools.count()
        self._reasons = isinstance(parser, ReasoningParser)

    async def collect(self) -> dict[str, Any]:
        """Return the response object."""
        async with contextlib.aclosing(self._output_events()) as events:
            async for _ in events:
                pass
        return self._response_object(self._status())

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of a stream."""
        yield self._event("response.created", response=self._response_object("in_progress"))
        yield self._event("response.in_progress", response=self._response_object("in_progress"))
        try:
            async with contextlib.aclosing(self._output_events()) as events:
                async for kind, values in events:
                    yield self._event(kind, **values)
            status = self._status()
            yield self._event(f"response.{status}", response=self._response_object(status))
        except Exception as error:  # noqa: BLE001  # as in every route, but the answer has begun
            said = {"code": "server_error", "message": as_api_error(error).body["error"]["message"]}
            yield self._event("response.failed", response={**self._response_object("failed"), "error": said})

    async def _output_events(self) -> AsyncGenerator[ResponseEvent, None]:
        """Yield the events between the first and the last; store the response at the end."""
        deltas = stream_deltas(
            self._context, self._owner, self._variant, [self._choice], self._usage, self._started
        )
        async with contextlib.aclosing(deltas):
            async for _, delta in deltas:
                self._logprobs += logprobs_content(self._variant, delta)
                for event in self._events_of(self._parser.push(delta.text)):
                    yield event
        for event in self._finish():
            yield event
        if self._body.store is not False:
            await asyncio.to_thread(self._store_response)

    def _events_of(self, parts: Iterable[ParsedDelta]) -> Iterator[ResponseEvent]:
        """Yield the events of parsed deltas."""
        for part in parts:
            if part.kind == "call":
                yield from self._end_item()
                yield from self._begin_call(part)
            elif part.kind == "arguments":
                self._output[-1]["arguments"] += part.text
                yield "response.function_call_arguments.delta", {**self._position(), "delta": part.text}
            elif part.kind == "reasoning":
                if not self._output:
                    yield from self._begin_reasoning()
                self._output[-1]["content"][0]["text"] += part.text
                event = {**self._position(), "content_index": 0, "delta": part.text}
                yield "response.reasoning_text.delta", event
                continue  # the text behind it may have come with it, and its log-probabilities
            else:
                if self._reasons and not any(item["type"] == "message" for item in self._output):
                    self._logprobs = _after_reasoning(self._logprobs, part.text)
                yield from self._ensure_message()
                content = self._output[-1]["content"][0]
                content["text"] += part.text
                content["logprobs"] += self._logprobs
                delta = {"delta": part.text, "logprobs": self._logprobs, "content_index": 0}
                yield "response.output_text.delta", {**self._position(), **delta}
            self._logprobs = []  # those of a call's tokens are not sent

    def _finish(self) -> Iterator[ResponseEvent]:
        """Yield the last events: an answer always has a message, though it may be empty."""
        yield from self._events_of(self._parser.finish())
        thought = [item["content"][0]["text"] for item in self._output if item["type"] == "reasoning"]
        self._usage.reasoning_tokens = count_reasoning_tokens(self._variant, "".join(thought))
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
        item: Item = {"type": "message", "id": new_id("msg"), "role": "assistant"}
        yield from self._begin_content(
            item, {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        )

    def _begin_reasoning(self) -> Iterator[ResponseEvent]:
        item: Item = {"type": "reasoning", "id": new_id("rs"), "summary": []}
        yield from self._begin_content(item, {"type": "reasoning_text", "text": ""})

    def _begin_content(self, item: Item, part: Item) -> Iterator[ResponseEvent]:
        """Begin an item that has one part of text."""
        item.update(status="in_progress", content=[])
        yield self._begin_item(item)
        item["content"] = [part]
        yield "response.content_part.added", {**self._position(), "content_index": 0, "part": part}

    def _begin_call(self, part: ParsedDelta) -> Iterator[ResponseEvent]:
        item: Item = {
            "type": "function_call", "id": new_id("fc"), "call_id": part.id, "name": part.text, "arguments": "",
            "status": "in_progress",
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

    def _position(self) -> dict[str, Any]:
        return {"item_id": self._output[-1]["id"], "output_index": len(self._output) - 1}

    def _event(self, kind: str, **values: Any) -> bytes:
        return sse_event({"type": kind, "sequence_number": next(self._sequence_numbers), **values}, kind)

    def _status(self) -> str:
        return "incomplete" if self._choice.finish_reason == "length" else "completed"

    def _store_response(self) -> None:
        kept = self._response_object(self._status())
        kept["output"] = [_without_logprobs(item) for item in kept["output"]]
        self._context.store.create_response(
            self._owner,
            self._id,
            model=self._variant.name,
            input_items=to_stored_items(input_items(self._body)),
            response=kept,
            previous_response_id=self._body.previous_response_id,
        )

    def _response_object(self, status: str) -> dict[str, Any]:
        """Return the response object as it is now."""
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
            "text": {"format": _text_format(body).model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": _tool_choice_object(body),
            "tools": [tool.model_dump() for tool in body.tools or []],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": 1.0 if body.top_p is None else body.top_p,
            "truncation": body.truncation or ("auto" if self._context.truncate else "disabled"),
            "usage": _usage_object(self._usage) if is_over else None,
            "user": body.user,
        }


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


def _without_logprobs(item: Item) -> Item:
    """Return an item as it is stored: log-probabilities can be a thousand times longer than the text."""
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
    row = await asyncio.to_thread(_row, get_context(request), get_owner(request), response_id)
    return SafeJSONResponse(row.response)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response; what goes on from it cannot be gone on with any more."""
    context, owner = get_context(request), get_owner(request)
    await asyncio.to_thread(_row, context, owner, response_id)
    await asyncio.to_thread(context.store.delete_response, owner, response_id)
    return SafeJSONResponse({"id": response_id, "object": "response", "deleted": True})


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
    row = await asyncio.to_thread(_row, get_context(request), get_owner(request), response_id)
    items = row.input_items if order == "asc" else row.input_items[::-1]
    if after is not None:
        # The last of one id: ids may be the client's, and what comes after never begins anew.
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise ApiError(400, f"after: this response has no item {after[:100]!r}", "after", "invalid_value")
        items = items[places[-1] + 1 :]
    page = items[:limit]
    ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return SafeJSONResponse({"object": "list", "data": page, "has_more": len(items) > limit, **ends})


def _row(context: ServerContext, owner: str | None, response_id: str) -> StoredResponse:
    row = context.store.get_response(owner, response_id)
    if row is None:
        raise ApiError(
            404, f"there is no response {response_id[:100]!r}", "response_id", "response_not_found"
        )
    return row
