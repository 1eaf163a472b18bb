"""POST /v1/responses: the newer form of chat; responses are stored, and a later request continues one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, Request, Response

from mm_rec.inference.sampler import SamplingParams
from mm_rec.serving.api_route import ApiRoute, Limit
from mm_rec.serving.context import RequestContext, ServerContext, get_context, get_owner, request_context
from mm_rec.serving.errors import ApiError
from mm_rec.serving.generation import EnginePrompt, TokenUsage, start_choices
from mm_rec.serving.protocol.answer_form import (
    answer_parsers,
    constraint_factory,
    output_schema,
    template_tools,
    tool_call_options,
)
from mm_rec.serving.protocol.encoding import respond
from mm_rec.serving.protocol.events import Answer
from mm_rec.serving.protocol.preprocessing import (
    DROP_TURNS,
    SEND_LESS,
    FieldNames,
    ToolSchemas,
    build_sampling,
    fit_prompt,
    to_chat_messages,
)
from mm_rec.serving.protocol.response_encoder import ResponseEncoder, text_format, without_logprobs
from mm_rec.serving.protocol.response_items import (
    Item,
    input_items,
    referenced_responses,
    resolve_references,
    to_chat_tools,
    to_messages,
    to_stored_items,
    to_tool_choice,
)
from mm_rec.serving.protocol.response_schemas import ResponseRequest
from mm_rec.serving.protocol.tool_calls import ReasoningParser, needs_special_tokens
from mm_rec.serving.sse import SafeJSONResponse
from mm_rec.serving.streaming import cancel_on_disconnect
from mm_rec.store.tables import StoredResponse

router = APIRouter(route_class=ApiRoute)
# Of what is kept, one request reads at most so many bytes of JSON: one response of the largest body fits.
_MAX_KEPT_BYTES = 32 * 2**20
_MAX_REFERENCED = 128  # responses that the references of one request may name


@router.post("/v1/responses")
async def create_response(body: ResponseRequest, request: Request) -> Response:
    """Answer, after what a previous response answered."""
    async with contextlib.AsyncExitStack() as stack:
        context = stack.enter_context(request_context(request, body.model))
        items = await context.server.store_threads.read(_read_items, context, body)
        begun = _begin(context, body, items, stack)
        answer = await cancel_on_disconnect(request.receive, begun, context.seconds_left)
        encoder = ResponseEncoder(context, body, isinstance(answer.parsers[0], ReasoningParser))
        return await respond(
            request, context, answer, encoder, stream=bool(body.stream), stack=stack,
            on_end=partial(_store_response, context, body, items, encoder),
        )  # fmt: skip


def _read_items(context: RequestContext, body: ResponseRequest) -> list[Item]:
    """Return the items of the input, those that it refers to among them."""
    items, store = input_items(body), context.server.store
    named = referenced_responses(items)
    if len(named) > _MAX_REFERENCED:
        message = (
            f"input: its item references name {len(named):,} responses; {_MAX_REFERENCED} are the most. "
            "Send the items themselves"
        )
        raise ApiError(400, message, "input", "invalid_value")
    remedy = "Send the items themselves, or fewer references"
    _require_kept_size(store.responses_size(context.owner, named), "input", remedy)
    return resolve_references(items, partial(store.get_response, context.owner))


def _require_kept_size(size: int, field: str, remedy: str) -> None:
    """Raise ApiError where the kept responses that a request names, in bytes, are too much to be read."""
    if size > _MAX_KEPT_BYTES:
        sizes = f"{size:,} bytes; {_MAX_KEPT_BYTES:,} are the most"
        message = f"{field}: the responses that it names take {sizes}. {remedy}"
        raise ApiError(400, message, field, "context_length_exceeded")


async def _begin(
    context: RequestContext, body: ResponseRequest, items: Sequence[Item], stack: contextlib.AsyncExitStack
) -> Answer:
    """Read the request and start its choice."""
    variant = context.variant
    tools = template_tools(variant, to_chat_tools(body))
    call_options = tool_call_options(tools, to_tool_choice(body), body.parallel_tool_calls is not False)
    schema = _output_schema(body)
    previous = await context.server.store_threads.read(_previous_items, context, body.previous_response_id)
    prompt, sampling = await asyncio.to_thread(_prepare, context, body, previous, items, tools)
    wants_logprobs = body.top_logprobs or "message.output_text.logprobs" in (body.include or [])
    [choice] = await start_choices(
        variant, prompt, [sampling], context.seconds_left, context.meter,
        constrain=constraint_factory(context, call_options, schema, "text.format", prompt),
        logprobs=(body.top_logprobs or 0) if wants_logprobs else None,
        with_special_tokens=needs_special_tokens(variant, call_options is not None),
    )  # fmt: skip
    stack.callback(choice.cancel)
    parsers = answer_parsers(variant, prompt, call_options, schema)
    return Answer([choice], parsers, TokenUsage(prompt.length, prompt.cached_tokens))


def _prepare(
    context: RequestContext, body: ResponseRequest, previous: Sequence[Item], items: Sequence[Item],
    tools: ToolSchemas,
) -> tuple[EnginePrompt, SamplingParams]:  # fmt: skip
    messages, places = to_messages(body, items, previous)
    if not messages:
        raise ApiError(400, "input: there is nothing to answer", "input", "missing_required_parameter")
    truncate = body.truncation == "auto" if body.truncation else context.server.truncate
    names = FieldNames("input", "max_output_tokens", SEND_LESS if truncate else DROP_TURNS)
    plain = to_chat_messages(context.variant, messages, lambda number, part: places[number])
    prompt, most = fit_prompt(context, plain, tools, body.max_output_tokens, names, truncate)
    return prompt, build_sampling(context.variant, body, most)


def _previous_items(context: RequestContext, response_id: str | None) -> list[Item]:
    """Return the items of a response and of all before it in its chain; raises ApiError, 404."""
    if response_id is None:
        return []
    size = context.server.store.response_chain_size(context.owner, response_id)
    remedy = "Begin a new conversation, with what matters of this one"
    _require_kept_size(size, "previous_response_id", remedy)
    chain = context.server.store.response_chain(context.owner, response_id)
    if not chain or chain[0].previous_response_id is not None:
        raise ApiError(
            404, f"there is no response {response_id[:100]!r}, or one before it was deleted",
            "previous_response_id", "previous_response_not_found",
        )  # fmt: skip
    return [item for row in chain for item in (*row.input_items, *row.response["output"])]


def _output_schema(body: ResponseRequest) -> Mapping[str, Any] | None:
    wanted = text_format(body)
    return output_schema(wanted.type, wanted.schema_)


async def _store_response(
    context: RequestContext, body: ResponseRequest, items: Sequence[Item], encoder: ResponseEncoder
) -> None:
    """Store a response, where the request does not say otherwise."""
    if body.store is False:
        return
    await context.server.store_threads.write(
        context.server.store.create_response,
        context.owner,
        encoder.id,
        model=context.variant.name,
        input_items=to_stored_items(items, encoder.id),
        response=without_logprobs(encoder.body()),
        previous_response_id=body.previous_response_id,
    )


@router.get("/v1/responses/{response_id}")
async def get_response(response_id: str, request: Request, stream: bool = False) -> Response:
    """A response that was kept, as it was given, but for its log-probabilities."""
    if stream:
        message = "stream: a response that was kept comes as a whole; leave this out"
        raise ApiError(400, message, "stream", "invalid_value")
    row = await _row(get_context(request), get_owner(request), response_id)
    return SafeJSONResponse(row.response)


@router.delete("/v1/responses/{response_id}")
async def delete_response(response_id: str, request: Request) -> Response:
    """Forget a response; what goes on from it cannot be gone on with any more."""
    context, owner = get_context(request), get_owner(request)
    await _row(context, owner, response_id)
    await context.store_threads.write(context.store.delete_response, owner, response_id)
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
    row = await _row(get_context(request), get_owner(request), response_id)
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


async def _row(context: ServerContext, owner: str | None, response_id: str) -> StoredResponse:
    row = await context.store_threads.read(context.store.get_response, owner, response_id)
    if row is None:
        raise ApiError(
            404, f"there is no response {response_id[:100]!r}", "response_id", "response_not_found"
        )
    return row
